"""The panel below the lines that stay: how far training is, its numbers, the curve, the latest sample.

In: what has been seen of a run, and the room there is. Out: lines of text, never wider or more than that;
what matters least is left out first. Knows nothing of events' order, of time or of terminals.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.text import Text

from gptkit import events
from gptkit.cli.display.curve import ASCII_MARKS, MARKS, TRAIN, VAL, History, curve
from gptkit.words import printable

_CELL = 20  # columns that a number takes with its name
_BESIDE = 84  # columns from which the sample stands beside the curve, not below it
_SAMPLE_BELOW = 3  # lines of it there


@dataclass
class Seen:
    """What is known of a run, for the panel."""

    start: events.RunStarted | None = None
    step: int = 0
    logged: events.StepFinished | None = None
    val_loss: float | None = None
    best: tuple[float, int] | None = None  # val loss and its step
    working: events.Working | None = None  # what is done beside the training at this moment
    sample: events.SampleDrawn | None = None
    stopping: bool = False  # asked to
    train: History = field(default_factory=History)
    val: History = field(default_factory=History)

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
        return (self.logged.seconds if self.logged else 0.0), 60 * (start.minutes or 0)


@dataclass(frozen=True)
class Room:
    """What there is to draw in."""

    width: int  # columns
    height: int  # rows of the whole terminal, of which some are for the lines that stay
    ascii_only: bool
    encoding: str = "utf-8"

    def fit(self, text: str) -> str:
        """Text of anyone as the terminal can show it: control characters as escapes, others as '?'."""
        return printable(text).encode(self.encoding, "replace").decode(self.encoding)

    def shorten(self, text: str, width: int) -> str:
        dots = self.dots
        return text if len(text) <= width else text[: max(width - len(dots), 0)] + dots[:width]

    @property
    def dots(self) -> str:
        return "..." if self.ascii_only else "…"


def panel(seen: Seen, room: Room, time_left: str) -> list[Text]:
    """The lines of the panel, at most `room.height` - 1, each of at most `room.width` columns."""
    if seen.start is None:
        return _preparing(seen, room)[: max(room.height - 1, 1)]
    framed = room.width >= 40 and room.height >= 10
    width = room.width - 4 if framed else room.width
    lines = [*_status(seen, room, width, time_left), *_numbers(seen, room, width)]
    lines += _pictures(seen, room, width)
    for line in lines:
        line.truncate(width, overflow="crop", pad=framed)
    lines = lines[: max(room.height - (3 if framed else 1), 1)]
    return list(_framed(lines, room, seen.start.run_id)) if framed else lines


def _framed(lines: list[Text], room: Room, title: str) -> Iterator[Text]:
    corners, across, down = ("++++", "-", "|") if room.ascii_only else ("╭╮╰╯", "─", "│")
    said = room.shorten(room.fit(title), room.width - 6)
    top = Text().append(f"{corners[0]}{across} ", style="cyan").append(said, style="bold")
    top.append(f" {across * (room.width - 5 - len(said))}{corners[1]}", style="cyan")
    yield top
    for line in lines:
        yield Text.assemble((f"{down} ", "cyan"), line, (f" {down}", "cyan"))
    yield Text(f"{corners[2]}{across * (room.width - 2)}{corners[3]}", style="cyan")


def _preparing(seen: Seen, room: Room) -> list[Text]:
    work = seen.working
    if work is None:
        return [Text(f"preparing{room.dots}", style="dim")]
    words = room.shorten(room.fit(work.what), max(room.width - 12, 8))
    line = Text().append(f"{words} ", style="dim")
    far = _how_far(work)
    if work.total and room.width - len(words) - len(far) > 12:
        line.append_text(_bar(work.done / work.total, min(40, room.width - len(words) - len(far) - 2), room))
        line.append(" ")
    line.append(far)
    line.truncate(room.width, overflow="crop")
    return [line]


def _how_far(work: events.Working) -> str:
    if work.total:
        return f"{min(work.done / work.total, 1):4.0%}"
    return f"{work.done:,}" if work.done else ""


def _bar(share: float, width: int, room: Room) -> Text:
    full = round(min(max(share, 0.0), 1.0) * width)
    done, rest = ("#", "-") if room.ascii_only else ("━", "─")
    return Text().append(done * full, style="bold magenta").append(rest * (width - full), style="dim")


def _status(seen: Seen, room: Room, width: int, time_left: str) -> list[Text]:
    """The bar with the step and the time left; in two lines where one is too short."""
    start = seen.start
    assert start is not None
    done, todo = seen.done()
    if start.stop_step:
        of = f"/{start.stop_step}"
    else:
        expected = seen.logged.expected_steps if seen.logged else None
        of = f" of about {expected}" if expected else ""
    words = Text().append(f"step {seen.step}{of}", style="bold")
    if seen.stopping:
        words.append("  stopping, saving first", style="bold yellow")
    elif seen.working:
        words.append(f"  {room.fit(seen.working.what)} {_how_far(seen.working)}".rstrip(), style="yellow")
    elif time_left:
        words.append(f"  {time_left} left")
    if width < 50:
        return [words, _bar(done / todo, width, room)]
    words.align("right", max(26, len(words)))  # so that the bar keeps its length while digits come and go
    return [_bar(done / todo, width - len(words) - 1, room).append(" ").append_text(words)]


def _numbers(seen: Seen, room: Room, width: int) -> list[Text]:
    """Names with values, in as many columns as fit; all of them from the start, so that nothing jumps."""
    logged, marks = seen.logged, ASCII_MARKS if room.ascii_only else MARKS
    loss = "{:.4f}".format
    cells = [
        (marks[0], "train", loss(logged.train_loss) if logged else "", TRAIN),
        (marks[1], "val", loss(seen.val_loss) if seen.val_loss is not None else "", VAL),
        ("", "best", f"{loss(seen.best[0])} @ {seen.best[1]}" if seen.best else "", ""),
        ("", "tokens/s", f"{logged.tokens_per_second:,.0f}" if logged else "", ""),
        ("", "lr", f"{logged.learning_rate:.3g}" if logged else "", ""),
        ("", "grad norm", f"{logged.grad_norm:.3g}" if logged else "", ""),
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


def _pictures(seen: Seen, room: Room, width: int) -> list[Text]:
    """The curve, with the latest sample beside or below it."""
    rows = min(room.height // 4, 10)
    if rows < 3:
        return []
    sample, ascii_only = seen.sample, room.ascii_only
    beside = sample is not None and width >= _BESIDE
    left = width // 2 - 1 if beside else width
    lines = curve(seen.train.points, seen.val.points, width=left, height=rows, ascii_only=ascii_only)
    if sample is None:
        return lines
    if not beside:
        roomy = width >= 2 * _CELL and room.height >= 18
        return lines + (_sample(sample, room, width, _SAMPLE_BELOW) if roomy else [])
    texts = _sample(sample, room, width - left - 2, rows - 1)
    for line, text in zip(lines, texts, strict=False):
        line.truncate(left + 2, overflow="crop", pad=True)
        line.append_text(text)
    return lines


def _sample(sample: events.SampleDrawn, room: Room, width: int, rows: int) -> list[Text]:
    """Its first lines that are not empty, below a title."""
    lines: list[str] = []
    for line in sample.text.split("\n"):
        if len(lines) > rows:
            break
        lines += textwrap.wrap(room.fit(line[: width * rows]), width)
    if len(lines) > rows:
        lines[rows - 1] = f"{lines[rows - 1][: width - 4]} {room.dots}"
    texts = [Text(f"sample at step {sample.step}", style="dim")]
    return texts + [Text(line, style="italic") for line in lines[:rows]]
