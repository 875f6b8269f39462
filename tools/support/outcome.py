"""The result of a run, by which two runs are compared bit for bit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gptkit.runs import Run, list_steps, step_folder
from gptkit.runs.checkpoint import MODEL, OPTIMIZER


@dataclass(frozen=True)
class Outcome:
    """SHA-256 of the newest weights and optimizer state; step, train and val loss of each log line."""

    step: int
    model: str
    optimizer: str
    losses: tuple[tuple[int, float | None, float | None], ...]


def outcome(run: Run) -> Outcome:
    """The outcome of a run that has a checkpoint."""
    newest = max(list_steps(run.checkpoints))
    folder = step_folder(run.checkpoints, newest)
    model, optimizer = (
        hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (MODEL, OPTIMIZER)
    )
    losses = tuple((row["step"], row.get("train_loss"), row.get("val_loss")) for row in run.metrics())
    return Outcome(newest, model, optimizer, losses)
