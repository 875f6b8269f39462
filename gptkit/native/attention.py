"""Causal attention in C as a torch function with gradients, and the heads that it takes.

In: CPU tensors of one dtype, fp32 or bf16. Out: the same. `src/attention.c` says how.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gptkit.native.build import declared
from gptkit.native.ops import Three, is_bf16, new_seed, pointer, threads

LARGEST_HEAD = 128  # numbers of a head that there are register tiles for


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("B", "H", "T", "D")),
        *((name, Three) for name in ("q", "k", "v", "out")),
        ("bias_head", c_int64),
        ("seed", c_uint64),
        ("dropout", c_float),
        ("bf16", c_int32),
        ("threads", c_int32),
    ]


@cache
def _functions() -> Any:
    return declared(
        {
            "attention_forward": (c_int, [c_void_p] * 7),
            "attention_backward": (c_int, [*[c_void_p] * 14, c_int64]),
        }
    )


class Heads(Function):
    """qkv (B, T, 3 H D) -> q, k and v, (B, H, T, D) each: views, whose gradients come back as one."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_head: int) -> tuple[Tensor, ...]:
        B, T, C = qkv.shape
        return qkv.view(B, T, 3, n_head, C // (3 * n_head)).permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        dq, dk, dv = gradients
        B, H, T, D = dq.shape
        strides = (3 * H * D * T, D, 3 * H * D, 1)
        step = H * D * dq.element_size()
        together = all(g.stride() == strides for g in gradients) and (
            dk.data_ptr() - dq.data_ptr() == step == dv.data_ptr() - dk.data_ptr()
        )
        if together:  # as Attention gives them
            return dq.as_strided((B, T, 3 * H * D), (3 * H * D * T, 3 * H * D, 1)), None
        joined = torch.stack([g.transpose(1, 2) for g in gradients], dim=2)
        return joined.view(B, T, 3 * H * D), None


class Attention(Function):
    """Causal attention: q, k, v (B, H, T, D), bias (H or 1, T, T) fp32 or None -> (B, H, T, D).

    The output lies as (B, T, H, D), so that heads join without a copy. D is at most LARGEST_HEAD.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, p: float) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        B, H, T, D = q.shape
        out = torch.empty(B, T, H, D, dtype=q.dtype).transpose(1, 2)
        lse = torch.empty(B, H, T, dtype=torch.float32)
        if bias is not None:
            bias = bias.contiguous()
        shape = _Attention(
            *(B, H, T, D),
            *(Three(*x.stride()[:3]) for x in (q, k, v, out)),
            T * T if bias is not None and bias.size(0) > 1 else 0,
            new_seed() if p > 0 else 0,
            p,
            is_bf16(q),
            threads(),
        )
        failed = _functions().attention_forward(
            ctypes.byref(shape),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            pointer(bias),
            out.data_ptr(),
            lse.data_ptr(),
        )
        if failed:
            raise MemoryError("attention: out of memory")
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.shape = shape
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        if dout.stride(-1) != 1:
            dout = dout.contiguous()
        B, H, T, D = q.shape
        together = torch.empty(B, T, 3, H, D, dtype=q.dtype)
        dq, dk, dv = together.permute(2, 0, 3, 1, 4).unbind()
        sums = None
        if bias is not None and ctx.needs_input_grad[3]:
            sums = torch.zeros(ctx.shape.threads, *bias.shape)
        failed = _functions().attention_backward(
            ctypes.byref(ctx.shape),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            pointer(bias),
            out.data_ptr(),
            dout.data_ptr(),
            Three(*dout.stride()[:3]),
            lse.data_ptr(),
            dq.data_ptr(),
            dk.data_ptr(),
            dv.data_ptr(),
            Three(*dq.stride()[:3]),
            pointer(sums),
            0 if sums is None else sums[0].numel(),
        )
        if failed:
            raise MemoryError("attention: out of memory")
        return dq, dk, dv, None if sums is None else sums.sum(0), None
