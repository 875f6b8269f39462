"""`gptkit train`: train a GPT as an experiment file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion, options
from gptkit.cli.session import finish, training_context
from gptkit.cli.signals import stop_signals
from gptkit.cli.streams import write_text


def train(
    experiment: Annotated[
        Path,
        typer.Argument(metavar="EXPERIMENT", help="A TOML file.", autocompletion=completion.experiments),
    ],
    set_: options.Set = None,
    steps: options.Steps = None,
    epochs: options.Epochs = None,
    minutes: options.Minutes = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    l2_reg: options.WeightDecay = None,
    eval_interval: options.EvalInterval = None,
    seed: options.Seed = None,
    ctx: options.Context = None,
    emb: options.Width = None,
    heads: options.Heads = None,
    blocks: options.Blocks = None,
    drop: options.Dropout = None,
    dataset: options.DatasetName = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = Path("runs"),
    backend: options.Backend = None,
    output: options.RunName = None,
    no_save: options.NoSave = False,
    generate: options.GenerateAfter = None,
    stop_at: options.StopAt = None,
    load: options.LoadFrom = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Examples:

      gptkit train experiments/shakespeare.toml

      gptkit train experiments/shakespeare.toml --steps 200 --emb 64 --heads 2

      gptkit train experiments/my_text.toml --dataset novel.txt --name novel

      gptkit train experiments/shakespeare.toml --set model.position=alibi --seed 1

    Trains a GPT as the experiment file says and records it in its own folder under runs/. A flag overrides
    the field of the file that it names; what neither says has a default.

    With --json each line of standard output is an object: "event" (run_started, step_finished,
    evaluation_finished, sample_drawn, checkpoint_saved, working, warned, resume_checked and, last,
    run_finished) and its fields, as in gptkit.events. Later versions may add events and fields; those that
    are there keep their names, units and meanings.
    """
    options.check_json(json, {"--quiet": quiet, "--generate": generate is not None})
    flags = {
        "training.max_steps": steps,
        "training.epochs": epochs,
        "training.minutes": minutes,
        "training.batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "optimizer.weight_decay": l2_reg,
        "evaluation.eval_interval": eval_interval,
        "seed": seed,
        "model.context_length": ctx,
        "model.n_embd": emb,
        "model.n_head": heads,
        "model.n_layer": blocks,
        "model.dropout": drop,
        "data.dataset": dataset,
        "training.backend": backend,
        "name": output,
        "checkpoints.save": False if no_save else None,
    }
    with stop_signals() as stop:  # before the imports: an exception that a signal raises in pydantic is lost
        from gptkit.experiment import in_its_place, load_experiment
        from gptkit.runs import find_run
        from gptkit.training.start import train_run
        from gptkit.training.writing import write_after

        overrides = options.overrides(set_, flags)
        checked = load_experiment(experiment, overrides)
        source = find_run(load, runs_dir) if load else None
        with (
            in_its_place(experiment, overrides),
            training_context(
                stop, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet, as_json=json
            ) as context,
        ):
            trained = train_run(checked, context, stop_at=stop_at, load_from=source)
        if generate is not None and not stop():
            text = write_after(trained, generate)
            if not quiet:
                write_text(text + "\n")
        finish(trained, quiet=quiet)
