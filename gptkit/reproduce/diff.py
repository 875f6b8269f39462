"""Two trainings of the same experiment, compared bit for bit.

Input: the folders of both. Output: the recorded losses, and the tensors of their newest common checkpoint,
that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gptkit.errors import CheckpointError
from gptkit.files import sha256
from gptkit.runs import Run, list_steps
from gptkit.runs.checkpoint import Checkpoint, load_checkpoint


@dataclass(frozen=True)
class Comparison:
    """Steps of a run and the same trained again."""

    start: int  # the step that training started from; 0: the initial weights
    end: int
    step: int | None  # of the newest common checkpoint that verifies
    tensors: tuple[str, ...]  # of that checkpoint that differ, as "model: name" or "optimizer: name"
    compared: int  # losses that metrics.jsonl has of these steps
    steps: tuple[int, ...]  # whose losses differ
    differences: tuple[str, ...]  # of the environment, as "threads 2 -> 4"

    @property
    def identical(self) -> bool:
        return not self.tensors and not self.steps


def compare_runs(
    run: Run, again: Run, start: int, end: int, differences: tuple[str, ...], *, losses: bool = True
) -> Comparison:
    """`losses`: whether both have recorded them over the same steps and tokens.

    Raises CheckpointError if the two have neither a common checkpoint nor losses.
    """
    compared, steps = _compare_losses(run, again, start, end) if losses else (0, ())
    pair = _newest_common(run, again)
    if pair is None and not compared:
        raise CheckpointError(
            f"run {run.id} has no checkpoint that {again.id} has too, and no losses: nothing can be compared."
        )
    step, tensors = (pair[0].step, _different_tensors(*pair)) if pair else (None, ())
    return Comparison(start, end, step, tensors, compared, steps, differences)


def _compare_losses(run: Run, again: Run, start: int, end: int) -> tuple[int, tuple[int, ...]]:
    """The number of losses that the run has after `start` up to `end`, and the steps at which they differ."""
    rows = {row["step"]: row for row in again.metrics()}
    compared, different = 0, set()
    for row in run.metrics():
        for key in ("train_loss", "val_loss"):
            if start < row["step"] <= end and key in row:
                compared += 1
                if rows.get(row["step"], {}).get(key) != row[key]:
                    different.add(row["step"])
    return compared, tuple(sorted(different))


def _newest_common(run: Run, again: Run) -> tuple[Checkpoint, Checkpoint] | None:
    """The newest checkpoint of both that verifies in `run`. Raises CheckpointError if not in `again`."""
    for step in sorted({*list_steps(run.checkpoints)} & {*list_steps(again.checkpoints)}, reverse=True):
        try:
            recorded = load_checkpoint(run.checkpoints, step, run_id=run.recorded_id)
        except CheckpointError:
            continue
        return recorded, load_checkpoint(again.checkpoints, step, run_id=again.recorded_id)
    return None


def _different_tensors(recorded: Checkpoint, now: Checkpoint) -> tuple[str, ...]:
    different = []
    for kind, before, after in (
        ("model", _hashes(recorded.model), _hashes(now.model)),
        ("optimizer", _hashes(recorded.optimizer), _hashes(now.optimizer)),
    ):
        names = sorted(before | after)
        different += [f"{kind}: {name}" for name in names if before.get(name) != after.get(name)]
    return tuple(different)


def _hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {
        name: sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }
