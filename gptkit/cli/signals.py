"""Ctrl-C, SIGTERM and a closed terminal: they end the process, or set a flag while a run is being trained.

Training asks for the flag between steps.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gptkit.events import RunStatus


def interrupts_end() -> None:
    """Until `interrupts_raise`, Ctrl-C ends the process at once.

    Python's own handler would raise KeyboardInterrupt in the middle of an import, with a traceback, or inside
    an extension module such as pydantic's, which swallows the exception: the interrupt would be lost.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupts_raise() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt again, once there is something to clean up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StopFlag:
    """Which signal asked to stop, if any; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self._status: RunStatus | None = None

    def __call__(self) -> RunStatus | None:
        """INTERRUPTED, TERMINATED, or None to continue."""
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
