"""Good manners on a terminal: what is drawn is taken back, whatever its size does and however we end.

In: a console with a live region. Out: control sequences, and the terminal as it was. Knows nothing of
training.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gptkit.cli.streams import discard

# Nothing is wrapped while we draw: a letter wider than we believe is to cost its line's end, not the count
# of lines. And the terminal, where it knows how to, shows all of it at once.
_BEGIN, _END = "\x1b[?2026h\x1b[?7l", "\x1b[?7h\x1b[?2026l"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"


def speaks_ascii(encoding: str) -> bool:
    """Whether only ASCII is sure to be shown: by the encoding, or by a locale that was asked for.

    Python itself takes the C locale for UTF-8, and sets LC_CTYPE for its children; but who says LC_ALL=C or
    LANG=C has a terminal that shows no more.
    """
    if not encoding.lower().startswith("utf"):
        return True
    chosen = os.environ.get("LC_CTYPE", "")
    said = os.environ.get("LC_ALL") or (chosen if chosen != "C.UTF-8" else "") or os.environ.get("LANG")
    return said in ("C", "POSIX")


class Screen:
    """The live region of a console, and what is printed above it."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live
        self._width = 0  # of the terminal when the region was drawn
        self._lengths: list[int] = []  # of its lines, in columns

    def drawn(self, lines: Sequence[Text]) -> None:
        """To be told what the region is now."""
        self._width = self._console.width
        self._lengths = [line.cell_len for line in lines]

    def refresh(self) -> None:
        with self.whole():
            self._live.refresh()

    def print(self, text: Text) -> None:
        with self.whole():
            self._console.print(text, highlight=False)

    def stop(self) -> None:
        with self.whole():
            self._live.stop()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is drawn within it is shown at once, over the region as the terminal has it now."""
        with self._unless_gone():
            self._write(_BEGIN + self._rewrapped())
        with self._unless_gone():
            yield
            self._write(_END)

    @contextmanager
    def _unless_gone(self) -> Iterator[None]:
        """A terminal that has gone away is no reason to stop training: from then on nothing is shown."""
        try:
            yield
        except OSError:
            discard(self._console.file)

    def _rewrapped(self) -> str:
        """A terminal that became narrower has wrapped our lines: the region is taken away, the cursor put
        where it was in a region of as many lines as we believe."""
        width = self._console.width
        if not self._lengths or width >= self._width:
            return ""
        rows = sum(max(1, -(-length // width)) for length in self._lengths)
        self._width = width
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "") + "\x1b[J" + self._below()

    def _below(self) -> str:
        return "\n" * (len(self._lengths) - 1)

    def leave(self) -> None:
        """For the time that someone else has the terminal."""
        with self._unless_gone():
            self._write(_SHOW + "\n")

    def come_back(self) -> None:
        """Below whatever they have written."""
        with self._unless_gone():
            self._write(_HIDE + self._below())

    def _write(self, controls: str) -> None:
        self._console.file.write(controls)
        self._console.file.flush()


@contextmanager
def undisturbed(screen: Screen, on_resize: Callable[[], None]) -> Iterator[None]:
    """Within it keys are not echoed into the region, Ctrl-Z leaves the terminal in order, and `on_resize` is
    called when its size changes."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGTSTP"):
        yield
        return
    keys = _Keys()

    def suspend(number: int, frame: FrameType | None) -> None:
        keys.echo()
        screen.leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # here we stop, until someone says fg
        signal.signal(number, suspend)
        keys.hush()
        screen.come_back()

    handlers = {signal.SIGTSTP: suspend, signal.SIGWINCH: lambda number, frame: on_resize()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    keys.hush()
    try:
        yield
    finally:
        keys.echo()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Keys:
    """The terminal's echo of what is typed, Ctrl-C's ^C too: off and on again."""

    def __init__(self) -> None:
        self._before: list[object] | None = None

    def hush(self) -> None:
        import termios

        with suppress(termios.error, OSError, ValueError):
            number = sys.stdin.fileno()
            if os.tcgetpgrp(number) != os.getpgrp():  # in the background, asking would stop us
                return
            before = termios.tcgetattr(number)
            changed = termios.tcgetattr(number)
            changed[3] &= ~termios.ECHO
            termios.tcsetattr(number, termios.TCSADRAIN, changed)
            self._before = before

    def echo(self) -> None:
        import termios

        before, self._before = self._before, None
        with suppress(termios.error, OSError, ValueError):
            number = sys.stdin.fileno()
            if before is not None and os.tcgetpgrp(number) == os.getpgrp():
                termios.tcsetattr(number, termios.TCSADRAIN, before)  # type: ignore[arg-type]
