"""Watches a process while it reads what strangers made: what it writes, runs and takes of memory.

Python tells an audit hook of every file that is opened, renamed or removed, of every process that is begun,
every connection and every class that is unpickled. Outside the workspace nothing may be changed, and none
of the rest may happen at all.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events that change something at a path: how many paths their arguments begin with, and where a folder's
# descriptor stands, to which the path is relative; None: nowhere
_CHANGES: dict[str, tuple[int, int | None]] = {
    "os.mkdir": (1, 2),
    "os.remove": (1, 1),
    "os.rmdir": (1, 1),
    "os.rename": (2, 2),
    "os.link": (2, 2),
    "os.symlink": (2, 2),
    "os.truncate": (1, None),
    "os.chmod": (1, 2),
    "os.chown": (1, 3),
    "os.utime": (1, 3),
}
_READS = ("open", "os.listdir", "os.scandir")
_NEVER = (
    *(
        "pickle.find_class",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
    ),
    *("socket.connect", "socket.bind", "webbrowser.open", "urllib.Request", "ftplib.connect"),
)
GIGABYTE = 1 << 30


class EscapedError(BaseException):
    """Something was about to happen that must not; no handler of the code under test is to catch it."""


class Guard:
    """Refuses, while it is armed, what must not happen. An audit hook can never be removed."""

    def __init__(self, workspace: Path) -> None:
        self._root = os.path.realpath(workspace)
        self._armed = False
        self._escaped = ""
        self._unreadable = ""
        sys.addaudithook(self._hear)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Raises EscapedError at the end too: what a tracker raises, of whatever kind, is caught."""
        self._armed, self._escaped = True, ""
        try:
            yield
        finally:
            self._armed, self._unreadable = False, ""
        if self._escaped:
            raise EscapedError(self._escaped)

    def make_unreadable(self, path: Path) -> None:
        """Until the end of the next `armed` this file or folder is not to be opened or listed by us."""
        self._unreadable = os.path.abspath(path)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if self._unreadable and event in _READS and not isinstance(arguments[0], int):
            path = os.fsdecode(arguments[0] or ".")
            if os.path.abspath(path) == self._unreadable:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and not isinstance(path, int):
                self._check(event, path, None)
        elif event in _CHANGES:
            count, at = _CHANGES[event]
            for path in arguments[:count]:
                self._check(event, path, arguments[at] if at is not None else None)
        elif event in _NEVER:
            self._refuse(f"{event} {arguments!r}")

    def _check(self, event: str, path: Any, folder: Any) -> None:
        if isinstance(path, int):
            return
        text = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        parent, name = os.path.split(os.path.abspath(text))
        # A link that is opened for writing leads elsewhere; one that is renamed or removed is a file itself
        real = os.path.realpath(text) if event == "open" else os.path.join(os.path.realpath(parent), name)
        if not real.startswith(self._root + os.sep) and real not in (self._root, os.devnull):
            self._refuse(f"{event} {text!r}")

    def _refuse(self, what: str) -> None:
        self._escaped = what
        raise EscapedError(what)


def limit_memory(more: int) -> None:
    """From now on this process can map no more than `more` bytes on top of what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def peak_memory() -> int:
    """The most that this process ever had in memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
