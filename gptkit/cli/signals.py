"""Ctrl-C, SIGTERM and a terminal that is closed: the end at once, or a flag while a run is being trained.

The flag is what the loop asks for between steps.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gptkit.events import RunStatus


def interrupts_end() -> None:
    """Ctrl-C ends the process at once, as it would any program: for the time of starting.

    Python's own handler would raise in the middle of an import, with a traceback, or inside an extension
    module (pydantic's), which swallows what is raised: the interrupt would be lost.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupts_raise() -> None:
    """Undoes `interrupts_end`, once there is something to tidy up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StopFlag:
    """What asked to stop, if anything did; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self._status: RunStatus | None = None

    def __call__(self) -> RunStatus | None:
        """None to go on, INTERRUPTED or TERMINATED."""
        return self._status

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._status is RunStatus.INTERRUPTED:
            raise KeyboardInterrupt
        self._status = RunStatus.INTERRUPTED if number == signal.SIGINT else RunStatus.TERMINATED


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Within it, SIGINT, SIGTERM and SIGHUP only set the flag; SIGHUP not where nohup had it ignored."""
    flag = StopFlag()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, flag.handle) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
