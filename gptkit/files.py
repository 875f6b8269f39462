"""Durable file operations, and strict JSON and TOML.

All changes to a disk go through the operations of `disk`: create, write, fsync, rename, remove. Tests replace
them, to fail at the n-th. An error of the operating system becomes a `DiskError` with what was being done and
what to do. Knows nothing of runs, checkpoints or tensors.
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
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gptkit.errors import DiskError

MAX_DEPTH = 32  # nested tables of a TOML file; an experiment has three
MAX_NAME = 64  # characters, of one or two bytes: with what is added to it, a file system takes 255 bytes
# Letters and marks that look like nothing: fillers, variation selectors
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

# The beginning of a dotted key of more parts than that, for which tomllib would take quadratic time
_DEEP_KEY = re.compile(
    rf"""(?:^|[={{,\[])[ \t]*(?:[\w"'-]{{1,200}}[ \t]{{0,9}}\.[ \t]{{0,9}}){{{MAX_DEPTH}}}""",
    re.MULTILINE,
)

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class Disk:
    """The file operations that change something, each a single call of the operating system."""

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
        while view.nbytes:  # an unbuffered write may be partial
            view = view[file.write(view) :]

    def fsync(self, file: IO[bytes]) -> None:
        os.fsync(file.fileno())

    def fsync_folder(self, path: Path) -> None:
        if os.name == "nt":  # Windows cannot open a folder, and journals renames
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
    """Turns an OSError into a `DiskError`. `doing` completes "disk full while …"; `needed` is in bytes."""
    try:
        yield
    except OSError as error:
        size = f"; {needed / 1e6:.1f} MB needed" if needed else ""
        if error.errno in DISK_FULL:
            raise DiskError(f"disk full while {doing}{size}. Free some space and try again.") from error
        if error.errno in _READ_ONLY:
            where = error.filename or "the folder"
            raise DiskError(f"cannot write while {doing}: {where} is read-only or not yours.") from error
        raise DiskError(f"disk error while {doing}: {error.strerror or error}.") from error


def name_problem(name: str) -> str:
    """Why a name cannot be that of a file or folder on every system; "" if it can.

    Letters, with their marks, and digits of every script are allowed, but none that cannot be seen.
    """
    kinds = [unicodedata.category(letter) for letter in name]
    if not kinds or len(name) > MAX_NAME or len(name.encode("utf-8", "replace")) > 2 * MAX_NAME:
        return f"should be 1 to {MAX_NAME} characters, and at most {2 * MAX_NAME} bytes in UTF-8"
    visible = not _INVISIBLE.search(name)
    allowed = all(
        kind[0] in "LM" or kind == "Nd" or letter in "_-" for letter, kind in zip(name, kinds, strict=True)
    )
    if not allowed or not visible or not (kinds[0][0] == "L" or kinds[0] == "Nd"):
        return "should be letters, digits, '_' and '-', starting with a letter or digit"
    if is_device_name(name):
        return "is a name that Windows reserves for a device; choose another"
    return ""


def is_device_name(name: str) -> bool:
    """Whether Windows reserves a name for a device, so that no file there can have it, with any ending."""
    return re.fullmatch(r"(?i)con|prn|aux|nul|com[0-9]|lpt[0-9]", name) is not None


def temporary_beside(path: Path) -> Path:
    """An unused name in the same folder, marked as temporary."""
    return path.with_name(f".tmp-{path.name}-{secrets.token_hex(4)}")


def make_folder(path: Path) -> None:
    """Creates a folder and its parents if they are missing, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    disk.make_folder(path)
    for folder in reversed(missing):
        disk.fsync_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Creates `path` with `data` and syncs it; it must not exist yet."""
    with disk.create(path) as file:
        disk.write(file, data)
        disk.fsync(file)


def replace_file(path: Path, data: bytes) -> None:
    """Replaces `path` atomically and durably: a reader sees the old bytes or the new, never a part."""
    temporary = temporary_beside(path)
    try:
        write_file(temporary, data)
        disk.rename(temporary, path)
    except BaseException:
        disk.remove_file(temporary)
        raise
    disk.fsync_folder(path.parent)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Appends whole lines to `path` with one write, and syncs it."""
    data = "".join(f"{line}\n" for line in lines).encode()
    new = not path.exists()
    with disk.append(path) as file:
        disk.write(file, data)
        disk.fsync(file)
    if new:  # otherwise a power cut could lose the file's name, and with it the file
        disk.fsync_folder(path.parent)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def to_json(value: object) -> bytes:
    """Readable, deterministic JSON: the same value gives the same bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # an undecodable byte of a path is \udcXX


def parse_json(data: bytes | str) -> Any:
    """Parses strict JSON: no duplicate keys, only finite numbers. Raises only ValueError."""
    text = data if isinstance(data, str) else data.decode("utf-8", "surrogatepass")
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Parses TOML. Raises ValueError, or RecursionError if it is nested too deeply."""
    if _DEEP_KEY.search(text):
        raise RecursionError
    return tomllib.loads(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _finite(digits: str) -> float:
    """Refuses `1e999`, which Python reads as infinity and could not write as JSON again."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is out of range")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


# Made once: json.loads with these arguments makes one for each call, which takes as long as a line of metrics
_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)
