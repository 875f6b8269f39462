"""What the commands about runs do with what was parsed: call a function of runs or workflows, render."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from gptkit.cli.display import runs as render_runs
from gptkit.errors import CheckpointError, RunInUseError, UsageError
from gptkit.runs import Run, find_run
from gptkit.words import printable


def show(run: str, runs_dir: Path, *, as_json: bool) -> None:
    from gptkit.runs.details import describe_run

    details = describe_run(find_run(run, runs_dir))
    if as_json:
        render_runs.print_json(render_runs.details_as_json(details))
    else:
        render_runs.show_details(details)


def compare(
    wanted: Sequence[str], where: Sequence[str], runs_dir: Path, *, html: Path | None, as_json: bool
) -> None:
    """With `where`, of the runs that are named, or of all. Raises UsageError for fewer than two."""
    from gptkit.cli.display import comparison as render_comparison
    from gptkit.runs.compare import compare_runs
    from gptkit.runs.select import select_runs

    runs = [find_run(name, runs_dir) for name in wanted]
    if where:
        chosen = [runs_dir / found.run.id for found in select_runs(runs_dir, where)]
        ours = {path.absolute() for path in chosen}
        runs = [run for run in runs if run.path.absolute() in ours] if wanted else list(map(Run, chosen))
    runs = list({run.path.absolute(): run for run in runs}.values())
    if len(runs) < 2:
        found = f"only {runs[0].id}" if runs else "none"
        raise UsageError(
            f"two runs or more are needed to compare; here is {found}.\n"
            "Name them, or choose them with --where, as in --where data.dataset=shakespeare"
        )
    comparison = compare_runs(runs)
    if html is not None:
        from gptkit.report.comparison_page import comparison_page
        from gptkit.report.pages import write_page

        write_page(html, comparison_page(comparison))
    if as_json:
        render_runs.print_json(render_comparison.as_json(comparison))
    else:
        render_comparison.show_comparison(comparison)
        if html is not None:
            print(f"\nThe page: {printable(str(html))}")


def delete(wanted: Sequence[str], runs_dir: Path, *, yes: bool) -> None:
    """Raises UsageError before anything is removed where one of them is no run, or nobody can be asked."""
    from gptkit.runs.cleanup import delete_run, refuse_use, run_to_delete

    found = [run_to_delete(name, runs_dir) for name in wanted]
    runs = list({run.path.absolute(): run for run in found}.values())
    for run in runs:
        refuse_use(run)
    if not yes and not _confirmed(render_runs.deletion_question(runs)):
        print("Nothing was deleted.")
        return
    for run in runs:
        render_runs.show_removed(str(run.path), delete_run(run))


def _confirmed(question: str) -> bool:
    """Asks on the terminal. Raises UsageError where there is none."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("there is no terminal to ask on. To delete without being asked: --yes")
    print(question, end=" ", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def clean(runs_dir: Path, *, yes: bool) -> None:
    from gptkit.runs.cleanup import remove, what_could_go

    things = what_could_go(runs_dir)
    if not yes or not things:
        render_runs.show_removable(things, runs_dir)
        return

    @cache
    def whole(run: Run, step: int) -> bool:
        from gptkit.runs.checkpoint import verify_checkpoint
        from gptkit.runs.load import recorded_id

        try:
            verify_checkpoint(run.checkpoints, step, run_id=recorded_id(run))
        except CheckpointError:
            return False
        return True

    freed = 0
    for thing in things:
        try:
            removed = remove(thing, whole)
        except RunInUseError:  # since it was looked at
            render_runs.show_kept(str(thing.path), "the run is in use")
            continue
        if removed is None:
            render_runs.show_kept(str(thing.path), "no checkpoint that would stay is whole")
        else:
            render_runs.show_removed(str(thing.path), removed)
            freed += removed
    render_runs.show_freed(freed)
