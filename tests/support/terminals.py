"""A terminal for tests: the contents of its screen after some output, and gptkit in a real one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TOKEN = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b.|[\r\n]|[^\x1b\r\n]")


class Screen:
    """Characters by row and column, as a terminal with no end below has them; every character one wide."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.cursor_shown = True

    def write(self, text: str) -> None:
        for token in _TOKEN.findall(text):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self._down()
            elif token.startswith("\x1b"):
                self._control(token)
            else:
                self._put(token)

    def narrow(self, width: int) -> None:
        """The window is drawn narrower: lines that were longer take several rows now."""
        rows, self.width = self.rows, width
        self.rows = []
        for number, cells in enumerate(rows):
            if number == self.row:
                self.row, at = len(self.rows) + max(0, (len(cells) - 1)) // width, number
                self.column = min(self.column, width - 1)
            self.rows += [cells[start : start + width] for start in range(0, max(len(cells), 1), width)]
        assert at is not None

    @property
    def lines(self) -> list[str]:
        return ["".join(cells).rstrip() for cells in self.rows]

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append([])

    def _put(self, character: str) -> None:
        if self.column >= self.width:
            self._down()
        cells = self.rows[self.row]
        cells += " " * (self.column + 1 - len(cells))
        cells[self.column] = character
        self.column += 1

    def _control(self, control: str) -> None:
        number = int(control[2:-1]) if control[2:-1].isdigit() else 1
        if control.endswith("A"):
            self.row = max(0, self.row - number)
        elif control == "\x1b[2K":
            self.rows[self.row] = []
        elif control == "\x1b[J":
            del self.rows[self.row][self.column :]
            del self.rows[self.row + 1 :]
        elif control in ("\x1b[?25h", "\x1b[?25l"):
            self.cursor_shown = control.endswith("h")
        elif control[-1] not in "mhl":
            raise AssertionError(f"this terminal does not know {control!r}")


class Read:
    """What was written to a pseudo-terminal so far; whole when the block of `terminal` is left."""

    def __init__(self) -> None:
        self.data = b""

    @property
    def text(self) -> str:
        return self.data.decode("utf-8").replace("\r\n", "\n")


@contextmanager
def terminal(columns: int, rows: int) -> Iterator[tuple[int, int, Read]]:
    """A pseudo-terminal of that size: its two ends (ours, theirs), and what is written to it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    read = Read()

    def listen() -> None:
        try:
            while data := os.read(ours, 1 << 16):
                read.data += data
        except OSError:  # Linux's error for a closed other end
            return

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        yield ours, theirs, read
    finally:
        os.close(theirs)
        reader.join(10)
        os.close(ours)
