"""Where an experiment comes from, and where a field of it is set: by an override, or in a line of the file.

Input: the text of a valid TOML file and the overrides. Output: the words of the command line that set a
field, or the line of the file with its key or value marked. tomllib reports no positions, so the text is
scanned a second time when there is something to show: in one pass, keeping only the fields asked for.
Knows nothing of the schema.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

from gptkit.experiment.overrides import Override
from gptkit.words import printable

WIDEST = 72  # characters of a line of the file that are shown

Path = tuple[str, ...]  # of a field; below an array it has the number of the item
Span = tuple[int, int]  # in characters of the text

_BLANK = re.compile(r"[ \t]*+")
_GAP = re.compile(r"(?:[ \t\n]++|#[^\n]*+)*+")
_PART = re.compile(r"""[\w-]++|"(?:[^"\\\n]++|\\.)*+"|'[^'\n]*+'""")
_STRING = re.compile(
    r'"{3}(?:[^"\\]++|\\.|"(?!""))*+"{3,5}|' + r"'{3}(?:[^']++|'(?!''))*+'{3,5}|"
    r'"(?:[^"\\\n]++|\\.)*+"|' + r"'[^'\n]*+'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^#\n]++")  # a number, a date, a boolean: to the end of its line,
_ITEM = re.compile(r"[^,\]}#\n]++")  # or in brackets, to the end of its item


@dataclass(frozen=True)
class Entry:
    """A key of a TOML text."""

    key: Span
    value: Span | None  # None: a table without a value of its own


@dataclass(frozen=True)
class Source:
    """A name for messages, the text of the file if there is one, and what was set over it."""

    name: str = "the experiment"
    text: str | None = None
    overrides: tuple[Override, ...] = ()

    def origin(self, path: Path) -> str:
        """The words of the command line that set the field or a table around it, or ""."""
        given = {override.key: override.origin for override in self.overrides}
        around = accumulate(path, lambda table, name: f"{table}.{name}")
        return next((given[key] for key in reversed(list(around)) if given.get(key)), "")

    def origin_inside(self, path: Path) -> str:
        """The words that set a field in that table, or ""."""
        table = ".".join(path) + "."
        inside = (override.origin for override in self.overrides if override.key.startswith(table))
        return next(inside, "")

    def entries(self, paths: Collection[Path]) -> dict[Path, Entry]:
        """Those of the paths, and of the tables around them, that the file has."""
        if self.text is None or not paths:
            return {}
        return find(self.text, {path[:length] for path in paths for length in range(1, len(path) + 1)})

    def show(self, span: Span, message: str) -> str:
        """The line of the file where a span begins, as `show_line` does."""
        return show_line(self.text or "", span, message)


def find(text: str, wanted: Collection[Path]) -> dict[Path, Entry]:
    """The first entry of each of these paths that the text has."""
    scanner = _Scanner(text, wanted)
    with suppress(_LostError, RecursionError):  # then the rest is not found
        scanner.scan()
    return scanner.found


class _LostError(Exception):
    """The text is not the TOML that the scanner expects."""


class _Scanner:
    """Scans a TOML text with \\n ends from left to right and keeps the entries that are wanted."""

    def __init__(self, text: str, wanted: Collection[Path]) -> None:
        self.found: dict[Path, Entry] = {}
        self._text, self._at, self._wanted = text, 0, frozenset(wanted)

    def scan(self) -> None:
        table: Path = ()
        items: dict[Path, int] = {}  # the last number of each array of tables
        while self._skip(_GAP):
            if self._text[self._at] != "[":
                self._pair(table, _SCALAR)
                continue
            marks = 2 if self._text.startswith("[[", self._at) else 1
            self._at += marks
            table = ()
            parts = self._key()
            for number, (part, span) in enumerate(parts, 1):
                table = (*table, part)
                self._keep(table, Entry(span, None))
                if marks == 2 and number == len(parts):
                    items[table] = items.get(table, -1) + 1
                if table in items:
                    table = (*table, str(items[table]))
            self._at += marks

    def _pair(self, table: Path, scalar: re.Pattern[str]) -> None:
        """`key = value`; the scalar ends as that pattern does."""
        parts = self._key()
        path = table
        for part, span in parts[:-1]:
            path = (*path, part)
            self._keep(path, Entry(span, None))
        last, span = parts[-1]
        self._take("=")
        self._skip(_BLANK)
        self._value((*path, last), span, scalar)

    def _value(self, path: Path, key: Span | None, scalar: re.Pattern[str]) -> None:
        """A value and what is in it; `key` is None for an item of an array."""
        start = self._at
        if self._text.startswith(("[", "{"), start):
            self._at += 1
            self._items(path, in_array=self._text[start] == "[")
            end = self._at
        elif found := _STRING.match(self._text, start) or scalar.match(self._text, start):
            self._at = found.end()
            end = start + len(found[0].rstrip())
        else:
            raise _LostError
        self._keep(path, Entry(key or (start, start), (start, end)))

    def _items(self, path: Path, *, in_array: bool) -> None:
        number = 0
        while self._skip(_GAP) and self._text[self._at] not in "]}":
            if in_array:
                self._value((*path, str(number)), None, _ITEM)
                number += 1
            else:
                self._pair(path, _ITEM)
            if self._skip(_GAP) and self._text[self._at] == ",":
                self._at += 1
        self._at += 1

    def _key(self) -> list[tuple[str, Span]]:
        """The parts of a dotted key, each with its place."""
        parts: list[tuple[str, Span]] = []
        while not parts or self._text.startswith(".", self._at):
            self._at += 1 if parts else 0
            self._skip(_BLANK)
            found = _PART.match(self._text, self._at)
            if not found:
                raise _LostError
            parts.append((_unquoted(found[0]), found.span()))
            self._at = found.end()
            self._skip(_BLANK)
        return parts

    def _keep(self, path: Path, entry: Entry) -> None:
        if path in self._wanted:
            self.found.setdefault(path, entry)

    def _skip(self, blank: re.Pattern[str]) -> bool:
        """Skips what may be skipped; whether there is more."""
        found = blank.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._at < len(self._text)

    def _take(self, sign: str) -> None:
        if not self._text.startswith(sign, self._at):
            raise _LostError
        self._at += 1


def _unquoted(part: str) -> str:
    if part[0] not in "\"'":
        return part
    if part[0] == '"' and "\\" in part:
        try:
            return str(json.loads(part))
        except ValueError:  # an escape that JSON does not have
            return part
    return part[1:-1]


def show_line(text: str, span: Span, message: str) -> str:
    """Two lines: that of the text where the span begins, and below it marks for the span and the message.

    The line is cut and escaped for a terminal.
    """
    start, end = span
    begin = text.rfind("\n", 0, start) + 1
    number = text.count("\n", 0, begin) + 1
    stop = text.find("\n", start)
    stop = len(text) if stop < 0 else stop
    while begin < start and text[begin] in " \t":
        begin += 1
    first, last = begin, stop
    if stop - begin > WIDEST:
        first = begin if min(end, stop) - begin <= WIDEST - 8 else max(begin, start - WIDEST // 3)
        last = min(stop, first + WIDEST)
    end = max(start, min(end, last))
    before = ("…" if first > begin else "") + in_line(text[first:start])
    marked = in_line(text[start:end])
    after = in_line(text[end:last].rstrip()) + ("…" if last < stop else "")
    label = f"  line {number}: "
    indent = " " * (len(label) + _cells(before))
    return f"{label}{before}{marked}{after}\n{indent}{'^' * max(1, _cells(marked))} {message}"


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def in_line(text: str) -> str:
    """The text on one line of a terminal: a tab as a space, other control characters escaped."""
    return printable(text.replace("\t", " "))


def dotted(path: Sequence[str], longest: int = 120) -> str:
    """A path as a file writes it, escaped and cut for a message."""
    text = in_line(".".join(path))
    return text if len(text) <= longest else text[:longest] + "…"
