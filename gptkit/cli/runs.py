"""`gptkit runs`: list and verify them, and write their reports.

In: the command line. Out: one call of a function for each command, its result shown by render_runs. Imports
no torch until a run is verified or its report written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import options
from gptkit.cli.help import command, paragraphs
from gptkit.runs.folder import DEFAULT_RUNS_FOLDER

_ABOUT = """Examples:

gptkit runs

gptkit runs verify latest

gptkit runs report latest

Lists the runs, newest last: id, status, dataset, hyperparameters, steps, best val loss, the same in bits a
byte (which compares across tokenizers), when. Piped, it is plain lines.
"""

runs_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)

_RunsDir = Annotated[
    Path | None,
    typer.Option("--runs-dir", metavar="FOLDER", help="Where runs are kept.", rich_help_panel="Where"),
]


@runs_app.callback(help=paragraphs(_ABOUT), short_help="A table of all runs; verify one; its report.")
def runs(
    context: typer.Context,
    runs_dir: options.RunsDir = DEFAULT_RUNS_FOLDER,
    debug: options.Debug = False,
) -> None:
    """Lists the runs, unless a command of its own follows."""
    context.obj = runs_dir
    if context.invoked_subcommand is None:
        from gptkit.cli import commands

        commands.list_runs(runs_dir)


@command(runs_app, "list", short_help="A table of all runs.")
def list_command(context: typer.Context, runs_dir: _RunsDir = None, debug: options.Debug = False) -> None:
    """Example:

      gptkit runs list

    Lists the runs, newest last: id, status, dataset, hyperparameters, steps, best val loss, also in bits a
    byte, when.
    """
    from gptkit.cli import commands

    commands.list_runs(runs_dir or context.obj)


@command(runs_app, "verify", short_help="Check every file of a run against its hashes.")
def verify_command(
    context: typer.Context,
    run: options.RunArgument,
    runs_dir: _RunsDir = None,
    debug: options.Debug = False,
) -> None:
    """Example:

      gptkit runs verify latest

    Checks every file of a run: each checkpoint against its hashes and the model, the experiment, the record,
    the tokenizer, the metrics, the samples. A line for each: ok, note (harmless), or bad and what to do.
    Exits with 5 where something is bad. Changes nothing.
    """
    from gptkit.cli import commands

    commands.verify(run, runs_dir=runs_dir or context.obj)


@command(runs_app, "report", short_help="Write a run's report: one HTML file that opens offline.")
def report_command(
    context: typer.Context,
    run: options.RunArgument,
    runs_dir: _RunsDir = None,
    debug: options.Debug = False,
) -> None:
    """Example:

      gptkit runs report latest

    Writes report.html into the run's folder and prints its path: curves, samples, settings, environment, in
    one file that opens without a network. A run writes it itself when it ends; this writes it anew, also of
    one that is still being trained, or was copied from elsewhere.
    """
    from gptkit.cli import commands

    commands.report(run, runs_dir=runs_dir or context.obj)
