"""The whole GPT, in construction order.

Input: tokens (B, T). Output: logits (B, T, V), always; the loss is in gptkit/training/loss.py. Knows nothing
of text, training or files, nor which positional encoding it has.

Shapes: B batch, T time, C width (n_embd), H heads, D head size (C / H), F hidden width of the MLP,
V vocabulary, L blocks.

Initial weights, by `init` (all from one generator):

    |                                | gpt2                     | modern                             |
    |--------------------------------|--------------------------|------------------------------------|
    | embeddings (token, position)   | normal, std 0.02         | normal, std 0.3 (0.02 where tied)  |
    | linear layers                  | normal, std 0.02         | normal, std 1 / sqrt(inputs)       |
    | projections back to the width  | normal, 0.02 / sqrt(2 L) | 0: every block starts as identity  |
    | lm_head (unless tied)          | normal, std 0.02         | 0: all tokens start equally likely |
    | biases; weights of layernorms  | 0; 1                     | 0; 1                               |
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gptkit.experiment.schema import ModelSettings
from gptkit.model import ops
from gptkit.model.cache import KeyValueCache
from gptkit.plugins import PositionalEncoding

LAYER_NORM_EPS = 1e-5  # added to the variance, as in GPT-2


class RMSNorm(nn.Module):
    """RMSNorm without a learnable scale; the next linear layer can absorb it."""

    weight = bias = None
    eps = ops.RMS_EPS

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x)


class LayerNorm(nn.LayerNorm):
    """LayerNorm with a learnable scale, and a bias if `bias` is set."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


def build_norm(settings: ModelSettings) -> RMSNorm | LayerNorm:
    if settings.norm == "rmsnorm":
        return RMSNorm()
    return LayerNorm(settings.n_embd, eps=LAYER_NORM_EPS, bias=settings.bias)


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each token to itself and to those before it (Vaswani et al. 2017)."""

    def __init__(self, settings: ModelSettings, layer: int) -> None:
        super().__init__()
        C = settings.n_embd
        self.layer = layer
        self.n_head = settings.n_head
        self.qk_norm = settings.qk_norm
        self.dropout = settings.dropout
        self.attention_dropout = settings.attention_share_dropped
        self.qkv = nn.Linear(C, 3 * C, bias=settings.bias)
        self.projection = nn.Linear(C, C, bias=settings.bias)

    def forward(
        self,
        x: Tensor,
        position: PositionalEncoding,
        positions: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C). `mask` as in `ops.attend`."""
        B, T, C = x.shape
        q, k, v = ops.split_heads(self.qkv(x), self.n_head)  # each (B, H, T, D)
        if self.qk_norm:
            q, k = ops.rms_norm(q), ops.rms_norm(k)
        q, k = (rotated.to(x.dtype) for rotated in position.rotate(q, k, positions))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, Tk, D), Tk >= T
        out = ops.attend(q, k, v, mask, self.attention_dropout if self.training else 0.0)  # (B, H, T, D)
        out = out.transpose(1, 2).reshape(B, T, C)
        return ops.dropout(self.projection(out), self.dropout, self.training)


class MLP(nn.Module):
    """Position-wise feed-forward network: linear, activation, linear.

    Activations: gelu and its tanh approximation (Hendrycks and Gimpel 2016; GPT-2 uses the latter), relu2
    (squared ReLU, So et al. 2021), swiglu (Shazeer 2020).
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        C = settings.n_embd
        self.kind = settings.mlp
        self.dropout = settings.dropout
        F_ = settings.hidden_width
        self.up = nn.Linear(C, F_ if self.kind != "swiglu" else 2 * F_, bias=settings.bias)
        self.projection = nn.Linear(F_, C, bias=settings.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # (B, T, F), or (B, T, 2 F) for swiglu
        h = ops.activate(self.kind, h)  # (B, T, F)
        return ops.dropout(self.projection(h), self.dropout, self.training)


class BlockLayers(NamedTuple):
    """The layers of a block, by their names in a checkpoint."""

    attention_norm: RMSNorm | LayerNorm
    attention_qkv: nn.Linear
    attention_projection: nn.Linear
    mlp_norm: RMSNorm | LayerNorm
    mlp_up: nn.Linear
    mlp_projection: nn.Linear


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP, each on its normalized input and added to it."""

    def __init__(self, settings: ModelSettings, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(settings)
        self.attention = CausalSelfAttention(settings, layer)
        self.mlp_norm = build_norm(settings)
        self.mlp = MLP(settings)

    def forward(
        self,
        x: Tensor,
        position: PositionalEncoding,
        positions: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), position, positions, mask, cache)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out

    def layers(self) -> BlockLayers:
        """The layers for an implementation that computes a block as a whole."""
        attention, mlp = self.attention, self.mlp
        return BlockLayers(
            self.attention_norm, attention.qkv, attention.projection, self.mlp_norm, mlp.up, mlp.projection
        )


class Blocks(nn.ModuleList):
    """All blocks, one after the other."""

    @ops.operation
    def forward(
        self,
        x: Tensor,
        position: PositionalEncoding,
        positions: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Tensor:
        for block in self:
            x = block(x, position, positions, mask, cache)
        return x


class GPT(nn.Module):
    """A decoder-only transformer."""

    def __init__(self, settings: ModelSettings, vocab_size: int, position: PositionalEncoding) -> None:
        super().__init__()
        self.settings = settings
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, settings.n_embd)
        self.position = position
        self.blocks = Blocks(Block(settings, layer) for layer in range(settings.n_layer))
        self.final_norm = build_norm(settings)
        self.lm_head = nn.Linear(settings.n_embd, vocab_size, bias=False)
        if settings.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T).

        With a cache, `tokens` continue the sequence that it holds, and are appended to it. Raises ValueError
        if they do not fit into the context.
        """
        T = tokens.size(1)
        start = cache.length if cache is not None else 0
        if start + T > self.settings.context_length:
            raise ValueError(f"{start + T} tokens, but the context holds {self.settings.context_length}")
        positions = torch.arange(start, start + T, device=tokens.device)
        mask = self._mask(positions, start)
        x = ops.embed(tokens, self.token_embedding.weight)  # (B, T, C)
        x = self.position.embed(x, positions).to(x.dtype)
        x = ops.dropout(x, self.settings.dropout, self.training)
        x = self.blocks(x, self.position, positions, mask, cache)
        if cache is not None:
            cache.advance(T)
        logits: Tensor = self.lm_head(self.final_norm(x))
        return logits

    def _mask(self, positions: Tensor, start: int) -> Tensor | None:
        """Added to the scores, (H or 1, T, start + T); None where `ops.attend` needs no mask."""
        T = positions.size(0)
        key_positions = torch.arange(start + T, device=positions.device)
        bias = self.position.bias(positions, key_positions)
        if bias is None and (start == 0 or T == 1):
            return None
        future = key_positions > positions.unsqueeze(1)  # (T, start + T)
        if bias is None:
            bias = torch.zeros((), device=positions.device)
        return torch.where(future, float("-inf"), bias.float()).view(-1, T, start + T)

    def new_cache(self, batch: int) -> KeyValueCache:
        """An empty cache for `batch` sequences."""
        weight = self.token_embedding.weight
        return KeyValueCache(
            n_layer=self.settings.n_layer,
            batch=batch,
            n_head=self.settings.n_head,
            context_length=self.settings.context_length,
            head_size=self.settings.n_embd // self.settings.n_head,
            device=weight.device,
            dtype=weight.dtype,
        )

    @property
    def parameter_count(self) -> int:
        """Number of parameters; tied weights count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draws all weights by the table above. The generator is on the CPU, so the weights must be too."""
        settings = self.settings
        modern = settings.init == "modern"
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5 if modern else 0.02
                if name.endswith(".projection"):
                    std = 0.0 if modern else 0.02 / math.sqrt(2 * settings.n_layer)
                if name == "lm_head":
                    if settings.tie_embeddings:
                        continue  # drawn as the embedding
                    std = 0.0 if modern else 0.02
                module.weight.normal_(0.0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                std = 0.3 if modern and not settings.tie_embeddings else 0.02
                module.weight.normal_(0.0, std, generator=generator)
