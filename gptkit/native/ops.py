"""The C operations as torch functions with gradients.

In: CPU tensors of one dtype, fp32 or bf16. Out: the same. Each says what C takes; shapes are as in
gptkit/model/gpt.py: B batch, T time, C width, H heads, D head size, V vocabulary. Callers have asked
`fits` first.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gptkit.native.build import declared, library, usable

RMS_EPS = 1e-6  # added to the mean square: a row of zeros stays one
ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu2": 2}
KINDS = {**ACTIVATIONS, "swiglu": 3}
LONGEST_ROW = 4096  # numbers that are normalised together: norm.h keeps a row on its stack

Three = c_int64 * 3  # strides of the outer three dimensions
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "has_pairs": (c_int, []),
    "norm_forward": (None, [c_void_p] * 7 + [c_float] + [c_int] * 3),
    "norm_backward": (c_int, [c_void_p] * 12 + [c_int] * 3),
    "rotate": (None, [c_void_p] * 7 + [c_int] * 3),
    "activation": (None, [c_int] + [c_void_p] * 3 + [c_int64, c_int, c_int]),
    "gated": (None, [c_void_p] * 3 + [c_int64, c_int64, c_int, c_int]),
    "dropout": (None, [c_void_p] * 3 + [c_int64, c_float, c_uint64, c_int, c_int]),
    "cross_entropy": (c_int64, [c_void_p] * 4 + [c_int64, c_int64, c_float, c_int, c_int]),
}


class _Rows(ctypes.Structure):
    _fields_ = [("outer", c_int64), ("middle", c_int64), ("inner", c_int64), ("C", c_int64)]


@cache
def _functions() -> Any:
    return declared(_SIGNATURES)


@cache
def can_thread() -> bool:
    """Whether the operations can use several threads."""
    found = library()
    return found is not None and found.threaded


def serves(device: torch.device) -> bool:
    """Whether the operations are to be had for tensors of this device, and switched on."""
    return device.type == "cpu" and usable()


@cache
def multiplies_pairs() -> bool:
    """Whether the library is to be had and this processor multiplies pairs of bf16 numbers."""
    return library() is not None and bool(_functions().has_pairs())


def fits(x: Tensor) -> bool:
    """Whether the operations take this tensor, and at least as fast as torch would."""
    return (
        serves(x.device)
        and (x.dtype is torch.bfloat16 or x.dtype is torch.float32)
        and (can_thread() or torch.get_num_threads() == 1)
    )


def threads() -> int:
    """How many the operations use now."""
    return torch.get_num_threads() if can_thread() else 1


def is_bf16(x: Tensor) -> int:
    """As C takes it."""
    return int(x.dtype is torch.bfloat16)


def pointer(x: Tensor | None) -> int | None:
    """Where its numbers are; None for none."""
    return None if x is None else x.data_ptr()


def new_seed() -> int:
    """A seed from torch's generator, which training seeds for each step."""
    return int(torch.empty((), dtype=torch.int64).random_(0, 2**62))


def _rows(x: Tensor) -> tuple[Tensor, Any, Any]:
    """x with its last dimension together, its rows as (outer, middle, inner), and their strides."""
    if x.stride(-1) != 1 or (x.dim() != 4 and not x.is_contiguous()):
        x = x.contiguous()
    return x, *_layout(tuple(x.shape), tuple(x.stride()))


@lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[Any, Any]:
    """Kept, as a step asks for the same few again and again. C only reads them."""
    if len(shape) == 4:
        return ctypes.byref(_Rows(*shape)), Three(*strides[:3])
    C = shape[-1]
    return ctypes.byref(_Rows(1, 1, math.prod(shape[:-1]), C)), Three(0, 0, C)


class Norm(Function):
    """Layer norm with gain and bias, or RMS norm without either: x (…, C) -> the same shape, contiguous."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor | None, bias: Tensor | None, eps: float, centre: bool
    ) -> Tensor:
        x, rows, strides = _rows(x)
        gain, bias = (None if one is None else one.contiguous() for one in (gain, bias))
        y = torch.empty(x.shape, dtype=x.dtype)
        stats = torch.empty(x.numel() // x.size(-1) * 2, dtype=torch.float32)
        _functions().norm_forward(
            x.data_ptr(),
            strides,
            rows,
            pointer(gain),
            pointer(bias),
            y.data_ptr(),
            stats.data_ptr(),
            eps,
            centre,
            is_bf16(x),
            threads(),
        )
        ctx.save_for_backward(x, gain, stats)
        ctx.centre, ctx.with_bias = centre, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, stats = ctx.saved_tensors
        x, rows, strides = _rows(x)
        dy, _, dy_strides = _rows(dy)
        dx = torch.empty(x.shape, dtype=x.dtype)
        dgain = None if gain is None else torch.empty(x.size(-1), dtype=x.dtype)
        dbias = torch.empty(x.size(-1), dtype=x.dtype) if ctx.with_bias else None
        failed = _functions().norm_backward(
            x.data_ptr(),
            strides,
            dy.data_ptr(),
            dy_strides,
            rows,
            pointer(gain),
            stats.data_ptr(),
            None,
            dx.data_ptr(),
            _rows(dx)[2],
            pointer(dgain),
            pointer(dbias),
            ctx.centre,
            is_bf16(x),
            threads(),
        )
        if failed:
            raise MemoryError("norm: out of memory")
        return dx, dgain, dbias, None, None


class Rotate(Function):
    """Pairs (i, i + D/2) of x (B, H, T, D) turned: cosines and signed sines (T, D), contiguous, fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine, back=False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _turned(dy, *ctx.saved_tensors, back=True), None, None


def _turned(x: Tensor, cosine: Tensor, sine: Tensor, *, back: bool) -> Tensor:
    x, rows, strides = _rows(x)
    y = torch.empty(x.shape, dtype=x.dtype)
    _functions().rotate(
        x.data_ptr(),
        strides,
        rows,
        cosine.data_ptr(),
        sine.data_ptr(),
        y.data_ptr(),
        _rows(y)[2],
        back,
        is_bf16(x),
        threads(),
    )
    return y


class Activation(Function):
    """A non-linearity of ACTIVATIONS, by its number, of each element."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, kind: int) -> Tensor:
        h = h.contiguous()
        ctx.save_for_backward(h)
        ctx.kind = kind
        return Activation.run(kind, h, None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        return Activation.run(ctx.kind, h, dy.contiguous()), None

    @staticmethod
    def run(kind: int, h: Tensor, dy: Tensor | None) -> Tensor:
        out = torch.empty_like(h)
        _functions().activation(
            kind, h.data_ptr(), pointer(dy), out.data_ptr(), h.numel(), is_bf16(h), threads()
        )
        return out


class Gated(Function):
    """silu(gate) value of h (…, 2 F), which is gate and value -> (…, F)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        h = h.contiguous()
        ctx.save_for_backward(h)
        return Gated.run(h, None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return Gated.run(h, dy.contiguous())

    @staticmethod
    def run(h: Tensor, dy: Tensor | None) -> Tensor:
        F = h.size(-1) // 2
        out = h.new_empty(*h.shape[:-1], F) if dy is None else torch.empty_like(h)
        _functions().gated(
            h.data_ptr(),
            pointer(dy),
            out.data_ptr(),
            h.numel() // (2 * F),
            F,
            is_bf16(h),
            threads(),
        )
        return out


class Dropout(Function):
    """x with a share p of its elements 0 and the others scaled by 1 / (1 - p); which, follows from a seed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p, ctx.seed = p, new_seed()
        return Dropout.run(x, p, ctx.seed)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return Dropout.run(dy, ctx.p, ctx.seed), None

    @staticmethod
    def run(x: Tensor, p: float, seed: int) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        _functions().dropout(x.data_ptr(), None, y.data_ptr(), x.numel(), p, seed, is_bf16(x), threads())
        return y


class CrossEntropy(Function):
    """Mean nats of logits (N, V) against targets (N,) -> scalar, fp32. Raises IndexError for no token."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets = logits.contiguous(), targets.contiguous()
        N, V = logits.shape
        losses = torch.empty(N, dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        wrong = _functions().cross_entropy(
            logits.data_ptr(),
            targets.data_ptr(),
            losses.data_ptr(),
            pointer(gradient),
            N,
            V,
            1 / N,
            is_bf16(logits),
            threads(),
        )
        if wrong >= 0:
            raise IndexError(f"target {int(targets[wrong])} is out of bounds: there are {V} tokens")
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        scale = dloss.item()
        return gradient if scale == 1.0 else gradient * scale, None
