"""The fast implementations for the CPU match torch's own: values, gradients and random draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.model import fast, ops

pytestmark = pytest.mark.usefixtures("both_ways")

# attend works on 128 queries at a time, and leaves more than 1024 keys to torch
LENGTHS = [1, 2, 77, 128, 129, 300]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradient of each input for a fixed random one of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return (out.detach(), *torch.autograd.grad(out, leaves, random(*out.shape, seed=9, dtype=out.dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("V", "C"), [(3, 5), (3, 130), (9000, 17)])
def test_the_gradient_of_an_embedding_is_the_sum_over_all_tokens(V: int, C: int, dtype: torch.dtype) -> None:
    """Of rows with a mean, which bf16 would stop adding up after a few hundred; in any number of threads."""
    tokens = torch.randint(0, V, (2, 4000), generator=torch.Generator().manual_seed(3))
    weight, gradient = random(V, C, dtype=dtype), (random(2, 4000, C, seed=1) + 1).to(dtype)
    wanted = torch.zeros(V, C, dtype=torch.float64)
    wanted.index_add_(0, tokens.flatten(), gradient.flatten(0, 1).double())
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        leaf = weight.clone().requires_grad_()
        out = ops.embed(tokens, leaf)
        assert torch.equal(out, weight[tokens])
        found += torch.autograd.grad(out, leaf, gradient)
    torch.set_num_threads(threads)
    torch.testing.assert_close(
        found[0], wanted.to(dtype), rtol=1e-5 if dtype is torch.float32 else 0.01, atol=0
    )
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradients_of_a_layer_norm_are_sums_over_all_rows(dtype: torch.dtype) -> None:
    x, weight, bias = (
        random(4000, 16, dtype=dtype),
        random(16, seed=1, dtype=dtype),
        torch.zeros(16, dtype=dtype),
    )
    gradient = (random(4000, 16, seed=2) + 1).to(dtype)
    leaves = [one.requires_grad_() for one in (x, weight, bias)]
    found = torch.autograd.grad(ops.layer_norm(*leaves, 1e-5), leaves, gradient)
    true_leaves = [one.detach().double().requires_grad_() for one in leaves]
    true_out = F.layer_norm(true_leaves[0], (16,), *true_leaves[1:], 1e-5)
    wanted = torch.autograd.grad(true_out, true_leaves, gradient.double())
    for ours, true in zip(found, wanted, strict=True):
        assert (ours - true).norm() < (1e-5 if dtype is torch.float32 else 0.005) * true.norm()


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e4])
def test_rms_norm_divides_by_the_root_mean_square(size: float) -> None:
    x = size * random(3, 5, 16)
    wanted = plain_rms_norm(x.double()).float()
    torch.testing.assert_close(ops.rms_norm(x.requires_grad_()), wanted)
    with torch.no_grad():
        torch.testing.assert_close(ops.rms_norm(x), wanted)


def test_rms_norm_has_the_gradient_of_its_formula() -> None:
    """Numerically in float64, and against autograd; near 0, where the guard against it counts, too."""
    for x in (random(2, 3, 7).double(), 1e-3 * random(4, 7).double(), torch.zeros(2, 7).double()):
        if x.any():
            assert torch.autograd.gradcheck(ops.rms_norm, x.clone().requires_grad_(), eps=1e-8, atol=1e-4)
        for ours, wanted in zip(gradients(ops.rms_norm, x), gradients(plain_rms_norm, x), strict=True):
            torch.testing.assert_close(ours, wanted)


def test_rms_norm_in_bf16_is_right_to_its_last_bits() -> None:
    x = random(4, 6, 256, dtype=torch.bfloat16)
    ours = gradients(ops.rms_norm, x)
    wanted = gradients(plain_rms_norm, x.double())
    for rough, exact in zip(ours, wanted, strict=True):
        assert rough.dtype == torch.bfloat16
        torch.testing.assert_close(rough.double(), exact, atol=0.02, rtol=0.02)


def attention_inputs(T: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (random(2, 3, T, 8, seed=seed, dtype=dtype) for seed in range(3))
    return 2 * q, k, v  # scores spread widely enough to matter


def causal_mask(T: int, heads: int, spread: float = 1.0) -> Tensor:
    """Something to add to the scores of what is behind, another for each head, and -inf ahead."""
    ahead = torch.ones(T, T, dtype=torch.bool).triu(1)
    return (spread * random(heads, T, T, seed=4)).masked_fill(ahead, float("-inf"))


@pytest.mark.parametrize("T", LENGTHS)
def test_attention_is_that_of_torch(T: int) -> None:
    inputs = attention_inputs(T)
    ours = gradients(lambda q, k, v: ops.attend(q, k, v, None, 0.0), *inputs)
    wanted = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *inputs)
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ops.attend(*inputs, None, 0.0), wanted[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("T", LENGTHS)
def test_attention_with_a_mask_is_that_of_torch(T: int, heads: int) -> None:
    inputs, mask = attention_inputs(T), causal_mask(T, heads)
    ours = gradients(lambda q, k, v: ops.attend(q, k, v, mask, 0.0), *inputs)
    wanted = gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), *inputs)
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(ops.attend(*inputs, mask, 0.0), wanted[0], atol=1e-5, rtol=1e-4)


def test_attention_over_more_keys_than_are_kept_is_that_of_torch() -> None:
    q, k, v = (random(1, 1, 1100, 4, seed=seed) for seed in range(3))
    plain = (q @ k.mT / 2).masked_fill(torch.ones(1100, 1100, dtype=torch.bool).triu(1), float("-inf"))
    ours = ops.attend(q.requires_grad_(), k, v, None, 0.0)
    torch.testing.assert_close(ours, plain.softmax(-1) @ v, atol=1e-5, rtol=1e-4)


def test_a_single_query_sees_every_key() -> None:
    q, k, v = attention_inputs(20)
    last = ops.attend(q[:, :, -1:], k, v, None, 0.0)
    torch.testing.assert_close(last, ops.attend(q, k, v, None, 0.0)[:, :, -1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.parametrize("T", [77, 300])
def test_attention_in_bf16_is_near_that_in_float64(T: int, heads: int) -> None:
    inputs = attention_inputs(T, torch.bfloat16)
    mask = causal_mask(T, heads) if heads else None
    exact_mask = (mask if mask is not None else causal_mask(T, 1, spread=0.0)).double()
    wanted = gradients(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=exact_mask),
        *(x.double() for x in inputs),
    )
    ours = gradients(lambda q, k, v: ops.attend(q, k, v, mask, 0.0), *inputs)
    with torch.no_grad():
        read = ops.attend(*inputs, mask, 0.0)
    for rough, exact in zip((*ours, read), (*wanted, wanted[0]), strict=True):
        assert rough.dtype == torch.bfloat16
        assert (rough.double() - exact).std() < 0.02 * exact.std()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("grad", [True, False])
def test_dropout_drops_its_share_and_scales_the_rest(p: float, dtype: torch.dtype, grad: bool) -> None:
    torch.manual_seed(1)
    x = torch.ones(300, 333, dtype=dtype)
    with torch.set_grad_enabled(grad):
        out = ops.dropout(x, p, training=True)
    assert out.dtype == dtype
    zeros = (out == 0).double().mean().item()
    assert abs(zeros - p) < 5 * math.sqrt(p * (1 - p) / x.numel())
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)))
    rows, columns = ((out == 0).double().mean(dim) for dim in (1, 0))
    for part, many in ((rows, 333), (columns, 300)):  # nowhere more than elsewhere
        assert (part - p).abs().max() < 6 * math.sqrt(p * (1 - p) / many)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_does_nothing_when_it_has_nothing_to_do(p: float) -> None:
    x = random(5, 7)
    assert torch.equal(ops.dropout(x, p, training=p == 0.0), x)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_dropout_at_the_ends_of_its_range_drops_nothing_or_nearly_all(p: float) -> None:
    torch.manual_seed(1)
    kept = (ops.dropout(torch.ones(10_001), p, training=True) != 0).double().mean()
    assert abs(kept - (1 - p)) < 0.001


def test_dropout_follows_from_the_seed() -> None:
    x = torch.ones(10, 11)
    torch.manual_seed(1)
    first, second = (ops.dropout(x, 0.5, training=True) for _ in range(2))
    torch.manual_seed(1)
    again = ops.dropout(x, 0.5, training=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_dropout_lets_the_gradient_through_where_it_let_the_value_through() -> None:
    torch.manual_seed(1)
    x = random(20, 30).requires_grad_()
    out = ops.dropout(x, 0.4, training=True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient * x, out)
    assert 0 < (gradient == 0).sum() < gradient.numel()


@pytest.mark.parametrize("T", [40, 200])
def test_dropout_of_attention_leaves_its_mean_and_the_past(T: int) -> None:
    """Over many draws it is what it is without; no draw lets a key ahead in."""
    q, k, v = (random(1, 1, T, 4, seed=seed).requires_grad_() for seed in range(3))
    torch.manual_seed(1)
    many = ops.attend(*(x.expand(2, 600, T, 4) for x in (q, k, v)), None, 0.3).flatten(0, 1)
    wanted = ops.attend(q, k, v, None, 0.0)[0, 0]
    error = many.std(0) / math.sqrt(1200)
    assert (error > 0).all()
    assert ((many.mean(0) - wanted).abs() / error).max() < 5.5  # of up to 800 numbers
    (gradient,) = torch.autograd.grad(many[:, T // 2].sum(), v)
    assert torch.equal(gradient[0, 0, T // 2 + 1 :], torch.zeros(T - T // 2 - 1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_variant_in_torch_of_relu2_computes_the_bits_of_its_body(dtype: torch.dtype) -> None:
    """So that runs which began without it end as they would have."""
    (relu2,) = fast.CPU["activate"]
    h = random(3, 5, 34, dtype=dtype)
    for found, wanted in zip(
        gradients(lambda h: relu2.call("relu2", h), h),
        gradients(lambda h: ops.bodies["activate"]("relu2", h), h),
        strict=True,
    ):
        assert torch.equal(found, wanted)
    assert relu2.unsupported("gelu", h.requires_grad_())
