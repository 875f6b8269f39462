"""Operations of the model for which torch has a slow way on the CPU, each in the fastest that is to be had.

On a GPU, and inside torch.compile, these are torch's own functions. On a CPU they are C (gptkit/native) where
it could be compiled, and else torch's, chosen and arranged for fewer passes over memory. All compute the same
values, up to the rounding of their sums; only what dropout drops is another choice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.native import attention
from gptkit.native import ops as native

RMS_EPS = native.RMS_EPS
_BLOCK = 128  # queries at a time: keys ahead of all of them are not multiplied at all
_LONGEST = 1024  # keys up to which the whole matrix of scores is kept for the backward pass


def _in_c(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and native.fits(x)


def _trains_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    out: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return out


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """x brought to mean 0 and variance 1 over the last dimension, times gain, plus bias (Ba et al. 2016)."""
    same = gain.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)
    if same and x.size(-1) <= native.LONGEST_ROW and _in_c(x):
        return _apply(native.Norm, x, gain, bias, eps, True)
    return F.layer_norm(x, (x.size(-1),), gain, bias, eps)


def rms_norm(x: Tensor) -> Tensor:
    """x divided by its root mean square over the last dimension (Zhang and Sennrich 2019), without a gain."""
    if _in_c(x) and x.size(-1) <= native.LONGEST_ROW:
        return _apply(native.Norm, x, None, None, RMS_EPS, False)
    if _trains_on_cpu(x):
        return _apply(_RMSNorm, x)
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


class _RMSNorm(torch.autograd.Function):
    """torch's own has a backward pass of many small operations: three to eight times slower on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)  # of the sum: bf16 would lose most of it
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        scale = (length.square_() / x.size(-1) + RMS_EPS).rsqrt_().to(x.dtype)
        y: Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True)  # the part that only changes the length of x
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale)


def activate(kind: str, h: Tensor) -> Tensor:
    """The MLP's non-linearity: h (…, F) -> (…, F), or for swiglu h (…, 2 F), gate and value, -> (…, F)."""
    if _in_c(h):
        if kind == "swiglu":
            return _apply(native.Gated, h)
        return _apply(native.Activation, h, native.ACTIVATIONS[kind])
    if kind == "gelu":
        return F.gelu(h)
    if kind == "gelu_tanh":
        return F.gelu(h, approximate="tanh")
    if kind == "relu2":
        return F.relu(h).square()
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate) * value


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """x with a share `p` of its elements 0 and the rest scaled by 1 / (1 - p), while training."""
    if p == 0.0 or not training:
        return x
    if _in_c(x):
        return _apply(native.Dropout, x, p)
    if _trains_on_cpu(x):
        # 16 random bits for each element, four elements a draw: sixteen times as fast as torch's Bernoulli
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        least = min(round(p * 65536) - 32768, 32767)  # beyond it the comparison would wrap round
        return x * (bits >= least).to(x.dtype).mul_(1 / (1 - p))
    return F.dropout(x, p)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Each pair (i, i + D/2) of x (B, H, T, D) turned: cosine, sine (T, D) hold (cos, cos), (-sin, sin)."""
    tables = cosine.shape == sine.shape == x.shape[2:] and cosine.dtype == sine.dtype == torch.float32
    if tables and x.size(-1) % 2 == 0 and _in_c(x):
        return _apply(native.Rotate, x, cosine.contiguous(), sine.contiguous())
    return torch.addcmul(x * cosine.to(x.dtype), x.roll(x.size(-1) // 2, -1), sine.to(x.dtype))


def split_heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, 3 C) -> queries, keys and values, (B, H, T, D) each."""
    B, T, C3 = qkv.shape
    if _in_c(qkv):
        q, k, v = attention.Heads.apply(qkv, n_head)  # type: ignore[no-untyped-call]
        return q, k, v
    heads = qkv.view(B, T, 3, n_head, C3 // (3 * n_head)).permute(2, 0, 3, 1, 4)
    # For one token a copy costs more than it saves; for many the products want heads that lie together
    q, k, v = (heads.contiguous() if T > 1 else heads).unbind()
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """softmax(q k' / sqrt(D) + mask) v: q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D).

    `mask` (H or 1, Tq, Tk) is added to the scores; what is ahead of a query is -inf in it. Without one there
    are as many queries as keys, and each sees the keys up to its own place; or a single query, which sees
    them all.
    """
    square = q.size(2) == k.size(2)
    alike = q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype
    if alike and 0 < q.size(-1) <= attention.LARGEST_HEAD and _in_c(q):
        return _apply(attention.Attention, q, k, v, None if mask is None else mask.float(), dropout_p)
    if _trains_on_cpu(q) and square and k.size(2) <= _LONGEST:
        return _attend_in_blocks(q, k, v, mask, dropout_p)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # Its bf16 kernel is five times slower than fp32's
        return attend(q.float(), k.float(), v.float(), mask, dropout_p).to(q.dtype)
    if mask is not None:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=mask is None and q.size(2) > 1
    )


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """Plain batched products: two to ten times as fast as the fused kernel with its backward on a CPU."""
    B, H, T, D = q.shape
    if mask is None:
        mask = torch.full((1, T, T), float("-inf"), device=q.device).triu_(1)
    elif mask.size(0) > 1:
        mask = mask.repeat(B, 1, 1)  # (B H, T, T)
    mask = mask.to(q.dtype)
    q, k, v = (x.reshape(B * H, T, D) for x in (q * D**-0.5, k, v))
    blocks = []
    for start in range(0, T, _BLOCK):
        end = min(start + _BLOCK, T)
        scores = torch.baddbmm(mask[:, start:end, :end], q[:, start:end], k[:, :end].mT)
        share = dropout(scores.softmax(-1), dropout_p, training=True)
        blocks.append(share @ v[:, :end])
    out = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return out.view(B, H, T, D)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats: logits (N, V) and targets (N,) -> scalar, in fp32."""
    if targets.dtype == torch.int64 and targets.shape == logits.shape[:1] and len(targets) and _in_c(logits):
        return _apply(native.CrossEntropy, logits, targets)
    return F.cross_entropy(logits.float(), targets)
