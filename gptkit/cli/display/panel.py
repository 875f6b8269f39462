"""The panel below the lines that stay: progress, numbers, the curve of the loss, the latest sample.

Input: the state of a run, and the size of the terminal. Output: lines of text, never wider or more than that;
what matters least is left out first. Knows nothing of the order of events, of time or of control sequences.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.text import Text

from gptkit import events
from gptkit.cli.display.curve import ASCII_MARKS, MARKS, History, panel_curve
from gptkit.words import printable

_TRAIN, _VAL = "cyan", "bold green"  # styles of the two curves
_CELL = 20  # columns that a number takes with its name
_BESIDE = 84  # columns from which the sample is beside the curve, not below it
_SAMPLE_BELOW = 3  # lines of the sample below the curve


@dataclass
class PanelState:
    """What is known of a run, for the panel."""

    start: events.RunStarted | None = None
    step: int = 0
    figures: events.StepFinished | events.StepProgress | None = None  # the latest
    val_loss: float | None = None
    best: tuple[float, int] | None = None  # val loss and its step
    working: events.Working | None = None  # what is done now besides training
    sample: events.SampleDrawn | None = None
    stopping: bool = False
    train: History = field(default_factory=History)
    val: History = field(default_factory=History)

    def update(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self.start, self.step, self.working = event, event.start_step, None
            case events.StepDone():
                self.step, self.working = event.step, None
            case events.StepFinished():
                self.step, self.figures, self.working = event.step, event, None
                self.train.add(event.step, event.train_loss)
            case events.StepProgress():
                self.step, self.figures, self.working = event.step, event, None
            case events.EvaluationFinished():
                self.evaluated(event.step, event.val_loss)
                self.best, self.working = (event.best_val_loss, event.best_step), None
            case events.SampleDrawn():
                self.sample = event
            case events.Working():
                self.working = event

    def evaluated(self, step: int, loss: float) -> None:
        self.val_loss = loss
        self.val.add(step, loss)
        if self.best is None or loss < self.best[0]:
            self.best = (loss, step)

    def done(self) -> tuple[float, float]:
        """How much of this session is done, of how much: in steps, or in seconds where the clock ends it."""
        start = self.start
        assert start is not None
        if start.stop_step:
            return self.step - start.start_step, max(start.stop_step - start.start_step, 1)
        return (self.figures.seconds if self.figures else 0.0), 60 * (start.minutes or 0)


@dataclass(frozen=True)
class Viewport:
    """The size of the terminal, and the characters that it shows."""

    width: int  # columns
    height: int  # rows
    ascii_only: bool
    encoding: str = "utf-8"

    def fit(self, text: str) -> str:
        """Any text as the terminal can show it: control characters as escapes, others as '?'."""
        return printable(text).encode(self.encoding, "replace").decode(self.encoding)

    def shorten(self, text: str, width: int) -> str:
        dots = self.dots
        return text if len(text) <= width else text[: max(width - len(dots), 0)] + dots[:width]

    @property
    def dots(self) -> str:
        return "..." if self.ascii_only else "…"


def panel(state: PanelState, viewport: Viewport, time_left: str) -> list[Text]:
    """The lines of the panel, at most `viewport.height` - 1, each of at most `viewport.width` columns."""
    if state.start is None:
        return _preparing(state, viewport)[: max(viewport.height - 1, 1)]
    framed = viewport.width >= 40 and viewport.height >= 10
    width = viewport.width - 4 if framed else viewport.width
    lines = [*_status(state, viewport, width, time_left), *_numbers(state, viewport, width)]
    lines += _pictures(state, viewport, width)
    for line in lines:
        line.truncate(width, overflow="crop", pad=framed)
    lines = lines[: max(viewport.height - (3 if framed else 1), 1)]
    return list(_framed(lines, viewport, state.start.run_id)) if framed else lines


def _framed(lines: list[Text], viewport: Viewport, title: str) -> Iterator[Text]:
    corners, across, down = ("++++", "-", "|") if viewport.ascii_only else ("╭╮╰╯", "─", "│")
    shown = viewport.shorten(viewport.fit(title), viewport.width - 6)
    top = Text().append(f"{corners[0]}{across} ", style="cyan").append(shown, style="bold")
    top.append(f" {across * (viewport.width - 5 - len(shown))}{corners[1]}", style="cyan")
    yield top
    for line in lines:
        yield Text.assemble((f"{down} ", "cyan"), line, (f" {down}", "cyan"))
    yield Text(f"{corners[2]}{across * (viewport.width - 2)}{corners[3]}", style="cyan")


def _preparing(state: PanelState, viewport: Viewport) -> list[Text]:
    work = state.working
    if work is None:
        return [Text(f"preparing{viewport.dots}", style="dim")]
    words = viewport.shorten(viewport.fit(work.what), max(viewport.width - 12, 8))
    line = Text().append(f"{words} ", style="dim")
    far = _how_far(work)
    if work.total and viewport.width - len(words) - len(far) > 12:
        line.append_text(
            _bar(work.done / work.total, min(40, viewport.width - len(words) - len(far) - 2), viewport)
        )
        line.append(" ")
    line.append(far)
    line.truncate(viewport.width, overflow="crop")
    return [line]


def _how_far(work: events.Working) -> str:
    if work.total:
        return f"{min(work.done / work.total, 1):4.0%}"
    return f"{work.done:,}" if work.done else ""


def _bar(share: float, width: int, viewport: Viewport) -> Text:
    full = round(min(max(share, 0.0), 1.0) * width)
    done, rest = ("#", "-") if viewport.ascii_only else ("━", "─")
    return Text().append(done * full, style="bold magenta").append(rest * (width - full), style="dim")


def _status(state: PanelState, viewport: Viewport, width: int, time_left: str) -> list[Text]:
    """The bar with the step and the time left; in two lines where one is too short."""
    start = state.start
    assert start is not None
    done, todo = state.done()
    if start.stop_step:
        of = f"/{start.stop_step}"
    else:
        expected = state.figures.expected_steps if state.figures else None
        of = f" of about {expected}" if expected else ""
    words = Text().append(f"step {state.step}{of}", style="bold")
    if state.stopping:
        words.append("  stopping, saving first", style="bold yellow")
    elif state.working:
        words.append(
            f"  {viewport.fit(state.working.what)} {_how_far(state.working)}".rstrip(), style="yellow"
        )
    elif state.step == start.start_step:
        words.append(f"  first step{viewport.dots}", style="dim")
    if time_left and not state.stopping:
        words.append(f"  {time_left} left")
    if width < 50:
        return [words, _bar(done / todo, width, viewport)]
    words.align("right", max(26, len(words)))  # so that the bar keeps its length while digits come and go
    return [_bar(done / todo, width - len(words) - 1, viewport).append(" ").append_text(words)]


def _numbers(state: PanelState, viewport: Viewport, width: int) -> list[Text]:
    """Names with values, in as many columns as fit; all of them from the start, so that nothing jumps."""
    latest, marks = state.figures, ASCII_MARKS if viewport.ascii_only else MARKS
    loss = "{:.4f}".format
    cells = [
        (marks[0], "train", loss(latest.train_loss) if latest else "", _TRAIN),
        (marks[1], "val", loss(state.val_loss) if state.val_loss is not None else "", _VAL),
        ("", "best", f"{loss(state.best[0])} @ {state.best[1]}" if state.best else "", ""),
        ("", "tokens/s", f"{latest.tokens_per_second:,.0f}" if latest else "", ""),
        ("", "lr", _rates(latest) if latest else "", ""),
        ("", "grad norm", f"{latest.grad_norm:.3g}" if latest else "", ""),
    ]
    columns = next((count for count in (6, 3, 2) if width >= count * _CELL), 1)
    lines = []
    for first in range(0, len(cells), columns):
        line = Text()
        for mark, name, value, style in cells[first : first + columns]:
            cell = Text().append(f"{mark} " if mark else "", style=style)
            cell.append(f"{name} ", style="dim").append(value or "-", style="bold")
            cell.truncate(width // columns, overflow="crop", pad=True)
            line.append_text(cell)
        lines.append(line)
    return lines


def _rates(logged: events.StepFinished | events.StepProgress) -> str:
    """The learning rate; with Muon that of the hidden matrices and that of AdamW."""
    rate, adamw_rate = logged.learning_rate, logged.adamw_learning_rate
    if adamw_rate in (None, rate):
        return f"{rate:.3g}"
    return f"{rate:.2g}/{adamw_rate:.2g}"


def _pictures(state: PanelState, viewport: Viewport, width: int) -> list[Text]:
    """The curve, with the latest sample beside or below it."""
    rows = min(viewport.height // 4, 10)
    if rows < 3:
        return []
    sample, ascii_only = state.sample, viewport.ascii_only
    beside = sample is not None and width >= _BESIDE
    left = width // 2 - 1 if beside else width
    lines = _curve(state, left, rows, ascii_only)
    if sample is None:
        return lines
    if not beside:
        roomy = width >= 2 * _CELL and viewport.height >= 18
        return lines + (_sample(sample, viewport, width, _SAMPLE_BELOW) if roomy else [])
    texts = _sample(sample, viewport, width - left - 2, rows - 1)
    for line, text in zip(lines, texts, strict=False):
        line.truncate(left + 2, overflow="crop", pad=True)
        line.append_text(text)
    return lines


def _curve(state: PanelState, width: int, height: int, ascii_only: bool) -> list[Text]:
    mark = (ASCII_MARKS if ascii_only else MARKS)[1]
    lines = []
    for label, cells in panel_curve(
        state.train.points, state.val.points, width=width, height=height, ascii_only=ascii_only
    ):
        line = Text().append(label, style="dim").append(cells, style=_TRAIN)
        for column, cell in enumerate(cells):
            if cell == mark:
                line.stylize(_VAL, len(label) + column, len(label) + column + 1)
        lines.append(line)
    return lines


def _sample(sample: events.SampleDrawn, viewport: Viewport, width: int, rows: int) -> list[Text]:
    """Its first lines that are not empty, below a title."""
    lines: list[str] = []
    for line in sample.text.split("\n"):
        if len(lines) > rows:
            break
        lines += textwrap.wrap(viewport.fit(line[: width * rows]), width)
    if len(lines) > rows:
        lines[rows - 1] = f"{lines[rows - 1][: width - 4]} {viewport.dots}"
    texts = [Text(f"sample at step {sample.step}", style="dim")]
    return texts + [Text(line, style="italic") for line in lines[:rows]]
