"""The layout of a run folder: names, checkpoints and samples by their names, sizes.

Input: paths. Output: names, steps, bytes. Reads no file, follows no link, imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptkit.files import sha256

DEFAULT_RUNS_FOLDER = Path("runs")

EXPERIMENT, RECORD, METRICS, TOKENIZER = "experiment.toml", "run.json", "metrics.jsonl", "tokenizer.json"
EVALUATIONS = "evaluations.json"
CHECKPOINTS, SAMPLES, LOCK, REPORT = "checkpoints", "samples", ".lock", "report.html"
LOCK_HOLDER = ".lock-holder"  # exists while a process holds the run, on a disk without file locks
OWN = frozenset(
    (EXPERIMENT, RECORD, METRICS, EVALUATIONS, TOKENIZER, CHECKPOINTS, SAMPLES, LOCK, LOCK_HOLDER, REPORT)
)

TEMPORARY, TRASH, DAMAGED = ".tmp-", ".trash-", ".bad-"
"""What the names of interrupted saves, interrupted removals and damaged checkpoints begin with."""

VERIFYING = f"{TEMPORARY}verify-"  # a temporary folder beside the runs, in which one is replayed
LEFTOVERS = (TEMPORARY, TRASH, DAMAGED)

_CHECKPOINT = re.compile(r"step-(\d{12})")
_SAMPLE = re.compile(r"step-(\d{12})\.txt")


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint by its name, unverified."""

    step: int
    path: Path

    @property
    def bytes(self) -> int:
        return size_of(self.path)


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:012d}"


def list_steps(checkpoints: Path) -> list[int]:
    """The steps that have a checkpoint, by name, unverified, oldest first. Raises OSError."""
    if not checkpoints.is_dir():
        return []
    matches = (_CHECKPOINT.fullmatch(entry.name) for entry in checkpoints.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def saved_steps(checkpoints: Path) -> list[SavedStep]:
    """The same with paths; a link is not a checkpoint, and an unreadable folder has none."""
    try:
        steps = [] if checkpoints.is_symlink() else list_steps(checkpoints)
    except OSError:
        return []
    saved = (SavedStep(step, step_folder(checkpoints, step)) for step in steps)
    return [one for one in saved if not one.path.is_symlink()]


def sample_name(step: int) -> str:
    return f"step-{step:012d}.txt"


def sample_steps(samples: Path) -> list[int]:
    """The steps that have a sample, by name, oldest first. Raises OSError."""
    if samples.is_symlink() or not samples.is_dir():
        return []
    matches = (_SAMPLE.fullmatch(entry.name) for entry in samples.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def verification_prefix(run_id: str) -> str:
    """What the name of the temporary folder begins with in which this run is replayed."""
    return f"{VERIFYING}{sha256(run_id.encode())[:16]}-"


def leftovers(run_folder: Path) -> list[Path]:
    """What interrupted saves and removals have left in a run, and its damaged checkpoints."""
    folders = (run_folder, run_folder / CHECKPOINTS, run_folder / SAMPLES)
    return [
        path
        for folder in folders
        for path in sorted(entries(folder))
        if path.name.startswith(LEFTOVERS) and not path.is_symlink()
    ]


def foreign_entries(run_folder: Path) -> list[str]:
    """The names in a run's folder that gptkit does not use."""
    return sorted(
        path.name
        for path in entries(run_folder)
        if path.name not in OWN and not path.name.startswith(LEFTOVERS)
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed."""
    try:
        if path.is_symlink() or not path.is_dir():
            return os.lstat(path).st_size
    except OSError:
        return 0
    total, folders = 0, [path]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def entries(folder: Path) -> Iterator[Path]:
    """The entries of a folder that is not a link; none if it cannot be read."""
    try:
        if not folder.is_symlink() and folder.is_dir():
            yield from list(folder.iterdir())
    except OSError:
        return
