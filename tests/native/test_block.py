"""Blocks in C compute what the blocks compute: values, gradients, and the same dropout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit.experiment.schema import Experiment
from gptkit.model import GPT, fast
from gptkit.model.build import build_new_model
from gptkit.native import block, implementations, usable
from gptkit.native.ops import has_bf16_products
from gptkit.plugins import registry

pytestmark = [
    pytest.mark.skipif(
        not (usable() and has_bf16_products()),
        reason="no C compiler, or a processor without dot products of bf16 pairs",
    ),
    pytest.mark.usefixtures("native_operations"),
]

V = 11
SHAPES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "qk_norm": False,
        "bias": True,
        "init": "gpt2",
    },
    "swiglu": {"mlp": "swiglu", "bias": True, "position": "alibi"},
    "gelu_tanh": {"mlp": "gelu_tanh", "norm": "layernorm", "n_head": 4, "position": "sinusoidal"},
    "no whole panel": {"n_embd": 60, "n_head": 6, "mlp": "gelu", "bias": True, "norm": "layernorm"},
    "one wide head": {"n_embd": 96, "n_head": 1},
    "heads of two": {"n_embd": 16, "n_head": 8, "mlp": "gelu", "qk_norm": False},
    "several panels": {"n_embd": 192, "n_head": 3},
}


def build(**model: Any) -> GPT:
    """A model in bf16 whose every weight counts."""
    shape = {"context_length": 80, "n_layer": 2, "n_head": 2, "n_embd": 64, **model}
    gpt = build_new_model(Experiment.model_validate({"model": shape}), V, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    for parameter in gpt.parameters():  # and no buffer: as in training
        parameter.data = parameter.data.bfloat16()
    return gpt


def tokens(B: int, T: int) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))


def outcome(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter for a fixed random one of the logits."""
    model.zero_grad()
    logits = model(ids)
    wanted = torch.empty(logits.shape).normal_(generator=torch.Generator().manual_seed(9))
    logits.backward(wanted.to(logits.dtype))
    gradients = {name: parameter.grad.double() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]
    return {"logits": logits.detach().double(), **gradients}


def exact(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """The same with torch alone in float64."""
    twin = build_new_model(
        Experiment.model_validate({"model": model.settings.model_dump()}), V, seed=1
    ).double()
    twin.load_state_dict({name: weight.double() for name, weight in model.state_dict().items()})
    with fast.using(None):
        return outcome(twin, ids)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-9)).item()


@pytest.fixture
def fused() -> Iterator[list[bool]]:
    """Whether C computed the blocks, for each forward pass."""
    calls: list[bool] = []

    def spy(*arguments: Any) -> list[str]:
        reasons = block.unsupported(*arguments)
        calls.append(not reasons)
        return reasons

    spied = replace(block.BLOCKS, unsupported=spy)
    with fast.using({**implementations(), "Blocks": (spied,)}):
        yield calls


def outcome_by_blocks(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """The outcome where each operation is in C, but no block as a whole."""
    with fast.using({name: found for name, found in implementations().items() if name != "Blocks"}):
        return outcome(model, ids)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("B", "T"), [(3, 37), (1, 1), (2, 80)])
def test_values_and_gradients_are_those_of_the_blocks(name: str, B: int, T: int, fused: list[bool]) -> None:
    model, ids = build(**SHAPES[name]), tokens(B, T)
    ours = outcome(model, ids)
    assert fused == [True]
    for part, wanted in exact(model, ids).items():
        if wanted.norm() > 1e-6:  # with one key no score matters
            assert distance(ours[part], wanted) < 0.03, part


@pytest.mark.parametrize("position", registry.names(registry.POSITIONS))
def test_every_positional_encoding_is_served(position: str, fused: list[bool]) -> None:
    model, ids = build(position=position), tokens(2, 50)
    ours = outcome(model, ids)
    assert fused == [True]
    for part, wanted in exact(model, ids).items():
        assert distance(ours[part], wanted) < 0.03, part


@pytest.mark.parametrize("dropouts", [{"dropout": 0.3}, {"dropout": 0.2, "attention_dropout": 0.5}])
def test_the_same_is_dropped_as_by_the_blocks(dropouts: dict[str, float], fused: list[bool]) -> None:
    """Forward and backward: with the seed of the step the same elements, whoever computes."""
    model, ids = build(**dropouts), tokens(3, 40)
    torch.manual_seed(1)
    ours = outcome(model, ids)
    torch.manual_seed(1)
    again = outcome(model, ids)
    torch.manual_seed(2)
    others = outcome(model, ids)
    assert fused == [True] * 3
    torch.manual_seed(1)
    theirs = outcome_by_blocks(model, ids)
    for part, wanted in theirs.items():
        assert torch.equal(ours[part], again[part])
        assert distance(ours[part], wanted) < 0.03, part
    assert distance(ours["logits"], others["logits"]) > 0.1


def test_nothing_is_dropped_in_evaluation(fused: list[bool]) -> None:
    model, plain, ids = build(dropout=0.5).eval(), build(dropout=0.0), tokens(2, 20)
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
    assert fused == [True, True]


def test_a_bias_that_is_learned_has_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(position="none"), tokens(3, 20)
    H = model.settings.n_head
    learned = torch.nn.Parameter(torch.empty(H, 80, 80).normal_(generator=torch.Generator().manual_seed(2)))

    def bias(query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return learned[:, query_positions][:, :, key_positions]

    monkeypatch.setattr(model.position, "bias", bias)
    outcome(model, ids)
    ours, learned.grad = learned.grad, None
    outcome_by_blocks(model, ids)
    assert ours is not None
    assert learned.grad is not None
    assert distance(ours.double(), learned.grad.double()) < 0.03


@pytest.mark.slow
def test_two_threads_compute_what_one_computes_and_the_same_every_time() -> None:
    model, ids = build(bias=True, norm="layernorm"), tokens(5, 61)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = outcome(model, ids)
        torch.set_num_threads(2)
        two = [outcome(model, ids) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one["logits"], two[0]["logits"])
    for part, wanted in one.items():
        assert all(torch.equal(two[0][part], other[part]) for other in two)
        assert distance(two[0][part], wanted) < 0.01  # sums of another order


def test_a_loss_that_is_not_finite_stays_so() -> None:
    model, ids = build(), tokens(1, 8)
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[3, 5] = float("nan")
    assert not outcome(model, ids)["logits"].isfinite().any()


@pytest.mark.parametrize(
    "model", [{"n_embd": 33, "n_head": 11, "position": "none"}, {"n_embd": 260, "n_head": 2}]
)
def test_what_does_not_fit_is_left_to_the_blocks(model: dict[str, Any], fused: list[bool]) -> None:
    gpt, ids = build(**model), tokens(2, 12)
    ours = outcome(gpt, ids)
    assert fused == [False]
    for part, wanted in exact(gpt, ids).items():
        assert distance(ours[part], wanted) < 0.03, part
