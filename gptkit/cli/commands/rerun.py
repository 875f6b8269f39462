"""`gptkit rerun`: train a run again from the start as a new run, and compare the two."""

from __future__ import annotations

from pathlib import Path

from gptkit.cli import options
from gptkit.cli.session import finish, training_context
from gptkit.cli.signals import stop_signals
from gptkit.errors import CheckpointError


def rerun(
    run: options.RunArgument,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = Path("runs"),
    quiet: options.Quiet = False,
) -> None:
    """Examples:

      gptkit rerun latest

    Trains the experiment of a run again from the start, to the step that the run reached, as a new run beside
    it, and compares the two: "identical" if the weights of the last checkpoint and all recorded losses are
    the same, bit for bit; otherwise what differs, and exit code 5. A run with --minutes is not reproducible
    and is refused.
    """
    with stop_signals() as stop:
        from gptkit.runs import find_run

        folder = find_run(run, runs_dir)
        from gptkit.cli.display.runs import describe_rerun

        with training_context(stop, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet) as context:
            from gptkit.reproduce.replay import rerun_run

            done = rerun_run(folder, context)
        finish(done.trained, quiet=quiet)
        if done.comparison and not done.comparison.identical:
            raise CheckpointError(describe_rerun(done))
        if not quiet:
            print(describe_rerun(done))
