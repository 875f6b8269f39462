"""Standard output and standard error that are closed, full, ASCII, or a terminal that has gone away.

Whatever they are: a command whose output is lost ends with a word and an exit code of the table, and a
training is stopped by none of it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import IO


def prepare() -> None:
    """Has every stream be there, and standard output take every character.

    One that the caller closed (`>&-`) leads nowhere: Python has None in its place. Opened in this order each
    gets its own number back, which the first file of a run would get otherwise, and with it whatever a
    library prints. A character that the locale does not have is written as its escape.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def lead_nowhere(stream: IO[str]) -> None:
    """What waits in it to be written is lost, and all that follows."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def tell(text: str) -> None:
    """A line on standard error, where there is one still."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        lead_nowhere(sys.stderr)


def warn(message: str) -> None:
    tell(f"gptkit: warning: {message}")
