"""A run is a folder: made, locked, recorded, found, listed.

In: the resolved experiment and what a run reports. Out: `runs/<id>/` with experiment.toml, run.json,
metrics.jsonl, tokenizer.json, checkpoints/ and samples/, readable by a person and by tools. Knows nothing of
torch or of training.
"""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock

from gptkit.errors import CheckpointError, DiskError, RunInUseError, UsageError
from gptkit.files import disk, disk_errors, make_folder, parse_json, replace_file, to_json
from gptkit.words import closest, nearest

EXPERIMENT, RECORD, METRICS, TOKENIZER = "experiment.toml", "run.json", "metrics.jsonl", "tokenizer.json"
CHECKPOINTS, SAMPLES, LOCK, REPORT = "checkpoints", "samples", ".lock", "report.html"
MAX_RECORD_BYTES = 10_000_000
_MAX_LINE, _MAX_METRICS = 1_000_000, 2_000_000_000  # bytes; what is beyond them nobody's training has written
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

DEFAULT_RUNS_FOLDER = Path("runs")


@dataclass(frozen=True)
class Run:
    """One run's folder; the names of what is in it."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def experiment_file(self) -> Path:
        return self.path / EXPERIMENT

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def samples(self) -> Path:
        return self.path / SAMPLES

    def record(self) -> dict[str, Any]:
        """What run.json says. Raises CheckpointError where it is no usable JSON object."""
        return self._read_json(RECORD)

    def write_record(self, record: dict[str, Any]) -> None:
        with disk_errors(f"recording the run {self.id}"):
            replace_file(self.path / RECORD, to_json(record))

    def tokenizer_json(self) -> dict[str, Any]:
        return self._read_json(TOKENIZER, at_most=1_000_000_000)

    def write_tokenizer(self, data: dict[str, Any]) -> None:
        with disk_errors(f"recording the run {self.id}"):
            replace_file(self.path / TOKENIZER, to_json(data))

    def write_sample(self, step: int, text: str) -> None:
        with disk_errors(f"writing a sample of step {step}"):
            make_folder(self.samples)
            replace_file(self.samples / f"step-{step:012d}.txt", text.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step, in order. A later line of a step adds to an earlier one and replaces its values.

        A last line that was cut short, and any line that is no JSON object with a step, is left out.
        """
        rows: dict[int, dict[str, Any]] = {}
        for line in self.metric_lines():
            if row := metric_row(line):
                rows.setdefault(row["step"], {}).update(row)
        return [rows[step] for step in sorted(rows)]

    def metric_lines(self) -> Iterator[bytes]:
        """The lines of metrics.jsonl with their ends, in bounded memory: a line too long comes in pieces."""
        path, read = self.path / METRICS, 0
        if path.is_symlink() or not path.is_file():
            return
        with path.open("rb") as file:
            while read < _MAX_METRICS and (line := file.readline(_MAX_LINE)):
                read += len(line)
                yield line

    def _read_json(self, name: str, at_most: int = MAX_RECORD_BYTES) -> dict[str, Any]:
        path = self.path / name
        try:
            if path.is_symlink() or not path.is_file():
                raise ValueError("there is no such file")
            if path.stat().st_size > at_most:
                raise ValueError("it is too large")
            value = parse_json(path.read_bytes())
            if not isinstance(value, dict):
                raise ValueError("it is not a JSON object")
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return value


def metric_row(line: bytes) -> dict[str, Any] | None:
    """What a line of metrics.jsonl says, if it is a JSON object with a step."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def last_recorded_step(run: Run) -> int:
    """The step of the last line of metrics.jsonl; 0 where none can be told."""
    row = None
    for line in deque(run.metric_lines(), maxlen=1):
        row = metric_row(line)
    return row["step"] if row and row["step"] < 2**63 else 0


def create_run(runs_folder: Path, *, stem: str, experiment_toml: str) -> Run:
    """A new folder `<stem>-<local time>`, with its experiment file in it. Raises DiskError."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    with disk_errors(f"making a run folder in {runs_folder}"):
        if runs_folder.exists() and not runs_folder.is_dir():
            raise DiskError(f"{runs_folder} is a file; give a folder with --runs-dir.")
        make_folder(runs_folder)
        for attempt in range(1000):  # two runs started within a second
            path = runs_folder / (f"{stem}-{stamp}" + (f"-{attempt + 1}" if attempt else ""))
            try:
                disk.make_new_folder(path)
            except FileExistsError:
                continue
            run = Run(path)
            try:
                disk.make_folder(run.checkpoints)
                replace_file(run.experiment_file, experiment_toml.encode())
                disk.fsync_folder(runs_folder)
            except BaseException:
                disk.remove_folder(path)
                raise
            return run
    raise DiskError(f"cannot find a free name for the run in {runs_folder}.")


def find_run(wanted: str, runs_folder: Path = DEFAULT_RUNS_FOLDER) -> Run:
    """The run that `wanted` means: a folder, an id, a unique beginning of an id, or 'latest'.

    Raises UsageError where there is none, or more than one.
    """
    if "\0" in wanted or not wanted:
        raise UsageError(f"{wanted!r} names no run.")
    path = Path(wanted)
    if os.path.islink(path):  # unlike Path's, no error for a name that cannot be
        raise UsageError(f"{wanted} is a symbolic link; give the run's folder itself.")
    if os.path.isfile(path / EXPERIMENT):
        return Run(path if path.name not in ("", "..") else Path(os.path.abspath(path)))
    ids = run_ids(runs_folder)
    if wanted == "latest":
        if not ids:
            raise UsageError(f"there are no runs in {runs_folder}; 'gptkit train EXPERIMENT' makes one.")
        return Run(runs_folder / max(ids, key=lambda name: (_started(runs_folder / name), name)))
    matches = [name for name in ids if name == wanted] or [name for name in ids if name.startswith(wanted)]
    if len(matches) == 1:
        return Run(runs_folder / matches[0])
    if matches:
        raise UsageError(
            f"{wanted!r} is the beginning of {len(matches)} runs: {', '.join(matches[:8])}. "
            "Give more of the id, or 'latest'."
        )
    if os.path.isdir(path):
        raise UsageError(f"{wanted} is no run folder: it has no {EXPERIMENT}.")
    shown = wanted if len(wanted) <= 200 else wanted[:200] + "…"
    beginnings = {name[: len(wanted)]: name for name in ids}
    near = nearest(wanted, ids) or nearest(beginnings.get(closest(wanted, beginnings) or "", ""), ids)
    raise UsageError(f"no run {shown!r} in {runs_folder}{near or '.'} See 'gptkit runs'.")


def refuse_special_files(run: Run) -> None:
    """Raises CheckpointError where something in a run's folder is neither a file nor a folder.

    A symbolic link may lead anywhere, and who opens a pipe waits for ever.
    """
    for entry in run.path.iterdir():
        if entry.is_symlink():
            raise CheckpointError(f"{entry} is a symbolic link, which gptkit does not follow in a run.")
        if not entry.is_file() and not entry.is_dir():
            raise CheckpointError(f"{entry} is a pipe or a device, which has no place in a run; remove it.")


def run_ids(runs_folder: Path) -> list[str]:
    """The ids of all runs in a folder, sorted by name; links are not followed."""
    if not runs_folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in runs_folder.iterdir()
        if _ID.fullmatch(entry.name) and not entry.is_symlink() and (entry / EXPERIMENT).is_file()
    )


def _started(path: Path) -> float:
    """When a run was started, in seconds; 0 where it has no record yet."""
    try:
        return timestamp(Run(path).record().get("started"))
    except CheckpointError:
        return 0.0


def timestamp(moment: object) -> float:
    """Seconds of a moment as run.json says it, so that moments of several time zones compare; else 0."""
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Holds the run for this process, by a lock of the operating system that dies with it.

    Raises RunInUseError where another process holds it, DiskError where the folder cannot be written.
    """
    lock = filelock.FileLock(run.path / LOCK, timeout=0)
    with disk_errors(f"locking the run {run.id}"):
        try:
            lock.acquire()
        except filelock.Timeout:  # an OSError too
            message = f"run {run.id} is in use{_holder(run)}; wait for it or stop it first."
            raise RunInUseError(message) from None
    try:
        yield
    finally:
        lock.release()


def _holder(run: Run) -> str:
    """Who holds the run, as far as its record says."""
    with suppress(CheckpointError):
        process = run.record().get("process")
        if isinstance(process, dict) and "pid" in process:
            return f" by process {process['pid']} on {process.get('host')}"
    return ""


def is_locked(run: Run) -> bool:
    """Whether a process holds the run now."""
    if not (run.path / LOCK).exists():
        return False
    lock = filelock.FileLock(run.path / LOCK, timeout=0)
    try:
        lock.acquire()
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def drop_torn_line(run: Run) -> None:
    """Cuts a last line of metrics.jsonl that a crash left incomplete; the caller holds the run's lock."""
    path = run.path / METRICS
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        with disk_errors(f"mending {METRICS}"):
            replace_file(path, data[:whole])
