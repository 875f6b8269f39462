"""The blocks of a GPT in C, where the processor and the model allow it.

In: a model and the embedded tokens. Out: what its blocks would make of them, up to rounding, or None where
they have to do it themselves. It has no weights and no state of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gptkit.model.seams import rotation_of, turns_by_tables
from gptkit.native import attention
from gptkit.native import ops as functions
from gptkit.native.block import BlockShape, FusedBlock

if TYPE_CHECKING:
    from gptkit.model.gpt import GPT


def fused_blocks(model: GPT, x: Tensor, mask: Tensor | None) -> Tensor | None:
    """All blocks applied to x (B, T, C), which stands at positions 0 … T - 1, or None."""
    if not (x.dtype is torch.bfloat16 and _allowed(model, x, mask)):
        return None
    settings, training = model.settings, model.training
    shape = BlockShape(
        n_head=settings.n_head,
        layer_norm=settings.norm == "layernorm",
        norm_eps=float(model.final_norm.eps),  # type: ignore[arg-type]
        qk_norm=settings.qk_norm,
        qk_eps=functions.RMS_EPS,
        activation=settings.mlp,
        dropout=settings.dropout if training else 0.0,
        attention_dropout=settings.attention_share_dropped if training else 0.0,
    )
    tables = rotation_of(model.position)
    cosine, sine = (None, None) if tables is None else (table[: x.size(1)] for table in tables)
    for block in model.blocks:
        x = FusedBlock.apply(shape, x, mask, cosine, sine, *_parameters(block))  # type: ignore[no-untyped-call]
    return x


def _parameters(block: nn.Module) -> list[Tensor | None]:
    """As FusedBlock wants them; past nn.Module.__getattr__, which takes a tenth of a small block's time."""
    parts = block._modules
    attention, mlp = parts["attention"], parts["mlp"]
    assert attention is not None
    assert mlp is not None
    layers: list[Any] = [
        parts["attention_norm"],
        parts["mlp_norm"],
        attention._modules["qkv"],
        attention._modules["projection"],
        mlp._modules["up"],
        mlp._modules["projection"],
    ]
    return [layer._parameters.get(name) for layer in layers for name in ("weight", "bias")]


def _allowed(model: GPT, x: Tensor, mask: Tensor | None) -> bool:
    C, H, T = model.settings.n_embd, model.settings.n_head, x.size(1)
    weight = model.token_embedding.weight
    return (
        not torch.compiler.is_compiling()
        and functions.fits(x)
        and functions.multiplies_pairs()
        and C % (2 * H) == 0  # rows of heads are whole pairs
        and C // H <= attention.LARGEST_HEAD
        and C <= functions.LONGEST_ROW
        and weight.dtype is torch.bfloat16
        and (mask is None or mask.shape in ((1, T, T), (H, T, T)))
        and turns_by_tables(model.position)
    )
