"""The loop: which hook is called after which step, and why it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from gptkit.backend import Backend
from gptkit.events import Event, StepFinished, StepProgress, Working
from gptkit.experiment.schema import Experiment
from gptkit.model.build import build_new_model
from gptkit.training.budget import TrainingProgress
from gptkit.training.setup import build_trainer
from gptkit.training.trainer import Evaluation, StepPlan, StopReason, Trainer


@dataclass
class Recorded:
    """Hooks that note each call, with the val losses that the evaluations are to have."""

    trainer: Trainer
    val_losses: list[float] = field(default_factory=list)
    stop_after: int = 10**9
    calls: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    saved: list[TrainingProgress] = field(default_factory=list)
    evaluation_fails: bool = False

    def evaluate(self) -> Evaluation:
        self._note("evaluate")
        if self.evaluation_fails:
            raise MemoryError
        return Evaluation(self.val_losses.pop(0) if self.val_losses else 1.0, 1.0)

    def sample(self, step: int) -> None:
        self._note("sample")

    def save(self, progress: TrainingProgress) -> None:
        assert progress.step == self.trainer.progress.step
        self.saved.append(progress)
        self._note("save" if progress.unlogged_norm is None else "save before the log")

    def stop_requested(self) -> bool:
        return self.trainer.progress.step >= self.stop_after

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._note(type(event).__name__)

    def _note(self, what: str) -> None:
        self.calls.append(f"{self.trainer.progress.step} {what}")

    def steps_of(self, what: str) -> list[int]:
        return [int(call.split()[0]) for call in self.calls if call.endswith(f" {what}")]


def trainer_of(precision: str = "fp32", **tables: Any) -> Trainer:
    tables.setdefault("training", {})
    experiment = Experiment.model_validate(
        {
            "model": {"context_length": 4, "n_embd": 8, "n_layer": 1, "n_head": 1},
            "sampling": {"sample_interval": 0},
            **tables,
            "training": {"batch_size": 2, "max_steps": 8, "log_interval": 3, **tables["training"]},
        }
    )
    ids = np.random.default_rng(1).integers(0, 5, 200).astype(np.uint8)
    backend = Backend("cpu", precision, threads=1, compile=False)
    return build_trainer(experiment, backend, build_new_model(experiment, 5, seed=1), ids, seed=1)


def test_hooks_are_called_at_their_intervals_and_at_the_end() -> None:
    trainer = trainer_of(
        evaluation={"eval_interval": 4},
        checkpoints={"checkpoint_interval": 5},
        sampling={"sample_interval": 6},
    )
    hooks = Recorded(trainer, val_losses=[2.0, 3.0])
    assert trainer.fit(hooks, StepPlan(None, 8)) is StopReason.LAST_STEP
    assert trainer.progress.step == 8
    assert hooks.steps_of("StepDone") == list(range(1, 9))
    assert hooks.steps_of("StepFinished") == [3, 4, 6, 8]
    assert hooks.steps_of("evaluate") == hooks.steps_of("EvaluationFinished") == [4, 8]
    assert hooks.steps_of("sample") == [6, 8]
    assert hooks.steps_of("save") == [4, 5, 8]  # a new best, the interval, the end


def test_a_save_waits_neither_for_an_evaluation_nor_for_a_sample() -> None:
    trainer = trainer_of(evaluation={"eval_interval": 2}, sampling={"sample_interval": 2})
    hooks = Recorded(trainer)
    trainer.fit(hooks, StepPlan(2, 8))
    order = ["save before the log", "StepFinished", "evaluate", "EvaluationFinished", "StepDone", "save"]
    assert [call.removeprefix("2 ") for call in hooks.calls if call.startswith("2 ")] == [*order, "sample"]


def test_a_step_that_is_only_due_to_be_saved_is_logged_first() -> None:
    trainer = trainer_of(evaluation={"eval_interval": 5}, checkpoints={"checkpoint_interval": 3})
    hooks = Recorded(trainer)
    trainer.fit(hooks, StepPlan(4, 8))
    assert [call for call in hooks.calls if call.startswith("3 ")] == [
        "3 StepFinished",
        "3 StepDone",
        "3 save",
    ]


@pytest.mark.parametrize("checkpoint_interval", [4, 100])
def test_a_step_whose_evaluation_fails_is_saved_and_a_later_session_evaluates_it(
    checkpoint_interval: int,
) -> None:
    tables = {
        "evaluation": {"eval_interval": 4},
        "checkpoints": {"checkpoint_interval": checkpoint_interval},
    }
    straight = Recorded(trainer_of(**tables), val_losses=[2.0, 3.0])
    straight.trainer.fit(straight, StepPlan(None, 8))
    hooks = Recorded(trainer_of(**tables), evaluation_fails=True)
    with pytest.raises(MemoryError):
        hooks.trainer.fit(hooks, StepPlan(None, 8))
    assert [progress.step for progress in hooks.saved] == [4]
    hooks.evaluation_fails, hooks.val_losses, hooks.calls = False, [2.0, 3.0], []
    trainer = hooks.trainer
    for name, value in hooks.saved[0].to_json().items():
        setattr(trainer.progress, name, value)
    trainer.fit(hooks, StepPlan(None, 8))
    assert hooks.calls[:5] == ["4 StepFinished", "4 evaluate", "4 EvaluationFinished", "4 StepDone", "4 save"]
    assert hooks.calls[5:] == straight.calls[straight.calls.index("5 StepDone") :]
    assert trainer.progress.unlogged_norm is None
    assert trainer.progress.best_step == straight.trainer.progress.best_step == 4


def test_a_plan_can_ask_for_evaluations() -> None:
    trainer = trainer_of(evaluation={"eval_interval": 100})
    hooks = Recorded(trainer)
    trainer.fit(hooks, StepPlan(7, None, evaluate_at={2, 5}))
    assert hooks.steps_of("evaluate") == [2, 5]


def test_a_request_to_stop_saves_the_step_that_was_made() -> None:
    trainer = trainer_of(evaluation={"eval_interval": 100})
    hooks = Recorded(trainer, stop_after=4)
    assert trainer.fit(hooks, StepPlan(None, 8)) is StopReason.REQUESTED
    assert hooks.calls[-2:] == ["4 StepDone", "4 save"]
    assert trainer.fit(Recorded(trainer), StepPlan(None, 8)) is StopReason.LAST_STEP
    assert trainer.progress.step == 8


def test_evaluations_without_improvement_end_the_run() -> None:
    trainer = trainer_of(evaluation={"eval_interval": 1, "stop_after_bad_evals": 2})
    hooks = Recorded(trainer, val_losses=[1.0, 2.0, 0.5, 0.5, 0.6])
    reason = trainer.fit(hooks, StepPlan(None, 8))
    assert reason is StopReason.NO_IMPROVEMENT
    assert reason.ends_run
    assert (trainer.progress.step, trainer.progress.best_step) == (5, 3)
    assert hooks.calls[-1] == "5 save"
    again = Recorded(trainer)
    assert trainer.fit(again, StepPlan(None, 8)) is StopReason.NO_IMPROVEMENT
    assert again.calls == []


@pytest.mark.parametrize(
    ("plan", "last"),
    [
        (StepPlan(None, None), None),
        (StepPlan(3, None), 3),
        (StepPlan(None, 8), 8),
        (StepPlan(3, 8), 3),
        (StepPlan(9, 8), 8),
        (StepPlan(0, 8), 0),
    ],
    ids=str,
)
def test_a_plan_ends_with_the_earlier_of_its_steps(plan: StepPlan, last: int | None) -> None:
    assert plan.last_step == last


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_both_learning_rates_of_muon_are_logged_as_the_schedule_has_them(optimizer: str) -> None:
    trainer = trainer_of(optimizer=optimizer, schedule={"warmup_steps": 6})
    hooks = Recorded(trainer)
    trainer.fit(hooks, StepPlan(3, 8))
    (logged,) = (event for event in hooks.events if isinstance(event, StepFinished))
    peak = trainer.experiment.optimizer.learning_rate
    assert logged.learning_rate == peak / 2
    assert logged.adamw_learning_rate == (peak / 8 if optimizer == "muon" else None)


@pytest.mark.parametrize(("grad_clip", "clipped"), [(0.0, False), (0.01, True)])
def test_the_gradient_is_clipped_unless_grad_clip_is_zero(grad_clip: float, clipped: bool) -> None:
    trainer = trainer_of(training={"grad_clip": grad_clip})
    trainer.step()
    norm = float(trainer.parameters.gradient.norm())
    assert norm == pytest.approx(0.01, rel=1e-3) if clipped else norm > 0.1


@pytest.mark.parametrize(("silence", "sent"), [(0.0, 6), (math.inf, 0)])
def test_a_step_of_several_batches_reports_its_progress_if_it_takes_long(
    silence: float, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptkit.training.trainer._LONGEST_SILENCE", silence)
    hooks = Recorded(trainer_of(training={"gradient_accumulation_steps": 4}))
    hooks.trainer.fit(hooks, StepPlan(2, None))
    found = [event for event in hooks.events if isinstance(event, Working)]
    assert found == [Working("next step", done, 4) for done in (1, 2, 3, 1, 2, 3)][:sent]


@pytest.mark.parametrize(("silence", "sent"), [(0.0, [1, 2, 4, 5, 7]), (math.inf, [])])
def test_figures_come_by_the_clock_too_and_change_nothing(
    silence: float, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(silence: float) -> tuple[Recorded, list[StepFinished]]:
        monkeypatch.setattr("gptkit.training.trainer._LONGEST_SILENCE", silence)
        hooks = Recorded(trainer_of(evaluation={"eval_interval": 8}))
        hooks.trainer.fit(hooks, StepPlan(None, 8))
        return hooks, [event for event in hooks.events if isinstance(event, StepFinished)]

    hooks, logged = losses(silence)
    other, as_ever = losses(1.0)
    assert hooks.steps_of("StepProgress") == sent
    assert hooks.steps_of("StepFinished") == [3, 6, 8]
    assert [event.train_loss for event in logged] == [event.train_loss for event in as_ever]
    assert torch.equal(hooks.trainer.parameters.master, other.trainer.parameters.master)
    for event in hooks.events:
        if isinstance(event, StepProgress) and event.step % 3 == 1:  # alone since the last log
            assert event.tokens == event.step * 8
            assert event.train_loss != logged[event.step // 3].train_loss
            assert event.tokens_per_second > 0
