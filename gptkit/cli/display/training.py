"""Which view of training: live on a terminal, plain lines elsewhere, JSON for programs, nothing when quiet.

In: where standard output goes, and what was asked for. Out: a listener for the events of a run. Rich is
imported only where there is a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptkit import events
from gptkit.cli.display.plain import PlainView
from gptkit.cli.streams import warn


@contextmanager
def training_view(
    *, quiet: bool = False, as_json: bool = False, stop_requested: Callable[[], object] = str
) -> Iterator[events.Listener]:
    """The view that fits. `stop_requested` returns something true once a signal asked to stop."""
    if quiet:
        yield quiet_view
    elif as_json:
        from gptkit.cli.display.json import JsonView

        yield JsonView()
    elif sys.stdout.isatty():
        from gptkit.cli.display.live import live_view

        with live_view(stop_requested) as view:
            yield view
    else:
        yield PlainView()


def quiet_view(event: events.Event) -> None:
    """Only warnings, on standard error."""
    if isinstance(event, events.Warned):
        warn(event.message)
