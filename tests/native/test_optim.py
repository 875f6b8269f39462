"""What C does between the gradient and the weights is what torch does: collecting, AdamW, Muon."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gptkit.native import optim as native
from gptkit.native import usable
from gptkit.native.ops import multiplies_pairs
from gptkit.training.optim import orthogonalise

pytestmark = pytest.mark.skipif(not usable(), reason="no C compiler here: there is only torch's way to test")

SETTINGS = {"rate": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.3}


def random(*shape: int, seed: int) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[5], [40_000, 1, 16_384, 7], [3] * 50, [16_384, 16_384], [20_000]])
def test_gradients_are_gathered_in_order_and_their_norm_is_told(sizes: list[int], dtype: torch.dtype) -> None:
    gradients = [random(size, seed=number).to(dtype) for number, size in enumerate(sizes)]
    flat = torch.full((sum(sizes) + 1,), math.nan)
    norm = native.Collector(sizes).collect(gradients, flat, 0.5)
    wanted = torch.cat([gradient.float() for gradient in gradients]) * 0.5
    assert torch.equal(flat[:-1], wanted)
    assert flat[-1].isnan()  # nothing is written past the end
    assert norm == pytest.approx(wanted.double().norm().item(), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad: float) -> None:
    gradients = [torch.ones(100), torch.ones(50)]
    gradients[1][3] = bad
    assert not math.isfinite(native.Collector([100, 50]).collect(gradients, torch.empty(150), 1.0))


@pytest.mark.parametrize("size", [1, 17, 50_000])
def test_adamw_is_that_of_torch(size: int) -> None:
    ours, theirs = random(size, seed=1), random(size, seed=1).requires_grad_()
    averages = torch.zeros(size), torch.zeros(size)
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.3, fused=False)
    for step in range(1, 6):
        gradient = random(size, seed=10 + step)
        native.adamw(ours, gradient, *averages, step=step, **SETTINGS)
        theirs.grad = gradient.clone()
        adamw.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not multiplies_pairs(), reason="this processor has no dot products of bf16 pairs")
@pytest.mark.parametrize(
    "shape", [(3, 64, 64), (2, 128, 32), (2, 32, 128), (1, 2, 2), (3, 100, 66), (5, 30, 46), (1, 192, 768)]
)
def test_muon_is_what_torch_makes_of_it(shape: tuple[int, int, int]) -> None:
    values, gradient, average = (random(*shape, seed=seed) for seed in range(3))
    wanted, moved = values.clone(), average.clone()
    native.muon(values, gradient, average, momentum=0.9, kept=0.99, size=-0.02)
    moved.lerp_(gradient, 0.1)
    update = orthogonalise(gradient.lerp(moved, 0.9)).float()
    wanted.mul_(0.99).add_(update, alpha=-0.02)
    torch.testing.assert_close(average, moved, rtol=1e-6, atol=1e-6)
    assert (values - wanted).norm() < 0.02 * (0.02 * update).norm()


@pytest.mark.skipif(not multiplies_pairs(), reason="this processor has no dot products of bf16 pairs")
def test_muon_gives_the_same_bits_whatever_the_threads() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values, gradient, average = (random(7, 48, 96, seed=seed) for seed in range(3))
            native.muon(values, gradient, average, momentum=0.9, kept=0.99, size=-0.02)
            results.append((values, average))
    finally:
        torch.set_num_threads(before)
    for values, average in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(average, results[0][1])


@pytest.mark.skipif(not multiplies_pairs(), reason="this processor has no dot products of bf16 pairs")
def test_muon_of_a_gradient_of_zeros_moves_nothing() -> None:
    values = random(2, 16, 24, seed=1)
    wanted = values.clone()
    native.muon(values, torch.zeros(2, 16, 24), torch.zeros(2, 16, 24), momentum=0.9, kept=1.0, size=-0.02)
    assert torch.equal(values, wanted)
