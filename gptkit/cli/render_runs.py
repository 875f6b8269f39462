"""How `gptkit runs` looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptkit.cli.render_tables import printable, show_table
from gptkit.runs import RunSummary

HEADER = ("id", "status", "dataset", "hyperparameters", "steps", "best val loss", "when")


def show_runs(runs: Sequence[RunSummary], runs_dir: Path) -> None:
    if not runs:
        print(f"There are no runs in {runs_dir} yet. Make one: gptkit train experiments/shakespeare.toml")
        return
    show_table(HEADER, [_cells(run) for run in runs], right=("steps", "best val loss"))


def _cells(run: RunSummary) -> tuple[str, ...]:
    return tuple(
        printable(cell) or "-"
        for cell in (
            run.id,
            run.status,
            run.dataset,
            run.hyperparameters,
            f"{run.step}/{run.target_step}" if run.target_step else str(run.step),
            f"{run.best_val_loss:.4f}" if run.best_val_loss is not None else "",
            run.started[:16].replace("T", " "),
        )
    )
