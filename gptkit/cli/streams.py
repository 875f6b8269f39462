"""Standard output and standard error that may be closed, full, ASCII, or a terminal that has gone away.

A command whose output is lost ends with a message and the exit code for it; training never stops because of
it.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO

from gptkit.words import printable


def prepare() -> None:
    """Replaces streams that the caller closed, and lets standard output take every character.

    A closed stream (`>&-`) leads to devnull: Python has None in its place. Opened in this order each gets its
    own number back, which the first file of a run would get otherwise, and with it whatever a library prints.
    A character that the locale does not have is written as its escape.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard(stream: IO[str]) -> None:
    """Redirects the stream to devnull: buffered and later output is lost."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


_within_line: weakref.WeakSet[TextIO] = weakref.WeakSet()  # streams whose last text ended within a line


def log(text: str) -> None:
    """A line on standard error, if there still is one.

    Where both streams are one file or one terminal, it is a line of its own also after text without an end.
    """
    if _are_one_file(sys.stdout, sys.stderr):
        end_text()
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def warn(message: str) -> None:
    """As an error's message, with control characters escaped."""
    log("\n".join(map(printable, f"gptkit: warning: {message}".split("\n"))))


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """For `warnings.showwarning`: a warning of gptkit as one line, others as Python prints them."""
    from gptkit.errors import GptkitWarning

    if issubclass(category, GptkitWarning):
        warn(str(message))
    else:
        log(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def write_line(text: str) -> None:
    """Prints a line and flushes it. If the output is lost, the work continues without it."""
    try:
        print(text, flush=True)
    except OSError as error:  # the log's disk is full, or its terminal was closed
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):  # `gptkit train | head`: the reader closed the pipe
            warn(f"cannot write standard output: {error.strerror}; continuing without it.")


def write_text(text: str) -> None:
    """Exactly these characters on standard output, in UTF-8, at once."""
    if text:
        (_within_line.discard if text.endswith("\n") else _within_line.add)(sys.stdout)
        _write(text.encode("utf-8", "replace"))


def end_text() -> None:
    """Ends the last line of the text, for a terminal: a file has only what `write_text` was called with."""
    if sys.stdout in _within_line:
        with suppress(OSError):  # standard output is lost
            write_text("\n")


def _are_one_file(one: IO[str], other: IO[str]) -> bool:
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError):  # a stream of Python alone
        return False


def write_path(path: Path) -> None:
    """A path on a line of standard output, byte for byte as the system has it; escaped on a terminal."""
    if sys.stdout.isatty():
        print(printable(str(path)))
        return
    _write(os.fsencode(path) + os.linesep.encode())


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
