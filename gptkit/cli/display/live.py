"""Training on a terminal: lines that stay, and below them a panel that is drawn again and again.

Input: events. Output: the terminal, restored however training ends. `LiveView` draws the panel between steps,
in the thread that trains (another one would race with what is printed), so rarely that it takes a
three-hundredth of the time at most. `LiveRegion` adds to rich's Live what it leaves out: keys are not echoed
into the region, Ctrl-Z removes it, a narrower window leaves no remains of it, a lost terminal is ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from rich import box
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from gptkit import events
from gptkit.cli.display.panel import PanelState, Viewport, panel
from gptkit.cli.display.plain import (
    LongRunNotice,
    PlainView,
    describe_end,
    describe_replayed,
    describe_resume,
    describe_start,
    roughly,
)
from gptkit.cli.display.tables import duration
from gptkit.cli.streams import discard
from gptkit.errors import GptkitError
from gptkit.runs import Run

_SAMPLE_LINES = 8  # of the last sample, shown at the end; all of it is in the run's folder
_SHARE = 1 / 300  # of the time, at most, that goes into drawing
_SOONEST, _LATEST = 0.25, 2.0  # seconds from one drawing of the panel to the next


@contextmanager
def live_view(stop_requested: Callable[[], object], quicker: str | None = None) -> Iterator[events.Listener]:
    """The live display on standard output; plain lines if the terminal cannot move its cursor.

    `quicker` is for `LongRunNotice`.
    """
    console = Console(file=sys.stdout)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainView(quicker)
        return
    ascii_only = only_ascii(console.encoding)
    view = LiveView(console, stop_requested=stop_requested, ascii_only=ascii_only, quicker=quicker)
    with view.region.shown():
        yield view
    with view.region.drawing():
        view.conclude()


class LiveView:
    """A listener that prints the lines that stay, and draws the panel when it is due."""

    def __init__(
        self,
        console: Console,
        *,
        stop_requested: Callable[[], object] | None = None,
        ascii_only: bool = False,
        quicker: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = PanelState()
        self.region = LiveRegion(console, self.lines)
        self._console, self._clock, self._stop_requested = console, clock, stop_requested
        self._ascii_only = ascii_only
        self._long_run = LongRunNotice(quicker)
        self._finished: events.RunFinished | None = None
        self._due = 0.0  # when the panel may be drawn again

    def __call__(self, event: events.Event) -> None:
        self.state.update(event)
        for line in self._long_run.lines(event):
            self._print(line, "yellow")
        match event:
            case events.RunStarted():
                self._recall(event)
                for line in describe_start(event):
                    self._print(line, "dim")
                self._redraw(at_once=True)
            case events.StepDone() | events.Working():
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
            curves = Run(start.folder).metrics_log.curves(("train_loss", "val_loss"))
            for name, add in (("train_loss", self.state.train.add), ("val_loss", self.state.evaluated)):
                for step, loss in zip(curves[name].steps, curves[name].values, strict=True):
                    if step <= start.start_step:
                        add(step, loss)

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
        figures = self.state.figures
        return "" if figures is None or figures.seconds_left is None else roughly(figures.seconds_left)

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


def _evaluation_line(event: events.EvaluationFinished) -> Text:
    line = Text(f"step {event.step:>6}  ", style="dim")
    line.append(f"val loss {event.val_loss:.4f}", style="bold green" if event.is_best else "")
    bits = "-" if event.bits_per_byte is None else f"{event.bits_per_byte:.4f}"
    line.append(f"  bits/byte {bits}  after {duration(event.seconds)}", style="dim")
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


def only_ascii(encoding: str) -> bool:
    """Whether only ASCII is sure to be shown: by the encoding, or by a locale that the user asked for.

    Python treats the C locale as UTF-8 and sets LC_CTYPE for its children; but the terminal of a user who
    sets LC_ALL=C or LANG=C shows no more than ASCII.
    """
    if not encoding.lower().startswith("utf"):
        return True
    ctype = os.environ.get("LC_CTYPE", "")
    chosen = os.environ.get("LC_ALL") or (ctype if ctype != "C.UTF-8" else "") or os.environ.get("LANG")
    return chosen in ("C", "POSIX")


class LiveRegion:
    """Lines at the bottom of a terminal that are drawn again and again, and lines printed above them."""

    def __init__(self, console: Console, render: Callable[[], Sequence[Text]]) -> None:
        self._console, self._render = console, render
        self._live: Live | None = None
        self._echo = True  # whether the terminal echoed what is typed
        self._lengths: list[int] = []  # of the lines that were drawn last, in columns
        self._width = 0  # of the terminal when they were drawn

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws within it; at the end the region is gone and the terminal is as it was."""
        with _suspendable(self._stop, self._start):
            try:
                self._start()
                yield
            finally:
                self._stop()

    def refresh(self) -> None:
        if self._live is not None:
            with self.drawing():
                self._live.refresh()

    def print(self, text: Text) -> None:
        """A line that stays, above the region."""
        with self.drawing():
            self._console.print(text, highlight=False)

    def _start(self) -> None:
        live = Live(get_renderable=self._lines, console=self._console, auto_refresh=False, transient=True)
        self._live, self._echo = live, _set_echo(False)
        with self.drawing():
            live.start(refresh=True)

    def _stop(self) -> None:
        if self._live is not None:
            with self.drawing():
                self._live.stop()
            _set_echo(self._echo)
        self._live, self._lengths = None, []

    def _lines(self) -> Text:
        lines = self._render()
        self._width, self._lengths = self._console.width, [line.cell_len for line in lines]
        text = Text("\n", no_wrap=True, overflow="crop", end="").join(lines)
        text.no_wrap, text.overflow = True, "crop"
        return text

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within it, output that fails is lost: where the terminal is gone, training continues."""
        try:
            self._unwrap()
            yield
        except OSError:
            discard(self._console.file)

    def _unwrap(self) -> None:
        """Clears a region that a narrower window has wrapped, and puts the cursor where Live expects it."""
        width = self._console.width
        if not self._lengths or width >= self._width:
            return
        rows = sum(max(1, -(-length // width)) for length in self._lengths)
        self._width = width
        up = f"\x1b[{rows - 1}A" if rows > 1 else ""
        self._console.file.write(f"\r{up}\x1b[J" + "\n" * (len(self._lengths) - 1))


@contextmanager
def _suspendable(leave: Callable[[], None], come_back: Callable[[], None]) -> Iterator[None]:
    """Within it, `leave` is called when Ctrl-Z is pressed, and `come_back` when the process continues."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGTSTP"):
        yield
        return

    def suspend(number: int, frame: object) -> None:
        leave()
        os.kill(os.getpid(), signal.SIGSTOP)  # here the process stops, until `fg`
        come_back()

    before = signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _set_echo(on: bool) -> bool:
    """Whether the terminal echoes what is typed, Ctrl-C's ^C too; returns whether it did."""
    if not hasattr(signal, "SIGTSTP"):
        return on
    import termios

    try:
        number = sys.stdin.fileno()
        if os.tcgetpgrp(number) != os.getpgrp():  # in the background, asking would stop the process
            return on
        modes = termios.tcgetattr(number)
        before = bool(modes[3] & termios.ECHO)
        modes[3] = modes[3] | termios.ECHO if on else modes[3] & ~termios.ECHO
        termios.tcsetattr(number, termios.TCSADRAIN, modes)
    except (termios.error, OSError, ValueError):  # standard input is not a terminal
        return on
    return before
