"""`gptkit runs`: list, show, compare, verify, report on, delete and clean up runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import options
from gptkit.cli.command import command, group
from gptkit.cli.streams import write_path
from gptkit.errors import CheckpointError, PluginError, UsageError
from gptkit.words import printable

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
        help="Only matching runs; also != < > <= >=, and the wildcards * ? []. A key is a column (best, "
        "step, started, status, …), a field of the experiment (model.n_embd) or of run.json. Repeatable.",
    ),
]
_Sort = Annotated[str, typer.Option("--sort", metavar="KEY", help="Sort by a key, lowest first.")]
_Reverse = Annotated[bool, typer.Option("--reverse", help="Reverse the order.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
_Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Folders, ids, unique prefixes of ids, or 'latest'."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@group(runs_app, short_help="Runs: list, show, compare, report, verify, delete, clean.")
def runs(
    context: typer.Context,
    where: _Where = None,
    sort: _Sort = "",
    reverse: _Reverse = False,
    json: _Json = False,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """Examples:

      gptkit runs

      gptkit runs --sort best --where data.dataset=shakespeare --where 'step>=500'

      gptkit runs show latest

      gptkit runs report latest

    Lists the runs, newest last: id, status, dataset, hyperparameters, steps, best val loss, the same in bits
    per byte (which compares across tokenizers), when. Piped, it is plain lines.
    """
    context.obj = runs_dir
    if context.invoked_subcommand is None:
        _list(runs_dir, where, sort, reverse=reverse, as_json=json)
    elif where or sort or reverse or json:
        name = context.invoked_subcommand
        raise UsageError(f"--where, --sort, --reverse and --json go after {name!r}: gptkit runs {name} …")


@command(runs_app, "list", short_help="A table of all runs, or of matching ones.")
def list_command(
    context: typer.Context,
    where: _Where = None,
    sort: _Sort = "",
    reverse: _Reverse = False,
    json: _Json = False,
    runs_dir: _RunsDir = None,
) -> None:
    """Examples:

      gptkit runs list

      gptkit runs list --sort best --where data.dataset=shakespeare --where 'model.n_embd>=128'

      gptkit runs list --where 'started>=2026-11' --json

    Lists the runs, newest last: id, status, dataset, hyperparameters, steps, best val loss, also in bits per
    byte, when. A key of --where or --sort that is not a column is added as one.
    """
    _list(runs_dir or context.obj, where, sort, reverse=reverse, as_json=json)


def _list(runs_dir: Path, where: Sequence[str] | None, sort: str, *, reverse: bool, as_json: bool) -> None:
    from gptkit.cli.display import runs as display
    from gptkit.runs.store import other_folders, select_runs

    found = select_runs(runs_dir, where or (), sort, reverse)
    if as_json:
        display.print_json([display.listed(run, runs_dir) for run in found])
    else:
        display.show_runs(found, runs_dir, other_folders(runs_dir), chosen=bool(where))


@command(runs_app, "show", short_help="Everything about one run.")
def show_command(
    context: typer.Context, run: options.RunArgument, json: _Json = False, runs_dir: _RunsDir = None
) -> None:
    """Examples:

      gptkit runs show latest

      gptkit runs show shakespeare.c128.e64 --json

    Shows status, steps, losses and time; the settings that differ from the defaults; text, tokenizer, plugins
    and environment; the checkpoints and their sizes; the commands to use next.
    """
    from gptkit.cli.display import runs as display
    from gptkit.runs import find_run
    from gptkit.runs.summary import describe_run

    details = describe_run(find_run(run, runs_dir or context.obj))
    if json:
        display.print_json(display.details_as_json(details))
    else:
        display.show_details(details)


@command(runs_app, "compare", short_help="Compare settings and results of runs.")
def compare_command(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN...]", help="Two or more, or the ones that --where selects."),
    ] = None,
    where: _Where = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a page: one HTML file that opens offline."),
    ] = None,
    decide: Annotated[
        bool, typer.Option("--decide", help="Whether the others are better or worse than the first group.")
    ] = False,
    json: _Json = False,
    runs_dir: _RunsDir = None,
) -> None:
    """Examples:

      gptkit runs compare shakespeare.c128.e64 latest

      gptkit runs compare --where data.dataset=shakespeare --decide

      gptkit runs compare --where name=shakespeare --where status=finished --html comparison.html

    Shows the settings that differ, the losses (also in bits per byte), a chart of them, and a sample of each.
    Runs that differ only by their seed are one column, with the mean and the range of their best losses.

    With --decide, each column is better or worse than the first, or the seeds cannot tell: with the
    difference of the best val losses, a 95 % interval, and a p-value for that number of comparisons. It needs
    several seeds of each; how many more is estimated.
    """
    from gptkit.cli.display import comparison as display
    from gptkit.cli.display.runs import print_json
    from gptkit.runs import Run, find_run
    from gptkit.runs.compare import compare_runs, with_decisions
    from gptkit.runs.store import select_runs

    runs_dir = runs_dir or context.obj
    runs = [find_run(name, runs_dir) for name in run or ()]
    if where:
        chosen = [runs_dir / found.run.id for found in select_runs(runs_dir, where)]
        ours = {path.absolute() for path in chosen}
        runs = [one for one in runs if one.path.absolute() in ours] if run else list(map(Run, chosen))
    runs = list({one.path.absolute(): one for one in runs}.values())
    if len(runs) < 2:
        found = f"only {runs[0].id}" if runs else "none"
        raise UsageError(
            f"comparing needs two or more runs; found {found}.\n"
            "Name them, or select them with --where, as in --where data.dataset=shakespeare"
        )
    comparison = compare_runs(runs)
    if decide:
        comparison = with_decisions(comparison)
    if html is not None:
        from gptkit.report.comparison import comparison_page
        from gptkit.report.render import write_page

        write_page(html, comparison_page(comparison))
    if json:
        print_json(display.as_json(comparison))
    else:
        display.show_comparison(comparison)
        if html is not None:
            print(f"\nThe page: {printable(str(html))}")


@command(runs_app, "delete", short_help="Delete runs, after confirmation.")
def delete_command(context: typer.Context, run: _Runs, yes: _Yes = False, runs_dir: _RunsDir = None) -> None:
    """Examples:

      gptkit runs delete tiny.c16.e32.h2.b2-20261122-104012

      gptkit runs delete runs/tiny.c16.e32.h2.b2-20261122-104012 --yes

    Deletes whole run folders, after confirmation on the terminal. A run that is in use is refused, as is a
    folder that is not a run. A run outside of --runs-dir is deleted only if its path is given.
    """
    from gptkit.cli.display import runs as display
    from gptkit.runs.cleanup import delete_run, run_to_delete
    from gptkit.runs.run import refuse_use

    # Nothing is deleted if one of them is not a run or is in use, or if there is no terminal to ask on
    found = [run_to_delete(name, runs_dir or context.obj) for name in run]
    runs = list({one.path.absolute(): one for one in found}.values())
    for one in runs:
        refuse_use(one)
    if not yes and not _confirmed(display.deletion_question(runs)):
        print("Nothing was deleted.")
        return
    for one in runs:
        display.show_removed(str(one.path), delete_run(one))


def _confirmed(question: str) -> bool:
    """Asks on the terminal. Raises UsageError if there is none."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("there is no terminal to ask on. To delete without confirmation: --yes")
    print(question, end=" ", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@command(runs_app, "clean", short_help="List or remove what is no longer needed.")
def clean_command(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove everything that is listed.")] = False,
    runs_dir: _RunsDir = None,
) -> None:
    """Examples:

      gptkit runs clean

      gptkit runs clean --yes

    Lists what can be removed, with its size: checkpoints of finished runs that are neither the best nor the
    last; runs that crashed before their first checkpoint; damaged checkpoints that were set aside; files left
    by interrupted saves and removals. Removes nothing without --yes. Runs in use are left alone.
    """
    clean(runs_dir or context.obj, yes=yes)


def clean(runs_dir: Path, *, yes: bool) -> None:
    from gptkit.cli.display import runs as display
    from gptkit.runs.cleanup import list_removable, remove_all

    things = list_removable(runs_dir)
    if not yes or not things:
        display.show_removable(things, runs_dir)
        return
    freed = 0
    for removal in remove_all(things):
        if removal.freed is None:
            display.show_kept(str(removal.path), removal.reason)
        else:
            display.show_removed(str(removal.path), removal.freed)
            freed += removal.freed
    display.show_freed(freed)


@command(runs_app, "verify", short_help="Check every file of a run against its hashes.")
def verify_command(context: typer.Context, run: options.RunArgument, runs_dir: _RunsDir = None) -> None:
    """Example:

      gptkit runs verify latest

    Checks every file of a run: each checkpoint against its hashes and the model, the experiment, the record,
    the tokenizer, the metrics, the samples. Prints a line for each: ok, note (harmless), skip (it needs a
    plugin that is not installed), or bad and what to do. Exits with 5 if something is bad, with 3 if
    something was skipped. Changes nothing.
    """
    from gptkit.runs import find_run

    folder, verdicts = find_run(run, runs_dir or context.obj), Counter[str]()
    from gptkit.cli.display import runs as display
    from gptkit.reproduce.verify import Verdict, verify_run

    for finding in verify_run(folder):
        display.show_finding(finding)
        verdicts[finding.verdict] += 1
    bad, things = verdicts[Verdict.BAD], verdicts.total() - verdicts[Verdict.NOTE]
    if bad:
        raise CheckpointError(
            f"of {things} things in run {folder.id}, {bad} {'is' if bad == 1 else 'are'} bad."
        )
    if verdicts[Verdict.SKIPPED]:
        raise PluginError(
            f"run {folder.id} needs a plugin that cannot be used here; all that can be checked without it is "
            "as it was saved."
        )


@command(runs_app, "report", short_help="Write a run's report: one HTML file that opens offline.")
def report_command(context: typer.Context, run: options.RunArgument, runs_dir: _RunsDir = None) -> None:
    """Example:

      gptkit runs report latest

    Writes report.html into the run's folder and prints its path: curves, samples, settings and environment
    in one file that opens offline. Training writes it when it ends; this writes it again, also for a run that
    is still being trained or was copied from another machine.
    """
    from gptkit.report.page import write_report
    from gptkit.runs import find_run

    write_path(write_report(find_run(run, runs_dir or context.obj)))
