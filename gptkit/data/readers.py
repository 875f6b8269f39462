"""Files to text: plain text, JSON lines, CSV, each also behind gzip.

In: the path of one file, and the field that holds the text where a file has fields. Out: its documents, one
after the other: a plain file is one, else each record is one. A character is never changed, a leading
byte-order mark aside. What cannot be read is a DataError that names the file and the line. Knows nothing of
where files are looked for.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gptkit.errors import DataError
from gptkit.words import nearest

KINDS = (".txt", ".md", ".jsonl", ".csv")
ENDINGS = (*KINDS, *(f"{kind}.gz" for kind in KINDS))
"""What the names of texts end with. Any other ending, of a file that is named, means plain text."""

LARGEST_UNPACKED = 8_000_000_000  # bytes; a few MB of gzip can hold more than any machine has memory
_PIECE = 1 << 20  # bytes that are decompressed at a time
_LONGEST_FIELD = 2**31 - 1  # characters; as much as a C long of 32 bits, which is what csv keeps it in


def kind_of(path: Path) -> tuple[str, bool]:
    """The kind of a file by its name, one of KINDS, and whether it is compressed."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    ending = os.path.splitext(name.removesuffix(".gz"))[1]
    return (ending if ending in KINDS else ".txt"), packed


def is_plain(path: Path) -> bool:
    """Whether the file's bytes are the text's."""
    kind, packed = kind_of(path)
    return kind in (".txt", ".md") and not packed


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None


def decode(data: bytes | bytearray, path: Path) -> str:
    """The text of a file's bytes: strict UTF-8, line ends as they are. `path` is for the DataError."""
    text = _utf8(data, str(path))
    if not text:
        raise DataError(f"{path} is empty; a dataset needs text.")
    return text


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises DataError: cannot be read, not UTF-8 (with the offset), empty."""
    return decode(read_bytes(path), path)


def read_files(
    paths: Sequence[Path], *, field: str = "text", separator: str = "\n", content: bytes | None = None
) -> str:
    """The documents of all the files, joined with `separator`.

    Takes memory for the text and about one copy of the largest file's. `content` is read in place of what
    stands in the file, which is then one. Raises DataError.
    """
    allowance = _Allowance()
    if len(paths) == 1 and is_plain(paths[0]):  # no second copy of what may be a gigabyte
        return decode(content if content is not None else read_bytes(paths[0]), paths[0])
    joined, first = _Joined(), True
    for path in paths:
        empty = True
        for document in _documents(path, field, allowance, content):
            if not first:
                joined.add(separator)
            joined.add(document)
            empty, first = empty and not document, False
        if empty:
            raise DataError(f"{path} is empty; a dataset needs text.")
    return joined.text()


class _Joined:
    """Texts, one after another, in memory for them and one copy: many short ones are put together early.

    io.StringIO would take a copy more, from Python 3.12 on.
    """

    def __init__(self) -> None:
        self._long, self._short = list[str](), list[str]()

    def add(self, text: str) -> None:
        self._short.append(text)
        if len(self._short) == 10_000:
            self._put_together()

    def _put_together(self) -> None:
        self._long.append("".join(self._short))
        self._short.clear()

    def text(self) -> str:
        self._put_together()
        return "".join(self._long)


def _documents(path: Path, field: str, allowance: _Allowance, content: bytes | None) -> Iterator[str]:
    kind, packed = kind_of(path)
    if kind in (".txt", ".md") and not packed:
        yield decode(content if content is not None else read_bytes(path), path)
        return
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            source = _open(file, path, packed, allowance)
            if kind == ".jsonl":
                yield from _json_lines(source, path, field)
            elif kind == ".csv":
                yield from _csv_rows(source, path, field)
            else:
                yield decode(_all_of(source), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = "it ends too early" if isinstance(error, EOFError) else str(error)
        raise DataError(
            f"{path} is broken or no gzip file: {reason}. Compress or download it again."
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from None


# What is compressed


class _Allowance:
    """How much may still be unpacked, in bytes, over all files of a dataset."""

    def __init__(self) -> None:
        self.whole = self.left = min(LARGEST_UNPACKED, _memory() // 2)

    def take(self, count: int, path: Path) -> None:
        self.left -= count
        if self.left < 0:
            raise DataError(
                f"{path} unpacks to more than {self.whole / 1e9:.1f} GB, which is more than gptkit takes "
                "from .gz files on this machine.\nUnpack it and use a part, if it is a text at all."
            )


def _memory() -> int:
    """Bytes of memory of this machine; where that is unknown, more than any has."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**46


class _Unpacked(io.RawIOBase):
    """The bytes within a gzip file, a piece at a time, as long as the allowance lasts."""

    def __init__(self, file: BinaryIO, path: Path, allowance: _Allowance) -> None:
        self._packed = gzip.GzipFile(fileobj=file, mode="rb")
        self._path, self._allowance = path, allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._packed.readinto(buffer)
        self._allowance.take(count, self._path)
        return count


def _open(file: BinaryIO, path: Path, packed: bool, allowance: _Allowance) -> BinaryIO:
    return io.BufferedReader(_Unpacked(file, path, allowance), _PIECE) if packed else file


def _all_of(source: BinaryIO) -> bytearray:
    data = bytearray()
    while piece := source.read(_PIECE):
        data += piece
    return data


# Records


class _Lines:
    """The lines of a file as text, with their ends; counts lines and bytes for messages."""

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
        where, offset = f"{self._path}, line {self.number},", self._offset
        self._offset += len(data)
        return _utf8(data, where, offset)


def _json_lines(source: BinaryIO, path: Path, field: str) -> Iterator[str]:
    """The text of each record, where a line is a JSON object; lines with nothing on them are none."""
    # As float, no number is too long to read; numbers are not what is looked for
    decoder, lines = json.JSONDecoder(parse_int=float), _Lines(source, path)
    for line in lines:
        if line.isspace() or not line:  # empty: a byte-order mark alone
            continue
        where, escaped = f"{path}, line {lines.number}", "\\u" in line
        try:
            record = decoder.decode(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where} is not JSON: {error.msg} at character {error.pos + 1}.\n"
                "A .jsonl file has one JSON object on each line."
            ) from None
        except RecursionError:
            raise DataError(f"{where} is not usable JSON: it is nested too deeply.") from None
        del line  # of a record that is all there is, the text is as long
        if not isinstance(record, dict):
            raise DataError(
                f"{where} is {_kind(record)}, not an object.\nA .jsonl file has one JSON object on each line."
            )
        if field not in record:
            raise DataError(f"{where} has no field {field!r}. {_choice(field, list(record), 'fields')}")
        text = record.pop(field)
        if not isinstance(text, str):
            raise DataError(f'{where}: the field {field!r} is {_kind(text)}, not a string.{_HOW}field = "…"')
        if escaped:
            _check_whole(text, where)
        del record
        yield text
        del text


def _csv_rows(source: BinaryIO, path: Path, field: str) -> Iterator[str]:
    """The column `field` of each row below the header."""
    rows = csv.reader(_Lines(source, path), strict=True)
    header: list[str] = []
    column = 0
    with _long_fields():
        while True:
            where = f"{path}, line {rows.line_num + 1}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"{where} is not CSV: {error}.\n"
                    'A field with a comma, quote or line end stands in "quotes".'
                ) from None
            if not row:
                continue
            if not header:
                header = row
                if field not in header:
                    raise DataError(f"{where} has no column {field!r}. {_choice(field, header, 'columns')}")
                column = header.index(field)
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where} has {len(row)} columns where the header has {len(header)}.\n"
                    'A field with a comma, quote or line end stands in "quotes".'
                )
            yield row[column]


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module refuses fields over 128 KiB; a text may well be one."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


_HOW = "\nSay which one holds the text, beside the dataset's type: "


def _choice(field: str, there: list[str], what: str) -> str:
    """The fields that there are, and how to name one of them."""
    shown = ", ".join(_short(name) for name in there[:20]) + (" …" if len(there) > 20 else "")
    plain = [name for name in there[:200] if len(name) <= 60 and name.isprintable()]
    likely = plain[0] if len(there) == len(plain) == 1 else "…"
    said = json.dumps(likely, ensure_ascii=False)
    return f"Its {what}: {shown or 'none'}{nearest(field, plain) or '.'}{_HOW}field = {said}"


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds = {str: "a string", float: "a number", list: "a list", dict: "an object"}
    return kinds.get(type(value), "something else")


def _check_whole(text: str, where: str) -> None:
    """An escape may be half a character, which no text can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half a character (a lone surrogate) at character {error.start}."
        ) from None


def _utf8(data: bytes | bytearray, where: str, offset: int = 0) -> str:
    """Strict UTF-8. `where` and `offset`, of the data in the file, are for the DataError."""
    start = len(codecs.BOM_UTF8) if not offset and data.startswith(codecs.BOM_UTF8) else 0
    try:
        # A view, for a slice would copy what may be a gigabyte.
        return str(memoryview(data)[start:], "utf-8")
    except UnicodeDecodeError as error:
        at = start + error.start
        likely = "UTF-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "WINDOWS-1252"
        raise DataError(
            f"{where} is not UTF-8: byte 0x{data[at]:02x} at offset {offset + at}.\n"
            f"Save it as UTF-8; if it is {likely}: iconv -f {likely} -t UTF-8 FILE > NEW_FILE"
        ) from None
