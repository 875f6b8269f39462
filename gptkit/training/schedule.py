"""The learning rate over the steps of a run.

Input: a step, or an experiment. Output: a fraction of the peak, or what its reader may not expect.
Knows nothing of updates.
"""

from __future__ import annotations

import math

from gptkit.experiment.schema import Experiment, MuonSettings, ScheduleSettings


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


def surprises(experiment: Experiment) -> list[str]:
    """Where learning rates that each are valid do not do together what their names say."""
    optimizer, schedule = experiment.optimizer, experiment.schedule
    peak, lowest = optimizer.learning_rate, schedule.min_learning_rate
    found = []
    if isinstance(optimizer, MuonSettings) and peak == 0 < optimizer.adamw_peak:
        found.append(
            f"optimizer.learning_rate is 0, but adamw_learning_rate = {optimizer.adamw_peak:g} still trains "
            "the embeddings, the output projection and the norms.\n"
            "To let it follow learning_rate: --set optimizer.adamw_learning_rate_ratio=0.25"
        )
    if schedule.type != "constant" and 0 < peak < lowest:
        found.append(
            f"schedule.min_learning_rate = {lowest:g} is above optimizer.learning_rate = {peak:g}, so the "
            "learning rate does not decay.\nLower the first, too."
        )
    return found
