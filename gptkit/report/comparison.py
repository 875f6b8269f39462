"""The page that compares runs: curves over one another, settings that differ, samples.

Input: a comparison (gptkit.runs.compare). Output: the page. Runs that differ only in their seed are one line,
their mean, in a band from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptkit.report.charts import Chart, Drawn, Floats, Series, draw
from gptkit.report.page import MAX_SAMPLE
from gptkit.report.render import number_text, render, text_of, toml_text
from gptkit.runs import Curve
from gptkit.runs.compare import ComparedRun, Comparison, Group
from gptkit.runs.summary import Value

AXES = (("step", "steps"), ("tokens", "tokens"), ("seconds", "time"))
"""What the curves can be drawn over: the label of the axis, and the word for the choice."""

MAX_GROUPS, MAX_SAMPLES, MAX_DIFFERENCES = 24, 12, 100
_GRID = 400  # places at which the mean of several runs is computed


@dataclass(frozen=True)
class _Row:
    """The row of a group of runs."""

    title: str
    members: list[tuple[str, str]]  # id and status of each
    best: str
    bits: str


def comparison_page(compared: Comparison) -> bytes:
    """The page, in UTF-8."""
    groups = list(compared.groups)[:MAX_GROUPS]
    notes = list(compared.notes)
    if len(compared.groups) > MAX_GROUPS:
        notes.append(f"the first {MAX_GROUPS} of {len(compared.groups)} are shown.")
    differences = [
        (one.key, [text_of(value) if isinstance(value, str) else _shown(value) for value in one.values])
        for one in list(compared.differences)[:MAX_DIFFERENCES]
    ]
    return render(
        "comparison.html",
        title=f"{len(compared.runs)} runs compared",
        notes=notes,
        rows=[_row(compared.runs, group) for group in groups],
        axes=[(label, word, _charts(compared, groups, label)) for label, word in AXES],
        differences=[(key, values[: len(groups)]) for key, values in differences],
        samples=[
            (run.id, run.last_sample.step, run.last_sample.text[:MAX_SAMPLE])
            for run in (compared.runs[group.members[0]] for group in groups[:MAX_SAMPLES])
            if run.last_sample and run.last_sample.text
        ],
    )


def _shown(value: Value | None) -> str:
    return "" if value is None else toml_text(value)


def _row(runs: Sequence[ComparedRun], group: Group) -> _Row:
    ours = [runs[member] for member in group.members]
    return _Row(
        group.title,
        [(run.id, run.summary.status) for run in ours],
        _spread([run.summary.best_val_loss for run in ours]),
        _spread([run.summary.best_bits_per_byte for run in ours]),
    )


def _spread(values: Sequence[float | None]) -> str:
    """The mean, and of several values the lowest and highest."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = number_text(sum(known) / len(known))
    return mean if len(known) == 1 else f"{mean} ({number_text(min(known))} to {number_text(max(known))})"


def _charts(compared: Comparison, groups: Sequence[Group], axis: str) -> list[Drawn]:
    """Val and train loss over an axis; only the val loss, in bits per byte, where the tokenizers differ."""
    charts = []
    titles = (
        ("val", "Val loss (bits per byte)" if compared.in_bits else "Val loss (nats per token)"),
        *(() if compared.in_bits else (("train", "Train loss (nats per token)"),)),
    )
    for which, title in titles:
        series = [
            one
            for colour, group in enumerate(groups)
            if (one := _series(compared, group, which, axis, colour)) is not None
        ]
        chart = draw(Chart(f"{which}-by-{axis}", title, series, x_label=axis))
        if chart is not None:
            charts.append(chart)
    return charts


def _series(compared: Comparison, group: Group, which: str, axis: str, colour: int) -> Series | None:
    """The line of a group: of its run, or the mean of its runs where all have values, with a band."""
    lines = []
    for member in group.members:
        run = compared.runs[member]
        x, y = _points(run.val if which == "val" else run.train, axis, in_bits=compared.in_bits)
        if len(x):
            lines.append((x, y))
    if not lines:
        return None
    if len(lines) == 1:
        return Series(group.title, *lines[0], colour=colour)
    begin, end = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if end < begin:
        return Series(group.title, *lines[0], colour=colour)
    shared = lines[0][0]
    if not all(np.array_equal(x, shared) for x, _ in lines):
        shared = np.linspace(begin, end, _GRID)
    each = np.stack([np.interp(shared, x, y) for x, y in lines])
    return Series(
        f"{group.title}: mean", shared, each.mean(0), band=(each.min(0), each.max(0)), colour=colour
    )


def _points(losses: Curve, axis: str, *, in_bits: bool) -> tuple[Floats, Floats]:
    places = {"step": losses.steps, "tokens": losses.tokens, "seconds": losses.seconds}[axis]
    values = losses.bits_per_byte if in_bits else losses.values
    x = np.array([np.nan if place is None else place for place in places], dtype=np.float64)
    y = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    order = np.argsort(x, kind="stable")
    return x[order], y[order]
