"""The `gptkit` command: each subcommand parses, calls one function, renders.

Errors end here: a GptkitError becomes its message on standard error and its exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gptkit.cli import completion, options
from gptkit.cli.bench import bench_command
from gptkit.cli.datasets import datasets_app
from gptkit.cli.failures import fail, unexpected
from gptkit.cli.help import command
from gptkit.cli.plugins import plugins_app, schema_command
from gptkit.cli.runs import rerun_command, runs_app
from gptkit.cli.streams import lead_nowhere
from gptkit.cli.usage import explain
from gptkit.errors import DiskError, GptkitError, RunInterruptedError, UsageError

app = typer.Typer(
    name="gptkit",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)
app.add_typer(datasets_app, name="datasets")
app.add_typer(runs_app, name="runs")
app.add_typer(plugins_app, name="plugins")

# UsageError and ClickException, of click or of typer's own copy of it
_ClickUsageError: Any = typer.BadParameter.__bases__[0]
_ClickException: Any = _ClickUsageError.__bases__[0]


def run_command(arguments: Sequence[str]) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    debug = "--debug" in arguments
    try:
        with completion.for_a_shell(os.environ):
            result = app(args=list(arguments), prog_name="gptkit", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", RunInterruptedError.exit_code, debug=debug)
    except GptkitError as error:
        return fail(str(error), error.exit_code, debug=debug)
    except BrokenPipeError:  # `gptkit generate | head`: the reader has had enough
        lead_nowhere(sys.stdout)
        return 0
    except _ClickException as error:
        if not error.format_message():  # no arguments: the help was shown instead
            return UsageError.exit_code
        command = getattr(getattr(error, "ctx", None), "command_path", "gptkit")
        return fail(explain(error.format_message(), command, arguments), UsageError.exit_code)
    except Exception as error:
        return fail(*unexpected(error), debug=debug)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"gptkit {version('gptkit')}")
        raise typer.Exit


_ABOUT = """Train small GPTs from experiment files, and keep every run.

Examples:

gptkit train experiments/shakespeare.toml

gptkit generate latest --prompt "ROMEO:" -n 300

gptkit resume latest --steps 2000

gptkit runs
"""


@app.callback(help=_ABOUT)
def gptkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before the command."""
    try:
        os.getcwd()
    except OSError:
        raise DiskError("the folder that it was started in is gone: change to one that is there.") from None


@command(app, short_help="Train a GPT as an experiment file says.")
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
    debug: options.Debug = False,
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
    from gptkit.cli import commands

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
    commands.train(
        experiment,
        lambda: options.overrides(set_, flags),
        runs_dir=runs_dir,
        data_dir=data_dir,
        stop_at=stop_at,
        load=load,
        generate=generate,
        quiet=quiet,
        as_json=json,
    )


@command(app, short_help="Go on with a run that was stopped.")
def resume(
    run: options.RunArgument,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, help="Go on to step N, past the end of the schedule."),
    ] = None,
    stop_at: options.StopAt = None,
    require_exact: Annotated[
        bool,
        typer.Option("--require-exact", help="Refuse (exit 3) where it would not come out bit for bit."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Only train the last stretch again elsewhere, and compare every bit."),
    ] = False,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = Path("runs"),
    quiet: options.Quiet = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit resume latest

      gptkit resume shakespeare.c64 --steps 2000

      gptkit resume latest --verify

    Goes on in the same run from its newest checkpoint, as if it had never been stopped: the weights come out
    the same, bit for bit, on the same machine. Past the end of the schedule the learning rate stays as it
    ended. With --verify the run stays as it is: the stretch from the checkpoint before the last is trained
    again in a temporary folder, and the answer is "identical", or what differs and exit code 5.

    With --json each line of standard output is an object, as 'gptkit train --help' says.
    """
    from gptkit.cli import commands

    options.check_json(json, {"--quiet": quiet, "--verify": verify})
    if verify:
        if steps is not None or stop_at is not None or require_exact:
            raise UsageError(
                "--verify trains what the run has trained already; it goes with no other length."
            )
        commands.replay(run, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet)
        return
    commands.resume(
        run,
        steps=steps,
        stop_at=stop_at,
        require_exact=require_exact,
        runs_dir=runs_dir,
        data_dir=data_dir,
        quiet=quiet,
        as_json=json,
    )


command(app, "rerun", short_help="Train a run again: does it come out the same?")(rerun_command)


@command(app, short_help="Write text with a run's model.")
def generate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, its id, a unique beginning of it, or 'latest'.",
            autocompletion=completion.runs,
        ),
    ] = "latest",
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            "-n",
            min=0,
            metavar="N",
            help="Tokens to write; the experiment's number, unless given.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT|-|@FILE", help="What to go on from; - reads standard input."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", metavar="X", help="Below 1 bolder, above 1 wilder, 0 greedy."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", help="Only the N likeliest tokens; 0: all.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", metavar="X", help="Only the likeliest tokens with this probability."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", metavar="X", help="Only tokens this probable beside the likeliest."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End when this appears. Repeatable.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", min=1, max=4096, metavar="N", help="How many texts.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same text.")
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            metavar="best|last|STEP",
            help="Which weights.",
            autocompletion=completion.checkpoints,
        ),
    ] = "best",
    unknown: Annotated[
        str,
        typer.Option(
            "--unknown",
            metavar="error|skip",
            help="Prompt characters that the model has never seen.",
            autocompletion=completion.choice("error", "skip"),
        ),
    ] = "error",
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Write the prompt first.")] = True,
    backend: options.Backend = None,
    runs_dir: options.RunsDir = Path("runs"),
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit generate latest

      gptkit generate shakespeare.c64 --prompt "ROMEO:" -n 300 --temperature 0.8

      cat beginning.txt | gptkit generate latest --prompt - > story.txt

    Writes text as it is made. Only the text goes to standard output; all else goes to standard error.
    """
    from gptkit.cli import commands

    sampling = {
        "max_new_tokens": ("--tokens", tokens),
        "temperature": ("--temperature", temperature),
        "top_k": ("--top-k", top_k),
        "top_p": ("--top-p", top_p),
        "min_p": ("--min-p", min_p),
        "stop": ("--stop", stop or None),
    }
    commands.generate(
        run,
        prompt=prompt,
        sampling=sampling,
        num_samples=num_samples,
        seed=seed,
        checkpoint=checkpoint,
        unknown=unknown,
        echo=echo,
        backend=backend,
        runs_dir=runs_dir,
    )


command(app, "bench", short_help="How fast this machine trains and samples.")(bench_command)
command(app, "schema", short_help="The JSON schema of experiment files, for editors.")(schema_command)
