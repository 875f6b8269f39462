"""Gradients and updates in C are those of torch: copying gradients, AdamW, Muon."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from gptkit.experiment.schema import AdamWSettings
from gptkit.model import fast
from gptkit.native import optim as native
from gptkit.native.ops import has_bf16_products
from gptkit.training.optim import NEWTON_SCHULZ, update_adamw, update_muon
from gptkit.training.parameters import collect_gradients

pytestmark = pytest.mark.usefixtures("native_operations")
needs_bf16_products = pytest.mark.skipif(
    not has_bf16_products(), reason="this processor has no dot products of bf16 pairs"
)


def random(*shape: int, seed: int) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[5], [40_000, 1, 16_384, 7], [3] * 50, [16_384, 16_384], [20_000]])
def test_gradients_are_copied_in_order_and_their_norm_is_returned(
    sizes: list[int], dtype: torch.dtype
) -> None:
    gradients = [random(size, seed=number).to(dtype) for number, size in enumerate(sizes)]
    flat = torch.full((sum(sizes) + 1,), math.nan)
    starts = (0, *accumulate(sizes))
    views = list(flat[:-1].split(sizes))
    wanted = torch.cat([gradient.float() for gradient in gradients])
    for scale, add in ((1.0, False), (0.5, True)):
        norm = native.collect_gradients(gradients, views, flat, starts, scale, add)
        assert torch.equal(flat[:-1], wanted)  # copied, then added and halved: the same
        assert flat[-1].isnan()  # nothing is written past the end
        assert norm.item() == pytest.approx(wanted.double().norm().item(), rel=1e-6)
    native.collect_gradients(gradients, views, flat, starts, 0.25, False)
    assert torch.equal(flat[:-1], wanted / 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad: float) -> None:
    gradients = [torch.ones(100), torch.ones(50)]
    gradients[1][3] = bad
    flat = torch.empty(150)
    views = list(flat.split([100, 50]))
    assert not collect_gradients(gradients, views, flat, (0, 100, 150), 1.0, False).isfinite()


@pytest.mark.parametrize("size", [1, 17, 50_000])
def test_adamw_is_that_of_torch(size: int) -> None:
    ours, theirs = random(size, seed=1), random(size, seed=1).requires_grad_()
    averages, count = (torch.zeros(size), torch.zeros(size)), torch.zeros(())
    settings = AdamWSettings(beta1=0.8, beta2=0.95, eps=1e-8)
    adamw = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.3, fused=False)
    for step in range(1, 6):
        gradient = random(size, seed=10 + step)
        update_adamw(ours, gradient, *averages, count, settings, 0.01, 0.3, None)
        theirs.grad = gradient.clone()
        adamw.step()
    assert count == 5
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@needs_bf16_products
@pytest.mark.parametrize(
    "shape", [(3, 64, 64), (2, 128, 32), (2, 32, 128), (1, 2, 2), (3, 100, 66), (5, 30, 46), (1, 192, 768)]
)
def test_muon_is_that_of_torch(shape: tuple[int, int, int]) -> None:
    values, gradient, average = (random(*shape, seed=seed) for seed in range(3))
    before, wanted, moved = values.clone(), values.clone(), average.clone()
    update = (gradient, average, 0.9, 0.99, -0.02, NEWTON_SCHULZ, None)
    native.update_muon(values, *update)
    with fast.using(None):
        update_muon(wanted, gradient, moved, *update[2:])
    torch.testing.assert_close(average, moved, rtol=1e-6, atol=1e-6)
    change = wanted - 0.99 * before
    assert (values - wanted).norm() < 0.02 * change.norm()


@needs_bf16_products
def test_muon_gives_the_same_bits_whatever_the_threads() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values, gradient, average = (random(7, 48, 96, seed=seed) for seed in range(3))
            native.update_muon(values, gradient, average, 0.9, 0.99, -0.02, NEWTON_SCHULZ, None)
            results.append((values, average))
    finally:
        torch.set_num_threads(before)
    for values, average in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(average, results[0][1])


@needs_bf16_products
def test_muon_of_a_gradient_of_zeros_moves_nothing() -> None:
    values = random(2, 16, 24, seed=1)
    wanted = values.clone()
    zeros = torch.zeros(2, 16, 24)
    native.update_muon(values, zeros, zeros.clone(), 0.9, 1.0, -0.02, NEWTON_SCHULZ, None)
    assert torch.equal(values, wanted)


@needs_bf16_products
def test_a_skipped_update_changes_nothing() -> None:
    """Bit for bit, neither values nor state; with 0 it is an update."""
    tensors = [random(2, 16, 24, seed=seed) for seed in range(4)]
    count = torch.zeros(())
    before = [tensor.clone() for tensor in tensors]
    settings = AdamWSettings()
    for skip in (torch.ones(()), torch.zeros(())):
        update_muon(*tensors[:3], 0.9, 0.99, -0.02, NEWTON_SCHULZ, skip > 0)
        update_adamw(*(tensor.flatten() for tensor in tensors), count, settings, 0.01, 0.3, skip)
        assert all(map(torch.equal, tensors, before)) == bool(skip)
        assert count == 1 - skip
