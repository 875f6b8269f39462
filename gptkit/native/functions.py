"""The C operations as torch functions with gradients.

In: CPU tensors of one dtype, fp32 or bf16. Out: the same. Each says what C takes; shapes are as in
gptkit/model/gpt.py: B batch, T time, C width, H heads, D head size, V vocabulary. Callers have asked
`fits` first.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gptkit.native.build import library

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu2": 2}
LONGEST_ROW = 4096  # numbers that are normalised together: elementwise.c keeps a row on its stack
LARGEST_HEAD = 128  # numbers of a head that attention.c has register tiles for

_Three = c_int64 * 3
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "norm_forward": (None, [c_void_p] * 7 + [c_float] + [c_int] * 3),
    "norm_backward": (c_int, [c_void_p] * 10 + [c_int] * 3),
    "rotate": (None, [c_void_p] * 6 + [c_int] * 3),
    "activation": (None, [c_int] + [c_void_p] * 3 + [c_int64, c_int, c_int]),
    "gated": (None, [c_void_p] * 3 + [c_int64, c_int64, c_int, c_int]),
    "dropout": (None, [c_void_p] * 2 + [c_int64, c_float, c_uint64, c_int, c_int]),
    "cross_entropy": (c_int64, [c_void_p] * 4 + [c_int64, c_int64, c_float, c_int, c_int]),
    "attention_forward": (c_int, [c_void_p] * 7),
    "attention_backward": (c_int, [c_void_p] * 14 + [c_int64]),
}


class _Rows(ctypes.Structure):
    _fields_ = [("outer", c_int64), ("middle", c_int64), ("inner", c_int64), ("C", c_int64)]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("B", "H", "T", "D")),
        *((name, _Three) for name in ("q", "k", "v", "out")),
        ("bias_head", c_int64),
        ("seed", c_uint64),
        ("dropout", c_float),
        ("bf16", c_int32),
        ("threads", c_int32),
    ]


@cache
def _functions() -> Any:
    """The C functions with their types."""
    found = library()
    assert found is not None, "asked for without asking whether it is there"
    for name, (returned, arguments) in _SIGNATURES.items():
        function = getattr(found.functions, name)
        function.restype, function.argtypes = returned, arguments
    return found.functions


@cache
def _can_thread() -> bool:
    found = library()
    return found is not None and found.threaded


def fits(x: Tensor) -> bool:
    """Whether the operations take this tensor, and at least as fast as torch would."""
    return (
        x.device.type == "cpu"
        and (x.dtype is torch.bfloat16 or x.dtype is torch.float32)
        and (_can_thread() or torch.get_num_threads() == 1)
    )


def _threads() -> int:
    return torch.get_num_threads() if _can_thread() else 1


def _is_bf16(x: Tensor) -> int:
    return int(x.dtype is torch.bfloat16)


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def new_seed() -> int:
    """A seed from torch's generator, which training seeds for each step."""
    return int(torch.empty((), dtype=torch.int64).random_(0, 2**62))


def _rows(x: Tensor) -> tuple[Tensor, Any, Any]:
    """x with its last dimension together, its rows as (outer, middle, inner), and their strides."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() == 4:
        return x, _Rows(*x.shape), _Three(*x.stride()[:3])
    if not x.is_contiguous():
        x = x.contiguous()
    C = x.size(-1)
    return x, _Rows(1, 1, x.numel() // C, C), _Three(0, 0, C)


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
            ctypes.byref(rows),
            _pointer(gain),
            _pointer(bias),
            y.data_ptr(),
            stats.data_ptr(),
            eps,
            centre,
            _is_bf16(x),
            _threads(),
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
            ctypes.byref(rows),
            _pointer(gain),
            stats.data_ptr(),
            dx.data_ptr(),
            _pointer(dgain),
            _pointer(dbias),
            ctx.centre,
            _is_bf16(x),
            _threads(),
        )
        if failed:
            raise MemoryError("norm: out of memory")
        return dx, dgain, dbias, None, None


class Rotate(Function):
    """Pairs (i, i + D/2) of x (B, H, T, D) turned: cosines and signed sines (T, D), in fp32."""

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
        ctypes.byref(rows),
        cosine.data_ptr(),
        sine.data_ptr(),
        y.data_ptr(),
        back,
        _is_bf16(x),
        _threads(),
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
            kind, h.data_ptr(), _pointer(dy), out.data_ptr(), h.numel(), _is_bf16(h), _threads()
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
            _pointer(dy),
            out.data_ptr(),
            h.numel() // (2 * F),
            F,
            _is_bf16(h),
            _threads(),
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
        _functions().dropout(x.data_ptr(), y.data_ptr(), x.numel(), p, seed, _is_bf16(x), _threads())
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
            _pointer(gradient),
            N,
            V,
            1 / N,
            _is_bf16(logits),
            _threads(),
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


class Heads(Function):
    """qkv (B, T, 3 H D) -> q, k and v, (B, H, T, D) each: views, whose gradients come back as one."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_head: int) -> tuple[Tensor, ...]:
        B, T, C = qkv.shape
        ctx.n_head = n_head
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
            *(_Three(*x.stride()[:3]) for x in (q, k, v, out)),
            T * T if bias is not None and bias.size(0) > 1 else 0,
            new_seed() if p > 0 else 0,
            p,
            _is_bf16(q),
            _threads(),
        )
        failed = _functions().attention_forward(
            ctypes.byref(shape),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            _pointer(bias),
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
            _pointer(bias),
            out.data_ptr(),
            dout.data_ptr(),
            _Three(*dout.stride()[:3]),
            lse.data_ptr(),
            dq.data_ptr(),
            dk.data_ptr(),
            dv.data_ptr(),
            _Three(*dq.stride()[:3]),
            _pointer(sums),
            0 if sums is None else sums[0].numel(),
        )
        if failed:
            raise MemoryError("attention: out of memory")
        return dq, dk, dv, None if sums is None else sums.sum(0), None
