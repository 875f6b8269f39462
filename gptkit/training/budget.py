"""How long a run goes on whose experiment gives minutes instead of steps.

In: the time spent in training, as it is where the host looks. Out: whether the time is up, and how many steps
the speed so far promises. The learning rate follows its schedule over that number as if it had been asked
for: after half of the time it is where it would be after half of the steps. The number is a part of the
progress of a run and stands in its metrics, so that a step remains a function of what is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptkit.experiment.schema import TrainingSettings
from gptkit.training.progress import Progress

FOREVER = 2**31 - 1  # steps; more than any run makes


def last_step(training: TrainingSettings) -> int:
    """The step that ends a run, or FOREVER where the clock does."""
    return training.max_steps if training.minutes is None else FOREVER


@dataclass(frozen=True)
class Pace:
    """`recorded` has the expected steps of a run that is trained again: then the clock is not asked."""

    minutes: float | None = None
    recorded: Mapping[int, int] | None = None

    def time_is_up(self, progress: Progress) -> bool:
        return self.minutes is not None and self.recorded is None and progress.seconds >= 60 * self.minutes

    def expected_steps(self, progress: Progress) -> int | None:
        """The number of steps that the run will come to, as far as is known at this one."""
        if self.minutes is None:
            return None
        if self.recorded is not None:
            return self.recorded.get(progress.step, progress.expected_steps)
        promised = progress.step * 60 * self.minutes / max(progress.seconds, 1e-9)
        return max(progress.step, round(min(promised, FOREVER)))


STEPS = Pace()  # that of a run whose experiment gives steps
