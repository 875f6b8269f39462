"""From what a run reports to what its trackers are told.

In: names and options of trackers, then events. Out: calls of the trackers, and a warning for each that
fails. Whatever a tracker raises ends here: it is switched off, and the run goes on. Knows nothing of any
tracker in particular.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from gptkit import events
from gptkit.errors import PluginError
from gptkit.experiment import Experiment
from gptkit.experiment.messages import describe_all
from gptkit.plugins import PluginOptions, TrackedRun, Tracker, registry

_PLACE = re.compile(r"(?!(?i:checkpoints|samples)$)[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LONGEST = 300  # characters of what a tracker raised


@dataclass(frozen=True)
class ChosenTracker:
    """A tracker that a run is to have."""

    name: str
    cls: type[Tracker]
    options: PluginOptions


def choose_tracker(name: str, value: bool | Mapping[str, Any]) -> ChosenTracker:
    """The tracker of a key of `[tracking]`, where its value is true or a table of options.

    Raises PluginError where it cannot be had, or takes other options.
    """
    cls = registry.load(registry.TRACKERS, name).cls
    if not _PLACE.fullmatch(name):
        raise PluginError(
            f"tracker {name!r} cannot have a folder of that name in a run: letters, digits, '-' and '_' "
            "will do, except for checkpoints and samples. Tell its author."
        )
    try:
        options = cls.Options.model_validate({} if isinstance(value, bool) else dict(value))
    except ValidationError as error:
        problems = describe_all(error, prefix=f"tracking.{name}", model=cls.Options)
        raise PluginError(f"tracker {name!r} takes other options: {'; '.join(problems)}") from error
    except Exception as error:  # of a stranger's code
        raise PluginError(f"tracking.{name}: the options of {name!r} failed: {_said(error)}") from error
    return ChosenTracker(name, cls, options)


class Tracking:
    """A listener that tells trackers of a run; on leaving it as a context, all of them are finished.

    `warn` is told of each tracker that failed, once.
    """

    def __init__(
        self, chosen: Sequence[ChosenTracker], experiment: Experiment, warn: Callable[[str], None]
    ) -> None:
        self._chosen, self._experiment, self._warn = chosen, experiment, warn
        self._on: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish("failed")  # those that are finished already hear nothing

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                for chosen in self._chosen:
                    self._guarded(chosen.name, "start", partial(self._start, chosen, event))
            case events.StepFinished():
                values = {
                    "loss/train": event.train_loss,
                    "learning_rate": event.learning_rate,
                    "grad_norm": event.grad_norm,
                    "tokens_per_second": round(event.tokens_per_second, 1),  # as in metrics.jsonl
                }
                self._tell("scalars", event.step, values, event.seconds)
            case events.EvaluationFinished():
                values = {"loss/val": event.val_loss, "bits_per_byte/val": event.bits_per_byte}
                self._tell("scalars", event.step, values, event.seconds)
            case events.SampleDrawn():
                self._tell("text", event.step, "sample", event.text)
            case events.RunFinished():
                self._finish(event.status)

    def _start(self, chosen: ChosenTracker, event: events.RunStarted) -> None:
        tracker = chosen.cls(chosen.options)
        run = TrackedRun(
            id=event.run_id,
            folder=event.folder,
            place=event.folder / chosen.name,
            experiment=self._experiment.model_dump(
                exclude_none=True
            ),  # its own: it may do with it as it likes
            start_step=event.start_step,
        )
        tracker.start(run)
        self._on[chosen.name] = tracker

    def _finish(self, status: str) -> None:
        self._tell("finish", status)
        self._on.clear()

    def _tell(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._on.items()):
            given = [dict(value) if isinstance(value, dict) else value for value in arguments]
            self._guarded(name, method, partial(getattr(tracker, method), *given))

    def _guarded(self, name: str, method: str, call: Callable[[], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # what a tracker prints is no part of our output
                call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, and the panic of a Rust extension, which is no Exception
            self._on.pop(name, None)
            off = "" if method == "finish" else "\nIt is switched off for this session; training goes on."
            self._warn(f"tracker {name!r} failed in {method}(): {_said(error)}{off}")


def _said(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    try:
        lines = str(error).splitlines()
    except Exception:
        lines = ["its message cannot be had"]
    said = ": ".join([type(error).__name__, *lines[:1]])[:_LONGEST]
    return "".join(letter if letter.isprintable() else "?" for letter in said)
