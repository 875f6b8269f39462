"""`gptkit train`: train a GPT from an experiment file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion, options
from gptkit.cli.launch import is_launcher, launch, rank, run_to_continue
from gptkit.cli.session import finish, training_context
from gptkit.cli.signals import stop_signals
from gptkit.cli.streams import write_text
from gptkit.errors import GptkitError
from gptkit.experiment.overrides import Override, parse_overrides, table_first

_QUICK = "shakespeare_quick.toml"


@options.takes_flags
def train(
    experiment: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT", help="A TOML file.", autocompletion=completion.experiments),
    ],
    set_: options.Set = None,
    flags: options.Flags = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = Path("runs"),
    generate: options.GenerateAfter = None,
    stop_at: options.StopAt = None,
    processes: options.Processes = None,
    max_restarts: options.MaxRestarts = 0,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Examples:

      gptkit train experiments/shakespeare.toml

      gptkit train experiments/shakespeare.toml --steps 200 --emb 64 --heads 2

      gptkit train experiments/shakespeare.toml --set model.position=alibi --seed 1

      gptkit train experiments/my_text.toml --dataset novel.txt --name novel

    Trains a GPT from an experiment file and records it in its own folder under runs/. A flag overrides the
    field of the file that it names; a field that is set by neither has its default. With --load the model's
    settings and the tokenizer are those of the other run.

    With --json each line of standard output is an object: "event" (run_started, step_finished,
    step_progress, evaluation_finished, sample_drawn, checkpoint_saved, working, warned, resume_checked and,
    last, run_finished) and its fields, as in gptkit.events. Later versions may add events and fields;
    existing ones keep their names, units and meanings.
    """
    options.check_json(json, {"--quiet": quiet, "--generate": generate is not None})
    overrides = parse_overrides(set_ or (), flags or {})
    if is_launcher(processes, max_restarts):
        _launch(experiment, overrides, processes or 1, max_restarts)
        return
    with stop_signals() as stop:  # before the imports: an exception that a signal raises in pydantic is lost
        with training_context(
            stop,
            runs_dir=runs_dir,
            data_dir=data_dir,
            quiet=quiet,
            as_json=json,
            quicker=_quicker_than(experiment),
        ) as context:
            from gptkit.experiment.load import (
                differences_from_file,
                read_experiment,
                run_to_load,
                settings_of_weights,
            )
            from gptkit.experiment.messages import add_place
            from gptkit.runs import Run, find_run
            from gptkit.training.distributed import join
            from gptkit.training.session import resume_run, train_run

            load = run_to_load(experiment, overrides)
            source = find_run(load.value, runs_dir) if load else None
            taken = (
                settings_of_weights(source.experiment(), load.origin, overrides) if source and load else []
            )
            overrides = sorted([*taken, *overrides], key=table_first)
            loaded = read_experiment(experiment, overrides)
            if load and source and (others := differences_from_file(experiment, taken)):
                word = load.origin.partition(" ")[0]
                context.warn(f"{word} takes the settings of run {source.id}: {', '.join(others)}.")
            try:
                with join(loaded.experiment.distributed.timeout) as group:
                    if begun := run_to_continue():
                        trained = resume_run(Run(begun), replace(context, processes=group), stop_at=stop_at)
                    else:
                        trained = train_run(
                            loaded.experiment, replace(context, processes=group), stop_at=stop_at
                        )
            except GptkitError as error:
                add_place(error, loaded.source)
                raise
        if generate is not None and not stop() and not rank():
            text = trained.generate(generate)
            if not quiet:
                write_text(text + "\n")
        finish(trained, quiet=quiet)


def _launch(file: Path, overrides: Sequence[Override], processes: int, max_restarts: int) -> None:
    """Checks the experiment here, so that its errors come once and at once."""
    from gptkit.experiment.load import read_experiment
    from gptkit.experiment.messages import add_place
    from gptkit.training.distributed import rank_batches

    loaded = read_experiment(file, overrides)
    try:
        rank_batches(loaded.experiment.training, processes)
    except GptkitError as error:
        add_place(error, loaded.source)
        raise
    launch(processes, max_restarts, loaded.experiment.distributed.timeout)


def _quicker_than(experiment: Path) -> str:
    """The command of the quick experiment, where it is there and another one; or ""."""
    beside, usual = experiment.parent / _QUICK, Path("experiments", _QUICK)
    quick = next((path for path in (beside, usual) if path.is_file()), None)
    return f"gptkit train {shlex.quote(str(quick))}" if quick and experiment.name != _QUICK else ""
