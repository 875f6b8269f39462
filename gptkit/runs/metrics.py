"""metrics.jsonl: one JSON object per logged step, appended as a run trains.

Input: the path of the file, which may be damaged or very large. Output: its rows, its last values, or its
curves, thinned out while they are read, so that memory stays bounded. A line counts where it is a JSON object
with a step; others are left out. A run that is resumed writes some steps again: the last value of a step
counts. Knows nothing of runs, and nothing of how a curve is drawn.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from gptkit.files import append_lines, disk_errors, parse_json, replace_file

MAX_POINTS = 4_000  # of a curve
_MAX_BUCKETS = MAX_POINTS // 4
_MAX_LINE, _MAX_FILE = 1_000_000, 2_000_000_000  # bytes; no training writes more
_BLOCK = 1 << 18  # bytes that are read at once
_MAX_TAIL = 64  # blocks from the end of the file in which the last values are looked for
_VAL_LOSS = re.compile(rb'"val_loss"\s*:\s*([-+.0-9eE]+)')

_Row = dict[str, Any]
_Point = tuple[int, float, float | None, float | None, float | None]


@dataclass(frozen=True)
class Curve:
    """A number over the training: tuples of one length, by increasing step."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    tokens: tuple[float | None, ...] = ()  # trained on so far
    seconds: tuple[float | None, ...] = ()  # of training so far
    bits_per_byte: tuple[float | None, ...] = ()  # of a val loss

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def best(self) -> int:
        """The position of the lowest value. Raises ValueError for an empty curve."""
        return min(range(len(self)), key=self.values.__getitem__)


@dataclass(frozen=True)
class Curves:
    """What one pass over the file finds."""

    by_name: Mapping[str, Curve] = field(default_factory=dict)
    last_step: int = 0  # of the last row
    left_out: int = 0  # lines that are not rows; a last line that a crash cut off does not count
    thinned: bool = False  # whether a curve has fewer points than the file

    def __getitem__(self, name: str) -> Curve:
        """Empty if no row has that name."""
        return self.by_name.get(name, Curve())


class Metrics:
    """The metrics.jsonl of a run: its only reader and writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds the row of a step. Raises DiskError."""
        with disk_errors(f"recording step {row['step']}"):
            append_lines(self.path, [json.dumps(row)])

    def drop_torn_line(self) -> None:
        """Removes a last line that a crash left incomplete; the caller holds the run's lock."""
        if not self.path.is_file() or not next(self._parts_from_the_end(), b""):
            return
        data = self.path.read_bytes()
        with disk_errors(f"mending {self.path.name}"):
            replace_file(self.path, data[: data.rfind(b"\n") + 1])

    def lines(self) -> Iterator[bytes]:
        """The lines with their ends; one that is too long comes in pieces. Raises OSError."""
        if self.path.is_symlink() or not self.path.is_file():
            return
        read = 0
        with self.path.open("rb") as file:
            while read < _MAX_FILE and (line := file.readline(_MAX_LINE)):
                read += len(line)
                yield line

    def stream(self) -> Iterator[_Row]:
        """The rows in the order of the file, one for each line: a step may come again. Raises OSError."""
        for block in self._blocks():
            yield from filter(None, _parse(block))

    def rows(self) -> list[_Row]:
        """One dict per step, in order. A later line of a step adds to an earlier one and replaces its values.

        Raises OSError.
        """
        rows: dict[int, _Row] = {}
        for row in self.stream():
            rows.setdefault(row["step"], {}).update(row)
        return [rows[step] for step in sorted(rows)]

    def last_step(self) -> int:
        """The step of the last row; 0 where there is none near the end of the file. Raises OSError."""
        rows = (parse_row(line) for line in self._lines_from_the_end())
        return next((int(row["step"]) for row in rows if row), 0)

    def best(self) -> tuple[float, float | None] | None:
        """The lowest val loss and its bits per byte, in one pass. Raises OSError."""
        best = None
        for block in self._blocks():
            texts = _VAL_LOSS.findall(block)  # takes a tenth of the time of parsing lines
            numbers = _numbers(texts)
            lowest = min(numbers, default=math.inf)
            if lowest >= (best[0] if best else math.inf):
                continue
            text, lines = texts[numbers.index(lowest)], block.split(b"\n")
            found = _lowest(line for line in lines if text in line)
            if found is None or found[0] != lowest:  # it is in a damaged line, or in another key
                found = _lowest(lines)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best

    def last_values(self, names: Iterable[str]) -> dict[str, float]:
        """The last value of each name, of those near the end of the file. Raises OSError."""
        wanted, found = {name: f'"{name}"'.encode() for name in names}, dict[str, float]()
        for line in self._lines_from_the_end():
            if not any(key in line for key in wanted.values()):
                continue
            row = parse_row(line) or {}
            for name in wanted.keys() & row.keys():
                value = _number(row[name])
                if value is not None:
                    found[name] = value
                    del wanted[name]
            if not wanted:
                break
        return found

    def curves(self, names: Iterable[str]) -> Curves:
        """The curves of these names, in one pass. Raises OSError."""
        thinning = [_Thinning(name) for name in names]
        last_step = left_out = 0
        torn = False
        for block in self._blocks():
            parsed = _parse(block)
            rows = [row for row in parsed if row]
            left_out += len(parsed) - len(rows)
            torn = not parsed[-1] and not block.endswith(b"\n")
            steps = [row["step"] for row in rows]
            last_step = steps[-1] if steps else last_step
            for curve in thinning:
                if curve.key in block:
                    curve.add(rows, steps)
        return Curves(
            {one.name: one.curve() for one in thinning if one.curve()},
            last_step,
            left_out - torn,
            any(one.thinned for one in thinning),
        )

    def _blocks(self) -> Iterator[bytes]:
        """The file in blocks of whole lines; a line that is too long comes in pieces. Raises OSError."""
        if self.path.is_symlink() or not self.path.is_file():
            return
        read = 0
        with self.path.open("rb") as file:
            while read < _MAX_FILE and (block := file.read(_BLOCK)):
                if not block.endswith(b"\n"):
                    block += file.readline(_MAX_LINE)
                read += len(block)
                yield block

    def _lines_from_the_end(self) -> Iterator[bytes]:
        """The lines of the last megabytes, the very last one first; empty ones are left out."""
        return filter(None, self._parts_from_the_end())

    def _parts_from_the_end(self) -> Iterator[bytes]:
        """What is between the line ends: the first is what follows the last one, mostly nothing."""
        if self.path.is_symlink() or not self.path.is_file():
            return
        with self.path.open("rb") as file:
            position, rest = file.seek(0, os.SEEK_END), b""
            for _ in range(_MAX_TAIL):
                start = max(0, position - _BLOCK)
                file.seek(start)
                first, *lines = (file.read(position - start) + rest).split(b"\n")
                yield from reversed(lines)
                position, rest = start, first
                if not position:
                    break
            yield rest


def _parse(block: bytes) -> list[_Row | None]:
    """What each line records, or None. Lines are parsed together, which takes a fifth of the time."""
    return _parse_lines(block.removesuffix(b"\n").split(b"\n"))


def _parse_lines(lines: Sequence[bytes]) -> list[_Row | None]:
    if len(lines) == 1:
        return [parse_row(lines[0])]
    try:
        rows = from_json(b"[" + b",".join(lines) + b"]", allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        rows = []
    if len(rows) == len(lines):
        return rows if _all_rows(rows) else [row if _is_row(row) else None for row in rows]
    middle = len(lines) // 2  # so that a damaged line costs little
    return _parse_lines(lines[:middle]) + _parse_lines(lines[middle:])


def _all_rows(values: Sequence[Any]) -> bool:
    """Whether each is a row, found out faster than one by one."""
    if set(map(type, values)) != {dict}:
        return False
    steps = [value.get("step") for value in values]
    return set(map(type, steps)) == {int} and min(steps) >= 0 and max(steps) < 2**63


def _lowest(lines: Iterable[bytes]) -> tuple[float, float | None] | None:
    """The lowest val loss of these lines, with its bits per byte."""
    best = None
    for line in lines:
        row = (parse_row(line) if b'"val_loss"' in line else None) or {}
        loss = _number(row.get("val_loss"))
        if loss is not None and (best is None or loss < best[0]):
            best = loss, _number(row.get("bits_per_byte"))
    return best


def _numbers(texts: Sequence[bytes]) -> list[float]:
    """The texts as numbers, infinity for what is none."""
    try:
        return list(map(float, texts))
    except ValueError:
        return [_numbers([text])[0] for text in texts] if len(texts) > 1 else [math.inf]


def parse_row(line: bytes) -> _Row | None:
    """What a line of metrics.jsonl records, if it is a JSON object with a step."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if _is_row(row) else None


def _is_row(value: object) -> bool:
    step = value.get("step") if isinstance(value, dict) else None
    return type(step) is int and 0 <= step < 2**63


def _number(value: object) -> float | None:
    """A number that a chart can show; None for all else, for numbers of a thousand digits too."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if usable else None  # type: ignore[return-value]


class _Thinning:
    """A curve of at most MAX_POINTS points, built from rows without knowing how many will come.

    Consecutive points form buckets of one size, each reduced to its first, lowest, highest and last point.
    Where there are too many buckets, they are merged in pairs. So the thinned curve covers the same range as
    the whole one, everywhere.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = json.dumps(name).encode()  # as a line has it
        self.thinned = False
        self._buckets: list[list[_Point]] = []
        self._open: list[_Point] = []  # of the bucket that is being filled, reduced
        self._count = 0  # of the points in that bucket, before they were reduced
        self._size = 1  # points in a full bucket
        self._last_step = -1

    def add(self, rows: Sequence[_Row], steps: Sequence[int]) -> None:
        """The next rows of the file and their steps; those count that have the curve's name."""
        name = self.name
        values = [row[name] for row in rows if name in row]
        if len(values) < len(rows):
            rows = [row for row in rows if name in row]
            steps = [row["step"] for row in rows]
        if not _all_plain(values):
            rows = [row for row in rows if _number(row[name]) is not None]
            steps, values = [row["step"] for row in rows], [row[name] for row in rows]
        if not rows:
            return
        if any(map(operator.ge, steps, steps[1:])):  # the run was resumed, and records steps again
            kept = _not_repeated(steps)
            rows, values = [rows[at] for at in kept], [values[at] for at in kept]
            steps = [steps[at] for at in kept]
        if steps[0] <= self._last_step:
            self._forget_from(steps[0])
        self._last_step = steps[-1]
        start = 0
        while start < len(rows):
            stop = start + self._size - self._count
            some = values[start:stop]
            self._open += [self._point(rows[start + at], some[at]) for at in _extremes(some)]
            self._open = self._reduced(self._open)
            self._count += len(some)
            self.thinned = self.thinned or len(self._open) < self._count
            start = stop
            if self._count >= self._size:
                self._close()

    def _point(self, row: _Row, value: float) -> _Point:
        bits = _number(row.get("bits_per_byte")) if self.name == "val_loss" else None
        return row["step"], value, _number(row.get("tokens")), _number(row.get("seconds")), bits

    def _close(self) -> None:
        self._buckets.append(self._open)
        self._open, self._count = [], 0
        if len(self._buckets) > _MAX_BUCKETS:
            pairs = zip(self._buckets[::2], [*self._buckets[1::2], []], strict=False)
            self._buckets = [self._reduced(one + other) for one, other in pairs]
            self._size *= 2

    def _forget_from(self, step: int) -> None:
        """Drops a step and those after it."""
        if self._open and self._open[-1][0] >= step:
            self._open = [point for point in self._open if point[0] < step]
            self._count = len(self._open)
        while not self._open and self._buckets and self._buckets[-1][-1][0] >= step:
            self._open = [point for point in self._buckets.pop() if point[0] < step]
            self._count = len(self._open)

    def _reduced(self, points: list[_Point]) -> list[_Point]:
        if len(points) <= 2:
            return points
        kept = _extremes([point[1] for point in points])
        self.thinned = self.thinned or len(kept) < len(points)
        return [points[at] for at in kept]

    def curve(self) -> Curve:
        points = [point for bucket in self._buckets for point in bucket] + self._open
        return Curve(*map(tuple, zip(*points, strict=True))) if points else Curve()


def _extremes(values: Sequence[float]) -> Sequence[int]:
    """The positions of the first, the lowest, the highest and the last value."""
    if len(values) <= 2:
        return range(len(values))
    return sorted({0, values.index(min(values)), values.index(max(values)), len(values) - 1})


def _not_repeated(steps: Sequence[int]) -> list[int]:
    """The positions of the steps that no later one repeats or is before, in order."""
    kept, least = [], 2**63
    for at in range(len(steps) - 1, -1, -1):
        if steps[at] < least:
            least = steps[at]
            kept.append(at)
    return kept[::-1]


def _all_plain(values: Sequence[Any]) -> bool:
    """Whether all are numbers that a chart can show, found out faster than one by one."""
    return set(map(type, values)) == {float} and min(values) > -1e300 and max(values) < 1e300
