"""The model's operations in C, as torch functions with gradients.

Input: CPU tensors of one dtype, fp32 or bf16. Output: the same; equal to torch's results up to the last bits
of fp32 arithmetic. Each operation has its `unsupported`, the reasons why C cannot serve a call; `OPERATIONS`
is the table of implementations for gptkit/model/ops.py. `src/elementwise.c` and `src/attention.c` document
the computation. Shapes as in gptkit/model/gpt.py.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gptkit.model.fast import Embedding
from gptkit.model.ops import RMS_EPS, Implementation
from gptkit.native.build import declared, library

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu2": 2, "swiglu": 3}  # as in nonlinear.h
LONGEST_ROW = 4096  # elements that are normalized together: elementwise.c keeps a row on its stack
LARGEST_HEAD = 128  # channels of a head: there are register tiles up to this width

_Strides = c_int64 * 3  # of the outer three dimensions


class _Rows(ctypes.Structure):
    _fields_ = [("outer", c_int64), ("middle", c_int64), ("inner", c_int64), ("C", c_int64)]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("B", "H", "T", "D")),
        *((name, _Strides) for name in ("q", "k", "v", "out")),
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
            "has_bf16_products": (c_int, []),
            "norm_forward": (None, [c_void_p] * 7 + [c_float] + [c_int] * 3),
            "norm_backward": (c_int, [c_void_p] * 12 + [c_int] * 3),
            "embedding_backward": (None, [c_void_p] * 3 + [c_int64] * 2 + [c_int]),
            "rotate": (None, [c_void_p] * 7 + [c_int] * 3),
            "activation": (None, [c_int] + [c_void_p] * 3 + [c_int64, c_int, c_int]),
            "gated": (None, [c_void_p] * 3 + [c_int64, c_int64, c_int, c_int]),
            "dropout": (None, [c_void_p] * 3 + [c_int64, c_float, c_uint64, c_int, c_int]),
            "cross_entropy": (c_int64, [c_void_p] * 4 + [c_int64, c_int64, c_float, c_int, c_int]),
            "attention_forward": (c_int, [c_void_p] * 7),
            "attention_backward": (c_int, [*[c_void_p] * 14, c_int64]),
        }
    )


@cache
def can_thread() -> bool:
    """Whether the operations can use several threads."""
    found = library()
    return found is not None and found.threaded


@cache
def has_bf16_products() -> bool:
    """Whether this processor multiplies pairs of bf16 numbers. Without, blocks and Muon are not in C."""
    return library() is not None and bool(_functions().has_bf16_products())


def threads() -> int:
    """How many the operations use now."""
    return torch.get_num_threads() if can_thread() else 1


def is_bf16(x: Tensor) -> int:
    """As C takes it."""
    return int(x.dtype is torch.bfloat16)


def pointer(x: Tensor | None) -> int | None:
    """The address of its elements; None for no tensor."""
    return None if x is None else x.data_ptr()


def new_seed() -> int:
    """A seed from torch's generator, which training seeds for each step."""
    return int(torch.empty((), dtype=torch.int64).random_(0, 2**62))


def unsupported(x: Tensor, *_: Any) -> list[str]:
    """The reasons why the operations do not take this tensor, or are slower than torch's."""
    dtype = x.dtype
    if (
        x.is_cpu
        and (dtype is torch.bfloat16 or dtype is torch.float32)
        and (can_thread() or torch.get_num_threads() == 1)
    ):
        return []
    reasons = []
    if not x.is_cpu:
        reasons.append(f"the tensor is on {x.device}")
    if dtype not in (torch.bfloat16, torch.float32):
        reasons.append(f"its dtype is {dtype}")
    if not can_thread() and torch.get_num_threads() > 1:
        reasons.append("the library is compiled without threads, and torch uses several")
    return reasons


def _rows(x: Tensor) -> tuple[Tensor, Any, Any]:
    """x with a contiguous last dimension, its rows as (outer, middle, inner), and their strides."""
    if x.stride(-1) != 1 or (x.dim() != 4 and not x.is_contiguous()):
        x = x.contiguous()
    return x, *_layout(tuple(x.shape), tuple(x.stride()))


@lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[Any, Any]:
    """Cached, as each step asks for the same few. C only reads them."""
    if len(shape) == 4:
        return ctypes.byref(_Rows(*shape)), _Strides(*strides[:3])
    C = shape[-1]
    return ctypes.byref(_Rows(1, 1, math.prod(shape[:-1]), C)), _Strides(0, 0, C)


# Norms


def _norm_unsupported(x: Tensor, *parameters: Any) -> list[str]:
    if x.size(-1) > LONGEST_ROW:
        return [f"rows are longer than {LONGEST_ROW}"]
    return unsupported(x)


def _layer_norm_unsupported(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> list[str]:
    if weight.dtype is not x.dtype or (bias is not None and bias.dtype is not x.dtype):
        return ["weight or bias have another dtype than x"]
    return _norm_unsupported(x)


class Norm(Function):
    """LayerNorm with weight and bias, or RMSNorm with neither: x (…, C) -> the same shape, contiguous."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
    ) -> Tensor:
        x, rows, strides = _rows(x)
        weight, bias = (None if one is None else one.contiguous() for one in (weight, bias))
        y = torch.empty(x.shape, dtype=x.dtype)
        stats = torch.empty(x.numel() // x.size(-1) * 2, dtype=torch.float32)
        _functions().norm_forward(
            x.data_ptr(),
            strides,
            rows,
            pointer(weight),
            pointer(bias),
            y.data_ptr(),
            stats.data_ptr(),
            eps,
            centered,
            is_bf16(x),
            threads(),
        )
        ctx.save_for_backward(x, weight, stats)
        ctx.centered, ctx.with_bias = centered, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stats = ctx.saved_tensors
        x, rows, strides = _rows(x)
        dy, _, dy_strides = _rows(dy)
        dx = torch.empty(x.shape, dtype=x.dtype)
        dweight = None if weight is None else torch.empty(x.size(-1), dtype=x.dtype)
        dbias = torch.empty(x.size(-1), dtype=x.dtype) if ctx.with_bias else None
        failed = _functions().norm_backward(
            x.data_ptr(),
            strides,
            dy.data_ptr(),
            dy_strides,
            rows,
            pointer(weight),
            stats.data_ptr(),
            None,
            dx.data_ptr(),
            _rows(dx)[2],
            pointer(dweight),
            pointer(dbias),
            ctx.centered,
            is_bf16(x),
            threads(),
        )
        if failed:
            raise MemoryError("norm: out of memory")
        return dx, dweight, dbias, None, None


# Embedding


def _embed_unsupported(tokens: Tensor, weight: Tensor) -> list[str]:
    return unsupported(weight) if weight.dtype is not torch.float32 else ["torch is as fast in fp32"]


def _embed(tokens: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = Embedding.apply(tokens, weight, _sum_rows)  # type: ignore[no-untyped-call]
    return out


def _sum_rows(gradient: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """The sum of the gradient's rows for each token, in fp32."""
    gradient, tokens = gradient.contiguous(), tokens.contiguous()
    C = gradient.size(-1)
    sums = torch.zeros(vocab_size, C)
    _functions().embedding_backward(
        tokens.data_ptr(), gradient.data_ptr(), sums.data_ptr(), tokens.numel(), C, threads()
    )
    return sums


# Rotation (RoPE)


def _rotate_unsupported(x: Tensor, cosine: Tensor, sine: Tensor) -> list[str]:
    if not cosine.shape == sine.shape == x.shape[2:] or x.size(-1) % 2:
        return ["the tables are not (T, D), or D is odd"]
    if not cosine.dtype == sine.dtype == torch.float32:
        return ["the tables are not in fp32"]
    return unsupported(x)


class Rotate(Function):
    """Rotates pairs (i, i + D/2) of x (B, H, T, D): cosines and signed sines (T, D) in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        cosine, sine = cosine.contiguous(), sine.contiguous()
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine, inverse=False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _rotated(dy, *ctx.saved_tensors, inverse=True), None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor, *, inverse: bool) -> Tensor:
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
        inverse,
        is_bf16(x),
        threads(),
    )
    return y


# Activations and dropout


def _activate(kind: str, h: Tensor) -> Tensor:
    out: Tensor = Gated.apply(h) if kind == "swiglu" else Activation.apply(h, ACTIVATIONS[kind])  # type: ignore[no-untyped-call]
    return out


class Activation(Function):
    """An elementwise activation, by its number in ACTIVATIONS."""

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
    """swiglu: h (…, 2 F), gate and value -> silu(gate) value (…, F)."""

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
    """Each element is 0 with probability p, else multiplied by 1 / (1 - p), as a seed from torch decides."""

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


# Attention


def _attend_unsupported(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> list[str]:
    if not q.shape == k.shape == v.shape or not q.dtype == k.dtype == v.dtype:
        return ["queries, keys and values differ in shape or dtype"]
    if not 0 < q.size(-1) <= LARGEST_HEAD:
        return [f"a head has more than {LARGEST_HEAD} channels, or none"]
    return unsupported(q)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    mask = None if mask is None else mask.float()
    out: Tensor = Attention.apply(q, k, v, mask, dropout_p)  # type: ignore[no-untyped-call]
    return out


class Heads(Function):
    """qkv (B, T, 3 H D) -> q, k and v, (B, H, T, D) each: views, whose gradients are one tensor again."""

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
        adjacent = all(g.stride() == strides for g in gradients) and (
            dk.data_ptr() - dq.data_ptr() == step == dv.data_ptr() - dk.data_ptr()
        )
        if adjacent:  # as Attention returns them
            return dq.as_strided((B, T, 3 * H * D), (3 * H * D * T, 3 * H * D, 1)), None
        joined = torch.stack([g.transpose(1, 2) for g in gradients], dim=2)
        return joined.view(B, T, 3 * H * D), None


class Attention(Function):
    """Causal attention: q, k, v (B, H, T, D), bias (H or 1, T, T) fp32 or None -> (B, H, T, D).

    The output is contiguous as (B, T, H, D), so that heads are joined without a copy. D is at most
    LARGEST_HEAD.
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
            *(_Strides(*x.stride()[:3]) for x in (q, k, v, out)),
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
        dqkv = torch.empty(B, T, 3, H, D, dtype=q.dtype)
        dq, dk, dv = dqkv.permute(2, 0, 3, 1, 4).unbind()
        dbias = None  # one per thread
        if bias is not None and ctx.needs_input_grad[3]:
            dbias = torch.zeros(ctx.shape.threads, *bias.shape)
        failed = _functions().attention_backward(
            ctypes.byref(ctx.shape),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            pointer(bias),
            out.data_ptr(),
            dout.data_ptr(),
            _Strides(*dout.stride()[:3]),
            lse.data_ptr(),
            dq.data_ptr(),
            dk.data_ptr(),
            dv.data_ptr(),
            _Strides(*dq.stride()[:3]),
            pointer(dbias),
            0 if dbias is None else dbias[0].numel(),
        )
        if failed:
            raise MemoryError("attention: out of memory")
        return dq, dk, dv, None if dbias is None else dbias.sum(0), None


# Loss


def _cross_entropy_unsupported(logits: Tensor, targets: Tensor) -> list[str]:
    if targets.dtype is not torch.int64 or targets.shape != logits.shape[:1] or not len(targets):
        return ["the targets are not one int64 per row, or there are none"]
    return unsupported(logits)


class CrossEntropy(Function):
    """Mean nats of logits (N, V) for targets (N,) -> scalar, fp32.

    Raises IndexError for a target outside the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logits, targets = logits.contiguous(), targets.contiguous()
        N, V = logits.shape
        losses = torch.empty(N, dtype=torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        invalid = _functions().cross_entropy(
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
        if invalid >= 0:
            raise IndexError(f"target {int(targets[invalid])} is out of bounds: there are {V} tokens")
        ctx.save_for_backward(gradient)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        scale = dloss.item()
        return gradient if scale == 1.0 else gradient * scale, None


def _implementation(call: Any, unsupported: Any = unsupported) -> tuple[Implementation, ...]:
    return (Implementation("C", unsupported, call),)


OPERATIONS = {
    "embed": _implementation(_embed, _embed_unsupported),
    "rms_norm": _implementation(lambda x: Norm.apply(x, None, None, RMS_EPS, False), _norm_unsupported),  # type: ignore[no-untyped-call]
    "layer_norm": _implementation(lambda *arguments: Norm.apply(*arguments, True), _layer_norm_unsupported),  # type: ignore[no-untyped-call]
    "activate": _implementation(_activate, lambda kind, h: unsupported(h)),
    "drop": _implementation(Dropout.apply),
    "rotate": _implementation(Rotate.apply, _rotate_unsupported),
    "split_heads": _implementation(Heads.apply),
    "attend": _implementation(_attend, _attend_unsupported),
    "cross_entropy": _implementation(CrossEntropy.apply, _cross_entropy_unsupported),
}
