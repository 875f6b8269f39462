"""Exceptions for everything that can go wrong, each with an exit code.

They are raised anywhere and caught once, by the command line, which prints the message and exits with
`exit_code`. A message is one to three lines: what is wrong, where, and what to do.

    GptkitError                 1   never raised itself: 1 is a defect of gptkit
    ├── UsageError              2   a command line, a name or a prompt that cannot be used
    │   └── ExperimentError     2   an experiment that is not valid, with all problems found in it
    ├── PluginError             3   a plugin or the environment
    │   └── LostProcessError    3   another process of the training ended or does not answer
    ├── DataError               4   a text: missing, empty, too short, not UTF-8, changed
    ├── CheckpointError         5   a checkpoint or run folder that does not verify
    ├── DiskError               6   the disk: full, read-only, failing
    ├── RunInUseError           7   another process holds the run
    ├── DivergedError           8   the loss or a gradient is not finite
    ├── OutOfMemoryError        9   not enough memory
    ├── NetworkError           10   a download was tried and failed
    └── StoppedError                training stopped at a signal, and the run was saved
        ├── RunInterruptedError 130   SIGINT
        └── RunTerminatedError  143   SIGTERM, SIGHUP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GptkitWarning(UserWarning):
    """A warning that is meant for a person to read; the command line prints it as one line."""


class GptkitError(Exception):
    """An error that is meant for a person to read.

    `field` is the dotted key of the experiment's field that it is about, if there is one, so that the
    caller that read the experiment file can show the line that sets it.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, field: str = "") -> None:
        self.field = field
        super().__init__(message)


class UsageError(GptkitError):
    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an experiment."""

    message: str  # the dotted key, what is wrong with it, what would be right
    # The fields that it is about, the one that most likely has to change first
    paths: tuple[tuple[str, ...], ...] = ()
    in_key: bool = False  # the key itself is wrong, not its value

    def __str__(self) -> str:
        return self.message


class ExperimentError(UsageError):
    """An experiment that is not valid; `problems` are all that were found, one line each.

    The message shows them, with the lines of the file that they are about.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, field: str = "") -> None:
        self.problems = tuple(problem.message for problem in problems) or (message,)
        super().__init__(message, field=field)


class PluginError(GptkitError):
    """`plugins` are those that are missing or broken, as (family, name)."""

    exit_code = 3

    def __init__(self, message: str, plugins: Sequence[tuple[str, str]] = (), *, field: str = "") -> None:
        self.plugins = tuple(plugins)
        super().__init__(message, field=field)


class LostProcessError(PluginError):
    """Another process of the training does not answer, or `ended`, with an error of its own to report."""

    def __init__(self, message: str = "", *, ended: bool = True) -> None:
        self.ended = ended
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
    """A signal asked training to stop, and it did, saved."""


class RunInterruptedError(StoppedError):
    exit_code = 130


class RunTerminatedError(StoppedError):
    exit_code = 143
