"""Ctrl-C and SIGTERM while training: a flag that the loop asks for between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """What asked to stop, if anything did; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self._status = ""

    def __call__(self) -> str:
        """ "" to go on, "interrupted" or "terminated"."""
        return self._status

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._status == "interrupted":
            raise KeyboardInterrupt
        self._status = "interrupted" if number == signal.SIGINT else "terminated"


@contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Within it, SIGINT and SIGTERM only set the flag."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
