"""The `gptkit` command, and the one place where errors become a message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

import typer

from gptkit.cli import completion
from gptkit.cli.command import command
from gptkit.cli.commands.bench import bench
from gptkit.cli.commands.datasets import datasets_app
from gptkit.cli.commands.evaluate import evaluate
from gptkit.cli.commands.export import export
from gptkit.cli.commands.generate import generate
from gptkit.cli.commands.import_model import import_model
from gptkit.cli.commands.plugins import plugins_app
from gptkit.cli.commands.rerun import rerun
from gptkit.cli.commands.resume import resume
from gptkit.cli.commands.runs import runs_app
from gptkit.cli.commands.schema import schema
from gptkit.cli.commands.train import train
from gptkit.cli.failures import explain_usage, fail, unexpected
from gptkit.cli.streams import discard
from gptkit.errors import DiskError, GptkitError, RunInterruptedError, UsageError

app = typer.Typer(
    name="gptkit",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)

# UsageError and ClickException, of click or of typer's own copy of it
_ClickUsageError: Any = typer.BadParameter.__bases__[0]
_ClickException: Any = _ClickUsageError.__bases__[0]


def run_command(arguments: Sequence[str]) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    debug = "--debug" in arguments
    try:
        with completion.for_a_shell(os.environ):
            result = _commands()(args=list(arguments), prog_name="gptkit", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", RunInterruptedError.exit_code, debug=debug)
    except GptkitError as error:
        message = "\n".join([str(error), *getattr(error, "__notes__", ())])
        return fail(message, error.exit_code, debug=debug)
    except (BrokenPipeError, SystemExit) as end:  # click and rich turn a BrokenPipeError into an exit
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        discard(sys.stdout)  # `gptkit generate | head`: the reader closed the pipe
        return 0
    except _ClickException as error:
        if not error.format_message():  # no arguments: the help was shown instead
            return UsageError.exit_code
        path = getattr(getattr(error, "ctx", None), "command_path", "gptkit")
        return fail(explain_usage(error.format_message(), path, arguments), UsageError.exit_code)
    except Exception as error:
        return fail(*unexpected(error), debug=debug)


@cache
def _commands() -> Any:
    """All commands with their options, made of `app` once: it takes as long as a short command itself."""
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"gptkit {version('gptkit')}")
        raise typer.Exit


@app.callback()
def gptkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train small GPTs from experiment files, and keep every run.

    Examples:

    gptkit train experiments/shakespeare.toml

    gptkit generate latest --prompt "ROMEO:" -n 300

    gptkit resume latest --steps 2000

    gptkit runs
    """
    try:
        os.getcwd()
    except OSError:
        raise DiskError("the working folder no longer exists: change to another one.") from None


app.add_typer(datasets_app, name="datasets")
app.add_typer(runs_app, name="runs")
app.add_typer(plugins_app, name="plugins")
command(app, short_help="Train a GPT from an experiment file.")(train)
command(app, short_help="Continue a run that was stopped.")(resume)
command(app, short_help="Train a run again and compare the results.")(rerun)
command(app, short_help="Generate text with a run's model.")(generate)
command(app, short_help="Measure the loss of a run's model on a text.")(evaluate)
command(app, short_help="Write a run's model for transformers or llama.cpp.")(export)
command(app, name="import", short_help="Make a run of published weights.")(import_model)
command(app, short_help="Measure how fast this machine trains and samples.")(bench)
command(app, short_help="Print the JSON schema of experiment files.")(schema)
