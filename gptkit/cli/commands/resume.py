"""`gptkit resume`: continue a run that was stopped; with --verify, replay its last steps and compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import options
from gptkit.cli.launch import is_launcher, launch
from gptkit.cli.session import finish, training_context
from gptkit.cli.signals import stop_signals
from gptkit.errors import CheckpointError, UsageError
from gptkit.experiment.overrides import parse_overrides


def resume(
    run: options.RunArgument,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, help="Train to step N, past the end of the schedule."),
    ] = None,
    stop_at: options.StopAt = None,
    set_: options.Set = None,
    require_exact: Annotated[
        bool,
        typer.Option("--require-exact", help="Refuse (exit 3) if the result would not be bit-identical."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Only train the last steps again, in a temporary folder, and compare every bit."
        ),
    ] = False,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = Path("runs"),
    processes: options.Processes = None,
    max_restarts: options.MaxRestarts = 0,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Examples:

      gptkit resume latest

      gptkit resume shakespeare.c128.e64 --steps 300

      gptkit resume shakespeare.c128.e64 --set optimizer.learning_rate=0.01

      gptkit resume latest --verify

    Continues the same run from its newest checkpoint as if it had never been stopped: on the same machine the
    weights are the same, bit for bit.

    With --steps the schedule stays as it is: past its end the learning rate has its final value. --set
    changes a field of the experiment from here on: the result is valid, but not what the run would have
    become, and run.json records the step; so --set training.max_steps=N lengthens the schedule too. A run
    whose experiment.toml was edited is refused, unless no weight depends on the edit.

    With --verify the run is left alone: the steps from the second-newest checkpoint to the newest are trained
    again in a temporary folder, and the answer is "identical", or what differs and exit code 5.

    With --json each line of standard output is an object, as described by 'gptkit train --help'.
    """
    options.check_json(json, {"--quiet": quiet, "--verify": verify})
    if verify:
        if steps is not None or stop_at is not None or require_exact or set_:
            raise UsageError(
                "--verify only repeats steps of the run; leave out --steps, --stop-at, --set and "
                "--require-exact."
            )
        _verify(run, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet)
        return
    overrides = parse_overrides(set_ or (), {})
    if is_launcher(processes, max_restarts):
        from gptkit.runs import find_run

        settings = find_run(run, runs_dir).experiment(overrides)
        launch(processes or 1, max_restarts, settings.distributed.timeout)
        return
    with stop_signals() as stop:
        from gptkit.runs import find_run

        folder = find_run(run, runs_dir)
        with training_context(
            stop, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet, as_json=json
        ) as context:
            from gptkit.training.distributed import join
            from gptkit.training.session import resume_run

            with join(folder.experiment(overrides).distributed.timeout) as group:
                trained = resume_run(
                    folder,
                    replace(context, processes=group),
                    steps=steps,
                    stop_at=stop_at,
                    require_exact=require_exact,
                    overrides=overrides,
                )
        finish(trained, quiet=quiet)


def _verify(run: str, *, runs_dir: Path, data_dir: Path | None, quiet: bool) -> None:
    with stop_signals() as stop:
        from gptkit.runs import find_run

        folder = find_run(run, runs_dir)
        from gptkit.cli.display.runs import describe_replay

        with training_context(stop, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet) as context:
            from gptkit.reproduce.replay import replay_run

            replayed = replay_run(folder, context)
        if not replayed.identical:
            raise CheckpointError(describe_replay(replayed))
        if not quiet:
            print(describe_replay(replayed))
