"""A whole block of the GPT in one call, with its gradient: what gptkit/model/fast.py is built on.

In: bf16 tensors on a CPU, contiguous. Out: the same. `src/block.c` says what each is.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gptkit.native.build import declared
from gptkit.native.ops import KINDS, new_seed, pointer, threads

_LAYERS = ("qkv", "projection", "expand", "contract")


class _Layer(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("B", "T", "C", "H", "F", "up")),
        *((name, c_int32) for name in ("centre", "qk_norm", "activation", "threads")),
        *((name, c_float) for name in ("norm_eps", "qk_eps", "dropout", "attention_dropout")),
        ("seeds", c_uint64 * 3),
        *((name, c_void_p) for name in ("cosine", "sine", "bias")),
        ("bias_head", c_int64),
        *((name, c_void_p) for name in ("attention_gain", "attention_shift", "mlp_gain", "mlp_shift")),
        *((name, _Layer) for name in _LAYERS),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("attention_gain", "attention_shift", "mlp_gain", "mlp_shift")),
        ("weights", c_void_p * 4),
        ("biases", c_void_p * 4),
        ("bias", c_void_p),
        ("bias_size", c_int64),
    ]


@cache
def _functions() -> Any:
    return declared(
        {
            "block_saves": (c_int64, [c_void_p]),
            "block_forward": (c_int, [c_void_p] * 4),
            "block_backward": (c_int, [c_void_p] * 6),
        }
    )


@dataclass(frozen=True)
class BlockShape:
    """What a block does beside its weights. Dropouts are those of this pass: 0 where nothing is trained."""

    n_head: int
    layer_norm: bool  # else RMS norm
    norm_eps: float
    qk_norm: bool
    qk_eps: float
    activation: str
    dropout: float
    attention_dropout: float


class FusedBlock(Function):
    """x (B, T, C), bias (H or 1, T, T), cosines and signed sines (T, D), and parameters -> (B, T, C).

    Bias and tables are in fp32, or None.
    The parameters are gains and shifts of both norms, then weight and bias of qkv, projection, expand and
    contract; None where the block has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shape: BlockShape,
        x: Tensor,
        bias: Tensor | None,
        cosine: Tensor | None,
        sine: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        x = x.contiguous()
        bias = None if bias is None else bias.contiguous()
        block = _block(shape, x, bias, cosine, sine, parameters)
        here = ctypes.byref(block)
        saved = torch.empty(_functions().block_saves(here), dtype=torch.uint8)
        y = torch.empty_like(x)
        if _functions().block_forward(here, x.data_ptr(), y.data_ptr(), saved.data_ptr()):
            raise MemoryError("a block: out of memory")
        ctx.save_for_backward(x, bias, cosine, sine, saved, *parameters)
        ctx.block = block
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, _, _, saved, *parameters = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        made = [None if parameter is None else torch.empty_like(parameter) for parameter in parameters]
        pointers = [pointer(one) for one in made]
        sums = None
        if bias is not None and ctx.needs_input_grad[2]:
            sums = torch.zeros(ctx.block.threads, *bias.shape)
        to = _Gradients(
            *pointers[:4],
            (c_void_p * 4)(*pointers[4::2]),
            (c_void_p * 4)(*pointers[5::2]),
            pointer(sums),
            0 if sums is None else sums[0].numel(),
        )
        failed = _functions().block_backward(
            ctypes.byref(ctx.block),
            x.data_ptr(),
            saved.data_ptr(),
            dy.data_ptr(),
            dx.data_ptr(),
            ctypes.byref(to),
        )
        if failed:
            raise MemoryError("a block: out of memory")
        return None, dx, None if sums is None else sums.sum(0), None, None, *made


def _block(
    shape: BlockShape,
    x: Tensor,
    bias: Tensor | None,
    cosine: Tensor | None,
    sine: Tensor | None,
    parameters: tuple[Tensor | None, ...],
) -> _Block:
    B, T, C = x.shape
    expand, contract = parameters[8], parameters[10]
    assert expand is not None
    assert contract is not None
    pointers = [pointer(parameter) for parameter in parameters]
    seeds = (
        new_seed() if shape.attention_dropout > 0 else 0,
        *(new_seed() if shape.dropout > 0 else 0 for _ in range(2)),
    )
    return _Block(
        *(B, T, C, shape.n_head, contract.size(1), expand.size(0)),
        *(shape.layer_norm, shape.qk_norm, KINDS[shape.activation]),
        threads(),
        *(shape.norm_eps, shape.qk_eps, shape.dropout, shape.attention_dropout),
        (c_uint64 * 3)(*seeds),
        *(pointer(one) for one in (cosine, sine, bias)),
        T * T if bias is not None and bias.size(0) > 1 else 0,
        *pointers[:4],
        *(_Layer(pointers[at], pointers[at + 1]) for at in range(4, 12, 2)),
    )
