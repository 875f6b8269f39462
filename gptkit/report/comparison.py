"""The page that compares runs: curves over one another, settings that differ, samples.

Input: a comparison (gptkit.runs.compare). Output: the page. Runs that differ only in their seed are one line,
their mean, in a band from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptkit.report.charts import Chart, Drawn, Series, draw
from gptkit.report.page import MAX_SAMPLE
from gptkit.report.render import number_text, render, text_of, toml_text
from gptkit.runs.compare import ComparedRun, Comparison, Decision, Group, Spread, evidence
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


@dataclass(frozen=True)
class _DecisionRow:
    """The row of a verdict."""

    title: str
    outcome: str
    about: str
    difference: str
    interval: str
    p_value: str


def comparison_page(compared: Comparison) -> bytes:
    """The page, in UTF-8."""
    groups = list(compared.groups)[:MAX_GROUPS]
    notes = list(compared.notes)
    if len(compared.groups) > MAX_GROUPS:
        notes.append(f"the first {MAX_GROUPS} of {len(compared.groups)} are shown.")
    differences = [
        (one.key, [_cell(value) for value in one.values[: len(groups)]])
        for one in list(compared.differences)[:MAX_DIFFERENCES]
    ]
    return render(
        "comparison.html",
        title=f"{len(compared.runs)} runs compared",
        notes=notes,
        rows=[_row(compared.runs, group) for group in groups],
        unit="bits per byte" if compared.in_bits else "nats per token",
        baseline=groups[0].title,
        decisions=[
            _decision(compared, decision) for decision in compared.decisions if decision.group < MAX_GROUPS
        ],
        axes=[(label, word, _charts(compared, groups, label)) for label, word in AXES],
        differences=differences,
        samples=[
            (run.id, run.last_sample.step, run.last_sample.text[:MAX_SAMPLE])
            for run in (compared.runs[group.members[0]] for group in groups[:MAX_SAMPLES])
            if run.last_sample and run.last_sample.text
        ],
    )


def _decision(compared: Comparison, decision: Decision) -> _DecisionRow:
    verdict = decision.verdict
    interval = (
        "" if verdict.low is None or verdict.high is None else f"{verdict.low:+.4f} to {verdict.high:+.4f}"
    )
    return _DecisionRow(
        compared.groups[decision.group].title,
        str(verdict.outcome),
        "; ".join(filter(None, (evidence(verdict), decision.advice))),
        f"{verdict.difference:+.4f}",
        interval,
        f"{verdict.p_value:.2g}",
    )


def _cell(value: Value | None) -> str:
    return text_of(value) if value is None or isinstance(value, str) else toml_text(value)


def _row(runs: Sequence[ComparedRun], group: Group) -> _Row:
    members = [(runs[member].id, str(runs[member].summary.status)) for member in group.members]
    return _Row(group.title, members, _spread(group.best_val_loss), _spread(group.best_bits_per_byte))


def _spread(spread: Spread | None) -> str:
    """The mean, and of several values the lowest and highest."""
    if spread is None:
        return ""
    span = f" ({number_text(spread.lowest)} to {number_text(spread.highest)})" if spread.count > 1 else ""
    return number_text(spread.mean) + span


def _charts(compared: Comparison, groups: Sequence[Group], axis: str) -> list[Drawn]:
    """Val and train loss over an axis; only the val loss, in bits per byte, where the tokenizers differ."""
    in_bits = compared.in_bits
    kinds = [("val", "Val loss (bits per byte)" if in_bits else "Val loss (nats per token)")]
    if not in_bits:
        kinds.append(("train", "Train loss (nats per token)"))
    charts = []
    for kind, title in kinds:
        series = []
        for color, group in enumerate(groups):
            runs = [compared.runs[member] for member in group.members]
            curves = [run.val if kind == "val" else run.train for run in runs]
            lines = [Series.of(one, group.title, color, axis=axis, in_bits=in_bits) for one in curves]
            series += _mean([line for line in lines if len(line.x)])
        charts.append(draw(Chart(f"{kind}-by-{axis}", title, series, x_label=axis)))
    return [chart for chart in charts if chart is not None]


def _mean(lines: list[Series]) -> list[Series]:
    """One line: the mean of these where all have values, in a band; none where there are no lines."""
    if len(lines) < 2:
        return lines
    begin, end = max(line.x[0] for line in lines), min(line.x[-1] for line in lines)
    if end < begin:
        return lines[:1]
    x = lines[0].x
    if not all(np.array_equal(line.x, x) for line in lines):
        x = np.linspace(begin, end, _GRID)
    each = np.stack([np.interp(x, line.x, line.y) for line in lines])
    title = f"{lines[0].label}: mean"
    return [Series(title, x, each.mean(0), (each.min(0), each.max(0)), lines[0].color)]
