"""The whole GPT, in construction order.

In: tokens (B, T). Out: logits (B, T, V), always; the loss lives in gptkit/training/loss.py. Knows nothing of
text, training or files, and never which positional encoding it has.

Shapes: B batch, T time, C width (n_embd), H heads, D head size (C / H), F hidden width of the MLP,
V vocabulary, L blocks.

Initial weights, by `init` (all from one generator):

    |                                | gpt2                     | modern                             |
    |--------------------------------|--------------------------|------------------------------------|
    | embeddings (token, position)   | normal, std 0.02         | normal, std 0.3 (0.02 where tied)  |
    | linear layers                  | normal, std 0.02         | normal, std 1 / sqrt(inputs)       |
    | projections back to the width  | normal, 0.02 / sqrt(2 L) | 0: every block starts as identity  |
    | lm_head (where not tied)       | normal, std 0.02         | 0: every token starts as likely    |
    | biases; gains of layernorms    | 0; 1                     | 0; 1                               |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gptkit.experiment.schema import ModelSettings
from gptkit.model import ops as kernels
from gptkit.model.cache import KeyValueCache
from gptkit.model.fast import fused_blocks
from gptkit.plugins import PositionalEncoding


class RMSNorm(nn.Module):
    """Without a gain: the matrix that follows can do what it would."""

    eps = kernels.RMS_EPS

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x)


class LayerNorm(nn.LayerNorm):
    """With a gain, and a bias if asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)


def build_norm(settings: ModelSettings) -> nn.Module:
    if settings.norm == "rmsnorm":
        return RMSNorm()
    return LayerNorm(settings.n_embd, eps=1e-5, bias=settings.bias)


class CausalSelfAttention(nn.Module):
    """Each token gathers from those before it (Vaswani et al. 2017)."""

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
        """x (B, T, C) -> (B, T, C). Without a mask every query sees what is behind it, itself included."""
        B, T, C = x.shape
        q, k, v = kernels.split_heads(self.qkv(x), self.n_head)  # each (B, H, T, D)
        if self.qk_norm:
            q, k = kernels.rms_norm(q), kernels.rms_norm(k)
        q, k = (turned.to(x.dtype) for turned in position.rotate(q, k, positions))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, Tk, D), Tk >= T
        out = kernels.attend(q, k, v, mask, self.attention_dropout if self.training else 0.0)
        out = out.transpose(1, 2).reshape(B, T, C)
        return kernels.dropout(self.projection(out), self.dropout, self.training)


class MLP(nn.Module):
    """Each token thinks for itself: up, a non-linearity, down.

    gelu and its approximation by tanh (Hendrycks and Gimpel 2016; GPT-2 has the latter), relu2 (squared
    ReLU, So et al. 2021), swiglu (Shazeer 2020).
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        C = settings.n_embd
        self.kind = settings.mlp
        self.dropout = settings.dropout
        # swiglu has three matrices where the others have two: 8/3 C keeps the number of weights
        F_ = 4 * C if self.kind != "swiglu" else 8 * math.ceil(8 * C / 3 / 8)
        self.up = nn.Linear(C, F_ if self.kind != "swiglu" else 2 * F_, bias=settings.bias)
        self.projection = nn.Linear(F_, C, bias=settings.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # (B, T, F), or (B, T, 2 F) where gated
        h = kernels.activate(self.kind, h)  # (B, T, F)
        return kernels.dropout(self.projection(h), self.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each added to what comes in, each normalising its input first (pre-norm)."""

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


class GPT(nn.Module):
    """A decoder-only transformer."""

    def __init__(self, settings: ModelSettings, vocab_size: int, position: PositionalEncoding) -> None:
        super().__init__()
        self.settings = settings
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, settings.n_embd)
        self.position = position
        self.blocks = nn.ModuleList(Block(settings, layer) for layer in range(settings.n_layer))
        self.final_norm = build_norm(settings)
        self.lm_head = nn.Linear(settings.n_embd, vocab_size, bias=False)
        if settings.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T).

        With a cache, `tokens` go on where it ends, and it takes them in. Raises ValueError where they do not
        fit into the context.
        """
        T = tokens.size(1)
        start = cache.length if cache is not None else 0
        if start + T > self.settings.context_length:
            raise ValueError(f"{start + T} tokens, but the context holds {self.settings.context_length}")
        positions = torch.arange(start, start + T, device=tokens.device)
        mask = self._mask(positions, start)
        x = self.token_embedding(tokens)  # (B, T, C)
        x = self.position.embed(x, positions).to(x.dtype)
        x = kernels.dropout(x, self.settings.dropout, self.training)
        fused = fused_blocks(self, x, mask) if cache is None else None
        if fused is not None:
            x = fused  # the same in C, where the processor and the model allow it
        else:
            for block in self.blocks:
                x = block(x, self.position, positions, mask, cache)
        if cache is not None:
            cache.advance(T)
        logits: Tensor = self.lm_head(self.final_norm(x))
        return logits

    def _mask(self, positions: Tensor, start: int) -> Tensor | None:
        """What is added to the scores, (H or 1, T, start + T); None where plain causal attention will do."""
        T = positions.size(0)
        key_positions = torch.arange(start + T, device=positions.device)
        bias = self.position.bias(positions, key_positions)
        if bias is None and (start == 0 or T == 1):
            return None
        ahead = key_positions > positions.unsqueeze(1)  # (T, start + T)
        scores = bias if bias is not None else torch.zeros((), device=positions.device)
        return torch.where(ahead, float("-inf"), scores.float()).view(-1, T, start + T)

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
        """TrainingResult numbers, tied ones once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws all weights anew, by the table above. The generator is on the CPU, so the weights are too."""
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
