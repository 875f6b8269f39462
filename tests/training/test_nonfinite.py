"""The deferred guard, tried on the CPU: non-finite steps and the sum of losses without synchronizing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gptkit
from gptkit import events
from gptkit.errors import DivergedError
from gptkit.runs import Run
from gptkit.training import nonfinite, optim
from gptkit.training import trainer as loop
from gptkit.training.context import RunContext
from gptkit.training.session import Session, resume_run, train_run
from tests.support import sums

BOTH = pytest.mark.parametrize("optimizer", ["adamw", "muon"])


@pytest.fixture
def rare_synchronization(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host synchronizes as rarely as with a GPU."""
    monkeypatch.setattr(nonfinite, "is_deferred", lambda device: True)


def experiment(**changes: dict[str, Any]) -> gptkit.Experiment:
    training = {"log_interval": 5, **changes.pop("training", {})}
    return sums.experiment(**{"training": training, "evaluation": {"eval_interval": 100}, **changes})


def bad_from(step: int, monkeypatch: pytest.MonkeyPatch, *, until: int = 10**9) -> None:
    """Has the loss be nan at the steps from `step` to `until`."""
    good, calls = loop.cross_entropy, []

    def broken(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return good(logits, targets) * (float("nan") if step <= len(calls) <= until else 1.0)

    monkeypatch.setattr(loop, "cross_entropy", broken)


def keep_sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    made: list[Session] = []
    train = Session.train

    def kept(self: Session, *arguments: Any) -> Any:
        made.append(self)
        return train(self, *arguments)

    monkeypatch.setattr(Session, "train", kept)
    return made


def everything(session: Session) -> dict[str, torch.Tensor]:
    """Copies of the weights, of those that the model computes with, and of the optimizer's state."""
    trainer = session.trainer
    named = {f"master.{name}": tensor.clone() for name, tensor in trainer.parameters.named().items()}
    named |= {name: tensor.detach().clone() for name, tensor in session.model.named_parameters()}
    return named | trainer.optimizer.state_dict()


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in flat(tensors).items()}


def flat(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous().flatten() for name, tensor in tensors.items()}


def rows(run: Run) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the speed of the machine."""
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")}
        for row in run.metrics()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@BOTH
@pytest.mark.usefixtures("rare_synchronization")
def test_a_bad_step_changes_nothing_and_none_after_it_does(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, optimizer: str, precision: str
) -> None:
    """Step 8 alone is bad; steps 9 and 10 are good again and are not applied either."""
    recipe = experiment(optimizer={"type": optimizer}, training={"precision": precision})
    sessions = keep_sessions(monkeypatch)
    train_run(recipe, context, stop_at=7)
    bad_from(8, monkeypatch, until=8)
    with pytest.raises(DivergedError, match="diverged at step 8: loss nan"):
        train_run(recipe, context)
    until_seven, diverged = (bits(everything(session)) for session in sessions)
    assert diverged == until_seven


@pytest.mark.usefixtures("rare_synchronization")
def test_a_bad_step_is_reported_as_the_step_before(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[events.Event] = []
    bad_from(8, monkeypatch)
    recipe = experiment(checkpoints={"checkpoint_interval": 6})
    with pytest.raises(DivergedError, match="step 8"):
        train_run(recipe, RunContext(context.runs_folder, context.folders, seen.append))
    end = seen[-1]
    assert isinstance(end, events.RunFinished)
    assert (end.status, end.step, end.tokens) == ("diverged", 7, 7 * 3 * 16)
    run = Run(next(context.runs_folder.iterdir()))
    assert (run.record()["status"], run.record()["step"]) == ("diverged", 7)
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["step-000000000006"]
    assert [row["step"] for row in run.metrics()] == [5]


@pytest.mark.parametrize(
    ("due", "table"),
    [
        (9, {"evaluation": {"eval_interval": 9}}),
        (9, {"sampling": {"sample_interval": 9, "max_new_tokens": 3}}),
        (9, {"checkpoints": {"checkpoint_interval": 9}}),
        (9, {"training": {"log_interval": 9}}),
        (12, {}),
    ],
)
@pytest.mark.usefixtures("rare_synchronization")
def test_the_host_synchronizes_before_anything_uses_the_weights(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, due: int, table: dict[str, dict[str, Any]]
) -> None:
    table = {"training": {"log_interval": 100}, **table}
    done: list[int] = []

    def listen(event: events.Event) -> None:
        assert not isinstance(event, events.SampleDrawn | events.CheckpointSaved | events.EvaluationFinished)
        if isinstance(event, events.StepDone):
            done.append(event.step)

    bad_from(3, monkeypatch)
    with pytest.raises(DivergedError, match="step 3"):
        train_run(experiment(**table), RunContext(context.runs_folder, context.folders, listen))
    assert done == list(range(1, due))


@pytest.mark.slow
@BOTH
def test_synchronizing_rarely_trains_the_same_run(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    recipe = experiment(optimizer={"type": optimizer})
    sessions = keep_sessions(monkeypatch)
    looked_at = train_run(recipe, context).run
    monkeypatch.setattr(nonfinite, "is_deferred", lambda device: True)
    rarely = train_run(recipe, context).run
    assert rows(rarely) == rows(looked_at)
    assert [row["step"] for row in rows(rarely)] == [5, 10, 12]
    first, second = (bits(everything(session)) for session in sessions)
    assert first == second


@pytest.mark.slow
@pytest.mark.usefixtures("rare_synchronization")
def test_stopped_between_two_logs_the_losses_are_summed_as_if_not(context: RunContext) -> None:
    straight = train_run(experiment(), context).run
    broken = train_run(experiment(), context, stop_at=3).run
    for step in (6, 7, 9):
        resume_run(broken, context, stop_at=step)
    resume_run(broken, context)
    assert rows(broken) == rows(straight)


@pytest.mark.usefixtures("rare_synchronization")
def test_the_host_reads_nothing_in_an_update(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a GPU's own check: every copy of a value to the host raises."""
    sessions = keep_sessions(monkeypatch)
    monkeypatch.setenv("GPTKIT_NATIVE", "0")  # C computes on the host, which reads what it likes
    train_run(experiment(), context, stop_at=1)
    trainer = sessions[0].trainer

    def refused(*arguments: Any) -> Any:
        raise AssertionError("the host waits for the device")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refused)
    for _ in range(2):
        trainer.step()
    monkeypatch.undo()
    assert trainer.progress.step == 3


def test_a_device_whose_adamw_cannot_skip_is_checked_at_each_step() -> None:
    assert not nonfinite.is_deferred(torch.device("mps"))
    assert not nonfinite.is_deferred(torch.device("cpu"))
    assert nonfinite.is_deferred(torch.device("cuda"))
    assert "mps" not in optim.SKIPPING
