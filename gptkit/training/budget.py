"""Progress of a run, and when its schedule ends: at a step, or after minutes of training.

A time-budgeted run estimates how many steps it will make from its speed so far, and its learning rate follows
the schedule over that number: after half of the time it is where it would be after half of the steps. The
estimate is part of the progress and of metrics.jsonl, so a step remains a function of what is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from gptkit.experiment.schema import TrainingSettings

MOST_STEPS = 2**31 - 1  # an estimate never exceeds it
_SHORTEST_MEASURED = 1.0  # seconds of steps from which the time left is estimated

_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Number = Annotated[float, Field(strict=True, gt=-1e300, lt=1e300, allow_inf_nan=False)]


@dataclass
class TrainingProgress:
    """Progress of a run; saved with every checkpoint, so that a resumed run reports as if uninterrupted."""

    step: _Count = 0
    tokens: _Count = 0
    seconds: _Number = 0.0  # of training: evaluating, sampling and saving left out
    loss_sum: _Number = 0.0  # over the steps since the last that was logged
    loss_count: _Count = 0
    train_loss: _Number | None = None
    val_loss: _Number | None = None
    best_val_loss: _Number | None = None
    best_step: _Count | None = None
    bad_evals: _Count = 0  # evaluations since the best
    expected_steps: _Count | None = None  # of a time-budgeted run, as of the last step that was logged
    # The gradient norm of `step` where that was saved before it was logged and evaluated
    unlogged_norm: _Number | None = None

    @classmethod
    def from_json(cls, data: Any) -> TrainingProgress:
        """Raises ValueError if `data` is not what `to_json` returned, here or in 0.1.0."""
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or not names - _ADDED <= data.keys() <= names:
            raise ValueError("its progress has other fields")
        try:
            return _ADAPTER.validate_python(data)
        except ValidationError as error:
            name = error.errors()[0]["loc"][0]
            raise ValueError(f"its progress has {name} = {data[str(name)]!r:.100}") from error

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def record_evaluation(self, val_loss: float) -> bool:
        """Returns whether this evaluation is the best so far."""
        self.val_loss = val_loss
        if self.best_val_loss is not None and not val_loss < self.best_val_loss:
            self.bad_evals += 1
            return False
        self.bad_evals = 0
        self.best_val_loss, self.best_step = val_loss, self.step
        return True


_ADAPTER = TypeAdapter(TrainingProgress)
_ADDED = {"unlogged_norm"}  # fields that 0.1.0 did not have


@dataclass(frozen=True)
class TrainingBudget:
    """Where the schedule of a run ends: at a step, or after minutes of training.

    A time-budgeted run that is trained again takes its expected steps from `recorded` (step -> expected
    steps, as in metrics.jsonl) instead of from the clock.
    """

    max_steps: int | None  # None: the clock decides
    minutes: float | None = None
    recorded: Mapping[int, int] | None = None

    @classmethod
    def of(cls, training: TrainingSettings, recorded: Mapping[int, int] | None = None) -> TrainingBudget:
        return cls(training.max_steps if training.minutes is None else None, training.minutes, recorded)

    def schedule_end(self, progress: TrainingProgress) -> int | None:
        """The last step of the schedule; None before a time-budgeted run has its first estimate."""
        return progress.expected_steps if self.max_steps is None else self.max_steps

    def time_is_up(self, progress: TrainingProgress) -> bool:
        return self.minutes is not None and self.recorded is None and progress.seconds >= 60 * self.minutes

    def expected_steps(self, progress: TrainingProgress) -> int | None:
        """The number of steps that a time-budgeted run will make, estimated from its speed so far."""
        if self.minutes is None:
            return None
        if self.recorded is not None:
            return self.recorded.get(progress.step, progress.expected_steps)
        estimate = progress.step * 60 * self.minutes / max(progress.seconds, 1e-9)
        return max(progress.step, round(min(estimate, MOST_STEPS)))


class TimeLeft:
    """Estimates how long a session will still take, from its steps so far.

    By the clock on the wall, so evaluating, sampling and saving count. The first step is left out: it takes
    longer than the others.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        budget: TrainingBudget,
        last_step: int | None,  # of the session; None if only the clock ends it
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._last_step, self._clock = progress, last_step, clock
        self._minutes = budget.minutes if budget.recorded is None else None
        self._first: tuple[float, int, float] | None = None  # after it: time, step, seconds of training

    def step_done(self) -> None:
        if self._first is None:
            self._first = self._clock(), self._progress.step, self._progress.seconds

    def seconds(self) -> float | None:
        """None while too little is measured."""
        if self._first is None:
            return None
        began, step, trained = self._first
        elapsed, steps = self._clock() - began, self._progress.step - step
        if elapsed < _SHORTEST_MEASURED or not steps:
            return None
        left = []
        if self._last_step is not None:
            left.append(elapsed / steps * (self._last_step - self._progress.step))
        if self._minutes is not None and self._progress.seconds > trained:
            rest = max(60 * self._minutes - self._progress.seconds, 0.0)
            left.append(elapsed / (self._progress.seconds - trained) * rest)
        return min(left, default=None)
