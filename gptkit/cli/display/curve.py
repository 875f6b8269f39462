"""Losses by step, drawn in characters: braille or ASCII in the live panel, letters in a comparison.

Input: points (step, loss). Output: lines of text of the size that is asked for. Knows nothing of events,
colors or terminals.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MARKS = ("⣀", "●")  # of train and val
ASCII_MARKS = (".", "o")

_MOST = 1024  # points kept of a curve: more than the dots of any terminal's width
_SETTLING = 0.1  # of the steps, whose steep fall would flatten the rest of the curve
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, row by row

Point = tuple[float, float]  # step, loss


class History:
    """Losses by step in bounded memory: when there are too many points, neighbors are averaged."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._per_point = 1  # losses that a point is the mean of
        self._waiting: list[Point] = []

    def add(self, step: float, loss: float) -> None:
        self._waiting.append((step, loss))
        if len(self._waiting) >= self._per_point:
            self.points.append(_mean(self._waiting))
            self._waiting = []
        if len(self.points) >= _MOST:
            self._per_point *= 2
            self.points = [_mean(self.points[index : index + 2]) for index in range(0, len(self.points), 2)]


def _mean(points: Sequence[Point]) -> Point:
    return sum(step for step, _ in points) / len(points), sum(loss for _, loss in points) / len(points)


@dataclass(frozen=True)
class _Axes:
    """The range of steps and losses, and the grid of dots (or letters) that it is drawn on."""

    steps: tuple[float, float]
    losses: tuple[float, float]
    columns: int
    rows: int

    def column(self, step: float) -> int:
        first, last = self.steps
        return round((step - first) / max(last - first, 1e-9) * (self.columns - 1))

    def row(self, loss: float) -> int:
        """Row 0 is the top; what is above or below the range is drawn at its edge."""
        low, high = self.losses
        return min(max(round((high - loss) / max(high - low, 1e-9) * (self.rows - 1)), 0), self.rows - 1)

    def rows_of(self, points: Sequence[Point]) -> Mapping[int, int]:
        """The row in each column from the first point to the last, interpolated between the points."""
        by_column: dict[int, list[float]] = {}
        for step, loss in points:
            by_column.setdefault(self.column(step), []).append(loss)
        known = sorted(by_column)
        means = [sum(by_column[column]) / len(by_column[column]) for column in known]
        return {
            column: self.row(_interpolate(known, means, column))
            for column in (range(known[0], known[-1] + 1) if known else ())
        }


def _interpolate(known: Sequence[int], values: Sequence[float], x: int) -> float:
    right = bisect_left(known, x)
    if known[right] == x:
        return values[right]
    left = right - 1
    share = (x - known[left]) / (known[right] - known[left])
    return values[left] + share * (values[right] - values[left])


def panel_curve(
    train: Sequence[Point], val: Sequence[Point], *, width: int, height: int, ascii_only: bool
) -> list[tuple[str, str]]:
    """`height` rows as (label, cells) of `width` columns together: train as a line, val as marks.

    The range is that of the later nine tenths of the steps; earlier losses above it are drawn at the top.
    """
    points = [*train, *val]
    if not points or width < 12 or height < 2:
        return [("", " " * width)] * height
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    settled = [loss for step, loss in points if step >= first + _SETTLING * (last - first)]
    low, high = min(settled), max(settled)
    if high - low < 1e-3:
        low, high = low - 5e-4, high + 5e-4
    digits = 2 if high - low >= 0.01 else 4
    ends = f"{high:.{digits}f}", f"{low:.{digits}f}"
    margin = max(map(len, ends)) + 1
    labels = [f"{label:>{margin - 1}} " for label in (ends[0], *[""] * (height - 2), ends[1])]
    across, down = (1, 1) if ascii_only else (2, 4)  # dots in a character
    axes = _Axes((first, last), (low, high), (width - margin) * across, height * down)
    dots = [[0] * (width - margin) for _ in range(height)]
    before = None
    for column, row in axes.rows_of(train).items():
        # The line starts beside the previous dot, so that a steep one has no gaps
        for dot in _vertical(before, row):
            bit = 1 if ascii_only else _DOTS[dot % down][column % across]
            dots[dot // down][column // across] |= bit
        before = row
    line, mark = ASCII_MARKS if ascii_only else MARKS
    cells = [[(line if ascii_only else chr(0x2800 + dot)) if dot else " " for dot in row] for row in dots]
    for step, loss in val:
        cells[axes.row(loss) // down][axes.column(step) // across] = mark
    return [(label, "".join(row)) for label, row in zip(labels, cells, strict=True)]


def _vertical(before: int | None, now: int) -> range:
    if before is None or before == now:
        return range(now, now + 1)
    return range(before + 1, now + 1) if before < now else range(now, before)


def letter_chart(curves: Sequence[tuple[str, Sequence[Point]]], *, width: int, height: int) -> list[str]:
    """Curves that have points, each drawn with its letter ('*' where several meet), and both axes."""
    steps = [step for _, points in curves for step, _ in points]
    losses = [loss for _, points in curves for _, loss in points]
    axes = _Axes((min(steps), max(steps)), (min(losses), max(losses)), width, height)
    rows = [[" "] * width for _ in range(height)]
    for letter, points in curves:
        for column, row in axes.rows_of(points).items():
            rows[row][column] = letter if rows[row][column] in (" ", letter) else "*"
    low, high = axes.losses
    labels = {row: f"{high + (low - high) * row / (height - 1):.4g}" for row in (0, height // 2, height - 1)}
    lines = [f"{labels.get(number, ''):>8} |{''.join(row).rstrip()}" for number, row in enumerate(rows)]
    first, last = (f"{step:g}" for step in axes.steps)
    return [*lines, " " * 9 + "+" + "-" * width, " " * 10 + f"{first}{last:>{width - len(first)}}"]
