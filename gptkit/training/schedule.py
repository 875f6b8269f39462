"""The learning rate over the steps of a run. Input: a step. Output: a fraction of the peak."""

from __future__ import annotations

import math

from gptkit.experiment.schema import ScheduleSettings


def learning_rate_factor(
    schedule: ScheduleSettings, step: int, *, peak: float, max_steps: int | None
) -> float:
    """The learning rate of `step` (from 1) as a fraction of `peak`.

    Warm-up is linear from peak / warmup_steps. Past max_steps the rate stays where the schedule ended; while
    max_steps is unknown (None) it stays at the peak.
    """
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.type == "constant" or peak == 0 or max_steps is None:
        return 1.0
    lowest = min(schedule.min_learning_rate / peak, 1.0)
    start = schedule.warmup_steps
    if schedule.type == "linear":
        start = max(start, round(max_steps * (1 - schedule.warmdown_fraction)))
    if start >= max_steps:
        return 1.0  # no step is left for the rate to fall in
    # The first step after `start` has the full rate, the last one nearly the lowest: no update is wasted on 0
    done = min(max((step - 1 - start) / (max_steps - start), 0.0), 1.0)
    shape = (1 + math.cos(math.pi * done)) / 2 if schedule.type == "cosine" else 1 - done
    return lowest + (1 - lowest) * shape
