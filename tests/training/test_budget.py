"""TrainingProgress as checkpoints hold it, and when a TrainingBudget ends a run."""

from __future__ import annotations

from typing import Any

import pytest

from gptkit.training.budget import MOST_STEPS, TimeLeft, TrainingBudget, TrainingProgress

PROGRESS = TrainingProgress(
    step=20,
    tokens=960,
    seconds=1.5,
    loss_sum=7.5,
    loss_count=2,
    val_loss=2.0,
    best_val_loss=1.5,
    best_step=10,
)


def test_progress_is_read_as_it_was_saved() -> None:
    assert TrainingProgress.from_json(PROGRESS.to_json()) == PROGRESS
    assert TrainingProgress.from_json(PROGRESS.to_json() | {"seconds": 2}).seconds == 2.0


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "20"},
        {"step": True},
        {"step": 20.0},
        {"step": -1},
        {"step": None},
        {"tokens": 2**63},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"loss_sum": 1e301},
        {"val_loss": "2.0"},
        {"val_loss": [2.0]},
        {"best_step": 1.5},
        {"another": 1},
    ],
    ids=str,
)
def test_damaged_progress_is_refused_with_the_field(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"has {name} = |has other fields"):
        TrainingProgress.from_json(PROGRESS.to_json() | changes)


@pytest.mark.parametrize("data", [None, [], "x", {}, {"step": 20}])
def test_progress_with_missing_fields_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="has other fields"):
        TrainingProgress.from_json(data)


def test_a_budget_of_minutes_estimates_the_steps_from_the_speed_so_far() -> None:
    budget = TrainingBudget(max_steps=None, minutes=1.0)
    assert budget.schedule_end(TrainingProgress()) is None
    assert budget.expected_steps(TrainingProgress(step=10, seconds=6.0)) == 100
    assert (
        budget.expected_steps(TrainingProgress(step=10, seconds=600.0)) == 10
    )  # never less than it has made
    assert budget.expected_steps(TrainingProgress(step=10, seconds=0.0)) == MOST_STEPS
    assert not budget.time_is_up(TrainingProgress(seconds=59.9))
    assert budget.time_is_up(TrainingProgress(seconds=60.0))


def test_a_budget_of_steps_ignores_the_clock() -> None:
    budget = TrainingBudget(max_steps=30)
    assert budget.schedule_end(TrainingProgress(step=10, expected_steps=7)) == 30
    assert budget.expected_steps(TrainingProgress(step=10, seconds=1e6)) is None
    assert not budget.time_is_up(TrainingProgress(seconds=1e9))


def test_a_replay_takes_the_expected_steps_from_the_record_instead_of_the_clock() -> None:
    budget = TrainingBudget(None, 1.0, recorded={10: 70, 20: 60})
    assert not budget.time_is_up(TrainingProgress(step=20, seconds=1e6))
    assert budget.expected_steps(TrainingProgress(step=20, seconds=1e6)) == 60
    assert budget.expected_steps(TrainingProgress(step=15, expected_steps=70)) == 70


# The time left


def after(
    steps: int, seconds: float, budget: TrainingBudget, last_step: int | None, *, outside: float = 0.0
) -> float | None:
    """The time left after that, where the first step took 5 s, and `outside` seconds were not training."""
    now, progress = [0.0], TrainingProgress(step=100)
    left = TimeLeft(progress, budget, last_step, clock=lambda: now[0])
    assert left.seconds() is None
    progress.step, progress.seconds, now[0] = 101, 5.0, 5.0
    left.step_done()
    assert left.seconds() is None
    progress.step, progress.seconds, now[0] = 101 + steps, 5.0 + seconds - outside, 5.0 + seconds
    left.step_done()
    return left.seconds()


def test_the_time_left_follows_the_steps_after_the_first_by_the_clock_on_the_wall() -> None:
    assert after(10, 2.0, TrainingBudget(300), 200) == pytest.approx(0.2 * 89)
    assert after(10, 2.0, TrainingBudget(300), 200, outside=1.0) == pytest.approx(0.2 * 89)
    assert after(99, 9.0, TrainingBudget(300), 200) == 0


def test_the_time_left_of_a_budget_of_minutes_is_what_is_left_of_it() -> None:
    assert after(10, 5.0, TrainingBudget(None, 1.0), None) == pytest.approx(50)
    assert after(10, 5.0, TrainingBudget(None, 1.0), None, outside=2.5) == pytest.approx(105)
    assert after(10, 5.0, TrainingBudget(None, 1.0), 121) == pytest.approx(5)  # --stop-at 121
    assert after(10, 5.0, TrainingBudget(None, 1.0, recorded={10: 70}), 211) == pytest.approx(50)
    assert after(10, 99.0, TrainingBudget(None, 1.0), None) == 0


def test_a_time_left_is_not_made_up_from_an_instant() -> None:
    assert after(10, 0.5, TrainingBudget(300), 200) is None
