"""Where things stand in an experiment file, for messages that show the line.

In: the text of a TOML file. Out: the places of its keys and values, and a line of it with one place marked.
It decides nothing: tomllib reads the file, and what is not found here is told without its line. One pass over
the text, no recursion, and nothing is kept but what was asked for. Knows nothing of the schema.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from gptkit.words import printable

MAX_PARTS = 8  # of a path; no key of an experiment is deeper
WIDEST = 72  # characters of a line that are shown

Path = tuple[str, ...]
Span = tuple[int, int]

_BLANK = re.compile(r"[ \t]*+")
_GAP = re.compile(r"(?:[ \t\n]++|#[^\n]*+)*+")
_PART = re.compile(r"""[\w-]++|"(?:[^"\\\n]++|\\.)*+"|'[^'\n]*+'""")
_TEXT = re.compile(
    r'"{3}(?:[^"\\]++|\\.|"(?!""))*+"{3,5}|' + r"'{3}(?:[^']++|'(?!''))*+'{3,5}|"
    r'"(?:[^"\\\n]++|\\.)*+"|' + r"'[^'\n]*+'",
    re.DOTALL,
)
_ALONE = re.compile(r"[^#\n]++")  # a number, a date, a truth: to the end of its line,
_INSIDE = re.compile(r"[^,\]}#\n]++")  # or of its item


@dataclass(frozen=True)
class Entry:
    """A key of the text. Below an array, its path has the number of the item."""

    path: Path
    key: Span
    value: Span | None  # None: a table that has no value of its own


@dataclass
class _Open:
    """An array or an inline table that is being read."""

    path: Path
    key: Span
    start: int
    items: int | None  # how many so far; None: it is a table


def entries(text: str) -> Iterator[Entry]:
    """The keys of a TOML text with \\n ends, an opened value after what is in it.

    Ends early where it cannot go on, and raises nothing.
    """
    table: Path = ()
    counts: dict[Path, int] = {}  # the last number of each array of tables
    stack: list[_Open] = []
    position = 0
    while (position := _past(_GAP, text, position)) < len(text):
        inner = stack[-1] if stack else None
        if inner and text[position] == ",":
            position += 1
            continue
        if inner and text[position] == ("}" if inner.items is None else "]"):
            position += 1
            yield Entry(inner.path, inner.key, (inner.start, position))
            stack.pop()
            continue
        if not inner and text[position] == "[":
            parts, position = _header(text, position)
            if not parts:
                return
            table = yield from _tables(parts, counts, double=text[position - 2] == "]")
            continue
        if inner and inner.items is not None:
            path, key = _below(inner.path, str(inner.items)), (position, position)
            inner.items += 1
        else:
            parts, position = _parts(text, position)
            if not parts or text[position : position + 1] != "=":
                return
            path = inner.path if inner else table
            for part, key in parts[:-1]:
                path = _below(path, part)
                yield Entry(path, key, None)
            path, key = _below(path, parts[-1][0]), parts[-1][1]
            position = _past(_BLANK, text, position + 1)
        if text[position : position + 1] in ("[", "{"):
            stack.append(_Open(path, key, position, 0 if text[position] == "[" else None))
            position += 1
            continue
        value = _TEXT.match(text, position) or (_INSIDE if stack else _ALONE).match(text, position)
        if not value:
            return
        yield Entry(path, key, (position, position + len(value[0].rstrip())))
        position = value.end()


def _past(blank: re.Pattern[str], text: str, position: int) -> int:
    found = blank.match(text, position)
    return found.end() if found else position


def _below(path: Path, part: str) -> Path:
    """Its own length bounds what a path may cost; one that is too long is nobody's."""
    return (*path, part) if len(path) < MAX_PARTS else path


def _parts(text: str, position: int) -> tuple[list[tuple[str, Span]], int]:
    """The parts of a dotted key with their places, and where it ends; no parts where there is no key."""
    parts: list[tuple[str, Span]] = []
    while True:
        found = _PART.match(text, _past(_BLANK, text, position))
        if not found:
            return [], position
        parts.append((_unquoted(found[0]), found.span()))
        position = _past(_BLANK, text, found.end())
        if text[position : position + 1] != ".":
            return parts, position
        position += 1


def _unquoted(part: str) -> str:
    if part[0] not in "\"'":
        return part
    if part[0] == '"' and "\\" in part:
        try:
            return str(json.loads(part))
        except ValueError:  # an escape that JSON has not
            return part
    return part[1:-1]


def _header(text: str, position: int) -> tuple[list[tuple[str, Span]], int]:
    """The parts of `[a.b]` or `[[a.b]]`, and where it ends; no parts where it is neither."""
    marks = 2 if text.startswith("[[", position) else 1
    parts, position = _parts(text, position + marks)
    closed = text.startswith("]" * marks, position)
    return (parts if closed else []), position + marks


def _tables(
    parts: list[tuple[str, Span]], counts: dict[Path, int], *, double: bool
) -> Generator[Entry, None, Path]:
    """The tables that a header names; returns the path of what follows it."""
    path: Path = ()
    for number, (part, span) in enumerate(parts, 1):
        path = _below(path, part)
        yield Entry(path, span, None)
        if double and number == len(parts):
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = _below(path, str(counts[path]))
    return path


def find(text: str, wanted: Iterable[Path]) -> dict[Path, Entry]:
    """The first entry of each of these paths; one with a value comes before one without."""
    asked, found = set(wanted), dict[Path, Entry]()
    for entry in entries(text) if asked else ():
        if entry.path in asked and (entry.path not in found or (entry.value and not found[entry.path].value)):
            found[entry.path] = entry
    return found


@dataclass(frozen=True)
class Mark:
    """A line of a file, cut and escaped for a terminal, with one place in it. Columns count cells."""

    line: int  # from 1
    text: str
    column: int  # from 0
    width: int

    def show(self, message: str, indent: str = "  ") -> str:
        """Two lines: that of the file, and the message at the place."""
        begin = f"{indent}line {self.line}: "
        return f"{begin}{self.text}\n{' ' * (len(begin) + self.column)}{'^' * self.width} {message}"


def mark(text: str, span: Span) -> Mark:
    """The line where a span begins, with as much of it as is on that line marked."""
    start, end = span
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", start)
    stop = len(text) if stop < 0 else stop
    number = text.count("\n", 0, begin) + 1
    begin = min(_past(_BLANK, text, begin), start)
    first, last = begin, stop
    if stop - begin > WIDEST:
        first = begin if min(end, stop) - begin <= WIDEST - 8 else max(begin, start - WIDEST // 3)
        last = min(stop, first + WIDEST)
    before = ("…" if first > begin else "") + in_line(text[first:start])
    marked = in_line(text[start : max(start, min(end, last))])
    after = in_line(text[max(start, min(end, last)) : last].rstrip()) + ("…" if last < stop else "")
    return Mark(number, before + marked + after, _cells(before), max(1, _cells(marked)))


def _cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def in_line(text: str) -> str:
    """The text as it stands in one line of a terminal: a tab as a space, else as `printable` has it."""
    return printable(text.replace("\t", " "))
