"""Runs in one line each, for a table. What a stranger's run.json says is not believed to be well-formed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.errors import CheckpointError
from gptkit.runs.run import Run, is_locked, metric_row, run_ids, timestamp

_MOST_WORDS = 400  # characters of what a record says, kept for a line


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
    ended: str = ""
    best_step: int | None = None
    tokens: int | None = None  # trained on
    seconds: float | None = None  # of training
    parameters: int | None = None


def summarise_runs(runs_folder: Path) -> list[RunSummary]:
    """All runs of a folder, oldest first. One whose record cannot be read says so in its status."""
    return sorted((summarise(Run(runs_folder / name)) for name in run_ids(runs_folder)), key=by_age)


def by_age(run: RunSummary) -> tuple[float, str]:
    """The order of a list of runs: the oldest first."""
    return timestamp(run.started), run.id


def record_of(run: Run) -> dict[str, Any] | None:
    """What run.json says, or None where it cannot be read."""
    try:
        return run.record()
    except CheckpointError:
        return None


def summarise(run: Run, record: dict[str, Any] | None = None) -> RunSummary:
    """One run; `record` spares reading it again."""
    record = record_of(run) if record is None else record
    if record is None:
        return RunSummary(run.id, "unreadable", "", "", 0, 0, None, None, "")
    status = text(record.get("status"))
    step, best, bits = (record.get(key) for key in ("step", "best_val_loss", "best_bits_per_byte"))
    if status in ("running", "starting"):
        status = "running" if is_locked(run) else "crashed"
        step, best, bits = _reached(run)
    dataset, numbers = record.get("dataset"), record.get("hyperparameters")
    return RunSummary(
        id=run.id,
        status=status,
        dataset=text(dataset.get("title")) if isinstance(dataset, dict) else "",
        hyperparameters=_hyperparameters(numbers) if isinstance(numbers, dict) else "",
        step=_whole(step),
        target_step=_whole(record.get("target_step")),
        best_val_loss=number(best),
        best_bits_per_byte=number(bits),
        started=text(record.get("started")),
        ended=text(record.get("ended")),
        best_step=_whole_or_none(record.get("best_step")),
        tokens=_whole_or_none(record.get("tokens")),
        seconds=number(record.get("seconds")),
        parameters=_whole_or_none(record.get("parameters")),
    )


def _reached(run: Run) -> tuple[int, float | None, float | None]:
    """The last step, best val loss and bits a byte of metrics.jsonl, where the record does not have them."""
    last, best = 0, dict.fromkeys(("val_loss", "bits_per_byte"), float("inf"))
    for line in _readable_lines(run):
        if row := metric_row(line):
            last = max(last, _whole(row["step"]))
            for key, lowest in best.items():
                loss = number(row.get(key))
                best[key] = lowest if loss is None else min(loss, lowest)
    return last, number(best["val_loss"]), number(best["bits_per_byte"])


def last_losses(run: Run) -> tuple[float | None, float | None, float | None]:
    """The last train loss, val loss and bits a byte that metrics.jsonl has."""
    last: dict[str, float | None] = dict.fromkeys(("train_loss", "val_loss", "bits_per_byte"))
    for line in _readable_lines(run):
        if row := metric_row(line):
            for key, before in last.items():
                loss = number(row.get(key))
                last[key] = before if loss is None else loss
    return last["train_loss"], last["val_loss"], last["bits_per_byte"]


def _readable_lines(run: Run) -> Iterator[bytes]:
    """Those of metrics.jsonl, up to where it cannot be read."""
    with suppress(OSError):
        yield from run.metric_lines()


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
    words = [
        f"{sign}{value}" for name, sign in short.items() if (value := number(numbers.get(name))) is not None
    ]
    return " ".join([*words, *filter(None, (text(numbers.get(name)) for name in ("position", "optimizer")))])


def text(value: object) -> str:
    """The value where it is text, cut short where it is very long."""
    return value[:_MOST_WORDS] if isinstance(value, str) else ""


def number(value: object) -> float | int | None:
    """The value where it is a number that can be shown: a record may hold one of a thousand digits."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if usable else None  # type: ignore[return-value]


def _whole_or_none(value: object) -> int | None:
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if usable else None  # type: ignore[return-value]


def _whole(value: object) -> int:
    return _whole_or_none(value) or 0
