"""What `train`, `resume` and `rerun` share: a view of the training, and how the command ends.

Input: what the command line asked for. Output: the context in which `gptkit.training` runs, then the exit by
the signal that stopped it. Imports rich only for a terminal, and no torch until a training begins.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gptkit import events
from gptkit.cli.launch import noting_run, rank
from gptkit.cli.streams import warn, write_path

if TYPE_CHECKING:
    from gptkit.cli.signals import StopFlag
    from gptkit.training.context import RunContext
    from gptkit.training.session import TrainingResult


@contextmanager
def training_context(
    stop: StopFlag,
    *,
    runs_dir: Path,
    data_dir: Path | None,
    quiet: bool = False,
    as_json: bool = False,
    quicker: str | None = None,
) -> Iterator[RunContext]:
    """Where runs and texts are, a view that shows the events of the run, and the flag that may stop it.

    `quicker` is for `LongRunNotice`.
    """
    with _view(stop, quiet=quiet, as_json=as_json, quicker=quicker) as view:
        from gptkit.data.catalog import data_folders
        from gptkit.training.context import RunContext  # and torch, which takes seconds: the view is there

        yield RunContext(
            runs_folder=runs_dir,
            folders=data_folders(data_dir),
            listener=noting_run(view),
            stop_requested=stop,
            command=("gptkit", *sys.argv[1:]),
        )


@contextmanager
def _view(stop: StopFlag, *, quiet: bool, as_json: bool, quicker: str | None) -> Iterator[events.Listener]:
    """Live on a terminal, plain lines elsewhere, JSON for programs, only warnings if `quiet`."""
    if rank():  # rank 0 alone shows the training
        yield events.ignore
    elif quiet:
        yield _warnings_only
    elif as_json:
        from gptkit.cli.display.json import JsonView

        yield JsonView()
    elif sys.stdout.isatty():
        from gptkit.cli.display.live import live_view

        with live_view(stop, quicker) as view:
            yield view
    else:
        from gptkit.cli.display.plain import PlainView

        yield PlainView(quicker)


def _warnings_only(event: events.Event) -> None:
    if isinstance(event, events.Warned):
        warn(event.message)


def finish(trained: TrainingResult, *, quiet: bool) -> None:
    """Prints the run's folder if `quiet`. Raises a StoppedError if a signal ended the training."""
    if quiet and not rank():
        write_path(trained.run.path)
    trained.raise_if_stopped(", saved")
