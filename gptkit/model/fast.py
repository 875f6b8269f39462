"""Chooses the implementations of operations for the duration of a run, and has those in torch for CPUs.

Input: a table of implementations by operation, from here and from gptkit/native. Knows no device and no run:
gptkit/backend.py decides what is installed when.

torch's own functions are slow on a CPU in training: `CPU` holds other ways to compute the same, which pass
over memory less often. They are used where there is no C compiler for gptkit/native, and for what it does not
support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.model import ops
from gptkit.model.ops import Implementation

# By operation, in the order in which they are tried
Implementations = Mapping[str, tuple[Implementation, ...]]

_QUERIES = 128  # per block of attention: keys after all of them are not multiplied at all
_LONGEST = 1024  # keys up to which all scores are kept for the backward pass

_installed: Implementations | None = None


def installed() -> Implementations | None:
    """The implementations in use now; None where nobody has chosen any, so that every body is plain torch."""
    return _installed


@contextmanager
def using(implementations: Implementations | None) -> Iterator[None]:
    """Installs these implementations, and no others, for the duration of the block."""
    global _installed  # noqa: PLW0603 - a process computes in one way at a time, as with torch's threads
    before, _installed = _installed, implementations
    _register(implementations)
    try:
        yield
    finally:
        _installed = before
        _register(before)


def _register(implementations: Implementations | None) -> None:
    ops.registered.clear()
    ops.registered.update(implementations or {})


def combined(*tables: Implementations) -> Implementations:
    """One table in which those of the first are tried before those of the second, and so on."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: tuple(one for table in tables for one in table.get(name, ())) for name in names}


# Variants in torch for CPUs


def _unsupported(x: Tensor, *_: Any) -> list[str]:
    if x.is_cpu and torch.is_grad_enabled():
        return []
    return ["it is for training on a CPU"]


def _not_16_bits_on_cpu(x: Tensor, *_: Any) -> list[str]:
    return [] if x.is_cpu and x.dtype in (torch.bfloat16, torch.float16) else ["it is for 16 bits on a CPU"]


class Embedding(torch.autograd.Function):
    """Casts the gradient to fp32 instead of all weights, and sums only the rows of tokens that occur.

    `sum_rows(gradient, tokens, vocab_size)` returns the sum of the gradient's rows for each token, in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, weight: Tensor, sum_rows: Callable[[Tensor, Tensor, int], Tensor]
    ) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocab_size, ctx.sum_rows = len(weight), sum_rows
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (tokens,) = ctx.saved_tensors
        if tokens.numel() >= ctx.vocab_size:
            return None, ctx.sum_rows(gradient, tokens, ctx.vocab_size).to(gradient.dtype), None
        rows, numbers = tokens.unique(return_inverse=True)
        dweight = gradient.new_zeros(ctx.vocab_size, gradient.size(-1))
        dweight[rows] = ctx.sum_rows(gradient, numbers, len(rows)).to(gradient.dtype)
        return None, dweight, None


def _sum_rows(gradient: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    sums: Tensor = torch.ops.aten.embedding_dense_backward(gradient.float(), tokens, vocab_size, -1, False)
    return sums


class _RMSNorm(torch.autograd.Function):
    """torch's own has a backward pass of many small operations: three to eight times slower on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)  # in bf16 the sum would lose most of its bits
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        scale = (length.square_() / x.size(-1) + ops.RMS_EPS).rsqrt_().to(x.dtype)
        y: Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True)  # the part that only changes the length of x
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale)


class _SquaredReLU(torch.autograd.Function):
    """Four passes over memory instead of torch's seven: the backward pass is one product."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        positive = h.clamp_min(0)
        y = positive.square()
        ctx.save_for_backward(positive.mul_(2))  # the derivative
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        dh: Tensor = gradient * derivative
        return dh


def _relu2_unsupported(kind: str, h: Tensor) -> list[str]:
    return _unsupported(h) if kind == "relu2" else ["it is for relu2"]


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """In bf16 torch adds the gradients of weight and bias up in bf16, row by row, and loses most of them."""
    bias = None if bias is None else bias.float()
    return F.layer_norm(x.float(), (x.size(-1),), weight.float(), bias, eps).to(x.dtype)


def _drop(x: Tensor, p: float) -> Tensor:
    """Compares 16 random bits per element, four elements per draw: 16 times as fast as torch's Bernoulli."""
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    least = min(round(p * 65536) - 32768, 32767)  # a larger number would overflow in the comparison
    return x * (bits >= least).to(x.dtype).mul_(1 / (1 - p))


def _attend_unsupported(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> list[str]:
    if q.size(2) != k.size(2):
        return ["there are not as many queries as keys"]
    if k.size(2) > _LONGEST:
        return [f"there are more than {_LONGEST} keys"]
    return _unsupported(q)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """Batched products, a block of queries at a time: on a CPU 2 to 10 times as fast as the fused kernel."""
    B, H, T, D = q.shape
    if mask is None:
        mask = torch.full((1, T, T), float("-inf"), device=q.device).triu_(1)
    elif mask.size(0) > 1:
        mask = mask.repeat(B, 1, 1)  # (B H, T, T)
    mask = mask.to(q.dtype)
    q, k, v = (x.reshape(B * H, T, D) for x in (q * D**-0.5, k, v))
    blocks = []
    for start in range(0, T, _QUERIES):
        end = min(start + _QUERIES, T)
        scores = torch.baddbmm(mask[:, start:end, :end], q[:, start:end], k[:, :end].mT)
        attention_weights = ops.dropout(scores.softmax(-1), dropout_p, training=True)
        blocks.append(attention_weights @ v[:, :end])
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return out.view(B, H, T, D)


def _attend_in_fp32(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """torch's bf16 kernel is five times slower on a CPU than its fp32 kernel."""
    return ops.attend(q.float(), k.float(), v.float(), mask, dropout_p).to(q.dtype)


CPU: Implementations = {
    "embed": (
        Implementation(
            "torch for CPUs",
            lambda tokens, weight: _not_16_bits_on_cpu(weight),
            lambda tokens, weight: Embedding.apply(tokens, weight, _sum_rows),  # type: ignore[no-untyped-call]
        ),
    ),
    "rms_norm": (Implementation("torch for CPUs", _unsupported, _RMSNorm.apply),),
    "layer_norm": (Implementation("torch for CPUs", _not_16_bits_on_cpu, _layer_norm, more_precise=True),),
    "activate": (
        Implementation("torch for CPUs", _relu2_unsupported, lambda kind, h: _SquaredReLU.apply(h)),  # type: ignore[no-untyped-call]
    ),
    "drop": (Implementation("torch for CPUs", _unsupported, _drop),),
    "attend": (
        Implementation("blocks of queries", _attend_unsupported, _attend_in_blocks),
        Implementation("in fp32", _not_16_bits_on_cpu, _attend_in_fp32),
    ),
}
