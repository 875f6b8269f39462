"""Deletes runs; lists and removes the checkpoints and temporary files that are no longer needed.

Input: runs. Output: bytes freed, or a list of what can be removed with its size. A run that is in use stays
as it is. What is removed is renamed to `.trash-…` first, so that after a kill at any moment nothing is left
that looks whole and is not.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptkit.errors import CheckpointError, DiskError, RunInUseError, UsageError
from gptkit.events import RunStatus
from gptkit.files import disk, disk_errors
from gptkit.runs.folder import (
    DAMAGED,
    EXPERIMENT,
    RECORD,
    TRASH,
    VERIFYING,
    SavedStep,
    foreign_entries,
    leftovers,
    saved_steps,
    size_of,
    verification_prefix,
)
from gptkit.runs.run import Run, is_locked, lock_run
from gptkit.runs.store import find_run, run_ids
from gptkit.runs.summary import summarize


def run_to_delete(wanted: str, runs_folder: Path) -> Run:
    """The run that `wanted` names: one of `runs_folder`, or any by its path.

    Raises UsageError if it is not a run, or a link; CheckpointError if there is a link in it.
    """
    run = find_run(wanted, runs_folder)
    is_path = os.sep in wanted or bool(os.altsep and os.altsep in wanted)
    if not is_path and not _same(run.path.absolute().parent, runs_folder):
        raise UsageError(
            f"{wanted} is not in {runs_folder}; to delete it anyway, pass its path: "
            f"{os.path.join(os.curdir, wanted)}"
        )
    foreign = foreign_entries(run.path)
    if foreign and not (run.path / RECORD).is_file():
        raise UsageError(
            f"{run.path} is not a run folder: it has no {RECORD}, but {', '.join(foreign[:3])}. "
            "Nothing was deleted."
        )
    run.refuse_special_files()
    return run


def delete_run(run: Run) -> int:
    """Removes a run and returns the bytes freed. Raises RunInUseError, DiskError."""
    size = size_of(run.path)
    with disk_errors(f"deleting the run {run.id}"):
        with lock_run(run):
            trash = _move_to_trash(run.path)
        _remove(trash)
    return size


@dataclass(frozen=True)
class Removable:
    """Something that can be removed. `run` is None for what belongs to no run."""

    run: Run | None
    path: Path
    description: str  # and the reason
    bytes: int
    keeping: tuple[int, ...] = ()  # checkpoints that stay, one of which must verify before this is removed


@dataclass(frozen=True)
class Removal:
    """The result of removing something."""

    path: Path
    freed: int | None  # bytes; None if it was kept
    reason: str = ""  # why it was kept


def list_removable(runs_folder: Path) -> list[Removable]:
    """What can be removed from the runs that are not in use and from their folder; links are left alone."""
    runs = [Run(runs_folder / name) for name in run_ids(runs_folder)]
    sources = _loaded_steps(runs)
    free = [run for run in runs if not _in_use(run)]
    found = [thing for run in free for thing in _of_run(run, _of_any_name(run, sources))]
    in_use = {verification_prefix(run.id) for run in runs if run not in free}
    return [*found, *_of_folder(runs_folder, in_use)]


def remove_all(things: list[Removable]) -> Iterator[Removal]:
    """Removes one after another.

    A checkpoint is removed only where one that stays verifies, a run only where it has no checkpoint. Raises
    DiskError.
    """
    verified: dict[tuple[Path, int], bool] = {}
    for thing in things:
        try:
            with disk_errors(f"removing {thing.path}"):
                removal = _remove_one(thing, verified)
        except RunInUseError:  # since it was listed
            removal = Removal(thing.path, None, "the run is in use")
        yield removal


def _remove_one(thing: Removable, verified: dict[tuple[Path, int], bool]) -> Removal:
    run, kept = thing.run, Removal(thing.path, None, "none of the remaining checkpoints verifies")
    if run is None:
        _remove(thing.path)
    elif thing.path == run.path:
        if saved_steps(run.checkpoints):
            return kept
        delete_run(run)
    else:
        with lock_run(run):
            if thing.keeping and not any(_verifies(run, step, verified) for step in reversed(thing.keeping)):
                return kept
            _remove(_move_to_trash(thing.path) if thing.keeping else thing.path)
    return Removal(thing.path, thing.bytes)


def _verifies(run: Run, step: int, verified: dict[tuple[Path, int], bool]) -> bool:
    from gptkit.runs.checkpoint import load_checkpoint

    if (run.path, step) not in verified:
        try:
            load_checkpoint(run.checkpoints, step, run_id=run.recorded_id)
            verified[run.path, step] = True
        except CheckpointError:
            verified[run.path, step] = False
    return verified[run.path, step]


def _of_run(run: Run, sources: set[int]) -> Iterator[Removable]:
    """`sources` are the steps that other runs started from."""
    saved, status = saved_steps(run.checkpoints), summarize(run).status
    # killed before its record was written
    created = not (run.path / RECORD).exists() and not foreign_entries(run.path)
    if not saved and (status is RunStatus.CRASHED or created):
        yield Removable(run, run.path, "crashed before its first checkpoint", size_of(run.path))
        return
    if status is RunStatus.FINISHED and saved:
        yield from _checkpoints(run, saved, sources)
    for path in leftovers(run.path):
        damaged = path.name.startswith(DAMAGED)
        description = "damaged checkpoint" if damaged else "left by an interrupted save or removal"
        yield Removable(run, path, description, size_of(path))


def _checkpoints(run: Run, saved: list[SavedStep], sources: set[int]) -> Iterator[Removable]:
    staying = {saved[-1].step, *sources, run.read_record_or_empty().best_step}
    keeping = tuple(one.step for one in saved if one.step in staying)
    for one in saved:
        if one.step not in staying:
            yield Removable(run, one.path, "checkpoint, neither best nor last", one.bytes, keeping)


def _of_folder(runs_folder: Path, in_use: set[str]) -> Iterator[Removable]:
    """What interrupted removals and verifications have left beside the runs."""
    for path in sorted(runs_folder.iterdir()) if runs_folder.is_dir() else ():
        if path.is_symlink() or not path.is_dir():
            continue
        if path.name.startswith(TRASH):
            yield Removable(None, path, "left by an interrupted removal", size_of(path))
        elif path.name.startswith(VERIFYING) and not path.name.startswith(tuple(in_use)):
            yield Removable(None, path, "left by an interrupted verification", size_of(path))


def _in_use(run: Run) -> bool:
    """Whether a process holds it, or it is recorded as running on another machine."""
    if is_locked(run):
        return True
    record = run.read_record_or_empty()
    elsewhere = record.process is not None and record.process.host != socket.gethostname()
    return elsewhere and record.status is not None and record.status.is_active


def _loaded_steps(runs: list[Run]) -> dict[str, set[int]]:
    """The steps of each run that others started from (--load), and need to be rerun."""
    steps: dict[str, set[int]] = {}
    for run in runs:
        source = run.read_record_or_empty().loaded_from
        if source and source.run is not None and source.step is not None:
            steps.setdefault(source.run, set()).add(source.step)
    return steps


def _of_any_name(run: Run, steps: dict[str, set[int]]) -> set[int]:
    """The steps recorded under the name of its folder, or the one that it had when it was created."""
    return steps.get(run.id, set()) | steps.get(run.recorded_id, set())


def _move_to_trash(path: Path) -> Path:
    """Renames it first, on the disk too: after a power cut, half of it might be left under its old name."""
    trash = path.with_name(f"{TRASH}{path.name}-{secrets.token_hex(4)}")
    disk.rename(path, trash)
    disk.fsync_folder(path.parent)
    return trash


def _remove(path: Path) -> None:
    """Removes a file or folder; the experiment file first, so that what is left does not look like a run."""
    if not path.is_dir():
        disk.remove_file(path)
        return
    disk.remove_file(path / EXPERIMENT)
    disk.remove_folder(path)
    if os.path.lexists(path):
        raise DiskError(f"{path} could not be removed completely; delete the rest yourself.")


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
