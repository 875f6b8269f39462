"""Attention in C is its formula in float64, with its bias, its dropout and all gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as running
from hypothesis import strategies as st
from torch import Tensor

from gptkit.model import ops
from gptkit.native import ops as native

pytestmark = pytest.mark.usefixtures("native_operations")

DTYPES = [torch.float32, torch.bfloat16]
LAYOUTS = ["heads", "together", "time first", "every second", "one for all"]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)).to(dtype)


def laid(x: Tensor, how: str) -> Tensor:
    """(B, H, T, D) as one third of what a linear layer gives, or otherwise; what lies between is NaN."""
    between = torch.full_like(x, float("nan"))
    if how == "heads":
        return (
            torch.stack([between, x, between], 1).permute(0, 3, 1, 2, 4).contiguous()[:, :, 1].transpose(1, 2)
        )
    if how == "time first":
        return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    if how == "every second":
        return torch.stack([x, between], -1)[..., 0]
    if how == "one for all":
        return x[:1, :1].expand_as(x)
    return x


def exact_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor | None) -> Tensor:
    """By the book; `keep` (B, H, T, T) is what dropout multiplies the shares by."""
    T, D = q.shape[2:]
    scores = q @ k.mT / math.sqrt(D)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
    share = scores.softmax(-1)
    return (share if keep is None else share * keep) @ v


def near(mine: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """In bf16 attention weights and outputs are rounded on the way, each to 1 in 256."""
    assert mine.shape == exact.shape
    error, size = (mine.double() - exact).detach().abs().max(), exact.detach().abs().max().clamp(min=1)
    assert error < (2e-5 if dtype == torch.float32 else 0.03) * size


def near_bias_gradient(
    mine: Tensor, exact: Tensor, inputs: list[Tensor], dout: Tensor, keep: Tensor | None, dtype: torch.dtype
) -> None:
    """The gradient of a score is share (dp - out . dout), which may nearly cancel, summed over heads.

    As in FlashAttention, out . dout is of the output as it was stored. So its error is a rounding of out in
    each term, however small the difference: it is held against the terms, and not against their sum.
    """
    q, k, v, bias = (x.detach().double() for x in inputs)
    T = q.size(2)
    identity = torch.eye(T, dtype=torch.float64).expand(*q.shape[:2], T, T)
    share = exact_attention(q, k, identity, bias, None)
    out, dout = exact_attention(q, k, v, bias, keep), dout.double()
    dp = dout.abs() @ v.abs().mT * (1 if keep is None else keep)
    terms = share * (dp + (out * dout).abs().sum(-1, keepdim=True))
    terms = terms.sum(0) if len(bias) > 1 else terms.sum((0, 1)).unsqueeze(0)
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2e-5
    assert ((mine.double() - exact).abs() <= rounding * terms.max().clamp(min=1)).all()


def check(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    how: str = "heads",
    heads: int | None = None,
    *,
    p: float = 0.0,
    keep: Tensor | None = None,
    seed: int = 1,
) -> None:
    """Value and gradients, with a learned bias for `heads` heads: H, 1 for all, or none."""
    T = shape[2]
    inputs = [laid(random(*shape, seed=one, dtype=dtype), how) for one in range(3)]
    if heads is not None:
        inputs.append(random(heads, T, T, seed=4))
    leaves = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    torch.manual_seed(seed)
    out = native.Attention.apply(*leaves[:3], leaves[3] if heads else None, p)
    wanted = exact_attention(*exact[:3], exact[3] if heads else None, keep)
    assert out.dtype == dtype
    near(out, wanted, dtype)
    change = laid(random(*shape, seed=9, dtype=dtype), how)
    for number, (mine, theirs) in enumerate(
        zip(
            torch.autograd.grad(out, leaves, change),
            torch.autograd.grad(wanted, exact, change.double()),
            strict=True,
        )
    ):
        assert mine.dtype == (dtype if number < 3 else torch.float32)
        if number < 3:
            near(mine, theirs, dtype)
        else:
            near_bias_gradient(mine, theirs, inputs, change, keep, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [1, 2, 7, 8, 16, 17, 33, 48, 64, 80, 96, 112, 128])
def test_attention_with_heads_of_any_size(D: int, dtype: torch.dtype) -> None:
    for heads in (None, 1, 3):
        check((2, 3, 35, D), dtype, heads=heads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 2, 8, 9, 15, 16, 31, 32, 33, 64, 65, 130])
def test_attention_over_any_time(T: int, dtype: torch.dtype) -> None:
    for heads in (None, 1, 3):
        check((2, 3, T, 8), dtype, heads=heads)


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_with_inputs_of_any_layout(dtype: torch.dtype, how: str) -> None:
    for shape in [(2, 3, 33, 6), (2, 3, 33, 7), (3, 1, 1, 5), (1, 2, 40, 1), (1, 1, 17, 32)]:
        check(shape, dtype, how)
        check(shape, dtype, how, heads=shape[1])


@running(deadline=None, max_examples=80)
@given(
    B=st.integers(1, 3),
    H=st.integers(1, 3),
    T=st.integers(1, 70),
    D=st.integers(1, native.LARGEST_HEAD),
    how=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    bias=st.sampled_from(["none", "one", "each"]),
)
@example(B=1, H=1, T=33, D=3, how="heads", dtype=torch.bfloat16, bias="each")  # odd strides: no packed pairs
@example(B=2, H=3, T=2, D=125, how="one for all", dtype=torch.bfloat16, bias="one")  # six heads round alike
def test_attention_of_any_shape(
    B: int, H: int, T: int, D: int, how: str, dtype: torch.dtype, bias: str
) -> None:
    check((B, H, T, D), dtype, how, heads={"none": None, "one": 1, "each": H}[bias])


@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 2, 0, 8)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_nothing_is_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    leaves = [torch.empty(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    out = ops.attend(*leaves, None, 0.0)
    assert out.shape == shape
    assert all(x.shape == shape for x in torch.autograd.grad(out, leaves, torch.empty_like(out)))


def test_heads_that_are_too_large_for_c_are_torchs() -> None:
    q, k, v = (random(1, 2, 9, native.LARGEST_HEAD + 1, seed=seed) for seed in range(3))
    near(
        ops.attend(q, k, v, None, 0.0),
        exact_attention(*map(Tensor.double, (q, k, v)), None, None),
        q.dtype,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_mask_of_another_dtype_is_not_read_as_fp32(dtype: torch.dtype) -> None:
    q, k, v = (random(1, 2, 20, 8, seed=seed) for seed in range(3))
    ahead = torch.ones(20, 20, dtype=torch.bool).triu(1)
    mask = random(2, 20, 20, seed=4).masked_fill(ahead, -math.inf).to(dtype).requires_grad_()
    out = ops.attend(q, k, v, mask, 0.0)
    near(out, exact_attention(*map(Tensor.double, (q, k, v)), mask.double(), None), torch.float32)
    (gradient,) = torch.autograd.grad(out.sum(), mask)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_may_shut_keys_out(dtype: torch.dtype) -> None:
    """A window of four keys; and a query that sees nothing at all is finite."""
    q, k, v = (random(1, 1, 40, 8, seed=seed, dtype=dtype).requires_grad_() for seed in range(3))
    far = torch.ones(40, 40, dtype=torch.bool).tril(-4)
    bias = torch.zeros(1, 40, 40).masked_fill(far, -math.inf)
    wanted = exact_attention(*(x.double() for x in (q, k, v)), bias.double(), None)
    near(native.Attention.apply(q, k, v, bias, 0.0), wanted, dtype)
    bias[0, 5] = -math.inf
    out = native.Attention.apply(q, k, v, bias, 0.0)
    assert out.isfinite().all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [7, 8])
def test_attention_to_nan_is_nan_and_earlier_queries_are_unaffected(D: int, dtype: torch.dtype) -> None:
    for which in range(3):
        inputs = [random(1, 1, 40, D, seed=seed, dtype=dtype) for seed in range(3)]
        inputs[which][0, 0, 33, D - 1] = float("nan")
        leaves = [x.requires_grad_() for x in inputs]
        out = native.Attention.apply(*leaves, None, 0.0)
        assert out[0, 0, 33].isnan().any()
        assert out[0, 0, :32].isfinite().all()  # eight queries share what is multiplied, even by 0
        gradients = torch.autograd.grad(out, leaves, torch.ones_like(out))
        assert all(gradient.isnan().any() for gradient in gradients[:2])  # that of v does not depend on v


@pytest.mark.parametrize("needed", range(4))
def test_attention_where_only_one_input_is_trained(needed: int) -> None:
    inputs = [random(2, 3, 9, 4, seed=seed) for seed in range(3)] + [random(3, 9, 9, seed=4)]
    exact = [x.double() for x in inputs]
    out = native.Attention.apply(
        *inputs[:needed], inputs[needed].requires_grad_(), *inputs[needed + 1 :], 0.0
    )
    wanted = exact_attention(*exact[:needed], exact[needed].requires_grad_(), *exact[needed + 1 :], keep=None)
    (mine,) = torch.autograd.grad(out, inputs[needed], torch.ones_like(out))
    (theirs,) = torch.autograd.grad(wanted, exact[needed], torch.ones_like(wanted))
    near(mine, theirs, torch.float32)


# Dropout: with the identity for values, the output is the shares themselves


def kept_shares(B: int, H: int, T: int, dtype: torch.dtype, p: float, seed: int) -> Tensor:
    """What dropout multiplied each share by, (B, H, T, T), 0 or 1 / (1 - p)."""
    q, k = (0.1 * random(B, H, T, T, seed=one, dtype=dtype) for one in (5, 6))
    v = torch.eye(T, dtype=dtype).expand(B, H, T, T)
    torch.manual_seed(seed)
    out = native.Attention.apply(q, k, v, None, p)
    keep = (out != 0).double() / (1 - p)
    near(out, exact_attention(q.double(), k.double(), v.double(), None, keep), dtype)
    return keep


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [33, 64])  # an odd size of head is not computed in words
def test_attention_drops_its_share_and_the_same_in_both_passes(T: int, dtype: torch.dtype, p: float) -> None:
    keep = kept_shares(3, 2, T, dtype, p, seed=1)
    behind = torch.ones(T, T, dtype=torch.bool).tril()
    drawn = keep[:, :, behind] == 0
    assert abs(drawn.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / drawn.numel())
    each_head = drawn.double().mean(-1).flatten()
    assert (each_head - p).abs().max() < 6 * math.sqrt(p * (1 - p) / int(behind.sum()))
    assert len({tuple(head.tolist()) for head in drawn.flatten(0, 1)}) == 6  # each head has its own
    check((3, 2, T, T), dtype, p=p, keep=keep, seed=1)
    check((3, 2, T, T), dtype, p=p, keep=keep, seed=1, heads=2)


def test_attention_dropout_follows_from_torchs_seed() -> None:
    def once(seed: int) -> Tensor:
        return kept_shares(1, 2, 40, torch.float32, 0.5, seed)

    assert torch.equal(once(1), once(1))
    assert 0.3 < (once(1) == once(2)).double().tril().sum() / (2 * 40 * 41 / 2) < 0.7
    torch.manual_seed(1)
    x = random(1, 1, 20, 4)
    arguments: tuple[Any, ...] = (x, x, x, None, 0.5)
    assert not torch.equal(native.Attention.apply(*arguments), native.Attention.apply(*arguments))
    state = torch.get_rng_state()
    native.Attention.apply(*arguments[:4], 0.0)
    assert torch.equal(torch.get_rng_state(), state)


# Heads


def off_zero(x: Tensor) -> Tensor:
    """A row that is nearly 0 would be normalised to mere rounding."""
    return x + x.sign()


def exact_rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + ops.RMS_EPS).sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("B", "T", "H", "D"), [(1, 1, 1, 1), (2, 5, 3, 4), (1, 40, 2, 7), (3, 1, 2, 8)])
@pytest.mark.parametrize("between", [False, True])
def test_heads_have_the_gradient_of_all_three(
    B: int, T: int, H: int, D: int, dtype: torch.dtype, between: bool
) -> None:
    """With a norm between them and attention their gradients come one by one; else together."""
    qkv = off_zero(random(B, T, 3 * H * D, dtype=dtype)).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    q, k, v = ops.split_heads(qkv, H)
    exact_q, exact_k, exact_v = exact.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4).unbind()
    if between:
        q, k = ops.rms_norm(q), ops.rms_norm(k)
        exact_q, exact_k = exact_rms_norm(exact_q), exact_rms_norm(exact_k)
    out = native.Attention.apply(q, k, v, None, 0.0)
    wanted = exact_attention(exact_q, exact_k, exact_v, None, None)
    near(out, wanted, dtype)
    change = random(*out.shape, seed=9, dtype=dtype)
    (mine,) = torch.autograd.grad(out, qkv, change)
    (theirs,) = torch.autograd.grad(wanted, exact, change.double())
    near(mine, theirs, dtype)


def test_gradients_of_heads_that_lie_together_are_not_copied() -> None:
    together = random(2, 5, 3, 3, 4)
    parts = together.permute(2, 0, 3, 1, 4).unbind()
    gradient, _ = native.Heads.backward(SimpleNamespace(), *parts)
    assert gradient.data_ptr() == together.data_ptr()
    assert torch.equal(gradient, together.view(2, 5, 36))
    apart, _ = native.Heads.backward(SimpleNamespace(), *(part.contiguous() for part in parts))
    assert torch.equal(apart, gradient)
    turned, _ = native.Heads.backward(SimpleNamespace(), parts[2], parts[1], parts[0])
    assert torch.equal(turned, together.flip(2).view(2, 5, 36))
