"""The curves of a run: from metrics.jsonl to arrays, and to as many points as can be seen.

In: a run's folder, which may be a stranger's. Out: for each number that was recorded its values by step,
tokens and seconds. What is no finite number, and rows without a usable step, are left out and counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from gptkit.runs import Run
from gptkit.runs.metrics import parse_row

NUMBERS = ("train_loss", "val_loss", "bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second")
COLUMNS = 600  # that a curve is thinned out to, each with its lowest and highest value
MAX_ROWS = 3_000_000  # that are read; beyond them memory would grow and the curve would not
MAX_STEP = 2**53  # what a float still counts exactly

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A number over the run, by increasing step. Arrays of one length; nan where tokens or seconds are
    not recorded."""

    step: Floats
    tokens: Floats
    seconds: Floats
    value: Floats

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class Metrics:
    curves: dict[str, Curve] = field(default_factory=dict)  # of NUMBERS, those that have values
    rows: int = 0
    left_out: int = 0  # lines or values that could not be used
    cut: bool = False  # there are more rows than are read


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def read_metrics(run: Run) -> Metrics:
    """Of a step the values that were written last. Raises OSError where the file cannot be read."""
    columns = {name: tuple(array("d") for _ in range(4)) for name in NUMBERS}
    rows = left_out = 0
    cut = False
    for line in run.metrics_log.lines():
        if rows >= MAX_ROWS:
            cut = True
            break
        row = parse_row(line)
        if row is None or not _usable_step(row["step"]):
            left_out += 1
            continue
        rows += 1
        tokens, seconds = _or_nan(row.get("tokens")), _or_nan(row.get("seconds"))
        for name, column in columns.items():
            value = row.get(name)
            if is_number(value):
                for part, number in zip(column, (row["step"], tokens, seconds, value), strict=True):
                    part.append(number)
            elif name in row:
                left_out += 1
    curves = {name: _in_order(parts) for name, parts in columns.items() if parts[0]}
    return Metrics(curves, rows, left_out, cut)


def _usable_step(step: object) -> bool:
    return isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= MAX_STEP


def _or_nan(value: Any) -> float:
    return float(value) if is_number(value) and value >= 0 else float("nan")


def _in_order(parts: Sequence[array[float]]) -> Curve:
    """By step, of each step what was written last."""
    step, tokens, seconds, value = (np.asarray(part, dtype=np.float64) for part in parts)
    order = np.argsort(step, kind="stable")
    last = np.append(np.diff(step[order]) > 0, True)
    chosen = order[last]
    return Curve(step[chosen], tokens[chosen], seconds[chosen], value[chosen])


def thin(x: Floats, y: Floats, columns: int = COLUMNS) -> NDArray[np.intp]:
    """Which points of a curve to draw: all, or the first, lowest, highest and last of each column of x.

    x is increasing. At most 4 * columns points come of it, so the drawn curve covers what the whole would.
    """
    if len(x) <= 2 * columns or x[-1] <= x[0]:
        return np.arange(min(len(x), 2 * columns))
    edges = np.linspace(x[0], x[-1], columns + 1)
    starts = np.searchsorted(x, edges[:-1], side="left").tolist()
    kept: set[int] = set()
    for start, end in pairwise([*starts, len(x)]):
        if start < end:
            part = y[start:end]
            kept |= {start, start + int(part.argmin()), start + int(part.argmax()), end - 1}
    return np.array(sorted(kept), dtype=np.intp)
