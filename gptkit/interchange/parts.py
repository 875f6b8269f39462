"""The weights of a GPT by their role, between gptkit's state dict and the layouts of other programs.

Input: a GPT, or weights read from elsewhere. Output: `ModelParts`, or a state dict for a GPT. Knows no file
formats and no names of other programs.

Shapes: C width, H heads, D head size, F hidden width of the MLP, V vocabulary, T context length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gptkit.model import GPT

SILU_SCALE = 1024.0  # a power of two: it changes no bit of a weight in fp32 or bf16


class Affine(NamedTuple):
    """y = W x + b of a linear layer, with W (outputs, inputs); or gain and shift (C,) of a norm."""

    weight: Tensor
    bias: Tensor | None = None

    def scaled(self, factor: float) -> Affine:
        return self.map(lambda tensor: tensor * factor)

    def map(self, change: Callable[[Tensor], Tensor]) -> Affine:
        """Both tensors changed by a function of their rows."""
        return Affine(change(self.weight), None if self.bias is None else change(self.bias))

    def with_bias(self) -> Affine:
        """With a bias of zeros where there is none."""
        if self.bias is not None:
            return self
        return Affine(self.weight, torch.zeros(self.weight.size(0), dtype=self.weight.dtype))


@dataclass(frozen=True)
class BlockParts:
    """One block. Norms without learned values have a gain of ones and no shift."""

    attention_norm: Affine  # (C,)
    q: Affine  # (C, C), heads one after the other
    k: Affine
    v: Affine
    output: Affine  # (C, C)
    mlp_norm: Affine
    gate: Affine | None  # (F, C); None for an MLP of two layers
    up: Affine  # (F, C)
    down: Affine  # (C, F)


@dataclass(frozen=True)
class ModelParts:
    """A whole model."""

    embedding: Tensor  # (V, C)
    positions: Tensor | None  # (T, C), a table that is added to the embeddings
    blocks: tuple[BlockParts, ...]
    final_norm: Affine
    head: Tensor | None  # (V, C); None where it is the embedding

    def map_blocks(self, change: Callable[[BlockParts], BlockParts]) -> ModelParts:
        return replace(self, blocks=tuple(change(block) for block in self.blocks))


def parts_of(model: GPT) -> ModelParts:
    """The weights of a model, in fp32 on the CPU."""
    state = {
        name: tensor.detach().float().cpu()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.startswith("position.")
    }

    def affine(name: str) -> Affine:
        return Affine(state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str) -> Affine:
        if f"{name}.weight" not in state:
            return Affine(torch.ones(model.settings.n_embd))
        return affine(name)

    def block(number: int) -> BlockParts:
        name = f"blocks.{number}"
        q, k, v = split_rows(affine(f"{name}.attention.qkv"), 3)
        up = affine(f"{name}.mlp.up")
        gate, up = split_rows(up, 2) if model.settings.mlp == "swiglu" else (None, up)
        return BlockParts(
            norm(f"{name}.attention_norm"),
            *(q, k, v),
            affine(f"{name}.attention.projection"),
            norm(f"{name}.mlp_norm"),
            *(gate, up),
            affine(f"{name}.mlp.projection"),
        )

    return ModelParts(
        state["token_embedding.weight"],
        position_table(model),
        tuple(block(number) for number in range(model.settings.n_layer)),
        norm("final_norm"),
        None if model.settings.tie_embeddings else state["lm_head.weight"],
    )


def position_table(model: GPT) -> Tensor | None:
    """What the positional encoding adds to the embeddings, (T, C); None if it adds nothing."""
    if not model.position.overrides("embed"):
        return None
    positions = torch.arange(model.settings.context_length)
    zeros = torch.zeros(1, len(positions), model.settings.n_embd)
    with torch.no_grad():
        return model.position.embed(zeros, positions)[0].float()


def state_dict_of(parts: ModelParts, *, layer_norms: bool, bias: bool) -> dict[str, Tensor]:
    """The state dict of a GPT with these parts; `layer_norms` and `bias` as in its settings.

    Missing biases become zeros where `bias` is set. The norms' gains are left out unless `layer_norms`; fold
    them into the layers behind them first.
    """
    state: dict[str, Tensor] = {"token_embedding.weight": parts.embedding}

    def put(name: str, value: Affine) -> None:
        state[f"{name}.weight"] = value.weight.contiguous()
        if bias:
            filled = value.with_bias().bias
            assert filled is not None
            state[f"{name}.bias"] = filled.contiguous()

    def put_norm(name: str, value: Affine) -> None:
        if layer_norms:
            put(name, value)

    if parts.positions is not None:
        state["position.embedding.weight"] = parts.positions
    for number, block in enumerate(parts.blocks):
        name = f"blocks.{number}"
        put_norm(f"{name}.attention_norm", block.attention_norm)
        put(f"{name}.attention.qkv", join_rows(block.q, block.k, block.v))
        put(f"{name}.attention.projection", block.output)
        put_norm(f"{name}.mlp_norm", block.mlp_norm)
        put(f"{name}.mlp.up", block.up if block.gate is None else join_rows(block.gate, block.up))
        put(f"{name}.mlp.projection", block.down)
    put_norm("final_norm", parts.final_norm)
    state["lm_head.weight"] = parts.embedding if parts.head is None else parts.head
    return state


def split_rows(stacked: Affine, count: int) -> tuple[Affine, ...]:
    """`count` layers of equal size that are stacked by outputs."""
    weights = stacked.weight.chunk(count)
    biases = (None,) * count if stacked.bias is None else stacked.bias.chunk(count)
    return tuple(Affine(weight, bias) for weight, bias in zip(weights, biases, strict=True))


def join_rows(*layers: Affine) -> Affine:
    """The inverse of `split_rows`; a missing bias counts as zeros if another layer has one."""
    weight = torch.cat([layer.weight for layer in layers])
    if all(layer.bias is None for layer in layers):
        return Affine(weight)
    biases = [layer.with_bias().bias for layer in layers]
    return Affine(weight, torch.cat([bias for bias in biases if bias is not None]))


def silu_form(block: BlockParts) -> BlockParts:
    """A squared ReLU in the form of a SwiGLU, for programs that have no other.

    silu(s h) h / s differs from relu(h)^2 by at most 0.48 / s^2 for any h: by 4.6e-7 for s = 1024.
    """
    return replace(
        block,
        gate=block.up.scaled(SILU_SCALE),
        down=Affine(block.down.weight / SILU_SCALE, block.down.bias),
    )


def fold_gains(parts: ModelParts) -> ModelParts:
    """The same model with the norms' gains multiplied into the layers behind them, whose head is its own."""

    def fold(layer: Affine, gain: Tensor) -> Affine:
        return Affine(layer.weight * gain, layer.bias)

    def fold_block(block: BlockParts) -> BlockParts:
        before, middle = block.attention_norm.weight, block.mlp_norm.weight
        return replace(
            block,
            attention_norm=Affine(torch.ones_like(before)),
            q=fold(block.q, before),
            k=fold(block.k, before),
            v=fold(block.v, before),
            mlp_norm=Affine(torch.ones_like(middle)),
            gate=block.gate and fold(block.gate, middle),
            up=fold(block.up, middle),
        )

    gain = parts.final_norm.weight
    head = parts.embedding if parts.head is None else parts.head
    folded = parts.map_blocks(fold_block)
    if parts.head is None and bool((gain == 1).all()):
        return folded
    return replace(folded, final_norm=Affine(torch.ones_like(gain)), head=head * gain)


def scale_residual(parts: ModelParts, factor: float) -> ModelParts:
    """The same model with all that is added to the residual stream multiplied by `factor`.

    RMSNorm(c x) with c^2 eps is RMSNorm(x) with eps: so a model of another eps computes the same with ours.
    """
    head = parts.embedding if parts.head is None else parts.head
    scaled = parts.map_blocks(
        lambda block: replace(block, output=block.output.scaled(factor), down=block.down.scaled(factor))
    )
    return replace(scaled, embedding=parts.embedding * factor, head=head)
