"""`gptkit runs`: list, show, compare and verify them, and tidy up.

In: the command line. Out: one call of a function for each command, its result shown by render_runs. Imports
no torch until a run is verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import options
from gptkit.cli.help import command, paragraphs
from gptkit.errors import UsageError
from gptkit.runs.folder import DEFAULT_RUNS_FOLDER

_ABOUT = """Examples:

gptkit runs

gptkit runs --sort best --where data.dataset=shakespeare --where 'step>=500'

gptkit runs show latest

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
_Json = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]


@runs_app.callback(help=paragraphs(_ABOUT), short_help="A table of all runs; show, compare, verify, tidy up.")
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
