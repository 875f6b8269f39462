"""The blocks of a GPT in C, where the processor and the model allow it.

In: a block and what it is called with. Out: what its own forward pass would give, up to rounding, or None where
it has to do it itself. It has no weights and no state of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from gptkit.model.seams import rotation_of, turns_by_tables
from gptkit.native import functions, usable
from gptkit.native.block import BlockShape, FusedBlock, available
from gptkit.plugins import PositionalEncoding

if TYPE_CHECKING:
    from gptkit.model.gpt import Block


def fused_block(block: Block, x: Tensor, position: PositionalEncoding, mask: Tensor | None) -> Tensor | None:
    """The block's output for x (B, T, C) from position 0 on, or None."""
    if not (x.dtype is torch.bfloat16 and _allowed(block, x, position)):
        return None
    attention, mlp, training = block.attention, block.mlp, block.training
    shape = BlockShape(
        n_head=attention.n_head,
        layer_norm=isinstance(block.attention_norm, torch.nn.LayerNorm),
        norm_eps=float(cast(float, block.attention_norm.eps)),
        qk_norm=attention.qk_norm,
        qk_eps=functions.RMS_EPS,
        activation=mlp.kind,
        dropout=attention.dropout if training else 0.0,
        attention_dropout=attention.attention_dropout if training else 0.0,
    )
    tables = rotation_of(position)
    T = x.size(1)
    cosine, sine = (None, None) if tables is None else (tables[0][:T], tables[1][:T])
    norms = (block.attention_norm, block.mlp_norm)
    layers = (attention.qkv, attention.projection, mlp.up, mlp.projection)
    parameters = [
        *(getattr(norm, name, None) for norm in norms for name in ("weight", "bias")),
        *(one for layer in layers for one in (layer.weight, layer.bias)),
    ]
    out: Tensor = FusedBlock.apply(shape, x, mask, cosine, sine, *parameters)  # type: ignore[no-untyped-call]
    return out


def _allowed(block: Block, x: Tensor, position: PositionalEncoding) -> bool:
    C = x.size(-1)
    D = C // block.attention.n_head
    even = not (C | D | block.mlp.up.out_features | block.mlp.projection.in_features) & 1
    return (
        not torch.compiler.is_compiling()
        and functions.fits(x)
        and usable()
        and available()
        and even
        and D <= functions.LARGEST_HEAD
        and C <= functions.LONGEST_ROW
        and block.attention.qkv.weight.dtype is torch.bfloat16
        and turns_by_tables(position)
    )
