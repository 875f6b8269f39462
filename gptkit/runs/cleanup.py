"""Runs removed, and what could go of those that stay.

In: runs by name. Out: less on the disk, or a list of what could go with its size. A run that is in use stays
as it is. What is removed is renamed to `.trash-…` first, so that after a kill at any moment nothing stands
that looks whole and is not.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gptkit.errors import DiskError, UsageError
from gptkit.files import disk, disk_errors, sha256
from gptkit.runs.contents import SavedStep, leftovers, saved_steps, size_of, strange_entries
from gptkit.runs.run import (
    EXPERIMENT,
    RECORD,
    Run,
    find_run,
    is_locked,
    lock_run,
    refuse_special_files,
    run_ids,
)
from gptkit.runs.summaries import record_of, summarise

_TRASH, _VERIFYING = ".trash-", ".tmp-verify-"

Verify = Callable[[Run, int], bool]
"""Whether the run's checkpoint of a step is whole."""


def run_to_delete(wanted: str, runs_folder: Path) -> Run:
    """The run that `wanted` means: one of `runs_folder`, or any whose path is given.

    Raises UsageError where it is no run, or a link; CheckpointError where there is a link in it.
    """
    run = find_run(wanted, runs_folder)
    is_path = os.sep in wanted or bool(os.altsep and os.altsep in wanted)
    if not is_path and not _same(run.path.absolute().parent, runs_folder):
        raise UsageError(
            f"{wanted} is not in {runs_folder}; to delete it all the same, give its path: "
            f"{os.path.join(os.curdir, wanted)}"
        )
    strange = strange_entries(run)
    if strange and not (run.path / RECORD).is_file():
        raise UsageError(
            f"{run.path} is no run folder: it has no {RECORD}, but {', '.join(strange[:3])}. "
            "Nothing was deleted."
        )
    refuse_special_files(run)
    return run


def delete_run(run: Run) -> int:
    """Removes a run and says how many bytes that freed. Raises RunInUseError, DiskError."""
    size = size_of(run.path)
    with disk_errors(f"deleting the run {run.id}"):
        with lock_run(run):
            trash = _move_to_trash(run.path)
        _remove(trash)
    return size


@dataclass(frozen=True)
class Removable:
    """One thing that could go. `run` is None for what no run needs any more."""

    run: Run | None
    path: Path
    what: str  # and why, for a person
    bytes: int
    keeping: tuple[int, ...] = ()  # checkpoints that stay, one of which must be whole before this goes


def what_could_go(runs_folder: Path) -> list[Removable]:
    """Of the runs that are not in use, and what removed runs have left; links are left alone."""
    runs = [Run(runs_folder / name) for name in run_ids(runs_folder)]
    wanted = _loaded_steps(runs)
    free = [run for run in runs if not _in_use(run)]
    found = [thing for run in free for thing in _of_run(run, wanted.get(run.id, set()))]
    return [*found, *_of_folder(runs_folder, {_place(run) for run in runs} - {_place(run) for run in free})]


def remove(thing: Removable, verify: Verify) -> int | None:
    """Removes one of them and says how many bytes that freed; None where it has to stay after all.

    A checkpoint goes only where one that stays is whole, a run only where it has none. Raises RunInUseError
    where the run is in use now.
    """
    with disk_errors(f"removing {thing.path}"):
        if thing.run is None:
            _remove(thing.path)
            return thing.bytes
        if thing.path == thing.run.path:
            return delete_run(thing.run) if not saved_steps(thing.run) else None
        with lock_run(thing.run):
            if thing.keeping and not any(verify(thing.run, step) for step in reversed(thing.keeping)):
                return None
            _remove(_move_to_trash(thing.path) if thing.keeping else thing.path)
    return thing.bytes


def _of_run(run: Run, wanted: set[int]) -> Iterator[Removable]:
    """`wanted` are steps that other runs began from."""
    saved, left = saved_steps(run), leftovers(run)
    status = summarise(run).status
    begun = not (run.path / RECORD).exists() and not strange_entries(run)  # killed before its record
    if not saved and (status == "crashed" or begun):
        yield Removable(run, run.path, "crashed before its first checkpoint", size_of(run.path))
        return
    if status == "finished" and saved:
        yield from _checkpoints(run, saved, wanted)
    for path in left:
        word = "set aside, damaged" if path.name.startswith(".bad-") else "left by what was cut off"
        yield Removable(run, path, word, size_of(path))


def _checkpoints(run: Run, saved: list[SavedStep], wanted: set[int]) -> Iterator[Removable]:
    best = (record_of(run) or {}).get("best_step")
    staying = {saved[-1].step, *wanted, *([best] if isinstance(best, int) else [])}
    keeping = tuple(one.step for one in saved if one.step in staying)
    for one in saved:
        if one.step not in staying:
            what = "checkpoint, neither best nor last"
            yield Removable(run, one.path, what, one.bytes, keeping)


def _of_folder(runs_folder: Path, in_use: set[str]) -> Iterator[Removable]:
    """What removals and verifications that were cut off have left beside the runs."""
    for path in sorted(runs_folder.iterdir()) if runs_folder.is_dir() else ():
        if path.is_symlink() or not path.is_dir():
            continue
        if path.name.startswith(_TRASH):
            yield Removable(None, path, "left by a removal that was cut off", size_of(path))
        elif path.name.startswith(_VERIFYING) and not path.name.startswith(tuple(in_use)):
            yield Removable(None, path, "left by a verification that was cut off", size_of(path))


def _place(run: Run) -> str:
    """What the name of a place begins with in which this run is trained again, to be verified."""
    return f"{_VERIFYING}{sha256(run.id.encode())[:16]}-"


def _in_use(run: Run) -> bool:
    """Held by a process, or said to be running on another machine, which cannot be asked from here."""
    if is_locked(run):
        return True
    record = record_of(run) or {}
    process = record.get("process")
    elsewhere = isinstance(process, dict) and process.get("host") != socket.gethostname()
    return elsewhere and record.get("status") in ("running", "starting")


def _loaded_steps(runs: list[Run]) -> dict[str, set[int]]:
    """Steps of each run that others began from (--load), and are to be trained from again."""
    steps: dict[str, set[int]] = {}
    for run in runs:
        source = (record_of(run) or {}).get("loaded_from")
        if (
            isinstance(source, dict)
            and isinstance(source.get("run"), str)
            and isinstance(source.get("step"), int)
        ):
            steps.setdefault(source["run"], set()).add(source["step"])
    return steps


def _move_to_trash(path: Path) -> Path:
    """Another name first, on the disk too: after a power cut, half of it might stand under the old one."""
    trash = path.with_name(f"{_TRASH}{path.name}-{secrets.token_hex(4)}")
    disk.rename(path, trash)
    disk.fsync_folder(path.parent)
    return trash


def _remove(path: Path) -> None:
    """What makes it a run goes first, for one who gives the path of the rest."""
    if not path.is_dir():
        disk.remove_file(path)
        return
    disk.remove_file(path / EXPERIMENT)
    disk.remove_folder(path)
    if os.path.lexists(path):
        raise DiskError(f"{path} could not be removed whole; remove what is left by hand.")


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def refuse_use(run: Run) -> None:
    """Raises RunInUseError where a process holds the run; changes nothing."""
    if is_locked(run):
        with lock_run(run):  # it says who does; or it has been let go meanwhile
            pass
