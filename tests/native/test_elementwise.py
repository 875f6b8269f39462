"""The operations of elementwise.c are their formulas in float64: values, gradients and dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import settings as running
from hypothesis import strategies as st
from torch import Tensor

from gptkit.model import ops
from gptkit.native import ops as native

pytestmark = pytest.mark.usefixtures("native_operations")

BF16_ULP = 2.0**-8  # of a number between 1 and 2, twice what rounding costs
DTYPES = [torch.float32, torch.bfloat16]
# Rows shorter than a vector, whole vectors, the longest that C normalizes; and no rows at all
SHAPES = [
    (1, 1),
    (3, 1),
    (5, 7),
    (2, 3, 16),
    (4, 4, 17),
    (3, 4096),
    (2, 3, 5, 33),
    (9, 700),
    (0, 8),
    (1, 0, 4),
]
LAYOUTS = ["together", "transposed", "every second", "with gaps", "one for all"]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads compute."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)).to(dtype)


def laid(x: Tensor, how: str) -> Tensor:
    """The numbers of x, elsewhere in memory; what lies between them is NaN."""
    if how == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "every second":
        return torch.stack([x, torch.full_like(x, float("nan"))], -1)[..., 0]
    if how == "with gaps":
        return torch.cat([x, torch.full_like(x[..., :1], float("nan"))], -1)[..., :-1]
    if how == "one for all" and x.dim() > 1:
        return x[:1].expand_as(x)
    return x


def close(mine: Tensor, exact: Tensor, dtype: torch.dtype, atol: float = 1e-6) -> None:
    """To the last bits of the dtype."""
    assert mine.dtype == dtype
    rtol, atol = (1e-5, 3 * atol) if dtype == torch.float32 else (BF16_ULP, 100 * atol)
    torch.testing.assert_close(mine.double(), exact, rtol=rtol, atol=atol)


def compare(
    ours: Callable[..., Tensor],
    formula: Callable[..., Tensor],
    *inputs: Tensor,
    how: str = "together",
    check: Callable[..., None] = close,
) -> None:
    """The output and all gradients, for a random gradient of the output that is laid out in the same way."""
    dtype = inputs[0].dtype
    leaves = [laid(x, how).detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    out, wanted = ours(*leaves), formula(*exact)
    check(out, wanted, dtype)
    assert out.shape == wanted.shape
    change = laid(random(*out.shape, seed=9, dtype=dtype), how)
    for mine, theirs in zip(
        torch.autograd.grad(out, leaves, change),
        torch.autograd.grad(wanted, exact, change.double()),
        strict=True,
    ):
        check(mine, theirs, dtype)


# Norms


def off_zero(x: Tensor) -> Tensor:
    """Numbers around 2, -2, 2, …: what is nearly 0, or all the same, is normalised to mere rounding."""
    return x.clamp(-1, 1) + 2 - 4 * (torch.arange(x.size(-1)) % 2).to(x.dtype)


def exact_layer_norm(x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, (x.size(-1),), gain, bias, 1e-5)


def exact_rms_norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + ops.RMS_EPS).sqrt()


def check_sums(mine: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Gradients of gain and bias are sums over rows, and those of rows differences of sums."""
    close(mine, exact, dtype, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, C = off_zero(random(*shape, dtype=dtype)), shape[-1]
    weight, bias = (random(C, seed=seed, dtype=dtype) for seed in (1, 2))

    def ours(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return native.Norm.apply(x, weight, bias, 1e-5, True)

    for how in LAYOUTS:
        compare(lambda x: native.Norm.apply(x, None, None, 1e-6, False), exact_rms_norm, x, how=how)
        if how != "one for all":  # a weight is one row already
            compare(ours, exact_layer_norm, x, how=how)
            compare(ours, exact_layer_norm, x, weight, how=how, check=check_sums)
            compare(ours, exact_layer_norm, x, weight, bias, how=how, check=check_sums)


@running(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 9), max_size=3),
    C=st.integers(1, 70),
    how=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
)
def test_norms_of_any_shape(shape: list[int], C: int, how: str, dtype: torch.dtype) -> None:
    x = off_zero(random(*shape, C, dtype=dtype))
    compare(lambda x: native.Norm.apply(x, None, None, 1e-6, False), exact_rms_norm, x, how=how)
    compare(lambda x: native.Norm.apply(x, None, None, 1e-5, True), exact_layer_norm, x, how=how)


def test_rows_that_are_too_long_for_c_are_normalised_by_torch() -> None:
    compare(ops.rms_norm, exact_rms_norm, random(2, native.LONGEST_ROW + 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gain_that_is_not_trained_and_one_that_lies_apart(dtype: torch.dtype) -> None:
    x, gain = random(6, 20, dtype=dtype), laid(random(20, seed=1, dtype=dtype), "every second")
    compare(
        lambda x: ops.layer_norm(x, gain, None, 1e-5),
        lambda x: exact_layer_norm(x, gain.double()),
        x,
    )


# Rotation


def exact_rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    half = x.size(-1) // 2
    return x * cosine + x.roll(half, -1) * sine


def tables(T: int, D: int) -> tuple[Tensor, Tensor]:
    angles = random(T, D // 2, seed=3)
    return torch.cat([angles.cos()] * 2, 1), torch.cat([-angles.sin(), angles.sin()], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (2, 3, 5, 6), (2, 1, 7, 32), (1, 2, 40, 50), (3, 2, 90, 128)]
)
def test_rotate(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    cosine, sine = tables(*shape[2:])
    for how in LAYOUTS:
        compare(
            lambda x: native.Rotate.apply(x, cosine, sine),
            lambda x: exact_rotate(x, cosine.double(), sine.double()),
            random(*shape, dtype=dtype),
            how=how,
        )


@pytest.mark.parametrize(
    "change", [Tensor.bfloat16, Tensor.double, lambda table: laid(table, "every second")]
)
def test_tables_that_c_cannot_read_directly_rotate_correctly(change: Callable[..., Tensor]) -> None:
    x, (cosine, sine) = random(2, 3, 40, 8), (change(table) for table in tables(40, 8))
    wanted = exact_rotate(x.double(), cosine.double(), sine.double())
    close(ops.rotate(x, cosine, sine), wanted, torch.float32)


# Activations

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu2": lambda x: x.relu().square(),
    "swiglu": lambda x: x.chunk(2, -1)[0].sigmoid() * x.chunk(2, -1)[0] * x.chunk(2, -1)[1],
}


def check_gelu(mine: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """In bf16 it is a polynomial, whose derivative is constant beyond 4: 5e-4 from the true one."""
    close(mine, exact, dtype, atol=4e-5 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("kind", list(FORMULAS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype: torch.dtype, kind: str) -> None:
    check = check_gelu if kind == "gelu" else close
    for shape in [(1, 2), (3, 2, 14), (2, 32), (5, 34), (9, 1000), (0, 8)]:
        for how in LAYOUTS:
            h = 2 * random(*shape, dtype=dtype)
            compare(lambda h: ops.activate(kind, h), FORMULAS[kind], h, how=how, check=check)


@pytest.mark.parametrize("kind", list(FORMULAS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_from_far_below_to_far_above_zero(dtype: torch.dtype, kind: str) -> None:
    h = torch.linspace(-30, 30, 60_002).to(dtype)
    check = check_gelu if kind == "gelu" else close
    compare(lambda h: ops.activate(kind, h), FORMULAS[kind], h, check=check)


# Dropout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 15, 16, 4097, 20_001])
def test_dropout_drops_the_same_elements_in_both_passes(n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = off_zero(random(n, dtype=dtype)).requires_grad_()
    out = native.Dropout.apply(x, 0.3)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(x))
    scale = torch.tensor(1 / 0.7).to(dtype)
    assert torch.equal(gradient, torch.where(out == 0, 0, scale).to(dtype))
    close(out, (x * gradient.bool()).double() / 0.7, dtype)
    assert abs((out == 0).double().mean() - 0.3) < 5 * math.sqrt(0.21 / n)


def test_dropout_follows_from_its_seed_with_any_number_of_threads(threads: Callable) -> None:
    found = []
    for count, seed in ((1, 3), (2, 3), (5, 3), (2, 4)):
        threads(count)
        torch.manual_seed(seed)
        found.append(native.Dropout.apply(torch.ones(50_000), 0.5))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert abs((found[0] == found[3]).double().mean() - 0.5) < 0.02


@running(deadline=None, max_examples=60)
@given(seed=st.integers(0, 999), length=st.integers(1, 5000), p=st.floats(0.01, 0.9))
@example(seed=0, length=4096, p=0.5)
def test_dropout_of_any_length_drops_its_share(seed: int, length: int, p: float) -> None:
    torch.manual_seed(seed)
    out = native.Dropout.apply(torch.ones(length), p)
    assert abs((out == 0).double().mean() - p) < 6 * math.sqrt(p * (1 - p) / length) + 20 / length
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)), rtol=1e-5, atol=0)


# Loss


def exact_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "V"), [(1, 1), (3, 1), (1, 2), (7, 15), (8, 16), (200, 65), (3, 5000)])
def test_cross_entropy(N: int, V: int, dtype: torch.dtype) -> None:
    """Of the loss itself and of a multiple of it, as when gradients are accumulated."""
    targets = torch.stack([torch.arange(N) * 7 % V, torch.full((N,), -1)], 1)[:, 0]  # not contiguous
    for how, scale in product(LAYOUTS, (1.0, 0.25)):
        logits = laid(4 * random(N, V, dtype=dtype), how).detach().requires_grad_()
        exact = logits.detach().double().requires_grad_()
        loss, wanted = ops.cross_entropy(logits, targets), exact_loss(exact, targets)
        close(loss, wanted, torch.float32)
        (mine,) = torch.autograd.grad(scale * loss, logits)
        (theirs,) = torch.autograd.grad(scale * wanted, exact)
        close(mine, theirs, dtype, atol=1e-7)
        with torch.no_grad():
            assert torch.equal(ops.cross_entropy(logits, targets), loss)


@pytest.mark.parametrize("target", [-1, -100, 9, 2**40, -(2**63)])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    targets = torch.tensor([0, 8, target])
    with pytest.raises(IndexError, match=f"target {target} is out of bounds: there are 9 tokens"):
        ops.cross_entropy(random(3, 9), targets)


@pytest.mark.parametrize("targets", [torch.tensor([1, 2]), torch.zeros(6, dtype=torch.int32)])
def test_too_few_targets_and_those_of_another_dtype_are_refused(targets: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match="target"):
        ops.cross_entropy(random(6, 5), targets)


# What must be seen


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 20, 36])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_of_nan_is_nan(dtype: torch.dtype, place: int, bad: float) -> None:
    logits = random(4, 37, dtype=dtype)
    logits[2, place] = bad
    logits.requires_grad_()
    loss = ops.cross_entropy(logits, torch.tensor([1, 2, 3, 4]))
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[2].isnan().any()
    assert gradient[[0, 1, 3]].isfinite().all()


def test_an_impossible_token_has_an_infinite_loss() -> None:
    logits = random(4, 37)
    logits[2, 3] = -math.inf
    assert ops.cross_entropy(logits, torch.tensor([1, 2, 3, 4])) == math.inf
    assert ops.cross_entropy(logits, torch.tensor([1, 2, 4, 4])).isfinite()
    assert ops.cross_entropy(torch.full((1, 5), -math.inf), torch.tensor([1])).isnan()


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "rms_norm": lambda x: native.Norm.apply(x, None, None, 1e-6, False),
    "layer_norm": lambda x: native.Norm.apply(x, None, None, 1e-5, True),
    "rotate": lambda x: native.Rotate.apply(x, *tables(5, 38)),
    "dropout": lambda x: native.Dropout.apply(x, 0.5),
    **{kind: lambda x, kind=kind: ops.activate(kind, x) for kind in FORMULAS},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(ELEMENTWISE))
def test_nan_and_inf_propagate(name: str, dtype: torch.dtype) -> None:
    """To the output, where they are in the input, and to the gradient, where they are in either."""
    for place, bad in product((0, 18, 37), (float("nan"), float("inf"))):
        x = random(1, 2, 5, 38, dtype=dtype)
        x[0, 1, 2, place] = bad
        x.requires_grad_()
        out = ELEMENTWISE[name](x)
        assert not out[0, 1, 2].isfinite().all()
        assert out[0, 0].isfinite().all()
        (gradient,) = torch.autograd.grad(out, x, torch.full_like(out, bad))
        assert not gradient[0, 1, 2].isfinite().all()
        assert not gradient[0, 0, 0].isfinite().all() or name == "dropout"


# Results that do not depend on how many compute


def test_the_same_bits_whatever_the_threads(threads: Callable) -> None:
    """All but sums over rows that each thread has a part of: those are the same from run to run."""
    x, gain, bias = random(2, 3, 70, 16), random(16, seed=1), random(1, 70, 70, seed=2)

    def all_of_them() -> tuple[list[Tensor], list[Tensor]]:
        leaves = [x.clone().requires_grad_(), gain.clone().requires_grad_(), bias.clone().requires_grad_()]
        torch.manual_seed(1)
        h = native.Norm.apply(leaves[0], leaves[1], None, 1e-5, True)
        q = native.Rotate.apply(h, *tables(70, 16))
        out = ops.activate("swiglu", native.Attention.apply(q, h, h, leaves[2], 0.2))
        loss = ops.cross_entropy(out.flatten(0, 2), torch.arange(420) % 8)
        dx, dgain, dbias = torch.autograd.grad(loss, leaves)
        return [out, loss, dx], [dgain, dbias]

    seen = {}
    for count in (1, 2, 2, 2, 7, 7):  # seven: more than there are heads, so that some have nothing to do
        threads(count)
        same, sums = all_of_them()
        _, first_sums = seen.setdefault(count, (same, sums))
        assert all(map(torch.equal, same, seen[1][0])), count
        assert all(map(torch.equal, sums, first_sums)), count
        for mine, theirs in zip(sums, seen[1][1], strict=True):
            torch.testing.assert_close(mine, theirs)


def test_fewer_rows_than_threads(threads: Callable) -> None:
    threads(9)
    gain, bias = random(4096, seed=1), random(4096, seed=2)
    compare(
        lambda *all_: native.Norm.apply(*all_, 1e-5, True),
        exact_layer_norm,
        random(2, 4096),
        gain,
        bias,
        check=check_sums,
    )
    compare(lambda x: ops.activate("relu2", x), FORMULAS["relu2"], random(1, 9000))
