"""Checkpoints: a training state on disk, written atomically and verified before it is used.

Input: named tensors (weights, optimizer state) and a small state of numbers. Output: the same, from the
newest checkpoint that verifies. A checkpoint is `checkpoints/step-<12 digits>/` with model.safetensors,
optimizer.safetensors, state.json and MANIFEST.json, which has the size and SHA-256 of the others. It is
written under a temporary name and renamed when every byte has reached the disk, so a folder of that name is
whole, or was damaged later, which the hashes detect. No pickle anywhere. Knows nothing of models or runs.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from gptkit.errors import CheckpointError, OutOfMemoryError
from gptkit.files import disk, disk_errors, make_folder, parse_json, sha256, to_json, write_file
from gptkit.machine import memory_here, usable_memory
from gptkit.runs.folder import DAMAGED, TEMPORARY, TRASH, list_steps, step_folder
from gptkit.words import printable

FORMAT = 1
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "MANIFEST.json",
)
_FILES = (MODEL, OPTIMIZER, STATE)
_SMALL = 1_000_000  # bytes; no manifest is larger
# What a crafted file may raise: sizes, types and shapes that no tensor has
_UNREADABLE = (ValueError, KeyError, TypeError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    weights_sha256: str  # of its file


def save_checkpoint(
    folder: Path,
    *,
    run_id: str,
    step: int,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
) -> Path:
    """Commits a checkpoint of `step` to `folder` and returns its path; one of the same step is replaced.

    Raises DiskError; then the folder is as it was before.
    """
    target = step_folder(folder, step)
    contents = {
        MODEL: safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.items()}),
        OPTIMIZER: safetensors.torch.save({name: tensor.contiguous() for name, tensor in optimizer.items()}),
        STATE: to_json(state),
    }
    manifest = {
        "format": FORMAT,
        "run_id": run_id,
        "step": step,
        "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in contents.items()},
    }
    contents[MANIFEST] = to_json(manifest)
    temporary = folder / f"{TEMPORARY}{step}-{secrets.token_hex(4)}"
    earlier = [good for good in list_steps(folder) if good < step]
    last = f"last good step is {earlier[-1]}" if earlier else "no step was saved before"
    replaced = None
    with disk_errors(f"saving step {step}; {last}", needed=sum(map(len, contents.values()))):
        try:
            make_folder(folder)
            disk.make_folder(temporary)
            for name, data in contents.items():  # the manifest last
                write_file(temporary / name, data)
            disk.fsync_folder(temporary)
            if target.exists():  # the run was resumed before this step
                replaced = _move_away(target, TRASH)
            disk.rename(temporary, target)
        except BaseException:
            disk.remove_folder(temporary)
            if replaced and not target.exists():
                disk.rename(replaced, target)
            raise
        disk.fsync_folder(folder)
        if replaced:
            disk.remove_folder(replaced)
    return target


def replace_state(folder: Path, *, step: int, state: dict[str, Any]) -> None:
    """Replaces the state of a checkpoint that was saved or verified by this process; its tensors stay.

    The checkpoint verifies at every moment: the manifest is replaced first, by one that accepts the state
    before and the new one. Raises DiskError; then the checkpoint has the one or the other. Raises
    CheckpointError if it was removed or damaged meanwhile.
    """
    path, data = step_folder(folder, step), to_json(state)
    with disk_errors(f"saving the progress of step {step}", needed=len(data)):
        try:
            manifest = _object(parse_json(_read(path / MANIFEST, at_most=_SMALL)))
            before = dict(manifest["files"][STATE])
        except _UNREADABLE as error:
            raise CheckpointError(f"checkpoint {path} does not verify: {error}") from error
        before.pop("before", None)
        manifest["files"][STATE] = {"bytes": len(data), "sha256": sha256(data), "before": before}
        for name, content in ((MANIFEST, to_json(manifest)), (STATE, data)):
            temporary = folder / f"{TEMPORARY}{step}-{secrets.token_hex(4)}"  # no other file may be in `path`
            try:
                write_file(temporary, content)
                disk.rename(temporary, path / name)
            except BaseException:
                disk.remove_file(temporary)
                raise
            disk.fsync_folder(path)


def load_checkpoint(folder: Path, step: int, *, run_id: str) -> Checkpoint:
    """The checkpoint of that step, verified. Raises CheckpointError with the reason where it is damaged."""
    path = step_folder(folder, step)
    if not os.path.lexists(path):
        there = ", ".join(map(str, list_steps(folder)[-8:])) or "none at all"
        raise CheckpointError(f"there is no checkpoint of step {step} in {folder}; there is {there}.")
    try:
        contents = _verified(path, step, run_id)
        return Checkpoint(
            step=step,
            model=safetensors.torch.load(contents[MODEL]),
            optimizer=safetensors.torch.load(contents[OPTIMIZER]),
            state=_object(parse_json(contents[STATE])),
            weights_sha256=sha256(contents[MODEL]),
        )
    except (*_UNREADABLE, SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or ["(unknown reason)"])[0]
        raise CheckpointError(f"checkpoint {path} does not verify: {reason}") from error


def newest_checkpoint(
    folder: Path, *, run_id: str, on_bad: Callable[[int, CheckpointError], None] = lambda step, error: None
) -> Checkpoint:
    """The newest checkpoint that verifies; `on_bad` is called for each newer one that does not.

    Raises CheckpointError if none verifies.
    """
    steps = list_steps(folder)
    for step in reversed(steps):
        try:
            return load_checkpoint(folder, step, run_id=run_id)
        except CheckpointError as error:
            on_bad(step, error)
    if steps:
        raise CheckpointError(f"none of the {len(steps)} checkpoints in {folder} verifies.")
    raise CheckpointError(f"there is no checkpoint in {folder}.")


def run_ids(folder: Path) -> list[str]:
    """The ids of the runs that the checkpoints in a folder are of, unverified; mostly one."""
    found: dict[str, None] = {}
    for step in list_steps(folder):
        with suppress(*_UNREADABLE, OSError):
            manifest = _object(parse_json(_read(step_folder(folder, step) / MANIFEST, at_most=_SMALL)))
            if isinstance(run_id := manifest.get("run_id"), str):
                found[run_id] = None
    return list(found)


def set_aside(folder: Path, step: int) -> Path:
    """Renames a checkpoint that does not verify to `.bad-…`, so that it is ignored from now on."""
    return _move_away(step_folder(folder, step), DAMAGED)


def clear_temporaries(folder: Path) -> int:
    """Removes what interrupted saves and removals have left in a folder; returns the number of entries.

    The caller holds the lock.
    """
    with disk_errors(f"removing temporary files in {folder}"):
        entries = folder.iterdir() if folder.is_dir() else ()
        leftovers = [entry for entry in entries if entry.name.startswith((TEMPORARY, TRASH))]
        for entry in leftovers:
            is_folder = entry.is_dir() and not entry.is_symlink()
            disk.remove_folder(entry) if is_folder else disk.remove_file(entry)
    return len(leftovers)


def prune(folder: Path, *, keep: Iterable[int], keep_last: int, keep_every: int) -> None:
    """Removes old checkpoints but `keep`, the `keep_last` newest and multiples of `keep_every` (0: none)."""
    steps = list_steps(folder)
    staying = {*keep, *steps[-keep_last:]}
    if keep_every:
        staying.update(step for step in steps if step % keep_every == 0)
    with disk_errors("removing old checkpoints"):
        moved = [_move_away(step_folder(folder, step), TRASH) for step in steps if step not in staying]
        if moved:
            # The new names first: after a power cut, half a checkpoint might be left under its old name
            disk.fsync_folder(folder)
        for victim in moved:
            disk.remove_folder(victim)


def _move_away(path: Path, prefix: str) -> Path:
    """Renames a checkpoint, so that one that is half removed cannot pass for a whole one."""
    aside = path.with_name(f"{prefix}{path.name}-{secrets.token_hex(4)}")
    disk.rename(path, aside)
    return aside


def _verified(path: Path, step: int, run_id: str) -> dict[str, bytes]:
    """The bytes of every file, after names, sizes and hashes agreed with the manifest. Raises ValueError."""
    if path.is_symlink() or not path.is_dir():
        raise ValueError("it is not a folder")
    entries = {entry.name for entry in path.iterdir()}
    if entries != {*_FILES, MANIFEST}:
        missing, extra = sorted({*_FILES, MANIFEST} - entries), sorted(entries - {*_FILES, MANIFEST})
        raise ValueError(
            f"{'missing ' + ', '.join(missing) if missing else 'unexpected ' + ', '.join(extra)}"
        )
    manifest = _object(parse_json(_read(path / MANIFEST, at_most=_SMALL)))
    for key, expected in (("format", FORMAT), ("run_id", run_id), ("step", step)):
        if (found := manifest.get(key)) != expected:
            raise ValueError(f"its {MANIFEST} has {key} {printable(repr(found)[:100])}, not {expected!r}")
    files = _object(manifest.get("files"))
    if set(files) != set(_FILES):
        raise ValueError(f"its {MANIFEST} names other files")
    _check_memory(path, files)
    contents = {}
    for name in _FILES:
        recorded = _object(files[name])
        try:
            contents[name] = _verified_file(path / name, recorded)
        except ValueError:
            if name != STATE or "before" not in recorded:
                raise
            contents[name] = _verified_file(path / name, _object(recorded["before"]))  # see replace_state
    return contents


def _verified_file(path: Path, recorded: dict[str, Any]) -> bytes:
    """The bytes of a file whose size and hash are as recorded. Raises ValueError."""
    size = recorded.get("bytes")
    if not isinstance(size, int) or path.stat().st_size != size:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {size}")
    data = _read(path, at_most=size)
    if sha256(data) != recorded.get("sha256"):
        raise ValueError(f"{path.name} is not what was saved (SHA-256 differs)")
    return data


def _check_memory(path: Path, files: dict[str, Any]) -> None:
    """Raises OutOfMemoryError if files of the recorded sizes cannot be read: as bytes and as tensors."""
    sizes = [(path / name).stat().st_size for name in _FILES]
    recorded = [_object(files[name]).get("bytes") for name in _FILES]
    if sizes == recorded and 2 * sum(sizes) > usable_memory():
        raise OutOfMemoryError(
            f"checkpoint {path} has {sum(sizes) / 1e9:.1f} GB, which takes at least "
            f"{2 * sum(sizes) / 1e9:.1f} GB of memory to read; {memory_here()}."
        )


def _read(path: Path, *, at_most: int) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    with path.open("rb") as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise ValueError(f"{path.name} is too large")
    return data


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
