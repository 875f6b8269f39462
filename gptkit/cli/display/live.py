"""Training on a terminal: lines that stay, and below them a panel that is drawn again and again.

In: events. Out: the terminal, which is left as it was found, however training ends. The panel is drawn
between steps by the thread that trains (another one would race with what is printed), and so seldom that it
takes a three-hundredth of the time at most.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from gptkit import events
from gptkit.cli.display.panel import PanelState, Viewport, panel
from gptkit.cli.display.plain import (
    PlainView,
    describe_end,
    describe_replayed,
    describe_resume,
    describe_start,
)
from gptkit.cli.display.tables import duration
from gptkit.cli.display.terminal import LiveRegion, only_ascii
from gptkit.errors import GptkitError
from gptkit.runs import Run

_SAMPLE_LINES = 8  # of the last sample, shown at the end; all of it is in the run's folder
_SHARE = 1 / 300  # of the time, at most, that goes into drawing
_SOONEST, _LATEST = 0.25, 2.0  # seconds from one drawing of the panel to the next


@contextmanager
def live_view(stop_requested: Callable[[], object]) -> Iterator[events.Listener]:
    """The live display on standard output; plain lines if the terminal cannot move its cursor."""
    console = Console(file=sys.stdout)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainView()
        return
    view = LiveView(console, stop_requested=stop_requested, ascii_only=only_ascii(console.encoding))
    with view.region.shown():
        yield view
    view.conclude()


class LiveView:
    """A listener that prints the lines that stay, and draws the panel when it is due."""

    def __init__(
        self,
        console: Console,
        *,
        stop_requested: Callable[[], object] | None = None,
        ascii_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = PanelState()
        self.region = LiveRegion(console, self.lines)
        self._console, self._clock, self._stop_requested = console, clock, stop_requested
        self._ascii_only = ascii_only
        self._finished: events.RunFinished | None = None
        self._began: tuple[float, float] | None = None  # the time after the first step, and what was done
        self._due = 0.0  # when the panel may be drawn again

    def __call__(self, event: events.Event) -> None:
        self.state.update(event)
        match event:
            case events.RunStarted():
                self._recall(event)
                for line in describe_start(event):
                    self._print(line, "dim")
                self._redraw(at_once=True)
            case events.StepDone():
                if self._began is None:
                    self._began = self._clock(), self.state.done()[0]
                self._redraw()
            case events.Working():
                self._redraw()
            case events.EvaluationFinished():
                self.region.print(_evaluation_line(event))
            case events.RunFinished():
                self._finished = event
            case events.ResumeChecked():
                self._print(describe_resume(event), "yellow" if event.differences else "green")
            case events.ReplayStarted():
                self._print(describe_replayed(event), "dim")
            case events.Warned():
                for line in f"warning: {event.message}".split("\n"):
                    self._print(line, "yellow")

    def _recall(self, start: events.RunStarted) -> None:
        """A resumed run shows its whole curve."""
        if not start.start_step:
            return
        with suppress(GptkitError, OSError):
            for row in Run(start.folder).metrics():
                step, train, val = (row.get(key) for key in ("step", "train_loss", "val_loss"))
                if not isinstance(step, int) or step > start.start_step:
                    continue
                if isinstance(train, float):
                    self.state.train.add(step, train)
                if isinstance(val, float):
                    self.state.evaluated(step, val)

    def _redraw(self, at_once: bool = False) -> None:
        now = self._clock()
        if now >= self._due or at_once:
            self.region.refresh()
            drawn = self._clock()
            self._due = drawn + min(max((drawn - now) / _SHARE, _SOONEST), _LATEST)

    def _print(self, line: str, style: str) -> None:
        """A line that stays, above the panel."""
        self.region.print(Text(self._viewport().fit(line), style=style))

    def _viewport(self) -> Viewport:
        encoding = "ascii" if self._ascii_only else self._console.encoding
        return Viewport(*self._console.size, self._ascii_only, encoding)

    def lines(self) -> list[Text]:
        """The panel as it is now."""
        self.state.stopping = bool(self._stop_requested and self._stop_requested())
        return panel(self.state, self._viewport(), self._time_left())

    def _time_left(self) -> str:
        start = self.state.start
        if start is None or self._began is None:
            return ""
        done, todo = self.state.done()
        if not start.stop_step:
            return _roughly(todo - done) if done else ""
        began, by_then = self._began
        if done <= by_then:
            return ""
        return _roughly((self._clock() - began) / (done - by_then) * (todo - done))

    def conclude(self) -> None:
        """Prints the last sample and the last lines, when the panel is gone."""
        viewport, print_ = self._viewport(), self._console.print
        if self.state.sample:
            print_(_sample(self.state.sample, viewport), highlight=False)
        if self._finished and self.state.start:
            first, *rest = describe_end(self._finished, str(self.state.start.folder))
            style = "bold green" if self._finished.status is events.RunStatus.FINISHED else "bold yellow"
            print_(Text(viewport.fit(first), style=style))
            for line in rest:
                print_(Text(viewport.fit(line)), soft_wrap=True)


def _roughly(seconds: float) -> str:
    """Time left, which is not known to a tenth of a second."""
    return f"{max(seconds, 0.0):.0f} s" if seconds < 59.5 else duration(seconds)


def _evaluation_line(event: events.EvaluationFinished) -> Text:
    line = Text(f"step {event.step:>6}  ", style="dim")
    line.append(f"val loss {event.val_loss:.4f}", style="bold green" if event.is_best else "")
    line.append(f"  bits/byte {event.bits_per_byte:.4f}  after {duration(event.seconds)}", style="dim")
    return line


def _sample(event: events.SampleDrawn, viewport: Viewport) -> Panel:
    lines = event.text.strip("\n").split("\n")
    shown = "\n".join(viewport.fit(line) for line in lines[:_SAMPLE_LINES])
    more = f"\n{viewport.dots}" if len(lines) > _SAMPLE_LINES else ""
    return Panel(
        Text(shown + more),
        box=box.ASCII if viewport.ascii_only else box.ROUNDED,
        title=f"sample at step {event.step}",
        title_align="left",
        border_style="dim",
    )
