"""Training as JSON lines, for programs: `gptkit train … --json`.

Input: events. Output: standard output, one object a line, written at once: "event" is the event's name in
snake case, and its fields follow. Warnings go to standard error as well. Knows nothing of terminals.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptkit import events
from gptkit.cli.streams import warn, write_line

_WORKING_INTERVAL = 1.0  # seconds between two lines about the progress of the same work


class JsonView:
    """A line for each event but StepDone, which comes with every step and adds nothing to the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._work = ""
        self._reported = 0.0

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            return
        if isinstance(event, events.Working) and not self._is_news(event):
            return
        write_line(json.dumps(as_object(event), allow_nan=False))
        if isinstance(event, events.Warned):
            warn(event.message)

    def _is_news(self, event: events.Working) -> bool:
        """Whether it is other work, or the same after the interval."""
        now = self._clock()
        if event.what == self._work and now - self._reported < _WORKING_INTERVAL:
            return False
        self._work, self._reported = event.what, now
        return True


def as_object(event: events.Event) -> dict[str, Any]:
    """An event as JSON values. Non-finite numbers, which JSON cannot express, become null."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    fields = [field for field in dataclasses.fields(event) if field.metadata != events.RECORDED_ONLY]
    return {"event": name, **{field.name: _value(getattr(event, field.name)) for field in fields}}


def _value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value
