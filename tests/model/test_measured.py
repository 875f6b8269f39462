"""Implementations are timed at the shapes of a model's calls, and the fastest is chosen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit.experiment.schema import Experiment
from gptkit.model import GPT, fast, ops
from gptkit.model.build import build_new_model
from gptkit.model.measured import BLOCKS, Measurement, choices, measure, selected
from gptkit.model.ops import Implementation

MODEL = {"context_length": 8, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1}


@pytest.fixture
def model() -> GPT:
    return build_new_model(Experiment.model_validate({"model": MODEL}), 11, seed=0)


def timed(model: GPT, table: fast.Implementations) -> list[Measurement]:
    tokens = torch.arange(24).view(3, 8) % 11
    return measure(model, tokens, tokens, table, seconds=0.001)


def slowed(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The call, which takes at least this much processor time."""

    def slow(*arguments: Any) -> Any:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return call(*arguments)

    return slow


def named(name: str, operation: str, seconds: float, *reasons: str) -> Implementation:
    return Implementation(name, lambda *_: list(reasons), slowed(ops.bodies[operation], seconds))


def test_every_operation_of_a_step_is_measured_at_its_shapes(model: GPT) -> None:
    found = {(one.operation, one.shape): one.calls for one in timed(model, {})}
    assert found.pop(("rms_norm", "3 x 8 x 16")) == 3  # two in the block, and the last
    assert found.pop(("rms_norm", "3 x 2 x 8 x 8")) == 2  # queries and keys
    assert found.pop(("activate", "relu2 3 x 8 x 64")) == 1
    assert found.pop(("attend", "3 x 2 x 8 x 8")) == 1
    assert found.pop(("cross_entropy", "24 x 11")) == 1
    assert found.pop((BLOCKS, "3 x 8 x 16")) == 1
    assert {name for name, _ in found} == {"embed", "drop", "rotate", "split_heads"}


def test_the_fastest_is_chosen_and_one_that_is_as_fast_as_the_first_is_not(model: GPT) -> None:
    table = {
        "attend": (named("slow", "attend", 0.02), named("quick", "attend", 0.0)),
        "rms_norm": (named("slow", "rms_norm", 0.02),),
        "rotate": (named("never", "rotate", 0.0, "it is too long"), named("slow", "rotate", 0.02)),
        "activate": (named("first", "activate", 0.02), named("second", "activate", 0.0195)),
    }
    found = timed(model, table)
    chosen = choices(found)
    assert chosen["attend"] in ("quick", "torch")
    assert chosen["rms_norm"] == chosen["rotate"] == "torch"
    (rotate,) = (one for one in found if one.operation == "rotate")
    never, slow, body = rotate.candidates
    assert (never.seconds, never.unsupported) == (None, ("it is too long",))
    assert slow.seconds is not None
    assert body.seconds is not None
    assert slow.seconds > 0.02 > body.seconds


def test_a_body_that_is_less_precise_is_no_choice_however_fast(model: GPT) -> None:
    precise = Implementation("precise", lambda *_: [], slowed(ops.bodies["rotate"], 0.02), more_precise=True)
    (found,) = (one for one in timed(model, {"rotate": (precise,)}) if one.operation == "rotate")
    assert found.chosen == "precise"
    assert found.candidates[-1].unsupported == ("it is less precise than 'precise'",)


def test_heads_are_split_as_the_chosen_attention_reads_them(model: GPT) -> None:
    for seconds, wanted in ((0.0, "mine"), (0.02, "torch")):
        table = {
            "attend": (named("mine", "attend", seconds),),
            "split_heads": (named("mine", "split_heads", 0.0),),
        }
        if seconds == 0:  # nothing else is as fast
            table["attend"] = (Implementation("mine", lambda *_: [], lambda q, *_: q),)
        assert choices(timed(model, table))["split_heads"] == wanted


def test_measuring_leaves_threads_and_installed_implementations_as_they_were(model: GPT) -> None:
    before = torch.get_num_threads()
    mine = {"rotate": (named("mine", "rotate", 0.0),)}
    with fast.using(mine):
        timed(model, {})
        assert fast.installed() is mine
        assert ops.registered == mine
    assert torch.get_num_threads() == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_chosen_is_tried_first_and_torch_is_tried_alone() -> None:
    def same(x: Tensor) -> Tensor:
        return x

    one, two = Implementation("one", lambda *_: [], same), Implementation("two", lambda *_: [], same)
    table = {"drop": (one, two), "attend": (one, two), "rotate": (one, two)}
    found = selected(table, {"drop": "two", "attend": "torch", "embed": "one", "rotate": "of another build"})
    assert found == {"drop": (two, one), "attend": (), "rotate": (one, two)}
