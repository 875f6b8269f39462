"""Reads text files: plain text, JSON lines and CSV, each optionally compressed with gzip.

Input: paths, and the name of the field that holds the text of a record. Output: the text of all documents; a
plain file is one document, in other files each record is one. No character is changed; only a byte-order mark
is dropped. Raises DataError with file and line for what cannot be read. Does not search for files.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from gptkit.errors import DataError, OutOfMemoryError
from gptkit.machine import memory_here, usable_memory
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.words import nearest

KINDS = (".txt", ".md", ".jsonl", ".csv")
ENDINGS = (*KINDS, *(f"{kind}.gz" for kind in KINDS))
"""The endings of text files. A file with any other ending is read as plain text when it is named itself."""

MAX_UNPACKED = 8_000_000_000  # bytes; a few MB of gzip can expand to more than any machine's memory
_LONG_READING = 50_000_000  # bytes, read in a quarter of a second, from which progress is reported
_TIMES_ARE_SURE = 2_000_000_000  # nanoseconds after which a second change of a file has another time for sure
_CHUNK = 1 << 20  # bytes decompressed at a time
_MAX_FIELD = 2**31 - 1  # characters of a CSV field: the largest limit that csv accepts on every platform


def kind_of(path: Path) -> tuple[str, bool]:
    """The kind of a file by its name, one of KINDS, and whether it is compressed."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    ending = os.path.splitext(name.removesuffix(".gz"))[1]
    return (ending if ending in KINDS else ".txt"), packed


def is_plain(path: Path) -> bool:
    """Whether the bytes of the file are the text itself: neither compressed nor records."""
    kind, packed = kind_of(path)
    return kind in (".txt", ".md") and not packed


def read_bytes(path: Path) -> bytes:
    """The content of a file or, to its end, of a pipe. Raises DataError."""
    try:
        with open(path, "rb") as file:
            if path.is_file():
                return file.read()
            data = bytearray()
            while chunk := file.read(_CHUNK):
                data += chunk
                _check_memory(len(data), str(path))
            return bytes(data)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None


def decode(data: bytes | bytearray, path: Path) -> str:
    """Decodes the content of a file as strict UTF-8, line ends unchanged. `path` is for the DataError."""
    text = _decode_utf8(data, str(path))
    if not text:
        raise DataError(f"{path} is empty; a dataset needs text.")
    return text


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises DataError if it cannot be read, is not UTF-8, or is empty."""
    return decode(read_bytes(path), path)


def read_files(
    paths: Sequence[Path], *, field: str = "text", separator: str = "\n", content: bytes | None = None
) -> str:
    """The documents of all files, joined with `separator`.

    Takes memory for the text and about one copy of the largest file's. `content` replaces the content of the
    file, of which there must be one then. Raises DataError, OutOfMemoryError.
    """
    if content is None:
        plain = [path for path in paths if is_plain(path)]
        what = str(plain[0]) if len(plain) == 1 else f"the {len(plain)} texts together"
        _check_memory(sum(map(_size, plain)), what)
    if len(paths) == 1 and is_plain(paths[0]):  # without the second copy that joining makes
        return decode(content if content is not None else read_bytes(paths[0]), paths[0])
    budget, joiner = _UnpackingBudget(), TextJoiner(separator)
    for path in paths:
        empty = True
        for document in _documents(path, field, budget, content):
            joiner.add(document)
            empty = empty and not document
        if empty:
            raise DataError(f"{path} is empty; a dataset needs text.")
    return joiner.text()


def file_pieces(
    paths: Sequence[Path],
    *,
    field: str = "text",
    separator: str = "\n",
    progress: ProgressCallback = no_progress,
) -> Iterator[str]:
    """The same text as `read_files`, in pieces of about a megabyte, in memory for some of them.

    `progress` is called with the bytes of plain files that are read, and of all, where these are many.
    Raises DataError.
    """
    total = sum(map(_size, paths)) if all(map(is_plain, paths)) else 0
    total = total if total > _LONG_READING else 0
    return _joined_to_pieces(_pieces_of_files(paths, field, separator, progress, total))


def _pieces_of_files(
    paths: Sequence[Path], field: str, separator: str, progress: ProgressCallback, total: int
) -> Iterator[str]:
    budget, first, done = _UnpackingBudget(), True, 0
    for path in paths:
        empty, kind = True, kind_of(path)[0]
        if not first:
            yield separator
        first = False
        if kind in (".jsonl", ".csv"):
            for number, document in enumerate(_documents(path, field, budget, None)):
                if number:
                    yield separator
                yield document
                empty = empty and not document
        else:
            for piece in _plain_pieces(path, budget):
                yield piece
                empty = empty and not piece
                if total:
                    done += len(piece) if piece.isascii() else len(piece.encode())
                    progress(done, total)
        if empty:
            raise DataError(f"{path} is empty; a dataset needs text.")


def _joined_to_pieces(texts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that are not short, but the last."""
    waiting, length = list[str](), 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length >= _CHUNK:
            yield waiting[0] if len(waiting) == 1 else "".join(waiting)
            waiting, length = [], 0
    if length:
        yield "".join(waiting)


def _plain_pieces(path: Path, budget: _UnpackingBudget) -> Iterator[str]:
    """A plain text, perhaps compressed, in pieces. Raises DataError with the offset of what is not UTF-8."""
    rest, offset = b"", 0
    with _unpacked(path, budget) as source:
        while chunk := source.read(_CHUNK):
            data = rest + chunk if rest else chunk
            end = len(data)  # a character that the chunk ends in waits for the next one
            while end > max(0, len(data) - 4) and data[end - 1] & 0xC0 == 0x80:
                end -= 1
            if end and data[end - 1] >= 0xC0:
                end -= 1
            else:
                end = len(data)
            yield _decode_utf8(data[:end], str(path), offset)
            offset += end
            rest = data[end:]
        if rest:
            yield _decode_utf8(rest, str(path), offset)


def fingerprint_of(paths: Sequence[Path]) -> str | None:
    """Paths, sizes and times of files; None while one of them was changed within two seconds."""
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            return None
        changed = max(status.st_mtime_ns, status.st_ctime_ns)
        if abs(time.time_ns() - changed) < _TIMES_ARE_SURE:
            return None
        sizes = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        found.append([str(path.absolute()), *map(str, sizes)])
    return json.dumps(found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it reports what is wrong


def _check_memory(size: int, what: str) -> None:
    """Raises OutOfMemoryError where the text is too large: its bytes and characters are held at once."""
    if 2 * size > usable_memory():
        raise OutOfMemoryError(
            f"{what}: {size / 1e9:.1f} GB, which takes at least {2 * size / 1e9:.1f} GB of memory to read; "
            f"{memory_here()}.\nTrain on a part of it."
        )


class TextJoiner:
    """Joins many short texts, in memory for them and one copy.

    io.StringIO takes another copy from Python 3.12 on, and a list of short texts several times their size.
    """

    def __init__(self, separator: str) -> None:
        self._separator = separator
        self._joined, self._recent = list[str](), list[str]()

    def add(self, text: str) -> None:
        self._recent.append(text)
        if len(self._recent) == 10_000:
            self._joined.append(self._separator.join(self._recent))
            self._recent.clear()

    def text(self) -> str:
        return self._separator.join(self._joined + self._recent)


def _documents(path: Path, field: str, budget: _UnpackingBudget, content: bytes | None) -> Iterator[str]:
    if is_plain(path):
        yield decode(content if content is not None else read_bytes(path), path)
        return
    kind = kind_of(path)[0]
    with _unpacked(path, budget, content) as source:
        if kind == ".jsonl":
            yield from _json_lines(source, path, field)
        elif kind == ".csv":
            yield from _csv_rows(source, path, field)
        else:
            data = bytearray()  # grows in place, where read() would join a copy
            while chunk := source.read(_CHUNK):
                data += chunk
            yield decode(data, path)


@contextmanager
def _unpacked(path: Path, budget: _UnpackingBudget, content: bytes | None = None) -> Iterator[BinaryIO]:
    """The bytes of a file, or of its `content`, decompressed if its name ends with .gz. Raises DataError."""
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            packed = kind_of(path)[1]
            yield io.BufferedReader(_Unpacked(file, path, budget), _CHUNK) if packed else file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = "it ends too early" if isinstance(error, EOFError) else str(error)
        raise DataError(
            f"{path} is damaged or not a gzip file: {reason}. Compress or download it again."
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None


# Compressed files


class _UnpackingBudget:
    """How many bytes may still be unpacked, over all files of a dataset."""

    def __init__(self) -> None:
        self.total = self.left = min(MAX_UNPACKED, usable_memory() // 2)

    def take(self, count: int, path: Path) -> None:
        self.left -= count
        if self.left < 0:
            raise DataError(
                f"{path} unpacks to more than {self.total / 1e9:.1f} GB, the limit for .gz files on this "
                "machine.\nUnpack it and use a part, if it is a text at all."
            )


class _Unpacked(io.RawIOBase):
    """The decompressed bytes of a gzip file, as long as the budget lasts."""

    def __init__(self, file: BinaryIO, path: Path, budget: _UnpackingBudget) -> None:
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._path, self._budget = path, budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._gzip.readinto(buffer)
        self._budget.take(count, self._path)
        return count


# Records


class _Lines:
    """The lines of a file as text, with their line ends; counts lines and bytes for messages."""

    def __init__(self, source: BinaryIO, path: Path) -> None:
        self._source, self._path = source, path
        self.number, self._offset = 0, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        data = self._source.readline()
        if not data:
            raise StopIteration
        self.number += 1
        self._offset += len(data)
        return _decode_utf8(data, f"{self._path}, line {self.number},", self._offset - len(data))


def _json_lines(source: BinaryIO, path: Path, field: str) -> Iterator[str]:
    """The text of each record; a line is one JSON object, blank lines are skipped."""
    # As float, no number is too long to parse; numbers are ignored anyway
    decoder, lines = json.JSONDecoder(parse_int=float), _Lines(source, path)
    for line in lines:
        if line.isspace() or not line:  # empty: a byte-order mark only
            continue
        where, may_have_surrogates = f"{path}, line {lines.number}", "\\u" in line
        try:
            record = decoder.decode(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where} is not JSON: {error.msg} at character {error.pos + 1}.\n"
                "A .jsonl file has one JSON object on each line."
            ) from None
        except RecursionError:
            raise DataError(f"{where} is not usable JSON: it is nested too deeply.") from None
        del line  # a file of one record has a line as long as the text
        if not isinstance(record, dict):
            raise DataError(
                f"{where} is {_json_type(record)}, not an object.\n"
                "A .jsonl file has one JSON object on each line."
            )
        if field not in record:
            raise DataError(f"{where} has no field {field!r}. {_available(field, list(record), 'fields')}")
        text = record.pop(field)
        if not isinstance(text, str):
            raise DataError(
                f'{where}: the field {field!r} is {_json_type(text)}, not a string.{_REMEDY}field = "…"'
            )
        if may_have_surrogates:
            _check_surrogates(text, where)
        del record
        yield text
        del text  # not held while the next one is parsed


def _csv_rows(source: BinaryIO, path: Path, field: str) -> Iterator[str]:
    """The column `field` of each row below the header."""
    header: list[str] = []
    column = 0
    with _long_csv_fields():
        lines, delimiter = _with_delimiter(_Lines(source, path), field)
        rows = csv.reader(lines, strict=True, delimiter=delimiter)
        quoting = _QUOTING.format(_DELIMITERS[delimiter])
        while True:
            where = f"{path}, line {rows.line_num + 1}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{where} is not CSV: {error}.\n{quoting}") from None
            if not row:
                continue
            if not header:
                header = row
                if field not in header:
                    problem = f"has no column {field!r}. {_available(field, header, 'columns')}"
                    if len(header) == 1 and not _SIMPLE_NAME.fullmatch(header[0]):
                        problem = f"has one column only, {_quoted(header[0])}.\n{_SEPARATE}"
                    raise DataError(f"{where} {problem}")
                column = header.index(field)
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where} has {len(row)} columns where the header has {len(header)}.\n{quoting}"
                )
            yield row[column]


@contextmanager
def _long_csv_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 128 KiB per field, which a document may well exceed."""
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _with_delimiter(lines: Iterator[str], field: str) -> tuple[Iterator[str], str]:
    """The same lines, and what stands between two columns.

    That is the first of _DELIMITERS which makes `field` a column of the header, or the one which makes the
    most columns: some programs write semicolons or tabs.
    """
    first: list[str] = []
    for line in lines:
        first.append(line)
        if line.strip("\r\n"):
            break
    counts: dict[str, int] = {}
    for delimiter in _DELIMITERS:
        header = next(csv.reader(first[-1:], delimiter=delimiter), [])
        if field in header:
            return chain(first, lines), delimiter
        counts[delimiter] = len(header)
    return chain(first, lines), max(counts, key=lambda delimiter: counts[delimiter])


_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SIMPLE_NAME = re.compile(r"[\w .-]*")
_SEPARATE = "Separate the columns by commas, semicolons, tabs or bars."
_QUOTING = 'A field with a {}, quote or line end must be in "quotes".'
_REMEDY = "\nName the one with the text, beside the dataset's type: "


def _available(field: str, names: list[str], what: str) -> str:
    """The fields of a record, and how to name one of them in an experiment file."""
    shown = ", ".join(map(_quoted, names[:20]))
    plain = [name for name in names[:200] if len(name) <= 60 and name.isprintable()]
    example = json.dumps(plain[0] if len(names) == len(plain) == 1 else "…", ensure_ascii=False)
    more = " …" if len(names) > 20 else ""
    return f"Its {what}: {shown or 'none'}{more}{nearest(field, plain) or '.'}{_REMEDY}field = {example}"


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def _json_type(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {str: "a string", float: "a number", list: "a list", dict: "an object"}[type(value)]


def _check_surrogates(text: str, where: str) -> None:
    """JSON can escape a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has a lone surrogate at character {error.start}.") from None


def _decode_utf8(data: bytes | bytearray, where: str, offset: int = 0) -> str:
    """Strict UTF-8. `where` and `offset`, of the data in the file, are for the DataError."""
    start = len(codecs.BOM_UTF8) if not offset and data.startswith(codecs.BOM_UTF8) else 0
    try:
        # A view, because a slice would copy what may be a gigabyte
        return str(memoryview(data)[start:], "utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        likely = "UTF-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "WINDOWS-1252"
        raise DataError(
            f"{where} is not UTF-8: byte 0x{data[at]:02x} at offset {offset + at}.\n"
            f"Save it as UTF-8; if it is {likely}: iconv -f {likely} -t UTF-8 FILE > NEW_FILE"
        ) from None
