"""The model's operations, each defined by one readable body in plain torch.

Input: tensors. Output: tensors. Other implementations of an operation may stand in for its body
(`@operation`); they compute the same values up to rounding, and only the elements that dropout removes
differ. Knows none of them: they are in gptkit/model/fast.py and gptkit/native.

Shapes as in gptkit/model/gpt.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

RMS_EPS = 1e-6  # added to the mean square, so that a row of zeros stays a row of zeros


@dataclass(frozen=True)
class Implementation:
    """Another way to compute an operation.

    `unsupported` takes the arguments of a call and returns the reasons why `call` cannot serve them: none, if
    it can.
    """

    name: str
    unsupported: Callable[..., list[str]]
    call: Callable[..., Any]
    more_precise: bool = False  # than the body, which is then no choice, however fast


# The implementations to try before the body, in order, by operation; fast.py sets them, once per run
registered: dict[str, tuple[Implementation, ...]] = {}

# The body of each operation, by its name
bodies: dict[str, Callable[..., Any]] = {}


def operation(body: Callable[P, R]) -> Callable[P, R]:
    """Calls the first registered implementation that supports the arguments, else `body`.

    Inside torch.compile it is always the body. A method `forward` is known by the name of its class.
    """
    name = body.__qualname__.removesuffix(".forward")
    bodies[name] = body

    @wraps(body)
    def dispatch(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling():
            for implementation in registered.get(name, ()):
                if not implementation.unsupported(*arguments):
                    return implementation.call(*arguments)
        return body(*arguments)  # type: ignore[call-arg]

    return cast(Callable[P, R], dispatch)


@operation
def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` (V, C): tokens (B, T) -> (B, T, C).

    In at least fp32 for the sake of the gradient, the sum of one row per occurrence of a token: in bf16 that
    of a common token would be lost.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return F.embedding(tokens, weight.to(dtype)).to(weight.dtype)


@operation
def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019), with no learned scale."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


@operation
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) weight + bias over the last dimension (Ba et al. 2016)."""
    return F.layer_norm(x, (x.size(-1),), weight, bias, eps)


@operation
def activate(kind: str, h: Tensor) -> Tensor:
    """The activation of the MLP: h (…, F) -> (…, F); for swiglu h (…, 2 F), gate and value, -> (…, F)."""
    if kind == "gelu":
        return F.gelu(h)
    if kind == "gelu_tanh":
        return F.gelu(h, approximate="tanh")
    if kind == "relu2":
        return F.relu(h).square()
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate) * value


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """While training, each element is 0 with probability p and otherwise multiplied by 1 / (1 - p)."""
    return drop(x, p) if training and p > 0 else x


@operation
def drop(x: Tensor, p: float) -> Tensor:
    """`dropout` in training, for 0 < p < 1."""
    return F.dropout(x, p)


@operation
def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates each pair (i, i + D/2) of x (B, H, T, D) by the angle of its position (Su et al. 2021).

    `cosine` (T, D) holds (cos, cos) and `sine` (T, D) holds (-sin, sin).
    """
    return torch.addcmul(x * cosine.to(x.dtype), x.roll(x.size(-1) // 2, -1), sine.to(x.dtype))


@operation
def split_heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, 3 C) -> queries, keys and values, (B, H, T, D) each."""
    B, T, C3 = qkv.shape
    heads = qkv.view(B, T, 3, n_head, C3 // (3 * n_head)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
    # For one token a copy costs more than it saves; for many, products are faster on contiguous heads
    q, k, v = (heads.contiguous() if T > 1 else heads).unbind()
    return q, k, v


@operation
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """softmax(q k' / sqrt(D) + mask) v: q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D).

    `mask` (H or 1, Tq, Tk) is added to the scores; it is -inf for keys after the query. Without a mask either
    Tq = Tk and attention is causal, or Tq = 1 and the query attends to every key. `dropout_p` is the
    probability with which an attention weight is dropped.
    """
    if mask is not None:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=mask is None and q.size(2) > 1
    )


@operation
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token in fp32: logits (N, V) and targets (N,) -> scalar."""
    return F.cross_entropy(logits.float(), targets)
