"""Standard output and standard error that are closed, full, or a terminal that has gone away.

Whatever they are: a command whose output is lost ends with a word and an exit code of the table, and a
training is stopped by none of it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TextIO

_UNWRITABLE = (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.ENXIO)


def open_closed() -> None:
    """A stream that the caller closed (`>&-`) leads nowhere, for Python has none in its place.

    Opened in this order each gets its own number back, which the first file of a run would get otherwise,
    and with it whatever a library prints.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def lead_nowhere(stream: TextIO) -> None:
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


def unwritable(error: Exception) -> str:
    """Why a stream could not be written, or "" where it is not that. Of a file we would know the name."""
    if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
        return error.strerror or str(error)
    return ""
