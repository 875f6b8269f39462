"""The page of one run.

In: a run's folder, which may be a stranger's. Out: report.html in it. What is missing or not what it should
be is left out, with a word in the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptkit.errors import CheckpointError
from gptkit.report import facts
from gptkit.report.charts import Chart, Drawn, Mark, Series, draw, number_text
from gptkit.report.curves import Curve, Metrics, read_metrics
from gptkit.report.pages import render, write_page
from gptkit.report.samples import read_samples
from gptkit.report.settings import Setting, read_settings
from gptkit.runs import REPORT, Run

_MAX_EVALUATIONS = 100  # rows of the table of losses


def write_report(run: Run) -> Path:
    """Writes the run's report.html and returns its path.

    Raises DiskError where it cannot be written, CheckpointError where something in the folder is a link.
    """
    run.refuse_special_files()
    path = run.path / REPORT
    write_page(path, run_page(run))
    return path


def run_page(run: Run) -> bytes:
    """The page of a run, in UTF-8."""
    notes = []
    try:
        record = run.record()
    except CheckpointError as error:
        record = {}
        notes.append(str(error))
    metrics = _metrics(run, notes)
    settings, said = read_settings(run)
    samples, samples_note = read_samples(run)
    status = facts.status_of(run, record)
    best = best_of(metrics)
    bits = bits_for_a_nat(record, metrics)
    return render(
        "run.html",
        title=run.id,
        status=status,
        why=facts.why_it_ended(status, record),
        notes=notes,
        key_values=_key_values(record, metrics, best, bits),
        charts=_charts(metrics, best, bits),
        evaluations=_evaluations(metrics, bits),
        samples=samples,
        samples_note=samples_note,
        sections=_sections(settings),
        different=[setting for setting in settings if setting.differs],
        settings_note=said,
        data_rows=facts.dataset_rows(record),
        tokenizer_rows=facts.tokenizer_rows(record),
        plugins=facts.plugin_rows(record),
        environment=facts.environment_rows(record),
        commands=facts.commands(run, record),
        parent=run.path.absolute().parent.name,
    )


def _metrics(run: Run, notes: list[str]) -> Metrics:
    try:
        metrics = read_metrics(run)
    except OSError as error:
        notes.append(f"metrics.jsonl cannot be read: {error.strerror or error}.")
        return Metrics()
    if metrics.left_out:
        notes.append(f"{metrics.left_out:,} lines or values of metrics.jsonl are no use and were left out.")
    if metrics.cut:
        notes.append(f"Of metrics.jsonl the first {metrics.rows:,} rows are shown.")
    return metrics


@dataclass(frozen=True)
class Best:
    """The evaluation with the lowest val loss."""

    step: float
    loss: float


def best_of(metrics: Metrics) -> Best | None:
    curve = metrics.curves.get("val_loss")
    if curve is None:
        return None
    lowest = int(np.argmin(curve.value))
    return Best(float(curve.step[lowest]), float(curve.value[lowest]))


def bits_for_a_nat(record: dict[str, Any], metrics: Metrics) -> float | None:
    """Bits per byte for one nat a token, as in the val split; None where it is not recorded."""
    pairs = [(facts.number(record, "best_bits_per_byte"), facts.number(record, "best_val_loss"))]
    bits, losses = metrics.curves.get("bits_per_byte"), metrics.curves.get("val_loss")
    if bits is not None and losses is not None and bits.step[-1] == losses.step[-1]:
        pairs.insert(0, (float(bits.value[-1]), float(losses.value[-1])))
    for some_bits, loss in pairs:
        if some_bits is not None and loss is not None and loss > 0 and 0 < some_bits / loss < 1e6:
            return some_bits / loss
    return None


def _with_bits(loss: float | None, bits: float | None) -> str:
    if loss is None:
        return ""
    return number_text(loss) + (f" ({number_text(loss * bits)} bits per byte)" if bits else "")


def _last(metrics: Metrics, name: str) -> float | None:
    curve = metrics.curves.get(name)
    return None if curve is None else float(curve.value[-1])


def _key_values(
    record: dict[str, Any], metrics: Metrics, best: Best | None, bits: float | None
) -> list[facts.Row]:
    step = record.get("step")
    if not isinstance(step, int):
        step = max((int(curve.step[-1]) for curve in metrics.curves.values()), default=None)
    target = record.get("target_step")
    reached = f"{facts.text_of(step)} of {facts.text_of(target)}" if isinstance(target, int) else step
    speed = metrics.curves.get("tokens_per_second")
    seconds = facts.number(record, "seconds")
    return facts.rows(
        [
            ("Best val loss", _with_bits(best.loss, bits) + f", at step {best.step:,.0f}" if best else None),
            ("Last val loss", _with_bits(_last(metrics, "val_loss"), bits)),
            ("Last train loss", _with_bits(_last(metrics, "train_loss"), bits)),
            ("Steps", reached),
            ("Tokens trained on", record.get("tokens")),
            ("Parameters", record.get("parameters")),
            ("Training time", None if seconds is None else _duration(seconds)),
            ("Tokens a second", None if speed is None else f"{np.median(speed.value):,.0f} (median)"),
            ("Started", facts.moment(record.get("started"))),
            ("Ended", facts.moment(record.get("ended"))),
            ("Began from the weights of", facts.table(record, "loaded_from").get("run")),
        ]
    )


def _duration(seconds: float) -> str:
    """As a person says it."""
    if not 60 <= seconds < 1e9:
        return f"{seconds:,.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _charts(metrics: Metrics, best: Best | None, bits: float | None) -> list[Drawn]:
    losses = [
        _series(metrics.curves[name], label, colour)
        for colour, (name, label) in enumerate((("train_loss", "train loss"), ("val_loss", "val loss")))
        if name in metrics.curves
    ]
    mark = Mark(best.step, best.loss, f"best {number_text(best.loss)}", colour=1) if best else None
    title = "Loss, mean nats a token" + (f" (times {bits:.4g}: bits per byte)" if bits else "")
    charts = [Chart("loss", title, losses, mark=mark)]
    for number, (name, title) in enumerate(
        (
            ("learning_rate", "Learning rate"),
            ("grad_norm", "Norm of the gradient, before clipping"),
            ("tokens_per_second", "Tokens a second"),
        ),
        start=2,
    ):
        if name in metrics.curves:
            label = name.replace("_", " ")
            charts.append(
                Chart(name.replace("_", "-"), title, [_series(metrics.curves[name], label, number)])
            )
    return [drawn for chart in charts if (drawn := draw(chart)) is not None]


def _series(curve: Curve, label: str, colour: int) -> Series:
    return Series(label, curve.step, curve.value, colour=colour)


def _evaluations(metrics: Metrics, bits: float | None) -> list[tuple[str, str, str, str]]:
    """Step, train loss as it was logged last, val loss, bits per byte; evenly spread where there are many."""
    losses, trained = metrics.curves.get("val_loss"), metrics.curves.get("train_loss")
    if losses is None:
        return []
    spread = np.linspace(0, len(losses) - 1, min(len(losses), _MAX_EVALUATIONS)).round().astype(int)
    found = []
    for at in dict.fromkeys(spread.tolist()):
        step, loss = losses.step[at], float(losses.value[at])
        before = 0 if trained is None else int(np.searchsorted(trained.step, step, side="right"))
        train = number_text(float(trained.value[before - 1])) if trained is not None and before else ""
        in_bits = loss * bits if bits else math.nan
        found.append(
            (f"{step:,.0f}", train, number_text(loss), number_text(in_bits) if math.isfinite(in_bits) else "")
        )
    return found


def _sections(settings: list[Setting]) -> dict[str, list[Setting]]:
    """By the table that they stand in; those in none under ""."""
    sections: dict[str, list[Setting]] = {}
    for setting in settings:
        table, _, _ = setting.key.partition(".") if "." in setting.key else ("", "", "")
        sections.setdefault(table[:100], []).append(setting)
    return sections
