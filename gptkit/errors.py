"""What can go wrong, as exceptions with an exit code each.

Raised anywhere, caught once: by the command line, which prints the message and leaves with `exit_code`.
A message is one to three lines that say what, where, and what to do.

    GptkitError                 1   (the bare class is never raised: 1 is a defect of gptkit)
    ├── UsageError              2   a command line, a name or a prompt that cannot be used
    │   └── ExperimentError     2   an experiment file; carries every problem found in it
    ├── PluginError             3   a plugin or the environment
    ├── DataError               4   a text: missing, empty, too short, not UTF-8, changed
    ├── CheckpointError         5   a checkpoint or run folder that does not verify
    ├── DiskError               6   the disk: full, read-only, failing
    ├── RunInUseError           7   another process holds the run
    ├── DivergedError           8   the loss or a gradient is not finite
    ├── OutOfMemoryError        9   what was asked for does not fit
    ├── NetworkError           10   a download was tried and failed
    └── StoppedError                a signal asked to stop; the run was saved
        ├── RunInterruptedError 130   SIGINT
        └── RunTerminatedError  143   SIGTERM, SIGHUP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class GptkitError(Exception):
    """An error meant for a person to read; `exit_code` is the process's answer to it."""

    exit_code = 1
    field = ""  # the dotted field of the experiment that it is about, where it is about one

    def about(self, field: str) -> Self:
        self.field = field
        return self


class UsageError(GptkitError):
    exit_code = 2


class ExperimentError(UsageError):
    """Problems of an experiment file, all of them together.

    `problems` holds one line each: the dotted key, what is wrong with it, what would be right. `message` is
    what a person is told, where that is more: the lines of the file with the places marked.
    """

    def __init__(self, source: str, problems: Sequence[str], *, message: str = "") -> None:
        self.source = source
        self.problems = tuple(problems)
        if message:
            text = message
        elif len(self.problems) == 1:
            text = f"{source}: {self.problems[0]}"
        else:
            lines = "".join(f"\n  {problem}" for problem in self.problems)
            text = f"{source} has {len(self.problems)} problems:{lines}"
        super().__init__(text)


class PluginError(GptkitError):
    """`plugins` are those that cannot be had, as (family, name), where it is about such."""

    exit_code = 3

    def __init__(self, message: str, plugins: Sequence[tuple[str, str]] = ()) -> None:
        self.plugins = tuple(plugins)
        super().__init__(message)


class DataError(GptkitError):
    exit_code = 4


class CheckpointError(GptkitError):
    exit_code = 5


class DiskError(GptkitError):
    exit_code = 6


class RunInUseError(GptkitError):
    exit_code = 7


class DivergedError(GptkitError):
    exit_code = 8


class OutOfMemoryError(GptkitError):
    exit_code = 9


class NetworkError(GptkitError):
    exit_code = 10


class StoppedError(GptkitError):
    """Training was asked to stop by a signal and did, saved."""


class RunInterruptedError(StoppedError):
    exit_code = 130


class RunTerminatedError(StoppedError):
    exit_code = 143
