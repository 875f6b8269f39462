"""Runs that end before max_steps: when the time is up, or when the val loss stops improving."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gptkit
from gptkit import events
from gptkit.errors import ExperimentError, PluginError, UsageError
from gptkit.experiment.load import experiment_from_dict, to_toml
from gptkit.runs import Run
from gptkit.training import session
from gptkit.training import trainer as loop
from gptkit.training.context import RunContext
from gptkit.training.loss import SplitLoss
from gptkit.training.session import resume_run, train_run
from tests.support import Command, sums
from tests.support.sums import hashes, losses


def experiment(**changes: dict[str, Any]) -> gptkit.Experiment:
    small: dict[str, Any] = {
        "model": {"n_embd": 16, "n_layer": 1},
        "training": {"max_steps": 40, "batch_size": 2},
        "evaluation": {"eval_interval": 2},
    }
    for name, table in changes.items():
        small[name] = {**small.get(name, {}), **table}
    return sums.experiment(**small)


def with_val_losses(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Has the evaluations come to these losses, one after another."""
    left = iter(values)
    monkeypatch.setattr(session, "evaluate", lambda *arguments, **named: SplitLoss(next(left), 1))


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that advances by the seconds in this list with each step."""
    seconds, now, real = [1.0], [0.0], loop.Trainer.step

    def step(trainer: loop.Trainer, batch_done: object = None) -> None:
        real(trainer)
        now[0] += seconds[0]

    monkeypatch.setattr(loop.Trainer, "step", step)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return seconds


# By the val loss


LOSSES = [
    3.0,
    2.0,
    2.5,
    1.9,
    2.2,
    2.1,
    1.9,
    9.0,
]  # of steps 2, 4, …; the third in a row that is bad is step 14


def test_a_run_stops_after_so_many_evaluations_without_a_new_best(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_val_losses(monkeypatch, LOSSES)
    seen: list[events.Event] = []
    recipe = experiment(evaluation={"stop_after_bad_evals": 3})
    trained = train_run(recipe, RunContext(context.runs_folder, context.folders, seen.append))
    assert (trained.status, trained.progress.step) == ("finished", 14)
    end = seen[-1]
    assert isinstance(end, events.RunFinished)
    assert end.reason == "stopped at step 14 after 3 evaluations without a better val loss"
    assert (end.saved, end.best_step) == (True, 8)
    record = trained.run.record()
    assert (record["status"], record["step"], record["reason"]) == ("finished", 14, end.reason)
    assert [int(folder.name[5:]) for folder in sorted(trained.run.checkpoints.iterdir())][-1] == 14


def test_without_it_no_run_stops_early(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with_val_losses(monkeypatch, [1.0, *[2.0] * 30])
    assert train_run(experiment(), context).progress.step == 40


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_where_it_would_have_ended(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = experiment(evaluation={"stop_after_bad_evals": 3})
    with_val_losses(monkeypatch, LOSSES)
    straight = train_run(recipe, context).run
    with_val_losses(monkeypatch, LOSSES)
    broken = train_run(recipe, context, stop_at=11).run  # between the first bad one and the second
    assert resume_run(broken, context, stop_at=12).status == "stopped"
    assert resume_run(broken, context).status == "finished"
    assert hashes(broken) == hashes(straight)
    assert losses(broken) == losses(straight)


@pytest.mark.slow
def test_resumed_when_it_has_ended_it_stays_as_it_is_unless_more_steps_are_requested(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_val_losses(monkeypatch, LOSSES)
    run = train_run(experiment(evaluation={"stop_after_bad_evals": 3}), context).run
    before = hashes(run)
    again = resume_run(run, context)
    assert (again.status, again.progress.step, hashes(run)) == ("finished", 14, before)
    with_val_losses(monkeypatch, [2.0, 2.0, 1.0, *[2.0] * 20])
    more = resume_run(run, context, steps=40)
    assert (more.status, more.progress.step) == ("finished", 26)  # the best at 20, then three


# By the clock


@pytest.mark.slow
def test_a_time_budgeted_run_stops_with_the_time_and_its_schedule_ends_there(
    context: RunContext, steady_clock: list[float]
) -> None:
    seen: list[events.Event] = []
    recipe = experiment(training={"minutes": 0.5, "max_steps": 3}, schedule={"type": "linear"})
    trained = train_run(recipe, RunContext(context.runs_folder, context.folders, seen.append))
    assert (trained.status, trained.progress.step) == (
        "finished",
        30,
    )  # of a second each; max_steps is not asked
    end = seen[-1]
    assert isinstance(end, events.RunFinished)
    assert end.reason == "stopped after 0.5 minutes at step 30"
    rows = trained.run.metrics()
    assert {row["expected_steps"] for row in rows} == {30}
    by_steps = train_run(experiment(training={"max_steps": 30}, schedule={"type": "linear"}), context).run
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in by_steps.metrics()]
    assert losses(trained.run) == losses(by_steps)
    assert hashes(trained.run) == hashes(by_steps)
    assert rows[-1]["val_loss"] > 0


def test_a_machine_that_becomes_slower_gets_fewer_steps_and_the_rate_still_falls(
    context: RunContext, steady_clock: list[float]
) -> None:
    def listen(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 10:
            steady_clock[0] = 2.0

    recipe = experiment(
        training={"minutes": 0.5}, schedule={"type": "cosine"}, evaluation={"eval_interval": 7}
    )
    trained = train_run(recipe, RunContext(context.runs_folder, context.folders, listen))
    assert trained.progress.step == 20
    rows = {row["step"]: row for row in trained.run.metrics()}
    assert (rows[10]["expected_steps"], rows[20]["expected_steps"]) == (30, 20)
    assert [step for step, row in rows.items() if "val_loss" in row] == [7, 14, 20]
    assert rows[20]["learning_rate"] < 0.03 * rows[1]["learning_rate"]


@pytest.mark.slow
def test_resumed_it_has_the_remaining_time_and_reports_that_it_is_not_exact(
    context: RunContext, steady_clock: list[float], gptkit_command: Command
) -> None:
    recipe = experiment(training={"minutes": 0.5})
    run = train_run(recipe, context, stop_at=12).run
    seen: list[events.Event] = []
    resumed = resume_run(run, RunContext(context.runs_folder, context.folders, seen.append))
    assert (resumed.status, resumed.progress.step) == ("finished", 30)
    checked = next(event for event in seen if isinstance(event, events.ResumeChecked))
    assert checked.differences == ("the schedule follows the clock",)
    again = resume_run(run, context)
    assert (again.status, again.progress.step) == ("finished", 30)
    with pytest.raises(UsageError, match=r"trains for 0\.5 minutes, and its schedule ends with them"):
        resume_run(run, context, steps=100)
    with pytest.raises(PluginError, match="the schedule follows the clock"):
        resume_run(run, context, require_exact=True)
    listed = gptkit_command("runs", "--runs-dir", context.runs_folder).out
    assert f"{run.id}  finished" in listed
    assert "30/" not in listed


def test_on_a_device_that_is_rarely_synchronized_the_clock_is_read_at_each_log(
    context: RunContext, steady_clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptkit.training import nonfinite as watch

    monkeypatch.setattr(watch, "is_deferred", lambda device: True)
    recipe = experiment(
        training={"minutes": 0.0975, "log_interval": 4},
        evaluation={"eval_interval": 100},
        model={"dropout": 0.0},
    )
    steady_clock[0] = 0.249  # so that no step comes a second after the last figures
    trained = train_run(recipe, context)  # the time is up in step 23.5, and noticed at the next log
    assert trained.progress.step == 24
    assert [row["step"] for row in trained.run.metrics()] == [4, 8, 12, 16, 20, 24]


@pytest.mark.slow
def test_the_real_clock_ends_a_run_in_about_the_time_that_was_given(
    context: RunContext, gptkit_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "e.toml").write_text(to_toml(experiment(evaluation={"eval_interval": 10**6})))
    done = gptkit_command(
        "train", tmp_path / "e.toml", "--minutes", 0.01, "--data-dir", tmp_path, "--runs-dir", tmp_path / "r"
    )
    assert done.code == 0
    assert "0.01 minutes from step 0" in done.out
    assert re.search(r"\nfinished: stopped after [\d.]+ minutes at step ", done.out)
    record = Run(next((tmp_path / "r").iterdir())).record()
    assert record["seconds"] >= 0.6
    assert record["target_step"] is None


def test_minutes_and_epochs_exclude_one_another_and_the_last_override_counts() -> None:
    with pytest.raises(ExperimentError, match="epochs and minutes both set the length of training"):
        experiment(training={"epochs": 1.0, "minutes": 1.0})
    merged = experiment_from_dict({"training": {"epochs": 2.0}}, [("training.minutes", 3.0)])
    assert (merged.training.epochs, merged.training.minutes) == (None, 3.0)
    merged = experiment_from_dict({"training": {"minutes": 2.0}}, [("training.max_steps", 3)])
    assert (merged.training.minutes, merged.training.max_steps) == (None, 3)
