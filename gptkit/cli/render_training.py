"""How training looks: a live display on a terminal, plain lines elsewhere, nothing when quiet.

In: events. Out: standard output (warnings go to standard error). Costs a few redraws a second.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gptkit import events
from gptkit.cli.render_tables import duration, printable

_SAMPLE_LINES = 8  # of a sample, shown when it is drawn; the whole of it is in the run's folder
_REDRAW_EVERY = 0.25  # seconds


class TrainingView(Protocol):
    def __call__(self, event: events.Event) -> None: ...


@contextmanager
def training_view(*, quiet: bool) -> Iterator[TrainingView]:
    """The view that fits where standard output goes."""
    if quiet:
        yield _QuietView()
    elif sys.stdout.isatty():
        console = Console()
        view = LiveView(console)
        # Drawn between steps, by the thread that trains: a thread of its own would race with what is printed
        with Live(
            get_renderable=view.render, console=console, auto_refresh=False, transient=True
        ) as view.live:
            yield view
        view.conclude()
    else:
        yield PlainView()


class _QuietView:
    """Only warnings, on standard error."""

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Warned):
            _warn(event.message)


def _warn(message: str) -> None:
    print(f"gptkit: warning: {message}", file=sys.stderr)


def describe_start(event: events.RunStarted) -> list[str]:
    """What is being trained, on what, in lines."""
    compiled = ", compiled" if event.compiled else ""
    if event.stop_step:
        length = f"steps {event.start_step} to {event.stop_step}"
    else:
        length = f"{event.minutes:g} minutes from step {event.start_step}"
    return [
        f"run {event.run_id}",
        f"{event.dataset}: {event.train_tokens:,} tokens to train on, {event.val_tokens:,} to evaluate on "
        f"({event.tokenizer}, vocabulary {event.vocab_size:,})",
        f"{event.parameters:,} parameters, {event.device}, {event.precision}{compiled}; {length}, "
        f"{event.tokens_per_step:,} tokens a step",
    ]


def describe_resume(event: events.ResumeChecked) -> str:
    verdict = f"valid, not bit-identical ({', '.join(event.differences)})" if event.differences else "exact"
    return f"resume: {verdict}, from step {event.step}"


def describe_replayed(event: events.ReplayStarted) -> str:
    begin = (
        f"from step {event.start}"
        if event.start
        else "from the initial weights (there is no earlier checkpoint)"
    )
    return f"verify: training again to step {event.end} {begin}, in a temporary folder"


def describe_end(event: events.RunFinished, folder: str) -> list[str]:
    """What was reached, where it is, and how to go on."""
    best = (
        f"; best val loss {event.best_val_loss:.4f} ({event.best_bits_per_byte:.4f} bits/byte) "
        f"at step {event.best_step}"
        if event.best_val_loss is not None and event.best_bits_per_byte is not None
        else ""
    )
    reached = event.reason or f"step {event.step} of {event.max_steps}"
    lines = [
        f"{event.status}: {reached}, {duration(event.seconds)} of training{best}",
        f"run folder:  {folder}",
    ]
    if event.report is not None:
        lines.append(f"report:      {event.report}")
    if event.saved:
        folder = shlex.quote(folder)
        lines.append(f"write text:  gptkit generate {folder}")
        if event.status != "finished":
            lines.append(f"go on:       gptkit resume {folder}")
    return lines


class PlainView:
    """A line each log_interval, for pipes and log files."""

    def __init__(self) -> None:
        self._folder = ""
        self._words: dict[str, str] = {}
        self._working = ""

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self._folder = str(event.folder)
                self._say(*describe_start(event))
            case events.StepFinished():
                self._words = {
                    "step": str(event.step),
                    "train loss": f"{event.train_loss:.4f}",
                    "learning rate": f"{event.learning_rate:.3g}",
                    "grad norm": f"{event.grad_norm:.3g}",
                    "tokens/s": f"{event.tokens_per_second:,.0f}",
                }
            case events.EvaluationFinished():
                self._words |= {
                    "val loss": f"{event.val_loss:.4f}" + (" (best)" if event.is_best else ""),
                    "bits/byte": f"{event.bits_per_byte:.4f}",
                }
            case events.StepDone():
                if self._words:
                    self._say("  ".join(f"{name} {value}" for name, value in self._words.items()))
                    self._words = {}
            case events.RunFinished():
                self._say(*describe_end(event, self._folder))
            case events.ResumeChecked():
                self._say(describe_resume(event))
            case events.ReplayStarted():
                self._say(describe_replayed(event))
            case events.Working():
                self._once(event)
            case events.Warned():
                _warn(event.message)

    def _once(self, event: events.Working) -> None:
        """The first word of some work; how it goes on is for those who watch."""
        if self._working != event.what:
            self._working = event.what
            self._say(event.what)

    def _say(self, *lines: str) -> None:
        try:
            print("\n".join(printable(line) for line in lines), flush=True)
        except BrokenPipeError:  # `gptkit train | head`: the reader has had enough, the training has not
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LiveView:
    """A bar with the numbers of the moment, below lines that stay: evaluations, samples, warnings."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.live: Live | None = None
        self._start: events.RunStarted | None = None
        self._logged: events.StepFinished | None = None
        self._evaluated: events.EvaluationFinished | None = None
        self._finished: events.RunFinished | None = None
        self._step = 0
        self._began = time.monotonic()
        self._drawn = 0.0
        self._working: events.Working | None = None

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self._start, self._step, self._began = event, event.start_step, time.monotonic()
                self._working = None
                for line in describe_start(event):
                    self._console.print(escape(printable(line)), style="dim", highlight=False)
                self._redraw()
            case events.StepDone():
                self._step = event.step
                self._redraw()
            case events.StepFinished():
                self._logged = event
            case events.EvaluationFinished():
                self._evaluated = event
                self._console.print(_evaluation_line(event), highlight=False)
            case events.SampleDrawn():
                self._console.print(_sample(event), highlight=False)
            case events.ResumeChecked():
                style = "yellow" if event.differences else "green"
                self._console.print(escape(describe_resume(event)), style=style, highlight=False)
            case events.ReplayStarted():
                self._console.print(escape(describe_replayed(event)), style="dim", highlight=False)
            case events.Working():
                self._working = event
                self._redraw()
            case events.Warned():
                self._console.print(Text(f"warning: {event.message}", style="yellow"))
            case events.RunFinished():
                self._finished = event

    def _redraw(self) -> None:
        now = time.monotonic()
        if self.live is not None and now - self._drawn >= _REDRAW_EVERY:
            self._drawn = now
            self.live.refresh()

    def render(self) -> RenderableType:
        """What stands below the lines now."""
        if self._start is None:
            return self._preparing()
        start = self._start
        done, todo, of = self._done()
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(
            ProgressBar(total=todo, completed=min(done, todo)),
            Text(f"step {self._step}{of}  {self._time_left(done, todo)}"),
        )
        return Panel(
            Group(bar, self._numbers()), title=Text(start.run_id, overflow="ellipsis"), border_style="cyan"
        )

    def _preparing(self) -> RenderableType:
        work = self._working
        if work is None:
            return Text("preparing…", style="dim")
        return Group(
            Text(f"{work.what}…", style="dim"), ProgressBar(total=work.total or None, completed=work.done)
        )

    def _done(self) -> tuple[float, float, str]:
        """How much of this session is done, of how much, in steps or in seconds; and how it is said."""
        start = self._start
        assert start is not None
        if start.stop_step:
            return (
                self._step - start.start_step,
                max(start.stop_step - start.start_step, 1),
                f"/{start.stop_step}",
            )
        done = self._logged.seconds if self._logged else 0.0
        expected = self._logged.expected_steps if self._logged else None
        return done, 60 * (start.minutes or 0), f" of about {expected}" if expected else ""

    def _time_left(self, done: float, todo: float) -> str:
        if done == 0:
            return ""
        assert self._start is not None
        by_clock = not self._start.stop_step
        left = todo - done if by_clock else (time.monotonic() - self._began) / done * (todo - done)
        return f"{duration(max(left, 0.0))} left"

    def _numbers(self) -> Text:
        words: list[tuple[str, str]] = []
        if self._logged:
            words += [
                ("tokens/s", f"{self._logged.tokens_per_second:,.0f}"),
                ("lr", f"{self._logged.learning_rate:.3g}"),
                ("train", f"{self._logged.train_loss:.4f}"),
            ]
        if self._evaluated:
            words += [
                ("val", f"{self._evaluated.val_loss:.4f}"),
                ("best", f"{self._evaluated.best_val_loss:.4f} @ {self._evaluated.best_step}"),
            ]
        text = Text()
        for name, value in words:
            text.append(f"{name} ", style="dim")
            text.append(f"{value}   ", style="bold")
        return text

    def conclude(self) -> None:
        """The last lines, when the display is gone."""
        if self._finished and self._start:
            first, *rest = describe_end(self._finished, str(self._start.folder))
            style = "bold green" if self._finished.status == "finished" else "bold yellow"
            self._console.print(Text(first, style=style))
            for line in rest:
                self._console.print(Text(printable(line)), soft_wrap=True)


def _evaluation_line(event: events.EvaluationFinished) -> Text:
    line = Text(f"step {event.step:>6}  ", style="dim")
    line.append(f"val loss {event.val_loss:.4f}", style="bold green" if event.is_best else "")
    line.append(f"  bits/byte {event.bits_per_byte:.4f}  after {duration(event.seconds)}", style="dim")
    return line


def _sample(event: events.SampleDrawn) -> Panel:
    lines = event.text.strip("\n").splitlines()
    shown = "\n".join(printable(line) for line in lines[:_SAMPLE_LINES])
    more = "\n…" if len(lines) > _SAMPLE_LINES else ""
    return Panel(
        Text(shown + more), title=f"sample at step {event.step}", title_align="left", border_style="dim"
    )
