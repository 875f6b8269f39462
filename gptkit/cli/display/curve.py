"""The loss as a small curve of characters: braille, eight dots in each, or ASCII.

In: losses by step. Out: lines of text of the size that is asked for. Knows nothing of events or terminals.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from rich.text import Text

_MOST = 1024  # points kept of a curve: more than the dots of any terminal's width
_SETTLING = 0.1  # of the steps at the beginning, whose fall is not to flatten all that comes after it
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, row by row

TRAIN, VAL = "cyan", "bold green"  # styles
MARKS = ("⣀", "●")  # of train and val, for a legend
ASCII_MARKS = (".", "o")

Point = tuple[float, float]  # step, loss


class History:
    """Losses by step, in bounded memory: when there are too many, neighbours become their mean."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.version = 0  # grows with every loss
        self._each = 1  # losses that a point is the mean of
        self._waiting: list[Point] = []

    def add(self, step: float, loss: float) -> None:
        self.version += 1
        self._waiting.append((step, loss))
        if len(self._waiting) >= self._each:
            self.points.append(_mean(self._waiting))
            self._waiting = []
        if len(self.points) >= _MOST:
            self._each *= 2
            self.points = [_mean(self.points[index : index + 2]) for index in range(0, len(self.points), 2)]


def _mean(points: Sequence[Point]) -> Point:
    return sum(step for step, _ in points) / len(points), sum(loss for _, loss in points) / len(points)


def curve(
    train: Sequence[Point], val: Sequence[Point], *, width: int, height: int, ascii_only: bool
) -> list[Text]:
    """`height` lines of `width` columns: train as a line, each val as a mark, the range at the left.

    What is above the range, which is that of the later nine tenths of the steps, is drawn at the top.
    """
    points = [*train, *val]
    if not points or width < 12 or height < 2:
        return [Text(" " * width) for _ in range(height)]
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    settled = [loss for step, loss in points if step >= first + _SETTLING * (last - first)]
    low, high = min(settled), max(settled)
    if high - low < 1e-3:
        low, high = low - 5e-4, high + 5e-4
    labels = [f"{high:.2f}", *[""] * (height - 2), f"{low:.2f}"]
    margin = max(map(len, labels)) + 1
    across, down = (1, 1) if ascii_only else (2, 4)  # dots in a character
    columns, rows = (width - margin) * across, height * down

    def place(point: Point) -> tuple[int, int]:
        x = round((point[0] - first) / max(last - first, 1e-9) * (columns - 1))
        y = round((high - point[1]) / (high - low) * (rows - 1))
        return x, min(max(y, 0), rows - 1)

    cells = _line([place(point) for point in train], width - margin, height, ascii_only)
    marks = {(place(point)[0] // across, place(point)[1] // down) for point in val}
    lines = []
    for row, label in enumerate(labels):
        line = Text().append(f"{label:>{margin - 1}} ", style="dim")
        line.append("".join(cells[row]), style=TRAIN)
        for column in sorted(column for column, at in marks if at == row):
            where = margin + column
            mark = Text((ASCII_MARKS if ascii_only else MARKS)[1], style=VAL)
            line = line[:where] + mark + line[where + 1 :]
        lines.append(line)
    return lines


def _line(points: Sequence[tuple[int, int]], width: int, height: int, ascii_only: bool) -> list[list[str]]:
    """Characters, row by row, of a line through points (x, y), counted in dots from the left and the top."""
    across, down = (1, 1) if ascii_only else (2, 4)
    dots = [[0] * width for _ in range(height)]
    by_column: dict[int, list[int]] = {}
    for x, y in points:
        by_column.setdefault(x, []).append(y)
    known = sorted(by_column)
    means = [sum(by_column[x]) / len(by_column[x]) for x in known]
    before = None
    for x in range(known[0], known[-1] + 1) if known else ():
        y = _between(known, means, x)
        # The line goes on from beside the last dot, so that a steep one has no gaps
        for dot in _span(before, y):
            bit = 1 if ascii_only else _DOTS[dot % down][x % across]
            dots[dot // down][x // across] |= bit
        before = y
    if ascii_only:
        return [[ASCII_MARKS[0] if dot else " " for dot in row] for row in dots]
    return [[chr(0x2800 + dot) if dot else " " for dot in row] for row in dots]


def _between(known: Sequence[int], means: Sequence[float], x: int) -> int:
    right = bisect_left(known, x)
    if known[right] == x:
        return round(means[right])
    left = right - 1
    share = (x - known[left]) / (known[right] - known[left])
    return round(means[left] + share * (means[right] - means[left]))


def _span(before: int | None, now: int) -> range:
    if before is None or before == now:
        return range(now, now + 1)
    return range(before + 1, now + 1) if before < now else range(now, before)
