"""Simulated disk failures and power cuts, which replace the operations of gptkit's `files.disk`.

`disk_that_fails` fails the n-th operation. `ForgetfulDisk` records all operations and can write the folder as
it would be after a power cut before the n-th: a model of a journalled file system that may lose whatever was
not synced, bytes of files and entries of folders alike.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gptkit import files

# Operations that may fail; removals free space and always work
OPERATIONS = (
    "make_folder",
    "make_new_folder",
    "create",
    "append",
    "write",
    "fsync",
    "fsync_folder",
    "rename",
)
REMOVALS = ("remove_file", "remove_folder")

Operation = Callable[..., Any]


@contextmanager
def instead(names: tuple[str, ...], wrap: Callable[[str, Operation], Operation]) -> Iterator[None]:
    """Replaces each named operation of the disk by `wrap(name, operation)`."""
    for name in names:
        setattr(files.disk, name, wrap(name, getattr(files.disk, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(files.disk, name)


class _ShortWriter:
    """A file whose first write is partial, as a write of any file may be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._wrote = file, False

    def write(self, data: memoryview) -> int:
        half = data if self._wrote else data[: (len(data) + 1) // 2]
        self._wrote = True
        return self._file.write(half)


@contextmanager
def disk_that_fails(
    at: int, *, stays_full: bool, number: int = errno.ENOSPC, short: bool = False
) -> Iterator[None]:
    """Fails the `at`-th operation, a write after half of its bytes, and with `stays_full` all later ones.

    `short`: the operation does not fail; if it is a write, it is partial and has to be continued.
    """
    done = 0

    def failing(name: str, real: Operation) -> Operation:
        def operation(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            if short:
                if done == at and name == "write":
                    file, data = arguments
                    return real(_ShortWriter(file), data)
                return real(*arguments)
            if done == at or (stays_full and done > at):
                if name == "write":
                    file, data = arguments
                    real(file, data[: len(data) // 2])
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        return operation

    with instead(OPERATIONS, failing):
        yield


# Power cuts


@dataclass
class _File:
    data: bytes = b""
    synced: bytes = b""


@dataclass
class _Folder:
    """`entries` as a process sees them, `synced` as they are on the disk, `changes` between the two.

    A change is a set of entries that the journal writes atomically; None removes an entry.
    """

    entries: dict[str, _Node] = field(default_factory=dict)
    synced: dict[str, _Node] = field(default_factory=dict)
    changes: list[dict[str, _Node | None]] = field(default_factory=list)

    def change(self, change: dict[str, _Node | None]) -> None:
        _apply(self.entries, change)
        self.changes.append(change)

    def sync(self) -> None:
        self.synced, self.changes = dict(self.entries), []


_Node = _File | _Folder


def _apply(entries: dict[str, _Node], change: dict[str, _Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


@dataclass(frozen=True)
class Forgetting:
    """The effect of a power cut: the lost share of unsynced bytes, and of unsynced changes to folders."""

    name: str
    files: float
    folders: float


ALL_LOST = Forgetting("all unsynced lost", 1, 1)
DATA_LOST = Forgetting("unsynced bytes lost, names kept", 1, 0)
SOME_LOST = Forgetting("some of the unsynced lost", 0.5, 0.5)


class ForgetfulDisk:
    """Records every operation below `root`; `before_operation` is called before each, with its number from 1.

    The initial content of `root` counts as synced.
    """

    def __init__(self, root: Path, before_operation: Callable[[int], None]) -> None:
        self._root = Path(os.path.abspath(root))
        self._tree = _read(self._root)
        self._before = before_operation
        self.done = 0
        self.refusable: list[int] = []  # numbers of the operations that `disk_that_fails` counts

    @contextmanager
    def recording(self) -> Iterator[None]:
        with instead((*OPERATIONS, *REMOVALS), self._following):
            yield

    def _following(self, name: str, real: Operation) -> Operation:
        follow = getattr(self, f"_{name}")

        def operation(*arguments: Any) -> Any:
            self.done += 1
            if name in OPERATIONS:
                self.refusable.append(self.done)
            self._before(self.done)
            result = real(*arguments)
            follow(*arguments)
            return result

        return operation

    def _parts(self, path: Path) -> tuple[str, ...]:
        return Path(os.path.abspath(path)).relative_to(self._root).parts

    def _folder(self, path: Path) -> _Folder:
        node: _Node = self._tree
        for part in self._parts(path):
            assert isinstance(node, _Folder)
            node = node.entries[part]
        assert isinstance(node, _Folder)
        return node

    def _file(self, file: IO[bytes]) -> _File:
        path = Path(os.fsdecode(file.name))
        node = self._folder(path.parent).entries[path.name]
        assert isinstance(node, _File)
        return node

    def _make_folder(self, path: Path) -> None:
        node = self._tree
        for part in self._parts(path):
            if part not in node.entries:
                node.change({part: _Folder()})
            inner = node.entries[part]
            assert isinstance(inner, _Folder)
            node = inner

    _make_new_folder = _make_folder

    def _create(self, path: Path) -> None:
        self._folder(path.parent).change({path.name: _File()})

    def _append(self, path: Path) -> None:
        if path.name not in self._folder(path.parent).entries:
            self._create(path)

    def _write(self, file: IO[bytes], data: bytes | memoryview) -> None:
        self._file(file).data += bytes(data)

    def _fsync(self, file: IO[bytes]) -> None:
        node = self._file(file)
        node.synced = node.data

    def _fsync_folder(self, path: Path) -> None:
        self._folder(path).sync()

    def _rename(self, source: Path, target: Path) -> None:
        before, after = self._folder(source.parent), self._folder(target.parent)
        node = before.entries[source.name]
        if before is after:
            before.change({source.name: None, target.name: node})
        else:  # two journal entries, of which a power cut may lose one
            after.change({target.name: node})
            before.change({source.name: None})

    def _remove_file(self, path: Path) -> None:
        if path.name in self._folder(path.parent).entries:
            self._folder(path.parent).change({path.name: None})

    def _remove_folder(self, path: Path) -> None:
        parent = self._folder(path.parent)
        if path.name not in parent.entries:
            return

        def clear(folder: _Folder) -> None:
            for name, node in list(folder.entries.items()):
                if isinstance(node, _Folder):
                    clear(node)
                folder.change({name: None})

        clear(self._folder(path))
        parent.change({path.name: None})

    def crash(self, into: Path, losing: Forgetting, rng: random.Random) -> None:
        """Creates `into` as the folder might be after a power cut at this point."""
        _write_out(self._tree, into, losing, rng)


def _read(path: Path) -> _Folder:
    folder = _Folder()
    for entry in path.iterdir():
        if entry.is_dir():
            folder.entries[entry.name] = _read(entry)
        else:
            data = entry.read_bytes()
            folder.entries[entry.name] = _File(data, data)
    folder.sync()
    return folder


def _write_out(folder: _Folder, path: Path, losing: Forgetting, rng: random.Random) -> None:
    path.mkdir()
    entries = dict(folder.synced)
    for change in folder.changes:
        if rng.random() >= losing.folders:
            _apply(entries, change)
    for name, node in entries.items():
        if isinstance(node, _Folder):
            _write_out(node, path / name, losing, rng)
        else:
            (path / name).write_bytes(_what_is_left(node, losing, rng))


def _what_is_left(file: _File, losing: Forgetting, rng: random.Random) -> bytes:
    """The synced bytes and a beginning of the rest; files only grow here."""
    unsynced = len(file.data) - len(file.synced)
    kept = round(unsynced * (1 - losing.files) * (rng.random() * 2 if losing.files == 0.5 else 1))
    return file.data[: len(file.synced) + min(kept, unsynced)]
