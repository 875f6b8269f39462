"""Training as plain lines: for pipes, log files and terminals that cannot move their cursor.

Input: events. Output: standard output, a line each log_interval, on a slow machine also between two of them;
warnings go to standard error. The live display uses the same descriptions of events. Knows nothing of rich.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from gptkit import events
from gptkit.cli.display.tables import duration
from gptkit.cli.streams import warn, write_line
from gptkit.words import printable

_LONGEST_SILENCE = 10.0  # seconds from one line to the next, if there are figures
_LONG_RUN = 300  # seconds


def roughly(seconds: float) -> str:
    """Time left, which is not known to a tenth of a second."""
    return f"{max(seconds, 0.0):.0f} s" if seconds < 59.5 else duration(seconds)


class LongRunNotice:
    """The line that says once, when it is known, that a new run will take long, and what is quicker.

    `quicker` is the command of a quicker experiment on Tiny Shakespeare, or "" if there is none; None for no
    line.
    """

    def __init__(self, quicker: str | None) -> None:
        self._quicker = quicker

    def lines(self, event: events.Event) -> list[str]:
        """The line, if this event is the one that makes it known."""
        if self._quicker is None:
            return []
        if isinstance(event, events.RunStarted):
            if event.dataset != "shakespeare":
                self._quicker = ""
            if event.minutes is not None:  # the length was asked for
                self._quicker = None
        elif isinstance(event, events.StepFinished | events.StepProgress) and event.seconds_left is not None:
            quicker = ", or ".join([*filter(None, [self._quicker]), "add --minutes 5"])
            self._quicker = None
            seconds = event.seconds + event.seconds_left
            if seconds > _LONG_RUN:
                return [f"this run takes about {_about(seconds)} on this machine; quicker: {quicker}"]
        return []


def _about(seconds: float) -> str:
    """A long time in words: 33 minutes, 2.5 hours, 3.1 days."""
    hours = seconds / 3600
    if hours < 1.5:
        return f"{seconds / 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def describe_start(event: events.RunStarted) -> list[str]:
    """What is being trained, and on what."""
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
        f"{event.tokens_per_step:,} tokens per step",
    ]


def describe_resume(event: events.ResumeChecked) -> str:
    verdict = f"valid, not bit-identical ({', '.join(event.differences)})" if event.differences else "exact"
    more = {0: "", 1: "; the step recorded after it is trained again"}
    again = more.get(event.replayed, f"; the {event.replayed} steps recorded after it are trained again")
    line = f"resume: {verdict}, from step {event.step}{again}"
    if event.schedule_end is None:
        return line
    return (
        f"{line}; its schedule is unchanged and ends at step {event.schedule_end}, later steps have its "
        "final learning rate"
    )


def describe_replayed(event: events.ReplayStarted) -> str:
    begin = (
        f"from step {event.start}"
        if event.start
        else "from the initial weights (there is no earlier checkpoint)"
    )
    return f"verify: training again to step {event.end} {begin}, in a temporary folder"


def describe_end(event: events.RunFinished, folder: str) -> list[str]:
    """The result, where it is, and the commands to use next."""
    best = ""
    if event.best_val_loss is not None:
        bits = event.best_bits_per_byte
        best = (
            f"; best val loss {event.best_val_loss:.4f}{'' if bits is None else f' ({bits:.4f} bits/byte)'}"
        )
        best += f" at step {event.best_step}"
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
        if event.status is not events.RunStatus.FINISHED:
            lines.append(f"continue:    gptkit resume {folder}")
    return lines


def _rates(event: events.StepFinished | events.StepProgress) -> str:
    """The learning rate; with Muon that of the hidden matrices, and that of AdamW where it is another."""
    rate, adamw_rate = event.learning_rate, event.adamw_learning_rate
    return f"{rate:.3g}" + (f" (AdamW {adamw_rate:.3g})" if adamw_rate not in (None, rate) else "")


class PlainView:
    """A line each log_interval, for pipes and log files; the first ones as soon as there are figures."""

    def __init__(self, quicker: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = ""
        self._words: dict[str, str] = {}
        self._working = ""
        self._long_run, self._clock = LongRunNotice(quicker), clock
        self._written: float | None = None  # when there was a line of figures

    def __call__(self, event: events.Event) -> None:
        self._say(*self._long_run.lines(event))
        match event:
            case events.RunStarted():
                self._folder = str(event.folder)
                self._say(*describe_start(event))
            case events.StepFinished():
                self._words = _figures(event)
            case events.StepProgress():
                if self._written is None or self._clock() - self._written >= _LONGEST_SILENCE:
                    self._words = _figures(event)
            case events.EvaluationFinished():
                self._words |= {
                    "val loss": f"{event.val_loss:.4f}" + (" (best)" if event.is_best else ""),
                    "bits/byte": "-" if event.bits_per_byte is None else f"{event.bits_per_byte:.4f}",
                }
            case events.StepDone():
                if self._words:
                    self._say("  ".join(f"{name} {value}" for name, value in self._words.items()))
                    self._words, self._written = {}, self._clock()
            case events.RunFinished():
                self._say(*describe_end(event, self._folder))
            case events.ResumeChecked():
                self._say(describe_resume(event))
            case events.ReplayStarted():
                self._say(describe_replayed(event))
            case events.Working():
                self._once(event)
            case events.Warned():
                warn(event.message)

    def _once(self, event: events.Working) -> None:
        """Work before training, by its name alone: its progress is only for the live display."""
        if not self._folder and self._working != event.what:
            self._working = event.what
            self._say(event.what)

    def _say(self, *lines: str) -> None:
        if lines:
            write_line("\n".join(printable(line) for line in lines))


def _figures(event: events.StepFinished | events.StepProgress) -> dict[str, str]:
    words = {
        "step": str(event.step),
        "train loss": f"{event.train_loss:.4f}",
        "learning rate": _rates(event),
        "grad norm": f"{event.grad_norm:.3g}",
        "tokens/s": f"{event.tokens_per_second:,.0f}",
    }
    if event.seconds_left:
        words["time left"] = roughly(event.seconds_left)
    return words
