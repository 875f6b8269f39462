"""Line charts as SVG, of one run or of many.

Input: series of points with labels. Output: markup for a page, and the same points for the script that shows
values under the pointer. Text keeps its size at every width: only the curves are stretched. Colors and fonts
come from the page's style sheet. Knows nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from gptkit.report.render import number_text
from gptkit.runs.metrics import Curve

COLORS = 8  # in the style sheet, as .c0 to .c7; later series repeat them, dashed
MARKED_POINTS = 60  # a curve of at most so many points shows each of them
_UNITS = 10_000  # width and height of the plot in its own coordinates, as whole numbers
_SMALLEST = 1e-290  # a smaller range of values counts as none
_OUTLIER = 4.0  # values further above the 99th percentile than so many times the middle 98 % are cut off

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """A line. x is increasing; `band` is drawn around it, as (lowest, highest) at each x."""

    label: str
    x: Floats
    y: Floats
    band: tuple[Floats, Floats] | None = None
    color: int = 0

    @classmethod
    def of(cls, curve: Curve, label: str, color: int, *, axis: str = "step", in_bits: bool = False) -> Series:
        """The values of a curve over steps, tokens or seconds, or the bits per byte of a val loss."""
        x = {"step": curve.steps, "tokens": curve.tokens, "seconds": curve.seconds}[axis]
        y = curve.bits_per_byte if in_bits else curve.values
        return cls(label, np.array(x, np.float64), np.array(y, np.float64), color=color).finite()

    def finite(self) -> Series:
        """The points that can be drawn, by increasing x."""
        good = np.isfinite(self.x) & np.isfinite(self.y)
        if self.band is not None:
            good &= np.isfinite(self.band[0]) & np.isfinite(self.band[1])
        order = np.flatnonzero(good)[np.argsort(self.x[good], kind="stable")]
        band = None if self.band is None else (self.band[0][order], self.band[1][order])
        return replace(self, x=self.x[order], y=self.y[order], band=band)


@dataclass(frozen=True)
class Mark:
    """A highlighted point, with its label."""

    x: float
    y: float
    label: str
    color: int = 0


@dataclass(frozen=True)
class Chart:
    """Series in one pair of axes. `id` consists of letters, digits and '-', and is unique in a page."""

    id: str
    title: str
    series: Sequence[Series]
    x_label: str = "step"
    mark: Mark | None = None


@dataclass(frozen=True)
class Drawn:
    """A chart as a template needs it: `svg` is safe markup, `data` is JSON for the script."""

    chart: Chart
    svg: Markup
    data: dict[str, Any]
    legend: list[dict[str, str]]  # of each series: label, swatch (class), value and x of its last point
    note: str  # what is not shown


def draw(chart: Chart) -> Drawn | None:
    """The chart, or None if no series has a point."""
    series = [one.finite() for one in chart.series]
    series = [one for one in series if len(one.x)]
    if not series:
        return None
    x_from, x_to = _span(np.concatenate([one.x[[0, -1]] for one in series]))
    if 0 < x_from <= x_to / 4:  # a run is shown from its beginning
        x_from = 0.0
    y_from, y_to, beyond = _y_range(series)
    y_ticks = ticks(y_from, y_to, 5)
    y_from, y_to = min(y_from, y_ticks[0]), max(y_to, y_ticks[-1])
    frame = _Frame(x_from, x_to, y_from, y_to)
    parts = [_axes(frame, ticks(x_from, x_to, 5), y_ticks, chart.x_label)]
    lines = Markup("").join(_line(frame, one) for one in series)
    parts.append(
        Markup(
            '<svg class="lines" width="100%" height="100%" viewBox="0 0 {0} {0}" preserveAspectRatio="none">'
            "{1}</svg>"
        ).format(_UNITS, lines)
    )
    parts += [_points(frame, one) for one in series]
    if chart.mark is not None and x_from <= chart.mark.x <= x_to and y_from <= chart.mark.y <= y_to:
        parts.append(_mark(frame, chart.mark))
    svg = Markup(
        '<svg class="chart" role="img" aria-labelledby="{0}-title {0}-desc" width="100%" height="100%">'
        '<title id="{0}-title">{1}</title><desc id="{0}-desc">{2}</desc>{3}</svg>'
    ).format(chart.id, chart.title, describe(chart, series), Markup("").join(parts))
    legend = [
        {
            "label": one.label,
            "swatch": _classes(one),
            "value": number_text(float(one.y[-1])),
            "x": x_text(float(one.x[-1]), chart.x_label),
        }
        for one in series
    ]
    data = {
        "x": [x_from, x_to],
        "y": [y_from, y_to],
        "label": chart.x_label,
        "series": [{"label": one.label, "x": _rounded(one.x, 9), "y": _rounded(one.y, 5)} for one in series],
    }
    note = f"{beyond:,} values above {number_text(y_to)} are cut off." if beyond else ""
    return Drawn(chart, svg, data, legend, note)


def describe(chart: Chart, series: Sequence[Series]) -> str:
    """A description of the chart for screen readers."""
    return " ".join(
        f"{one.label}: from {number_text(float(one.y[0]))} at {x_text(float(one.x[0]), chart.x_label)} "
        f"to {number_text(float(one.y[-1]))} at {x_text(float(one.x[-1]), chart.x_label)}, "
        f"lowest {number_text(float(one.y.min()))}, highest {number_text(float(one.y.max()))}."
        for one in series[:20]
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from about `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    span = high - low
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def x_text(value: float, label: str) -> str:
    """A place on the x axis: 'step 1,200', '1,536,000 tokens', '7.2 s'."""
    if label == "seconds":
        return f"{value:,.1f} s"
    return f"{label} {value:,.0f}" if label == "step" else f"{value:,.0f} {label}"


def tick_text(value: float, step: float) -> str:
    """A value at an axis, as short as possible: 1.5, 20k, 3M."""
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    for beginning, unit, sign in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= beginning:
            return f"{value / unit:.10g}{sign}"
    if abs(value) < step * 1e-6:
        return "0"
    return f"{value:.1e}" if step < 1e-5 else f"{value:.10g}"


@dataclass(frozen=True)
class _Frame:
    """Converts values to positions, in the plot's own units or in per cent of it."""

    x_from: float
    x_to: float
    y_from: float
    y_to: float

    def right(self, x: float) -> float:
        return (x - self.x_from) / (self.x_to - self.x_from)

    def down(self, y: float) -> float:
        return (self.y_to - y) / (self.y_to - self.y_from)

    def place(self, xs: Floats, ys: Floats) -> list[str]:
        across = np.rint((xs - self.x_from) / (self.x_to - self.x_from) * _UNITS)
        down = np.rint(np.clip((self.y_to - ys) / (self.y_to - self.y_from), -9, 9) * _UNITS)
        return [f"{x:.0f} {y:.0f}" for x, y in zip(across.tolist(), down.tolist(), strict=True)]


def _span(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high - low <= max(max(abs(low), abs(high)) * 1e-9, _SMALLEST):
        margin = max(abs(low), abs(high)) * 0.05
        margin = margin if margin > _SMALLEST else 1.0
        return low - margin, high + margin
    return low, high


def _y_range(series: Sequence[Series]) -> tuple[float, float, int]:
    """The lowest and highest value to show, and how many outliers above are cut off."""
    parts = [one.y for one in series] + [part for one in series if one.band for part in one.band]
    values = np.concatenate(parts)
    low, high = _span(values)
    first, last = (float(part) for part in np.quantile(values, [0.01, 0.99]))
    limit = last + _OUTLIER * (last - first)
    if last > first and high > limit and len(values) >= 50:
        return low, limit, int((values > limit).sum())
    return low, high, 0


def _classes(one: Series) -> str:
    return f"c{one.color % COLORS}" + (" dashed" if one.color >= COLORS else "")


def _line(frame: _Frame, one: Series) -> Markup:
    classes = _classes(one)
    drawn = Markup("")
    if one.band is not None:
        around = frame.place(
            np.concatenate([one.x, one.x[::-1]]), np.concatenate([one.band[1], one.band[0][::-1]])
        )
        drawn += Markup('<path class="band {}" d="M{}Z"/>').format(classes, "L".join(around))
    return drawn + Markup('<path class="line {}" d="M{}"/>').format(
        classes, "L".join(frame.place(one.x, one.y))
    )


def _points(frame: _Frame, one: Series) -> Markup:
    """Each point as a dot where there are few, so that a single one can be seen."""
    if len(one.x) > MARKED_POINTS:
        return Markup("")
    dots = [
        f'<circle cx="{100 * frame.right(x):.2f}%" cy="{100 * frame.down(y):.2f}%" r="2.5"/>'
        for x, y in zip(one.x.tolist(), one.y.tolist(), strict=True)
        if frame.y_from <= y <= frame.y_to
    ]
    return Markup('<g class="dots {}">{}</g>').format(_classes(one), Markup("".join(dots)))


def _mark(frame: _Frame, mark: Mark) -> Markup:
    across, down = 100 * frame.right(mark.x), 100 * frame.down(mark.y)
    anchor = "end" if across > 60 else "start" if across < 40 else "middle"
    above = -12 if down > 12 else 22
    return Markup(
        '<g class="mark c{}"><circle cx="{x}%" cy="{y}%" r="5"/>'
        '<text x="{x}%" y="{y}%" dy="{}" text-anchor="{}">{}</text></g>'
    ).format(mark.color % COLORS, above, anchor, escape(mark.label), x=f"{across:.2f}", y=f"{down:.2f}")


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> Markup:
    parts = []
    for value in y_ticks:
        at = f"{100 * frame.down(value):.2f}"
        text = tick_text(value, y_ticks[1] - y_ticks[0])
        parts.append(
            f'<line class="grid" x1="0" x2="100%" y1="{at}%" y2="{at}%"/>'
            f'<text x="-8" y="{at}%" dy="4" text-anchor="end">{text}</text>'
        )
    for value in x_ticks:
        if not frame.x_from <= value <= frame.x_to:
            continue
        at = f"{100 * frame.right(value):.2f}"
        text = tick_text(value, x_ticks[1] - x_ticks[0])
        parts.append(f'<text x="{at}%" y="100%" dy="18" text-anchor="middle">{text}</text>')
    return Markup('<g class="axes">{}<text x="100%" y="100%" dy="36" text-anchor="end">{}</text></g>').format(
        Markup("".join(parts)), x_label
    )


def _rounded(values: Floats, digits: int) -> list[float]:
    """The values with so many digits, as short as possible in JSON."""
    rounded = [float(f"{value:.{digits}g}") for value in values.tolist()]
    return [int(value) if value.is_integer() and abs(value) < 2**53 else value for value in rounded]
