"""What a run folder holds, in names and bytes: checkpoints, leftovers, and what gptkit did not make.

In: a run folder. Out: paths and sizes. Reads no file, follows no link, imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptkit.runs.run import CHECKPOINTS, EXPERIMENT, LOCK, METRICS, RECORD, SAMPLES, TOKENIZER, Run

LEFTOVERS = (".tmp-", ".trash-", ".bad-")
OWN = frozenset((EXPERIMENT, RECORD, METRICS, TOKENIZER, CHECKPOINTS, SAMPLES, LOCK, "report.html"))

_STEP = re.compile(r"step-(\d{12})")


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint by its name, unverified."""

    step: int
    path: Path
    bytes: int


def saved_steps(run: Run) -> list[SavedStep]:
    """The run's checkpoints, oldest first."""
    found = []
    for path in entries(run.checkpoints):
        match = _STEP.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append(SavedStep(int(match[1]), path, size_of(path)))
    return sorted(found, key=lambda saved: saved.step)


def leftovers(run: Run) -> list[Path]:
    """What an interrupted save or removal has left, and checkpoints that were set aside."""
    folders = (run.path, run.checkpoints, run.samples)
    return [
        path
        for folder in folders
        for path in sorted(entries(folder))
        if path.name.startswith(LEFTOVERS) and not path.is_symlink()
    ]


def strange_entries(run: Run) -> list[str]:
    """Names in the run's folder that are none of gptkit's."""
    return sorted(
        path.name
        for path in entries(run.path)
        if path.name not in OWN and not path.name.startswith(LEFTOVERS)
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; links are not followed."""
    try:
        if path.is_symlink() or not path.is_dir():
            return os.lstat(path).st_size
    except OSError:
        return 0
    total, todo = 0, [path]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def entries(folder: Path) -> Iterator[Path]:
    """What is in a folder that is no link; nothing where it cannot be read."""
    try:
        if not folder.is_symlink() and folder.is_dir():
            yield from list(folder.iterdir())
    except OSError:
        return
