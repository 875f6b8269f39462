"""All blocks of the GPT in C, one call per block, forward and backward.

Input: blocks in bf16 on a CPU, and the arguments of their forward. Output: the same up to rounding.
`src/block.c` documents the structures and the computation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from ctypes import c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

from gptkit.model.cache import KeyValueCache
from gptkit.model.gpt import Block, BlockLayers, Blocks, LayerNorm
from gptkit.model.ops import RMS_EPS, Implementation
from gptkit.native.build import declared
from gptkit.native.ops import ACTIVATIONS, LARGEST_HEAD, LONGEST_ROW, can_thread, new_seed, pointer, threads
from gptkit.plugins import PositionalEncoding


class _Layer(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("B", "T", "C", "H", "F", "up_width")),
        *((name, c_int32) for name in ("layer_norm", "qk_norm", "activation", "threads")),
        *((name, c_float) for name in ("norm_eps", "qk_eps", "dropout", "attention_dropout")),
        ("seeds", c_uint64 * 3),
        *((name, c_void_p) for name in ("cosine", "sine", "bias")),
        ("bias_head", c_int64),
        *((name, _Layer) for name in BlockLayers._fields),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [
        *((name, _Layer) for name in BlockLayers._fields),
        ("bias", c_void_p),
        ("bias_size", c_int64),
    ]


@cache
def _functions() -> Any:
    return declared(
        {
            "block_saved_bytes": (c_int64, [c_void_p]),
            "block_forward": (c_int, [c_void_p] * 4),
            "block_backward": (c_int, [c_void_p] * 6),
        }
    )


class _Settings(NamedTuple):
    """What a block computes, apart from its weights. Dropouts are 0 in evaluation."""

    n_head: int
    layer_norm: bool  # else RMSNorm
    norm_eps: float
    qk_norm: bool
    activation: str
    dropout: float
    attention_dropout: float


def unsupported(
    blocks: Blocks,
    x: Tensor,
    position: PositionalEncoding,
    positions: Tensor,
    mask: Tensor | None,
    cache: KeyValueCache | None,
) -> list[str]:
    """The reasons why C cannot compute the blocks."""
    if x.dtype is not torch.bfloat16 or not x.is_cpu or cache is not None:
        return ["C computes blocks in bf16 on the CPU, without a key-value cache"]
    block = cast(Block, blocks[0])
    C, H, T = x.size(-1), block.attention.n_head, x.size(1)
    reasons = []
    if not can_thread() and torch.get_num_threads() > 1:
        reasons.append("the library is compiled without threads, and torch uses several")
    if C % (2 * H):
        reasons.append("heads have an odd number of channels")
    if C // H > LARGEST_HEAD:
        reasons.append(f"a head has more than {LARGEST_HEAD} channels")
    if C > LONGEST_ROW:
        reasons.append(f"n_embd is above {LONGEST_ROW}")
    if block.mlp.up.weight.dtype is not torch.bfloat16:
        reasons.append("the weights are not in bf16")
    if mask is not None and mask.shape not in ((1, T, T), (H, T, T)):
        reasons.append("the mask is neither (1, T, T) nor (H, T, T)")
    if not position.only_rotates_by_tables():
        reasons.append("the positional encoding overrides `rotate` and has no tables for it")
    return reasons


def apply_blocks(
    blocks: Blocks,
    x: Tensor,
    position: PositionalEncoding,
    positions: Tensor,
    mask: Tensor | None,
    cache: KeyValueCache | None,
) -> Tensor:
    """x (B, T, C), at positions 0 … T - 1 -> (B, T, C)."""
    block = cast(Block, blocks[0])
    attention, mlp, norm, training = block.attention, block.mlp, block.attention_norm, block.training
    settings = _Settings(
        n_head=attention.n_head,
        layer_norm=isinstance(norm, LayerNorm),
        norm_eps=norm.eps,
        qk_norm=attention.qk_norm,
        activation=mlp.kind,
        dropout=mlp.dropout if training else 0.0,
        attention_dropout=attention.attention_dropout if training else 0.0,
    )
    cosine, sine = position.rotation_tables() or (None, None)  # (context_length, D): C reads the first T rows
    for block in cast(Iterable[Block], blocks):
        parameters = [parameter for layer in block.layers() for parameter in (layer.weight, layer.bias)]
        x = NativeBlock.apply(settings, x, mask, cosine, sine, *parameters)  # type: ignore[no-untyped-call]
    return x


class NativeBlock(Function):
    """x (B, T, C), bias (H or 1, T, T), cosines and signed sines (at least T, D), parameters -> (B, T, C).

    Bias and tables are in fp32, or None. The parameters are weight and bias of each layer, in the order of
    `BlockLayers`; None where the block has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        x: Tensor,
        bias: Tensor | None,
        cosine: Tensor | None,
        sine: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        x = x.contiguous()
        bias = None if bias is None else bias.contiguous()
        block = _block(settings, x, bias, cosine, sine, parameters)
        block_pointer = ctypes.byref(block)
        saved = torch.empty(_functions().block_saved_bytes(block_pointer), dtype=torch.uint8)
        y = torch.empty_like(x)
        if _functions().block_forward(block_pointer, x.data_ptr(), y.data_ptr(), saved.data_ptr()):
            raise MemoryError("a block: out of memory")
        ctx.save_for_backward(x, bias, cosine, sine, saved, *parameters)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, _, _, saved, *parameters = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        gradients = [None if parameter is None else torch.empty_like(parameter) for parameter in parameters]
        dbias = None  # one per thread
        if bias is not None and ctx.needs_input_grad[2]:
            dbias = torch.zeros(ctx.block.threads, *bias.shape)
        out = _Gradients(*_layers(gradients), pointer(dbias), 0 if dbias is None else dbias[0].numel())
        failed = _functions().block_backward(
            ctypes.byref(ctx.block),
            x.data_ptr(),
            saved.data_ptr(),
            dy.data_ptr(),
            dx.data_ptr(),
            ctypes.byref(out),
        )
        if failed:
            raise MemoryError("a block: out of memory")
        return None, dx, None if dbias is None else dbias.sum(0), None, None, *gradients


def _layers(tensors: Sequence[Tensor | None]) -> list[_Layer]:
    pointers = [pointer(tensor) for tensor in tensors]
    return [_Layer(*pointers[at : at + 2]) for at in range(0, len(pointers), 2)]


def _block(
    settings: _Settings,
    x: Tensor,
    bias: Tensor | None,
    cosine: Tensor | None,
    sine: Tensor | None,
    parameters: Sequence[Tensor | None],
) -> _Block:
    B, T, C = x.shape
    up_weight, projection_weight = parameters[8], parameters[10]
    assert up_weight is not None
    assert projection_weight is not None
    seeds = (
        new_seed() if settings.attention_dropout > 0 else 0,
        *(new_seed() if settings.dropout > 0 else 0 for _ in range(2)),
    )
    return _Block(
        *(B, T, C, settings.n_head, projection_weight.size(1), up_weight.size(0)),
        *(settings.layer_norm, settings.qk_norm, ACTIVATIONS[settings.activation]),
        threads(),
        *(settings.norm_eps, RMS_EPS, settings.dropout, settings.attention_dropout),
        (c_uint64 * 3)(*seeds),
        *(pointer(one) for one in (cosine, sine, bias)),
        T * T if bias is not None and bias.size(0) > 1 else 0,
        *_layers(parameters),
    )


BLOCKS = Implementation("C", unsupported, apply_blocks)
