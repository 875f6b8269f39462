"""Runs in one line each, for a table. What a stranger's run.json says is not believed to be well-formed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.errors import CheckpointError
from gptkit.runs.folder import RunFolder, is_locked, run_ids, timestamp


@dataclass(frozen=True)
class RunSummary:
    """A run in one line of a table; what its record does not say is empty."""

    id: str
    status: str
    dataset: str
    hyperparameters: str
    step: int
    target_step: int
    best_val_loss: float | None
    best_bits_per_byte: float | None  # comparable across tokenizers
    started: str


def summarise_runs(runs_folder: Path) -> list[RunSummary]:
    """All runs of a folder, oldest first. One whose record cannot be read says so in its status."""
    return sorted(
        (_summarise(RunFolder(runs_folder / name)) for name in run_ids(runs_folder)),
        key=lambda run: (timestamp(run.started), run.id),
    )


def _summarise(run: RunFolder) -> RunSummary:
    try:
        record = run.record()
    except CheckpointError:
        return RunSummary(run.id, "unreadable", "", "", 0, 0, None, None, "")
    status = _text(record.get("status"))
    step, best, bits = (record.get(key) for key in ("step", "best_val_loss", "best_bits_per_byte"))
    if status in ("running", "starting"):
        status = "running" if is_locked(run) else "crashed"
        metrics = run.metrics()
        step = metrics[-1]["step"] if metrics else 0
        best, bits = (
            min((row[key] for row in metrics if _is_number(row.get(key))), default=None)
            for key in ("val_loss", "bits_per_byte")
        )
    dataset, numbers = record.get("dataset"), record.get("hyperparameters")
    return RunSummary(
        id=run.id,
        status=status,
        dataset=_text(dataset.get("title")) if isinstance(dataset, dict) else "",
        hyperparameters=_hyperparameters(numbers) if isinstance(numbers, dict) else "",
        step=step if isinstance(step, int) else 0,
        target_step=record["target_step"] if isinstance(record.get("target_step"), int) else 0,
        best_val_loss=best if _is_number(best) else None,
        best_bits_per_byte=bits if _is_number(bits) else None,
        started=_text(record.get("started")),
    )


def _hyperparameters(numbers: dict[str, Any]) -> str:
    short = {
        "context_length": "c",
        "n_embd": "e",
        "n_head": "h",
        "n_layer": "b",
        "batch_size": "B",
        "learning_rate": "lr",
        "dropout": "drop",
    }
    words = [f"{sign}{numbers[name]}" for name, sign in short.items() if name in numbers]
    return " ".join(
        [*words, *(_text(numbers[name]) for name in ("position", "optimizer") if name in numbers)]
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_number(value: object) -> bool:
    """Whether it is a number that can be shown: a hostile record may hold one of a thousand digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
