"""Two trainings of one experiment held against one another, bit for bit.

In: checkpoints of one step; the run folders that recorded the losses. Out: what differs, by name and by step.
"""

from __future__ import annotations

import torch

from gptkit.files import sha256
from gptkit.runs import Run
from gptkit.runs.checkpoint import Checkpoint


def different_tensors(was: Checkpoint, now: Checkpoint) -> tuple[str, ...]:
    """The names of those that differ in any bit, by SHA-256, as "model: name" or "optimizer: name"."""
    different = []
    for kind in ("model", "optimizer"):
        old, new = (_hashes(getattr(checkpoint, kind)) for checkpoint in (was, now))
        different += [f"{kind}: {name}" for name in sorted(old | new) if old.get(name) != new.get(name)]
    return tuple(different)


def _hashes(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {
        name: sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def compare_losses(run: Run, place: Run, start: int, end: int) -> tuple[int, tuple[int, ...]]:
    """How many losses both have recorded of the steps after `start` to `end`, and the steps that differ."""
    again = {row["step"]: row for row in place.metrics()}
    compared, different = 0, set()
    for row in run.metrics():
        for key in ("train_loss", "val_loss"):
            if start < row["step"] <= end and key in row:
                compared += 1
                if again.get(row["step"], {}).get(key) != row[key]:
                    different.add(row["step"])
    return compared, tuple(sorted(different))
