"""Training that does not fit into memory is refused, with the field to lower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptkit.errors import OutOfMemoryError
from gptkit.experiment.load import experiment_from_dict
from gptkit.training import cost
from gptkit.training.cost import check_memory, out_of_memory
from tests.support import Command

SMALL = {
    "model": {"context_length": 16, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "training": {"batch_size": 4},
}


def with_memory(monkeypatch: pytest.MonkeyPatch, size: int, used: int = 0) -> None:
    monkeypatch.setattr(cost, "usable_memory", lambda: size)
    monkeypatch.setattr(cost, "memory_here", lambda: "this container or job may use 0.0 GB")
    monkeypatch.setattr(cost, "used_memory", lambda: used)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_model_or_a_batch_that_needs_more_than_the_machine_has_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = experiment_from_dict(SMALL)
    with_memory(monkeypatch, 10**9)
    check_memory(experiment, 65)
    with_memory(monkeypatch, 650_000)
    with pytest.raises(OutOfMemoryError, match=r"batch of 4 x 16 tokens needs .* Lower training\.batch_size"):
        check_memory(experiment, 65)
    with_memory(monkeypatch, 100_000)
    with pytest.raises(OutOfMemoryError, match=r"model of [\d,]+ parameters needs .* Lower model\.n_embd"):
        check_memory(experiment, 65)


def test_an_evaluation_that_needs_more_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_memory(monkeypatch, 3 * 10**9)
    words = r"evaluation of 8,192 tokens at once needs at least 3\.3 GB; .* Lower evaluation\.eval_tokens"
    with pytest.raises(OutOfMemoryError, match=words):
        check_memory(experiment_from_dict(SMALL), 50_257)
    check_memory(experiment_from_dict({**SMALL, "evaluation": {"eval_tokens": 4096}}), 50_257)


def test_what_the_text_already_takes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_from_dict(SMALL)
    with_memory(monkeypatch, 10**9, used=10**9 - 650_000)
    words = r"may use 0\.0 GB, of which 1\.0 GB are used\. Lower training\.batch_size"
    with pytest.raises(OutOfMemoryError, match=words):
        check_memory(experiment, 65)


def test_an_absurd_model_exits_with_9_and_leaves_no_run(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    sizes = ("--set", "model.n_layer=100", "--set", "model.n_embd=65536", "--set", "model.n_head=2")
    refused = gptkit_command("train", tiny_experiment, *sizes)
    assert refused.code == 9
    assert "Lower model.n_embd or model.n_layer" in refused.err
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: 9 GB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_allocation_names_the_sizes_and_the_field_to_lower(error: Exception) -> None:
    message = r"4 x 16 tokens, 2 layers of width 32\. Lower training"
    with pytest.raises(OutOfMemoryError, match=message), out_of_memory(experiment_from_dict(SMALL)):
        raise error


def test_another_error_is_not_taken_for_one_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(experiment_from_dict(SMALL)):
        raise RuntimeError("shapes do not match")
