"""metrics.jsonl: one JSON object per logged step, appended as a run trains.

Input: the path of the file, which may be damaged or very large. Output: its rows, its last values, or its
curves, thinned out while they are read, so that memory stays bounded. A line counts where it is a JSON object
with a step; others are left out. A run that is resumed writes some steps again: the last value of a step
counts. Knows nothing of runs, and nothing of how a curve is drawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptkit.files import append_lines, disk_errors, parse_json, replace_file

MAX_POINTS = 4_000  # of a curve
_MAX_BUCKETS = MAX_POINTS // 4
_MAX_LINE, _MAX_FILE = 1_000_000, 2_000_000_000  # bytes; no training writes more
_BLOCK = 1 << 20  # bytes that are read at once from the end of the file
_MAX_TAIL = 16  # blocks from the end of the file in which the last values are looked for

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
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end != len(data):
            with disk_errors(f"mending {self.path.name}"):
                replace_file(self.path, data[:end])

    def lines(self) -> Iterator[bytes]:
        """The lines with their ends; one that is too long comes in pieces. Raises OSError."""
        if self.path.is_symlink() or not self.path.is_file():
            return
        read = 0
        with self.path.open("rb") as file:
            while read < _MAX_FILE and (line := file.readline(_MAX_LINE)):
                read += len(line)
                yield line

    def rows(self) -> list[dict[str, Any]]:
        """One dict per step, in order. A later line of a step adds to an earlier one and replaces its values.

        Raises OSError.
        """
        rows: dict[int, dict[str, Any]] = {}
        for line in self.lines():
            if row := parse_row(line):
                rows.setdefault(row["step"], {}).update(row)
        return [rows[step] for step in sorted(rows)]

    def last_step(self) -> int:
        """The step of the last row; 0 where there is none near the end of the file. Raises OSError."""
        rows = (parse_row(line) for line in self._lines_from_the_end())
        return next((int(row["step"]) for row in rows if row), 0)

    def best(self) -> tuple[float, float | None] | None:
        """The lowest val loss and its bits per byte, in one pass. Raises OSError."""
        best = None
        for line in self.lines():
            if b'"val_loss"' not in line:  # most lines; parsing them takes far longer than reading them
                continue
            row = parse_row(line) or {}
            loss = _number(row.get("val_loss"))
            if loss is not None and (best is None or loss < best[0]):
                best = loss, _number(row.get("bits_per_byte"))
        return best

    def last_values(self, names: Iterable[str]) -> dict[str, float]:
        """The last value of each name, of those near the end of the file. Raises OSError."""
        wanted, found = set(names), dict[str, float]()
        for line in self._lines_from_the_end():
            row = parse_row(line) or {}
            for name in wanted & row.keys():
                value = _number(row[name])
                if value is not None:
                    found[name] = value
                    wanted.remove(name)
            if not wanted:
                break
        return found

    def curves(self, names: Iterable[str]) -> Curves:
        """The curves of these names, in one pass. Raises OSError."""
        thinning = {name: _Thinning() for name in names}
        last_step = left_out = 0
        torn = False
        for line in self.lines():
            row = parse_row(line)
            if row is None:
                left_out += 1
                torn = not line.endswith(b"\n")
                continue
            last_step = row["step"]
            tokens, seconds = _number(row.get("tokens")), _number(row.get("seconds"))
            for name, curve in thinning.items():
                if (value := _number(row.get(name))) is not None:
                    bits = _number(row.get("bits_per_byte")) if name == "val_loss" else None
                    curve.add((last_step, value, tokens, seconds, bits))
        return Curves(
            {name: one.curve() for name, one in thinning.items() if one.curve()},
            last_step,
            left_out - torn,
            any(one.thinned for one in thinning.values()),
        )

    def _lines_from_the_end(self) -> Iterator[bytes]:
        """The lines of the last megabytes, the very last one first; empty ones are left out."""
        if self.path.is_symlink() or not self.path.is_file():
            return
        with self.path.open("rb") as file:
            position, rest = file.seek(0, os.SEEK_END), b""
            for _ in range(_MAX_TAIL):
                start = max(0, position - _BLOCK)
                file.seek(start)
                first, *lines = (file.read(position - start) + rest).split(b"\n")
                yield from filter(None, reversed(lines))
                position, rest = start, first
                if not position:
                    break
            if rest:
                yield rest


def parse_row(line: bytes) -> dict[str, Any] | None:
    """What a line of metrics.jsonl records, if it is a JSON object with a step."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int and 0 <= step < 2**63 else None


def _number(value: object) -> float | None:
    """A number that a chart can show; None for all else, for numbers of a thousand digits too."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if usable else None  # type: ignore[return-value]


class _Thinning:
    """A curve of at most MAX_POINTS points, built point by point without knowing how many will come.

    Consecutive points form buckets of one size, each reduced to its first, lowest, highest and last point.
    Where there are too many buckets, they are merged in pairs. So the thinned curve covers the same range as
    the whole one, everywhere.
    """

    def __init__(self) -> None:
        self._buckets: list[list[_Point]] = []
        self._open: list[_Point] = []  # the points of the bucket that is being filled
        self._size = 1  # points in a bucket
        self._last_step = -1
        self.thinned = False

    def add(self, point: _Point) -> None:
        if point[0] <= self._last_step:
            self._forget_from(point[0])
        self._last_step = point[0]
        self._open.append(point)
        if len(self._open) < self._size:
            return
        self._buckets.append(self._reduced(self._open))
        self._open = []
        if len(self._buckets) > _MAX_BUCKETS:
            pairs = zip(self._buckets[::2], [*self._buckets[1::2], []], strict=False)
            self._buckets = [self._reduced(one + other) for one, other in pairs]
            self._size *= 2

    def _forget_from(self, step: int) -> None:
        """Drops a step and those after it: the run was resumed before it, and records them again."""
        while self._open and self._open[-1][0] >= step:
            self._open.pop()
        while not self._open and self._buckets and self._buckets[-1][-1][0] >= step:
            bucket = self._buckets[-1]
            while bucket and bucket[-1][0] >= step:
                bucket.pop()
            if not bucket:
                self._buckets.pop()

    def _reduced(self, points: list[_Point]) -> list[_Point]:
        if len(points) <= 2:
            return points
        values = [point[1] for point in points]
        kept = sorted({0, values.index(min(values)), values.index(max(values)), len(points) - 1})
        self.thinned = self.thinned or len(kept) < len(points)
        return [points[position] for position in kept]

    def curve(self) -> Curve:
        points = [point for bucket in self._buckets for point in bucket] + self._open
        return Curve(*map(tuple, zip(*points, strict=True))) if points else Curve()
