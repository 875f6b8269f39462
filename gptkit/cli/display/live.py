"""Training on a terminal: lines that stay, and below them a panel that is drawn anew.

In: events. Out: the terminal, which is left as it was found, however training ends. The panel is drawn
between steps, by the thread that trains (another one would race with what is printed), and so seldom that
it takes a three-hundredth of the time at most.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from gptkit import events
from gptkit.cli.display.panel import Room, Seen, panel
from gptkit.cli.display.plain import (
    PlainView,
    describe_end,
    describe_replayed,
    describe_resume,
    describe_start,
)
from gptkit.cli.display.tables import duration
from gptkit.cli.display.terminal import Screen, speaks_ascii, undisturbed
from gptkit.errors import GptkitError
from gptkit.runs import Run

_SAMPLE_LINES = 8  # of the last sample, shown at the end; the whole of it is in the run's folder
_SHARE = 1 / 300  # of the time, at most, that goes into drawing
_SOONEST, _LATEST = 0.25, 2.0  # seconds from one drawing of the panel to the next
_AFTER_RESIZE = 0.05  # seconds; a window that is being drawn larger changes often


@contextmanager
def live_view(stop_requested: Callable[[], object] = str) -> Iterator[events.Listener]:
    """The live display on standard output; plain lines where that is a terminal that can only do lines."""
    console = Console(file=sys.stdout)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainView()
        return
    view = LiveView(console, stop_requested=stop_requested, ascii_only=speaks_ascii(console.encoding))
    live = Live(get_renderable=view.render, console=console, auto_refresh=False, transient=True)
    view.screen = Screen(console, live)
    with undisturbed(view.screen, on_resize=view.hurry):
        try:
            with view.screen.whole():
                live.start()
            yield view
        finally:
            view.screen.stop()
    view.conclude()


class LiveView:
    """A listener that prints what stays, and has the panel drawn when it is time to."""

    def __init__(
        self,
        console: Console,
        *,
        stop_requested: Callable[[], object] = str,
        ascii_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seen = Seen()
        self.screen: Screen | None = None
        self._console, self._clock, self._stop_requested = console, clock, stop_requested
        self._ascii_only = ascii_only
        self._finished: events.RunFinished | None = None
        self._began: tuple[float, float] | None = None  # the time after the first step, and what was done
        self._due = 0.0
        self._drawn = 0.0

    def __call__(self, event: events.Event) -> None:
        seen = self.seen
        match event:
            case events.RunStarted():
                seen.start, seen.step, seen.working = event, event.start_step, None
                self._remember(event)
                for line in describe_start(event):
                    self._print(line, "dim")
                self._redraw(at_once=True)
            case events.StepDone():
                seen.step, seen.working = event.step, None
                if self._began is None:
                    self._began = self._clock(), seen.done()[0]
                self._redraw()
            case events.StepFinished():
                seen.step, seen.logged, seen.working = event.step, event, None
                seen.train.add(event.step, event.train_loss)
            case events.EvaluationFinished():
                seen.evaluated(event.step, event.val_loss)
                seen.best, seen.working = (event.best_val_loss, event.best_step), None
                self._print(_evaluation_line(event))
            case events.SampleDrawn():
                seen.sample = event
            case events.Working():
                seen.working = event
                self._redraw()
            case events.RunFinished():
                self._finished = event
            case events.ResumeChecked() | events.ReplayStarted() | events.Warned():
                self._tell(event)

    def _tell(self, event: events.ResumeChecked | events.ReplayStarted | events.Warned) -> None:
        match event:
            case events.ResumeChecked():
                self._print(describe_resume(event), "yellow" if event.differences else "green")
            case events.ReplayStarted():
                self._print(describe_replayed(event), "dim")
            case events.Warned():
                for line in f"warning: {event.message}".split("\n"):
                    self._print(line, "yellow")

    def _remember(self, start: events.RunStarted) -> None:
        """A run that goes on shows all of its curve."""
        if not start.start_step:
            return
        with suppress(GptkitError, OSError):
            for row in Run(start.folder).metrics():
                step, train, val = (row.get(key) for key in ("step", "train_loss", "val_loss"))
                if not isinstance(step, int) or step > start.start_step:
                    continue
                if isinstance(train, float):
                    self.seen.train.add(step, train)
                if isinstance(val, float):
                    self.seen.evaluated(step, val)

    def hurry(self) -> None:
        """The terminal has another size: soon is not soon enough."""
        self._due = min(self._due, self._drawn + _AFTER_RESIZE)

    def _redraw(self, at_once: bool = False) -> None:
        now = self._clock()
        if self.screen is None or (now < self._due and not at_once):
            return
        self.screen.refresh()
        self._drawn = self._clock()
        self._due = self._drawn + min(max((self._drawn - now) / _SHARE, _SOONEST), _LATEST)

    def _print(self, line: str | Text, style: str = "") -> None:
        """A line that stays, above the panel."""
        text = Text(self.room().fit(line), style=style) if isinstance(line, str) else line
        if self.screen is None:
            self._console.print(text, highlight=False)
        else:
            self.screen.print(text)

    def room(self) -> Room:
        encoding = "ascii" if self._ascii_only else self._console.encoding
        return Room(*self._console.size, self._ascii_only, encoding)

    def render(self) -> Text:
        """What stands below the lines now."""
        self.seen.stopping = bool(self._stop_requested())
        lines = panel(self.seen, self.room(), self._time_left())
        if self.screen is not None:
            self.screen.drawn(lines)
        text = Text("\n", no_wrap=True, overflow="crop", end="").join(lines)
        text.no_wrap, text.overflow = True, "crop"
        return text

    def _time_left(self) -> str:
        start = self.seen.start
        if start is None or self._began is None:
            return ""
        done, todo = self.seen.done()
        if not start.stop_step:
            return _roughly(todo - done) if done else ""
        began, by_then = self._began
        if done <= by_then:
            return ""
        return _roughly((self._clock() - began) / (done - by_then) * (todo - done))

    def conclude(self) -> None:
        """The last sample and the last lines, when the panel is gone."""
        room, print_ = self.room(), self._console.print
        if self.seen.sample:
            print_(_sample(self.seen.sample, room), highlight=False)
        if self._finished and self.seen.start:
            first, *rest = describe_end(self._finished, str(self.seen.start.folder))
            style = "bold green" if self._finished.status == "finished" else "bold yellow"
            print_(Text(room.fit(first), style=style))
            for line in rest:
                print_(Text(room.fit(line)), soft_wrap=True)


def _roughly(seconds: float) -> str:
    """Time left, which is not known to a tenth of a second."""
    return f"{max(seconds, 0.0):.0f} s" if seconds < 59.5 else duration(seconds)


def _evaluation_line(event: events.EvaluationFinished) -> Text:
    line = Text(f"step {event.step:>6}  ", style="dim")
    line.append(f"val loss {event.val_loss:.4f}", style="bold green" if event.is_best else "")
    line.append(f"  bits/byte {event.bits_per_byte:.4f}  after {duration(event.seconds)}", style="dim")
    return line


def _sample(event: events.SampleDrawn, room: Room) -> Panel:
    from rich import box

    lines = event.text.strip("\n").split("\n")
    shown = "\n".join(room.fit(line) for line in lines[:_SAMPLE_LINES])
    more = f"\n{room.dots}" if len(lines) > _SAMPLE_LINES else ""
    return Panel(
        Text(shown + more),
        box=box.ASCII if room.ascii_only else box.ROUNDED,
        title=f"sample at step {event.step}",
        title_align="left",
        border_style="dim",
    )
