"""`gptkit runs`: list, show, compare and verify them, write their reports, and tidy up.

In: the command line. Out: one call of a function for each command, its result shown by render_runs. Imports
no torch until a run is verified or its report written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import options
from gptkit.cli.help import command, paragraphs
from gptkit.errors import UsageError
from gptkit.runs.run import DEFAULT_RUNS_FOLDER

_ABOUT = """Examples:

gptkit runs

gptkit runs --sort best --where data.dataset=shakespeare --where 'step>=500'

gptkit runs show latest

gptkit runs report latest

Lists the runs, newest last: id, status, dataset, hyperparameters, steps, best val loss, the same in bits a
byte (which compares across tokenizers), when. Piped, it is plain lines.
"""

runs_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)

_RunsDir = Annotated[
    Path | None,
    typer.Option("--runs-dir", metavar="FOLDER", help="Where runs are kept.", rich_help_panel="Where"),
]
_Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE",
        help="Only runs for which it holds; also != < > <= >=, and * ? [] in texts. A key is a column (best, "
        "step, started, status, …), a field of the experiment (model.n_embd) or of run.json. Repeatable.",
    ),
]
_Sort = Annotated[str, typer.Option("--sort", metavar="KEY", help="In the order of a key, lowest first.")]
_Reverse = Annotated[bool, typer.Option("--reverse", help="In the opposite order.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Folders, ids, unique beginnings of ids, or 'latest'."),
]
_Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]


@runs_app.callback(
    help=paragraphs(_ABOUT), short_help="A table of all runs; show, compare, report, verify, tidy up."
)
def runs(
    context: typer.Context,
    where: _Where = None,
    sort: _Sort = "",
    reverse: _Reverse = False,
    json: _Json = False,
    runs_dir: options.RunsDir = DEFAULT_RUNS_FOLDER,
    debug: options.Debug = False,
) -> None:
    """Lists the runs, unless a command of its own follows."""
    context.obj = runs_dir
    if context.invoked_subcommand is None:
        from gptkit.cli import commands

        commands.list_runs(runs_dir, where or (), sort, reverse=reverse, as_json=json)
    elif where or sort or reverse or json:
        name = context.invoked_subcommand
        raise UsageError(f"--where, --sort, --reverse and --json stand after {name!r}: gptkit runs {name} …")


@command(runs_app, "list", short_help="A table of all runs, or of some.")
def list_command(
    context: typer.Context,
    where: _Where = None,
    sort: _Sort = "",
    reverse: _Reverse = False,
    json: _Json = False,
    runs_dir: _RunsDir = None,
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit runs list

      gptkit runs list --sort best --where data.dataset=shakespeare --where 'model.n_embd>=128'

      gptkit runs list --where 'started>=2026-11' --json

    Lists the runs, newest last: id, status, dataset, hyperparameters, steps, best val loss, also in bits a
    byte, when. A key that is no column becomes one.
    """
    from gptkit.cli import commands

    commands.list_runs(runs_dir or context.obj, where or (), sort, reverse=reverse, as_json=json)


@command(runs_app, "show", short_help="One run in full.")
def show_command(
    context: typer.Context,
    run: options.RunArgument,
    json: _Json = False,
    runs_dir: _RunsDir = None,
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit runs show latest

      gptkit runs show shakespeare.c64 --json

    What the run is and how it went: status, steps, losses, time; the settings that differ from the defaults;
    text, tokenizer, plugins, environment; its checkpoints and their sizes; the commands to go on with.
    """
    from gptkit.cli import run_commands

    run_commands.show(run, runs_dir or context.obj, as_json=json)


@command(runs_app, "compare", short_help="What differs between runs, and what came of it.")
def compare_command(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN...]", help="Two or more; or those that --where finds."),
    ] = None,
    where: _Where = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also as a page: one HTML file that opens offline."),
    ] = None,
    json: _Json = False,
    runs_dir: _RunsDir = None,
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit runs compare shakespeare.c64 shakespeare.c128

      gptkit runs compare --where name=shakespeare --where status=finished --html comparison.html

    The settings that differ, the losses (also in bits a byte), a chart of them, and what each writes. Runs
    that differ by their seed alone are one column, with the mean and the spread of their best losses.
    """
    from gptkit.cli import run_commands

    run_commands.compare(run or (), where or (), runs_dir or context.obj, html=html, as_json=json)


@command(runs_app, "delete", short_help="Remove runs, after asking.")
def delete_command(
    context: typer.Context,
    run: _Runs,
    yes: _Yes = False,
    runs_dir: _RunsDir = None,
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit runs delete tiny.c16.e32.h2.b2-20261122-104012

      gptkit runs delete runs/tiny.c16.e32.h2.b2-20261122-104012 --yes

    Removes whole run folders, after asking on the terminal. A run that is in use is refused, and so is
    whatever is no run. A run outside of --runs-dir is meant only where its path is given.
    """
    from gptkit.cli import run_commands

    run_commands.delete(run, runs_dir or context.obj, yes=yes)


@command(runs_app, "clean", short_help="What could go, and how much room that makes.")
def clean_command(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove all that is listed.")] = False,
    runs_dir: _RunsDir = None,
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit runs clean

      gptkit runs clean --yes

    Lists what could go, with its size: checkpoints of finished runs that are neither the best nor the last;
    runs that crashed before their first checkpoint; checkpoints that were set aside; what saves and removals
    that were cut off have left. Removes nothing without --yes. Runs that are in use are left alone.
    """
    from gptkit.cli import run_commands

    run_commands.clean(runs_dir or context.obj, yes=yes)


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


def rerun_command(
    run: options.RunArgument,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = DEFAULT_RUNS_FOLDER,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Examples:

      gptkit rerun latest

    Trains the experiment of a run again from the start, as far as the run came, as a new run beside it, and
    holds the two against one another: "identical", where the weights of the last checkpoint and all recorded
    losses are the same, bit for bit; else what differs, and exit code 5. A run of --minutes cannot come out
    the same and is refused.
    """
    from gptkit.cli import commands

    commands.rerun(run, runs_dir=runs_dir, data_dir=data_dir, quiet=quiet)
