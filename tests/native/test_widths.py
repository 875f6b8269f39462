"""The C computes the same formulas with vectors of 4, 8 and 16 floats.

The other tests of this folder use the library for this processor; with `GPTKIT_MARCH=x86-64-v3` that of a
level. Here each operation runs at sizes that are no whole number of vectors.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.backend import fast_operations
from gptkit.model import fast, ops
from gptkit.native import block, build, decode, optim
from gptkit.native import ops as native
from tests.model import test_ops as model_ops
from tests.native import test_attention as attention
from tests.native import test_decode as decoding
from tests.native import test_elementwise as elementwise
from tests.native.test_elementwise import FORMULAS, compare, off_zero, random

# The widths of x86-64, each with what the processor must be capable of as torch names it
LEVELS = {"x86-64-v2": "DEFAULT", "x86-64-v3": "AVX2", "x86-64-v4": "AVX512"}
CAPABILITIES = list(LEVELS.values())
ODD = [(1, 1), (3, 5), (5, 7), (2, 3, 17), (2, 2, 65), (9, 131)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"), reason="the levels are those of x86-64"
    ),
]


@pytest.fixture(params=LEVELS, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Compiles the library for a level, and computes with it."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in CAPABILITIES and CAPABILITIES.index(capability) < CAPABILITIES.index(
        LEVELS[request.param]
    ):
        pytest.skip(f"this processor is not of level {request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTKIT_MARCH", request.param)
        library = build.library.__wrapped__()
        if library is None or os.environ.get("GPTKIT_NATIVE") == "0":
            pytest.skip("no C compiler, or GPTKIT_NATIVE=0")
        for module in (build, native):
            patch.setattr(module, "library", lambda: library)
        _forget()
        with fast.using(fast_operations("cpu", native=True)):
            yield request.param
    _forget()


def _forget() -> None:
    """The functions and capabilities of the library that was used before."""
    for module in (native, block, decode, optim):
        module._functions.cache_clear()
    native.can_thread.cache_clear()
    native.has_bf16_products.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_activations(dtype: torch.dtype) -> None:
    for shape in ODD:
        x, C = random(*shape, dtype=dtype), shape[-1]
        weight, bias = (random(C, seed=seed, dtype=dtype) for seed in (1, 2))
        compare(
            lambda x: native.Norm.apply(x, None, None, 1e-6, False), elementwise.exact_rms_norm, off_zero(x)
        )
        compare(
            lambda *all_: native.Norm.apply(*all_, 1e-5, True),
            elementwise.exact_layer_norm,
            *(off_zero(x), weight, bias),
            check=elementwise.check_sums,
        )
        for kind, formula in FORMULAS.items():
            h = random(*shape[:-1], 2 * C, dtype=dtype)
            check = elementwise.check_gelu if kind.startswith("gelu") else elementwise.close
            compare(lambda h, kind=kind: ops.activate(kind, h), formula, h, check=check)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_loss_and_dropout(dtype: torch.dtype) -> None:
    for T, D in [(3, 2), (5, 6), (7, 34), (2, 66)]:
        cosine, sine = elementwise.tables(T, D)
        compare(
            lambda x, tables=(cosine, sine): native.Rotate.apply(x, *tables),
            lambda x, tables=(cosine, sine): elementwise.exact_rotate(x, *tables),
            random(2, 3, T, D, dtype=dtype),
        )
    for N, V in [(1, 1), (3, 2), (7, 15), (5, 65), (2, 131)]:
        targets = torch.arange(N) % V
        compare(
            lambda x, targets=targets: ops.cross_entropy(x, targets),
            lambda x, targets=targets: F.cross_entropy(x, targets),
            random(N, V, dtype=dtype),
            check=close_to_scalar,
        )
    torch.manual_seed(3)
    x = torch.ones(4099, dtype=dtype, requires_grad=True)
    out = native.Dropout.apply(x, 0.25)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert torch.equal(gradient, out)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(4 / 3).to(dtype).item()}


def close_to_scalar(mine: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """A loss is in fp32, whatever the logits are in."""
    elementwise.close(mine, exact, mine.dtype if mine.dim() == 0 else dtype)


def test_dropout_drops_the_same_elements_at_every_width(level: str, record: dict[str, Tensor]) -> None:
    torch.manual_seed(5)
    record[level] = native.Dropout.apply(torch.ones(4099), 0.25)
    assert all(torch.equal(kept, record[level]) for kept in record.values())


@pytest.fixture(scope="module")
def record() -> dict[str, Tensor]:
    return {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(dtype: torch.dtype) -> None:
    for shape in [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 33, 17), (1, 2, 70, 40), (1, 1, 19, 125)]:
        for heads in (None, shape[1]):
            attention.check(shape, dtype, heads=heads)


def test_the_gradient_of_an_embedding() -> None:
    for C in (1, 5, 17, 131):
        model_ops.test_the_gradient_of_an_embedding_is_the_sum_over_all_tokens(3, C, torch.bfloat16)


def test_a_decoder() -> None:
    options: list[dict[str, Any]] = [
        {"norm": "layernorm", "mlp": "gelu", "position": "learned"},
        {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "qk_norm": True},
        {"norm": "rmsnorm", "mlp": "relu2", "position": "alibi", "n_embd": 140},
    ]
    for one in options:
        decoding.check(decoding.tiny(**one), samples=3, prompts=(1, 4))


def test_adamw() -> None:
    """One step from zero moments, in fp64: beta1 = 0.9 and beta2 = 0.99, as it is defined."""
    values, gradient = random(1003), random(1003, seed=1)
    exp_avg, exp_avg_sq = torch.zeros(1003), torch.zeros(1003)
    settings = optim.AdamWSettings(type="adamw", beta1=0.9, beta2=0.99, eps=1e-8)
    wanted = values.double() * (1 - 0.01 * 0.1) - 0.01 * gradient.double() / (gradient.double().abs() + 1e-8)
    optim.update_adamw(
        values, gradient, exp_avg, exp_avg_sq, torch.zeros((), dtype=torch.float64), settings, 0.01, 0.1, None
    )
    torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-6)
