"""Watches a process while it reads hostile files: its writes, processes, connections and memory.

Python calls an audit hook for every file that is opened, renamed or removed, every process that is started,
every connection and every unpickled class. Nothing outside the workspace may be changed, and none of the rest
may happen at all.
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
# Events that change a path: the number of paths at the beginning of their arguments, and the index of the
# descriptor of the folder to which a path is relative, or None
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
    """A forbidden operation; a BaseException, so that no handler of the code under test catches it."""


class Guard:
    """Refuses forbidden operations while it is armed. An audit hook can never be removed."""

    def __init__(self, workspace: Path) -> None:
        self._root = os.path.realpath(workspace)
        self._armed = False
        self._escaped = ""
        self._unreadable = ""
        sys.addaudithook(self._audit)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Raises EscapedError again at the end: what a tracker raises is caught, of whatever type."""
        self._armed, self._escaped = True, ""
        try:
            yield
        finally:
            self._armed, self._unreadable = False, ""
        if self._escaped:
            raise EscapedError(self._escaped)

    def make_unreadable(self, path: Path) -> None:
        """Makes opening or listing a path fail until the end of the next `armed`."""
        self._unreadable = os.path.abspath(path)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
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
        # A link that is opened for writing is followed; one that is renamed or removed is the link itself
        real = os.path.realpath(text) if event == "open" else os.path.join(os.path.realpath(parent), name)
        if not real.startswith(self._root + os.sep) and real not in (self._root, os.devnull):
            self._refuse(f"{event} {text!r}")

    def _refuse(self, what: str) -> None:
        self._escaped = what
        raise EscapedError(what)


def limit_memory(more: int) -> None:
    """Limits the address space of this process to `more` bytes above its present one."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def peak_memory() -> int:
    """The peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
