"""One process per run: a lock of the operating system, which ends with the process that holds it.

Input: a run. Output: a context that holds it, or RunInUseError with the process that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import filelock

from gptkit.errors import RunInUseError
from gptkit.files import disk_errors
from gptkit.runs.folder import LOCK
from gptkit.runs.run import Run


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Holds the run for this process.

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


def refuse_use(run: Run) -> None:
    """Raises RunInUseError where a process holds the run; changes nothing."""
    if is_locked(run):
        with lock_run(run):  # raises with the process that holds it; or it has been released meanwhile
            pass


def _holder(run: Run) -> str:
    process = run.read_record_or_empty().process
    return f" by process {process.pid} on {process.host}" if process and process.pid is not None else ""
