"""`gptkit train`: train a GPT from an experiment file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptkit.cli import completion, options
from gptkit.cli.session import finish, training_context
from gptkit.cli.signals import stop_signals
from gptkit.cli.streams import write_text
from gptkit.errors import GptkitError
from gptkit.experiment.overrides import parse_overrides, table_first

if TYPE_CHECKING:
    from gptkit.experiment.schema import Experiment

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
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Examples:

      gptkit train experiments/shakespeare.toml

      gptkit train experiments/shakespeare.toml --steps 200 --emb 64 --heads 2

      gptkit train experiments/my_text.toml --dataset novel.txt --name novel

      gptkit train experiments/shakespeare.toml --set model.position=alibi --seed 1

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
    with stop_signals() as stop:  # before the imports: an exception that a signal raises in pydantic is lost
        from gptkit.experiment.load import (
            differences_from_file,
            read_experiment,
            run_to_load,
            settings_of_weights,
        )
        from gptkit.experiment.messages import add_place
        from gptkit.runs import find_run
        from gptkit.training.session import train_run  # torch too: first, so that it is named if it is broken

        load = run_to_load(experiment, overrides)
        source = find_run(load.value, runs_dir) if load else None
        taken = settings_of_weights(source.experiment(), load.origin, overrides) if source and load else []
        overrides = sorted([*taken, *overrides], key=table_first)
        loaded = read_experiment(experiment, overrides)
        try:
            with training_context(
                stop,
                runs_dir=runs_dir,
                data_dir=data_dir,
                quiet=quiet,
                as_json=json,
                quicker=_quicker(experiment, loaded.experiment),
            ) as context:
                if load and source and (others := differences_from_file(experiment, taken)):
                    word = load.origin.partition(" ")[0]
                    context.warn(f"{word} takes the settings of run {source.id}: {', '.join(others)}.")
                trained = train_run(loaded.experiment, context, stop_at=stop_at)
        except GptkitError as error:
            add_place(error, loaded.source)
            raise
        if generate is not None and not stop():
            text = trained.generate(generate)
            if not quiet:
                write_text(text + "\n")
        finish(trained, quiet=quiet)


def _quicker(file: Path, experiment: Experiment) -> str:
    """What to try where this experiment takes long; "" where its length is a time that was asked for."""
    if experiment.training.minutes is not None:
        return ""
    quick = next(
        (path for path in (file.with_name(_QUICK), Path("experiments", _QUICK)) if path.is_file()), None
    )
    if quick is None or quick.name == file.name or experiment.data.dataset.type != "shakespeare":
        return "add --minutes 5"
    return f"gptkit train {shlex.quote(str(quick))}, or add --minutes 5"
