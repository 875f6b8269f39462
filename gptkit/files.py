"""Every change gptkit makes to a disk goes through here.

`disk` is the one seam: create, write, fsync, rename, remove. Checkpoints, run records and downloads use it,
so that a test can put a disk in its place that fails at the n-th operation. What the operating system
refuses becomes a `DiskError` that says what was being done and what to do.

Knows nothing of runs, checkpoints or tensors.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gptkit.errors import DiskError

MAX_DEPTH = 32  # tables in tables of a TOML file; an experiment has three

# A dotted key of more parts than that, where a key may begin: tomllib takes their number squared
_DEEP_KEY = re.compile(
    rf"""(?:^|[={{,\[])[ \t]*(?:[\w"'-]{{1,200}}[ \t]{{0,9}}\.[ \t]{{0,9}}){{{MAX_DEPTH}}}""",
    re.MULTILINE,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class Disk:
    """The file operations that change something, each as small as the operating system's own."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def make_new_folder(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> IO[bytes]:
        return open(path, "xb", buffering=0)

    def append(self, path: Path) -> IO[bytes]:
        return open(path, "ab", buffering=0)

    def write(self, file: IO[bytes], data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view.nbytes:  # an unbuffered write may be short
            view = view[file.write(view) :]

    def fsync(self, file: IO[bytes]) -> None:
        os.fsync(file.fileno())

    def fsync_folder(self, path: Path) -> None:
        if os.name == "nt":  # Windows cannot open a folder; its renames are journalled
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove_file(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)


disk = Disk()


@contextmanager
def disk_errors(doing: str, needed: int | None = None) -> Iterator[None]:
    """Turns the operating system's refusals into a `DiskError`; `needed` is in bytes."""
    try:
        yield
    except OSError as error:
        room = f"; {needed / 1e6:.1f} MB needed" if needed else ""
        if error.errno in _FULL:
            raise DiskError(f"disk full while {doing}{room}. Free some space and try again.") from error
        if error.errno in _READ_ONLY:
            where = error.filename or "the folder"
            raise DiskError(f"cannot write while {doing}: {where} is read-only or not yours.") from error
        raise DiskError(f"disk error while {doing}: {error.strerror or error}.") from error


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that nothing uses, marked as temporary."""
    return path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")


def make_folder(path: Path) -> None:
    """Makes a folder where it is missing, with those above it, and has their names reach the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    disk.make_folder(path)
    for folder in reversed(missing):
        disk.fsync_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Creates `path` with `data` and has it reach the disk; it must not exist yet."""
    with disk.create(path) as file:
        disk.write(file, data)
        disk.fsync(file)


def replace_file(path: Path, data: bytes) -> None:
    """Puts `data` under `path` all at once: a reader sees the old bytes or the new, never a part."""
    temporary = temporary_beside(path)
    try:
        write_file(temporary, data)
        disk.rename(temporary, path)
    except BaseException:
        disk.remove_file(temporary)
        raise
    disk.fsync_folder(path.parent)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Adds whole lines to `path` with one write and has them reach the disk."""
    data = "".join(f"{line}\n" for line in lines).encode()
    new = not path.exists()
    with disk.append(path) as file:
        disk.write(file, data)
        disk.fsync(file)
    if new:  # a file whose name is lost in a power cut is lost, however well its bytes were kept
        disk.fsync_folder(path.parent)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def to_json(value: object) -> bytes:
    """Readable, stable JSON: the same value gives the same bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # a byte of a path that is no character, as \udcXX


def parse_json(data: bytes | str) -> Any:
    """JSON as gptkit reads it: no duplicate keys, finite numbers. Raises ValueError, whatever the input."""
    try:
        return json.loads(
            data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """TOML as gptkit reads it. Raises ValueError, or RecursionError where it is nested too deeply."""
    if _DEEP_KEY.search(text):
        raise RecursionError
    return tomllib.loads(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _finite(digits: str) -> float:
    """`1e999` is JSON, and infinity for Python: what cannot be written again is not read."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is out of range")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
