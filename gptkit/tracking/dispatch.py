"""Calls a run's trackers as the run reports events.

Input: names and options of trackers, then events. Output: calls of the trackers, and a warning for each that
fails: whatever a tracker raises ends here, the tracker is switched off, and the run continues. Knows nothing
of any particular tracker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from gptkit import events
from gptkit.errors import PluginError
from gptkit.experiment.messages import problems_of
from gptkit.experiment.schema import Experiment
from gptkit.plugins import PluginOptions, TrackedRun, Tracker, registry

_FOLDER_NAME = re.compile(r"(?!(?i:checkpoints|samples)$)[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LONGEST = 300  # characters of an error's message in a warning


@dataclass(frozen=True)
class ChosenTracker:
    """A tracker that an experiment asks for, with its options."""

    name: str
    cls: type[Tracker]
    options: PluginOptions


def choose_tracker(name: str, value: bool | Mapping[str, Any]) -> ChosenTracker:
    """The tracker for a key of `[tracking]`, whose value is true or a table of options.

    Raises PluginError if the tracker does not load or does not accept these options.
    """
    cls = registry.load(registry.TRACKERS, name)
    if not _FOLDER_NAME.fullmatch(name):
        raise PluginError(
            f"tracker {name!r} cannot have a folder of that name in a run: letters, digits, '-' and '_' "
            "are allowed, except for checkpoints and samples. Report it to its author."
        )
    try:
        options = cls.Options.model_validate({} if isinstance(value, bool) else dict(value))
    except ValidationError as error:
        problems = problems_of(error, table=f"tracking.{name}", options=cls.Options)
        raise PluginError(f"tracker {name!r} takes other options: {'; '.join(map(str, problems))}") from error
    except Exception as error:  # raised by a validator of the plugin
        raise PluginError(f"tracking.{name}: the options of {name!r} failed: {_describe(error)}") from error
    return ChosenTracker(name, cls, options)


class Tracking:
    """A listener that passes a run's events on to its trackers; leaving it as a context finishes all of them.

    `warn` is called once for each tracker that fails.
    """

    def __init__(
        self, chosen: Sequence[ChosenTracker], experiment: Experiment, warn: Callable[[str], None]
    ) -> None:
        self._chosen, self._experiment, self._warn = chosen, experiment, warn
        self._active: dict[str, Tracker] = {}  # by name: started, and neither failed nor finished

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish("failed")  # after RunFinished none is left to finish

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
                if event.adamw_learning_rate is not None:
                    values["adamw_learning_rate"] = event.adamw_learning_rate
                self._call_all("scalars", event.step, values, event.seconds)
            case events.EvaluationFinished():
                values = {"loss/val": event.val_loss}
                if event.bits_per_byte is not None:
                    values["bits_per_byte/val"] = event.bits_per_byte
                self._call_all("scalars", event.step, values, event.seconds)
            case events.SampleDrawn():
                self._call_all("text", event.step, "sample", event.text)
            case events.RunFinished():
                self._finish(event.status)

    def _start(self, chosen: ChosenTracker, event: events.RunStarted) -> None:
        tracker = chosen.cls(chosen.options)
        run = TrackedRun(
            id=event.run_id,
            folder=event.folder,
            place=event.folder / chosen.name,
            experiment=self._experiment.model_dump(exclude_none=True),  # a copy, which it may change
            start_step=event.start_step,
        )
        tracker.start(run)
        self._active[chosen.name] = tracker

    def _finish(self, status: str) -> None:
        self._call_all("finish", status)
        self._active.clear()

    def _call_all(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._active.items()):
            copies = [dict(value) if isinstance(value, dict) else value for value in arguments]
            self._guarded(name, method, partial(getattr(tracker, method), *copies))

    def _guarded(self, name: str, method: str, call: Callable[[], None]) -> None:
        try:
            with registry.stdout_to_stderr():
                call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, and panics of Rust extensions, which are no Exceptions
            self._active.pop(name, None)
            off = "" if method == "finish" else "\nIt is switched off for this session; training continues."
            self._warn(f"tracker {name!r} failed in {method}(): {_describe(error)}{off}")


def _describe(error: BaseException) -> str:
    """The type of an error and the first line of its message, safe to print on a terminal."""
    try:
        lines = str(error).splitlines()
    except Exception:
        lines = ["its message cannot be read"]
    text = ": ".join([type(error).__name__, *lines[:1]])[:_LONGEST]
    return "".join(letter if letter.isprintable() else "?" for letter in text)
