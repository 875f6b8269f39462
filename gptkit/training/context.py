"""What the caller of a training sets: folders, listener, stop request, processes.

Knows nothing of texts, models or runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptkit import events
from gptkit.events import RunStatus
from gptkit.plugins import DataFolders
from gptkit.plugins.options import ProgressCallback
from gptkit.runs import DEFAULT_RUNS_FOLDER
from gptkit.training.distributed import ONE_PROCESS, Processes

StopRequested = Callable[[], RunStatus | None]
"""Called between steps: None to continue, or the status to stop with (INTERRUPTED, TERMINATED)."""


def never() -> None:
    """The default `StopRequested`."""


@dataclass(frozen=True)
class RunContext:
    """What the caller of a training sets: folders, listener, stop request."""

    runs_folder: Path = DEFAULT_RUNS_FOLDER
    folders: DataFolders = field(default_factory=DataFolders)
    listener: events.Listener = events.ignore
    stop_requested: StopRequested = never
    command: Sequence[str] = ()  # as recorded in run.json
    writes_report: bool = True  # report.html, when the session ends
    processes: Processes = ONE_PROCESS  # that train together

    def warn(self, message: str) -> None:
        self.listener(events.Warned(message))

    def progress(self, what: str, *, after: float = 0.0) -> ProgressCallback:
        """A callback that reports long work to the listener, once it has taken `after` seconds."""
        start = time.monotonic() + after

        def report(done: int, total: int) -> None:
            if not after or time.monotonic() >= start:
                self.listener(events.Working(what, done, total))

        return report
