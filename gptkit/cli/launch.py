"""`--processes`: starts a command once for each process, restarts it, and reports how it ended.

Input: how many processes and restarts. Output: nothing where all went well, or the error of the process that
failed, with its rank and exit code. The processes do not print their errors: they leave them in a folder of
the launcher, where rank 0 also notes its run, to be continued after a restart. Imports no torch itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from gptkit import events
from gptkit.cli.streams import warn
from gptkit.errors import DivergedError, GptkitError, LostProcessError, StoppedError, UsageError

_FOLDER = "GPTKIT_LAUNCH_FOLDER"  # set for the processes: where they leave notes
_RUN = "run"
_BY_SIGNAL = 128  # and the signal's number: the exit code of a process that a signal ended


class ProcessFailedError(GptkitError):
    """The error of one of the processes, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class _Failure:
    rank: int
    message: str
    exit_code: int
    secondary: bool = False  # it follows from that of another process
    time: float = 0.0

    @property
    def by_signal(self) -> bool:
        """Whether it was ended from outside, so that trying again may help."""
        return self.exit_code > _BY_SIGNAL and self.exit_code not in (130, 143)


# In the launcher


def is_launcher(processes: int | None, max_restarts: int) -> bool:
    """Whether this process is to start others. Raises UsageError where torchrun started another number."""
    count = int(os.environ.get("WORLD_SIZE") or 1)
    if "RANK" in os.environ:
        if processes is not None and processes != count:
            raise UsageError(
                f"--processes {processes}, but torchrun started {count} processes; leave --processes out."
            )
        return False
    return (processes or 1) > 1 or max_restarts > 0


def launch(processes: int, max_restarts: int, timeout: float) -> None:
    """Runs this command line as so many processes; `timeout` is how long they take at most to stop.

    Where a signal from outside ends one of them, all are started again, at most `max_restarts` times.
    Raises ProcessFailedError.
    """
    from gptkit.training.distributed import start_processes

    # What stands in the working folder is imported by the processes only where it is by this one
    safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    command = [sys.executable, *safe, "-m", "gptkit", *sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="gptkit-") as folder, _signals() as stopped:
        for restart in range(max_restarts + 1):
            with _environment({_FOLDER: folder}):
                codes = start_processes(command, processes, timeout=timeout, log_folder=folder)
            failure = _cause(Path(folder), codes)
            if stopped and (failure is None or failure.secondary):
                raise ProcessFailedError("stopped", _BY_SIGNAL + stopped[0])
            if failure is None:
                return
            if restart == max_restarts or not failure.by_signal or stopped:
                raise ProcessFailedError(failure.message, failure.exit_code)
            continued = "from the last checkpoint" if run_to_continue(folder) else "from the beginning"
            warn(
                f"{failure.message}\nAll processes start again {continued} (restart {restart + 1} of "
                f"{max_restarts})."
            )
            for note in Path(folder).glob("rank-*.json"):
                note.unlink()


def _cause(folder: Path, codes: Mapping[int, int]) -> _Failure | None:
    """The failure to report: of several the first in time that does not follow from another.

    `codes` are the exit codes of the processes that failed; negative: the signal that ended them.
    """
    notes = []
    for path in folder.glob("rank-*.json"):
        with suppress(OSError, ValueError, TypeError):
            notes.append(_Failure(**json.loads(path.read_text())))
    # The launcher itself kills a process that hangs, after another one reported that
    now, noted = time.time(), {failure.rank for failure in notes}
    for rank, code in codes.items():
        if rank in noted:
            continue
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = "; the system does so where memory runs out" if name == "SIGKILL" else ""
            message = f"rank {rank} was ended by {name}{hint}."
            notes.append(_Failure(rank, message, _BY_SIGNAL - code, time=now))
        else:
            notes.append(_Failure(rank, f"rank {rank} ended with exit code {code}.", code))
    return min(notes, key=lambda failure: (failure.secondary, failure.time, failure.rank), default=None)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The first signal to stop is passed on to the processes, which save; a second one ends all at once.

    Yields the numbers of the signals that came.
    """
    from gptkit.training.distributed import stop_processes

    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            os._exit(_BY_SIGNAL + came[0])  # the processes notice that they have no launcher, and end
        stop_processes(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# In the processes


def rank() -> int | None:
    """The number of this process among several; None if it is alone."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    return int(os.environ["RANK"]) if several and "RANK" in os.environ else None


def explain_failure(message: str, code: int) -> str:
    """The message to print where this process fails; "" where another process, or the launcher, prints it."""
    number, error = rank(), sys.exc_info()[1]
    folder = os.environ.get(_FOLDER)
    if number:  # that of rank 0 is the run's own
        message = f"rank {number}: {message}"
    # All processes diverge and stop at the same step: rank 0 reports it
    follows = bool(number) and isinstance(error, DivergedError | StoppedError)
    if folder and "RANK" in os.environ:
        note: dict[str, Any] = {
            "rank": number or 0,
            "message": message,
            "exit_code": code,
            "secondary": follows or (isinstance(error, LostProcessError) and error.ended),
            "time": time.time(),
        }
        with suppress(OSError):
            Path(folder, f"rank-{number or 0}.json").write_text(json.dumps(note))
            return ""
    return "" if follows else message


def end_failed_rank(code: int) -> None:
    """Ends this process at once where it failed as one of several.

    Threads of torch.distributed that wait for a lost process would abort the interpreter's end.
    """
    if code and rank() is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def noting_run(listener: events.Listener) -> events.Listener:
    """The listener; where a launcher may restart this process, it also notes the run."""
    folder = os.environ.get(_FOLDER)
    if not folder or "RANK" not in os.environ:
        return listener

    def listen(event: events.Event) -> None:
        if isinstance(event, events.CheckpointSaved):
            with suppress(OSError):
                Path(folder, _RUN).write_text(os.path.abspath(event.folder.parents[1]))
        listener(event)

    return listen


def run_to_continue(folder: str | None = None) -> Path | None:
    """The folder of the run that was trained before a restart; None where it saved nothing yet."""
    folder = folder or os.environ.get(_FOLDER)
    if folder:
        with suppress(OSError):
            return Path(Path(folder, _RUN).read_text())
    return None
