"""What rich's Live leaves to do on a terminal.

Keys are not echoed into the live region, Ctrl-Z takes it away, a narrower window leaves no pieces of it, a
terminal that is gone is ignored. Knows nothing of training.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gptkit.cli.streams import discard


def only_ascii(encoding: str) -> bool:
    """Whether only ASCII is sure to be shown: by the encoding, or by a locale that the user asked for.

    Python treats the C locale as UTF-8 and sets LC_CTYPE for its children; but the terminal of a user who
    sets LC_ALL=C or LANG=C shows no more than ASCII.
    """
    if not encoding.lower().startswith("utf"):
        return True
    ctype = os.environ.get("LC_CTYPE", "")
    chosen = os.environ.get("LC_ALL") or (ctype if ctype != "C.UTF-8" else "") or os.environ.get("LANG")
    return chosen in ("C", "POSIX")


class LiveRegion:
    """Lines at the bottom of a terminal that are drawn again and again, and lines printed above them."""

    def __init__(self, console: Console, render: Callable[[], Sequence[Text]]) -> None:
        self._console, self._render = console, render
        self._live: Live | None = None
        self._echo = True  # whether the terminal echoed what is typed
        self._lengths: list[int] = []  # of the lines that were drawn last, in columns
        self._width = 0  # of the terminal when they were drawn

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws within it; at the end the region is gone and the terminal is as it was."""
        with _suspendable(self._stop, self._start):
            try:
                self._start()
                yield
            finally:
                self._stop()

    def refresh(self) -> None:
        if self._live is not None:
            with self._drawing():
                self._live.refresh()

    def print(self, text: Text) -> None:
        """A line that stays, above the region."""
        with self._drawing():
            self._console.print(text, highlight=False)

    def _start(self) -> None:
        live = Live(get_renderable=self._lines, console=self._console, auto_refresh=False, transient=True)
        self._live, self._echo = live, _set_echo(False)
        with self._drawing():
            live.start()

    def _stop(self) -> None:
        if self._live is not None:
            with self._drawing():
                self._live.stop()
            _set_echo(self._echo)
        self._live, self._lengths = None, []

    def _lines(self) -> Text:
        lines = self._render()
        self._width, self._lengths = self._console.width, [line.cell_len for line in lines]
        text = Text("\n", no_wrap=True, overflow="crop", end="").join(lines)
        text.no_wrap, text.overflow = True, "crop"
        return text

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        try:
            self._unwrap()
            yield
        except OSError:  # the terminal is gone: training continues without a display
            discard(self._console.file)

    def _unwrap(self) -> None:
        """Clears a region that a narrower window has wrapped, and puts the cursor where Live expects it."""
        width = self._console.width
        if not self._lengths or width >= self._width:
            return
        rows = sum(max(1, -(-length // width)) for length in self._lengths)
        self._width = width
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        self._console.file.write(f"\r{up}\x1b[J" + "\n" * (len(self._lengths) - 1))


@contextmanager
def _suspendable(leave: Callable[[], None], come_back: Callable[[], None]) -> Iterator[None]:
    """Within it, `leave` is called when Ctrl-Z is pressed, and `come_back` when the process continues."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGTSTP"):
        yield
        return

    def suspend(number: int, frame: object) -> None:
        leave()
        os.kill(os.getpid(), signal.SIGSTOP)  # here the process stops, until `fg`
        come_back()

    before = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _set_echo(on: bool) -> bool:
    """Whether the terminal echoes what is typed, Ctrl-C's ^C too; returns whether it did."""
    if not hasattr(signal, "SIGTSTP"):
        return on
    import termios

    try:
        number = sys.stdin.fileno()
        if os.tcgetpgrp(number) != os.getpgrp():  # in the background, asking would stop the process
            return on
        modes = termios.tcgetattr(number)
        before = bool(modes[3] & termios.ECHO)
        modes[3] = modes[3] | termios.ECHO if on else modes[3] & ~termios.ECHO
        termios.tcsetattr(number, termios.TCSADRAIN, modes)
    except (termios.error, OSError, ValueError):  # standard input is no terminal
        return on
    return before
