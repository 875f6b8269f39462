"""The user's cache of large texts: their ids in files that are mapped into memory, measures, tokenizers.

Input: a key (text, part of it, tokenizer) and a function that encodes. Output: the ids, from a file that the
first process builds and the others share. Nothing that is wrong with the cache fails: a damaged file is built
again, and where nothing can be written the ids are held in memory, each with a warning; only what does not
fit there either is a DiskError. Knows nothing of tokenizers or runs.

A file of ids: the ids, little-endian; a footer in JSON (`Footer`); the footer's SHA-256 and its length in
8 bytes; `_MAGIC`. The ids come first so that they can be mapped, the rest last so that it can be written when
all ids are known.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptkit import files
from gptkit.data.source import Measures
from gptkit.errors import DiskError
from gptkit.machine import memory_here, usable_memory
from gptkit.plugins.tokenizer import Ids

LIMIT = "GPTKIT_CACHE_GB"
"""The variable with the size, in GB, up to which the cache grows."""

_DEFAULT_LIMIT = 50.0  # GB
_FORMAT = 1
_MAGIC = b"GPTKTOK1"
_BLOCK = 1 << 22  # bytes of ids that are hashed together
_CHECKED_WHOLE = 1 << 27  # bytes up to which a file is verified as a whole: a tenth of a second
_CHECKED_BLOCKS = 32  # of a larger one, drawn anew by each process
_LONGEST_FOOTER = 1 << 26  # bytes
_TOKENS, _JSON = ".tokens", ".json"

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Key:
    """What ids are of: a part of a text, and what encodes it. Equal keys have equal ids."""

    text_sha256: str
    split: str  # "train" or "val", for which other facts are kept
    start: int  # characters
    stop: int
    tokenizer: str  # the hash of all that decides what a tokenizer does
    dtype: str  # "<u2" or "<u4"

    @property
    def name(self) -> str:
        """Of its file: first the text, so that all files of a text are found together."""
        return f"{self.text_sha256[:16]}-{_digest(asdict(self))[:16]}{_TOKENS}"


@dataclass(frozen=True)
class Footer:
    """What a file of ids records beside them."""

    format: int
    key: dict[str, Any]
    title: str  # of the text, for people
    tokenizer: str  # its type, for people
    tokens: int
    facts: dict[str, Any]  # what the caller keeps with the ids
    blocks: list[str]  # the SHA-256 of each _BLOCK bytes of ids


@dataclass(frozen=True)
class CachedTokens:
    """A file of ids, for `gptkit datasets cache`."""

    text: str
    split: str
    tokenizer: str
    tokens: int
    size: int  # bytes
    last_used: float  # seconds since 1970
    path: Path


class _DamagedError(Exception):
    """A file of the cache is not what was written."""


_opened: set[tuple[Path, int, int]] = set()  # files that this process has verified: path, inode, size


# Ids


def cached_ids(
    key: Key,
    encode: Callable[[], Iterable[Ids]],
    facts: Callable[[], dict[str, Any]],
    *,
    title: str,
    tokenizer: str,
    needed: int,
    warn: Warn,
) -> tuple[Ids, dict[str, Any]]:
    """The ids that `encode` yields, and what `facts` returns after it: from the cache, or put into it.

    The facts have the ids' `hash_of_ids` as "sha256" too.

    `needed` is about how many bytes they take. Raises DiskError where neither the cache nor memory has space
    for them, and whatever `encode` raises.
    """
    try:
        folder = _folder_to_write()
        path = folder / key.name
        if (found := _open(path, key, warn)) is not None:
            return found
        with _building(path, warn):
            if (found := _open(path, key, warn)) is not None:  # another process has built it meanwhile
                return found
            _build(path, key, encode, facts, title, tokenizer)
        trim(keep=path)
        found = _open(path, key, warn)
        assert found is not None
        return found
    except DiskError as error:
        if 2 * needed > usable_memory():
            raise DiskError(
                f"{error}\nThe tokens of {title} take about {needed / 1e9:.1f} GB, too much for memory "
                f"({memory_here()}). Free disk space, or set XDG_CACHE_HOME to a folder on a larger disk."
            ) from error
        warn(
            f"the tokens of {title} are held in memory, and made again by each command: {error}\n"
            "To keep them elsewhere, set XDG_CACHE_HOME to a folder on a disk with space."
        )
    parts = [ids.astype(key.dtype) for ids in encode()]
    ids = np.concatenate([np.empty(0, dtype=key.dtype), *parts])
    return ids, {**facts(), "sha256": hash_of_ids(ids, key.dtype)}


def hash_of_ids(ids: Ids, dtype: str) -> str:
    """SHA-256 of the hashes of blocks of ids, as a file of the cache has them, which needs no second pass."""
    parts = (ids[start : start + _BLOCK] for start in range(0, len(ids), _BLOCK))
    return _hash_of_blocks([hashlib.sha256(block).hexdigest() for block in _blocks(parts, np.dtype(dtype))])


def _hash_of_blocks(blocks: list[str]) -> str:
    return files.sha256("\n".join(blocks).encode())


def _build(
    path: Path,
    key: Key,
    encode: Callable[[], Iterable[Ids]],
    facts: Callable[[], dict[str, Any]],
    title: str,
    tokenizer: str,
) -> None:
    """Writes a file of ids under a temporary name, and renames it. Raises DiskError."""
    temporary, blocks, size = files.temporary_beside(path), [], 0
    try:
        with _disk_errors(path):
            file = files.disk.create(temporary)
        with file:
            for block in _blocks(encode(), np.dtype(key.dtype)):
                blocks.append(hashlib.sha256(block).hexdigest())
                size += block.nbytes
                with _disk_errors(path):
                    files.disk.write(file, block)
            tokens = size // np.dtype(key.dtype).itemsize
            footer = files.to_json(
                asdict(Footer(_FORMAT, asdict(key), title, tokenizer, tokens, facts(), blocks))
            )
            tail = hashlib.sha256(footer).digest() + len(footer).to_bytes(8, "little") + _MAGIC
            with _disk_errors(path):
                files.disk.write(file, footer + tail)
                files.disk.fsync(file)
            _opened.add(_identity(path, file.fileno()))  # no need to verify what was just written
        with _disk_errors(path):
            files.disk.rename(temporary, path)
            files.disk.fsync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            files.disk.remove_file(temporary)
        raise


def _blocks(parts: Iterable[Ids], dtype: np.dtype[Any]) -> Iterator[memoryview]:
    """The bytes of all ids, cut into blocks; each is valid until the next one."""
    waiting = bytearray()
    for ids in parts:
        waiting += np.ascontiguousarray(ids, dtype=dtype).data.cast("B")
        whole = len(waiting) // _BLOCK * _BLOCK
        with memoryview(waiting) as view:
            for start in range(0, whole, _BLOCK):
                with view[start : start + _BLOCK] as block:
                    yield block
        del waiting[:whole]
    if waiting:
        yield memoryview(waiting)


def _disk_errors(path: Path) -> Any:
    return files.disk_errors(f"keeping tokens in {path.parent}")


def _open(path: Path, key: Key, warn: Warn) -> tuple[Ids, dict[str, Any]] | None:
    """The ids of a file and the facts beside them, mapped; None if there is no file, or a damaged one."""
    try:
        with path.open("rb") as file:
            footer = _read_footer(file.fileno())
            if footer.key != asdict(key) or footer.format != _FORMAT:
                raise _DamagedError("it is of another text or tokenizer")
            if _identity(path, file.fileno()) not in _opened:
                _verify(file.fileno(), footer, np.dtype(key.dtype).itemsize * footer.tokens)
                _opened.add(_identity(path, file.fileno()))
            ids = np.empty(0, dtype=key.dtype)
            if footer.tokens:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                ids = np.frombuffer(mapped, dtype=key.dtype, count=footer.tokens)
    except FileNotFoundError:
        return None
    except (OSError, _DamagedError) as error:
        warn(f"the tokens in the cache are damaged and made again: {path}: {error}.")
        return None
    with suppress(OSError):  # the time of the last use, by which `trim` chooses
        os.utime(path)
    return ids, {**footer.facts, "sha256": _hash_of_blocks(footer.blocks)}


def _identity(path: Path, handle: int) -> tuple[Path, int, int]:
    status = os.fstat(handle)
    return path, status.st_ino, status.st_size


def _read_footer(handle: int) -> Footer:
    """Raises OSError, _DamagedError."""
    tail_size = hashlib.sha256().digest_size + 8 + len(_MAGIC)
    size = os.fstat(handle).st_size
    tail = _read_at(handle, max(0, size - tail_size), tail_size)
    if len(tail) < tail_size or not tail.endswith(_MAGIC):
        raise _DamagedError("it has no end")
    length = int.from_bytes(tail[-len(_MAGIC) - 8 : -len(_MAGIC)], "little")
    if length > min(_LONGEST_FOOTER, size - tail_size):
        raise _DamagedError("its end is not complete")
    content = _read_at(handle, size - tail_size - length, length)
    if hashlib.sha256(content).digest() != tail[: hashlib.sha256().digest_size]:
        raise _DamagedError("its end has changed")
    try:
        footer = Footer(**files.parse_json(content))
        item = np.dtype(footer.key["dtype"]).itemsize
        whole = footer.tokens * item == size - tail_size - length
        if not whole or len(footer.blocks) != -(-footer.tokens * item // _BLOCK):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise _DamagedError("it is of another version") from None
    return footer


def _verify(handle: int, footer: Footer, size: int) -> None:
    """Compares the hashes of all blocks or, of a large file, of some. Raises OSError, _DamagedError."""
    count = len(footer.blocks)
    chosen = range(count)
    if size > _CHECKED_WHOLE:
        drawn = np.random.default_rng().choice(count, size=min(count, _CHECKED_BLOCKS), replace=False)
        chosen = sorted({0, count - 1, *drawn.tolist()})  # type: ignore[assignment]
    for index in chosen:
        block = _read_at(handle, index * _BLOCK, min(_BLOCK, size - index * _BLOCK))
        if hashlib.sha256(block).hexdigest() != footer.blocks[index]:
            raise _DamagedError(f"its bytes from {index * _BLOCK} on have changed")


def _read_at(handle: int, start: int, length: int) -> bytes:
    os.lseek(handle, start, os.SEEK_SET)
    data = bytearray()
    while len(data) < length and (more := os.read(handle, length - len(data))):
        data += more
    return bytes(data)


@contextmanager
def _building(path: Path, warn: Warn) -> Iterator[None]:
    """Holds the lock of a file while it is built, if there are locks, and waits for another process.

    The lock ends with its process, and what a killed one left is removed.
    """
    import filelock

    lock = filelock.FileLock(path.with_suffix(".lock"), fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            warn("another process tokenizes the same text; waiting for it.")
            lock.acquire()
    except (OSError, NotImplementedError):  # a disk without locks: both build, and either file is good
        yield
        return
    try:
        for left in path.parent.glob(f".tmp-{path.name}-*"):
            with suppress(OSError):
                files.disk.remove_file(left)
        yield
    finally:
        with suppress(OSError):  # while it is held: who waits for it builds at worst once more
            files.disk.remove_file(path.with_suffix(".lock"))
        lock.release()


# Measures, tokenizers, hashes


def known_measures(fingerprint: str) -> Measures | None:
    """What was remembered of the text with that fingerprint."""
    found = _read_json(f"*-{_digest(fingerprint)[:32]}.text{_JSON}")
    with suppress(TypeError):
        return Measures(**found) if found is not None else None
    return None


def remember_measures(fingerprint: str, measures: Measures) -> None:
    name = f"{measures.sha256[:16]}-{_digest(fingerprint)[:32]}.text{_JSON}"
    _write_json(name, asdict(measures))


def known(kind: str, text_sha256: str, key: object) -> dict[str, Any] | None:
    """What was remembered of that text under that key, such as its tokenizer; None if nothing was."""
    return _read_json(_name_of(kind, text_sha256, key))


def remember(kind: str, text_sha256: str, key: object, content: dict[str, Any]) -> None:
    _write_json(_name_of(kind, text_sha256, key), content)


def _name_of(kind: str, text_sha256: str, key: object) -> str:
    return f"{text_sha256[:16]}-{_digest([text_sha256, key])[:32]}.{kind}{_JSON}"


def _read_json(pattern: str) -> dict[str, Any] | None:
    """The object in a file of the cache; None if there is none, or a damaged one."""
    folder = cache_folder()
    with suppress(OSError, ValueError, TypeError, KeyError):
        for path in folder.glob(pattern) if folder else ():
            stored = files.parse_json(path.read_bytes())
            content = stored["content"]
            if stored["sha256"] == _digest(content) and isinstance(content, dict):
                os.utime(path)
                return content
    return None


def _write_json(name: str, content: dict[str, Any]) -> None:
    """Not kept where it cannot be written, of which `cached_ids` warns."""
    with suppress(OSError, DiskError):
        files.replace_file(
            _folder_to_write() / name, files.to_json({"sha256": _digest(content), "content": content})
        )


def _digest(value: object) -> str:
    return files.sha256(files.to_json(value))


# The folder


def cache_folder() -> Path | None:
    """The folder of the cache, which may not exist yet; None without a home."""
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("gptkit", appauthor=False)) / "texts"
    return folder if folder.is_absolute() else None  # otherwise it would be in the current folder


def _folder_to_write() -> Path:
    """The folder of the cache, which is made if need be. Raises DiskError."""
    folder = cache_folder()
    if folder is None:
        raise DiskError("there is no folder for a cache, as HOME is not set.")
    with files.disk_errors(f"making {folder}"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def cache_limit() -> float:
    """Bytes up to which the cache grows: GPTKIT_CACHE_GB, or 50 GB."""
    with suppress(ValueError):
        wanted = float(os.environ.get(LIMIT, "") or _DEFAULT_LIMIT)
        if wanted >= 0:
            return wanted * 1e9
    return _DEFAULT_LIMIT * 1e9


def list_cache(name: str | None = None) -> list[CachedTokens]:
    """The files of ids, or those of the text with that title, the last used first.

    The title is the name or path of the dataset; the name of a file and its stem also find it.
    """
    found = []
    for path in _files():
        if path.name.endswith(_TOKENS):
            with suppress(OSError):
                found.append(_describe(path))
    found = [row for row in found if name is None or name in _names(row.text)]
    return sorted(found, key=lambda row: -row.last_used)


def _describe(path: Path) -> CachedTokens:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        try:
            footer = _read_footer(file.fileno())
        except _DamagedError:
            return CachedTokens("(damaged)", "", "", 0, status.st_size, status.st_mtime, path)
        split = str(footer.key.get("split", ""))
        return CachedTokens(
            str(footer.title),
            split,
            str(footer.tokenizer),
            footer.tokens,
            status.st_size,
            status.st_mtime,
            path,
        )


def cache_size() -> int:
    """Bytes of all files of the cache."""
    return sum(map(_size, _files()))


def clear_cache(name: str | None = None) -> int:
    """Removes the whole cache, or what it has of the texts of that title; returns the bytes.

    Runs that have a file open keep it until they end.
    """
    paths = list(_files(hidden=name is None))
    if name is not None:
        texts = {row.path.name.partition("-")[0] for row in list_cache(name)}
        paths = [path for path in paths if path.name.partition("-")[0] in texts]
    return sum(map(_remove, paths))


def _names(title: str) -> tuple[str, str, str]:
    return title, Path(title).name, Path(title).stem


def trim(keep: Path | None = None) -> None:
    """Removes the files that were not used for longest until the cache is within its limit."""
    left = {path: _size(path) for path in _files()}
    total, limit = sum(left.values()), cache_limit()
    for path in sorted(left, key=_last_used):
        if total <= limit:
            return
        if path != keep:
            total -= _remove(path)


def _files(hidden: bool = False) -> Iterator[Path]:
    """The files of the cache; with `hidden`, also what is being built, or was left by a killed process."""
    folder = cache_folder()
    with suppress(OSError):
        for path in sorted(folder.iterdir()) if folder else ():
            temporary = path.name.startswith(".tmp-") and hidden
            if temporary or (path.suffix in (_TOKENS, _JSON) and not path.name.startswith(".")):
                yield path


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _last_used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return time.time()


def _remove(path: Path) -> int:
    """Removes a file and returns its size, 0 if it cannot be removed."""
    size = _size(path)
    try:
        files.disk.remove_file(path)
    except OSError:
        return 0
    return size
