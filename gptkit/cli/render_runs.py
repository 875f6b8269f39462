"""How `gptkit runs` looks, and what `gptkit resume --verify` found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptkit.cli.render_tables import printable, show_table
from gptkit.runs import RunSummary
from gptkit.runs.selecting import Selected
from gptkit.runs.settings import Value

if TYPE_CHECKING:
    from gptkit.workflows.replaying import Replay
    from gptkit.workflows.verifying import Finding

HEADER = ("id", "status", "dataset", "hyperparameters", "steps", "best val loss", "bits/byte", "when")


def show_runs(runs: Sequence[Selected], runs_dir: Path, *, chosen: bool = False) -> None:
    """A table, with a column for each key that was asked about and has none; `chosen`: by conditions."""
    if not runs and chosen:
        print(f"No run in {runs_dir} is like that.")
    elif not runs:
        print(f"There are no runs in {runs_dir} yet. Make one: gptkit train experiments/shakespeare.toml")
    else:
        more = tuple(map(printable, runs[0].more))
        rows = [(*_cells(found.run), *map(_cell, found.more.values())) for found in runs]
        show_table((*HEADER, *more), rows, right=("steps", "best val loss", "bits/byte"))


def _cells(run: RunSummary) -> tuple[str, ...]:
    return tuple(
        printable(cell) or "-"
        for cell in (
            run.id,
            run.status,
            run.dataset,
            run.hyperparameters,
            f"{run.step}/{run.target_step}" if run.target_step else str(run.step),
            *(
                f"{loss:.4f}" if loss is not None else ""
                for loss in (run.best_val_loss, run.best_bits_per_byte)
            ),
            run.started[:16].replace("T", " "),
        )
    )


def _cell(value: Value | None) -> str:
    """A value as a file would say it."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else printable(str(value)) or '""'


def listed(found: Selected, runs_dir: Path) -> dict[str, Any]:
    """A run in `gptkit runs --json`; these names stay."""
    run = found.run
    return {
        **asdict(run),
        "target_step": run.target_step or None,
        "started": run.started or None,
        "ended": run.ended or None,
        "folder": str(runs_dir / run.id),
        "fields": found.more,
    }


def print_json(value: object) -> None:
    """ASCII, so that any pipe takes it."""
    print(json.dumps(value, indent=2, allow_nan=False))


def show_finding(finding: Finding) -> None:
    """One line, whatever a stranger's file says."""
    said = f"{finding.what}: {finding.said}" if finding.said else finding.what
    print(f"{finding.verdict:<5} {printable(said.replace(chr(10), ' '))}", flush=True)


def describe_replay(replay: Replay) -> str:
    """The verdict, and what may be behind it where it is bad."""
    stretch = f"steps {replay.start + 1} to {replay.end}"
    environment = ", ".join(map(printable, replay.differences))
    if replay.identical:
        said = (
            f"identical: {stretch}, trained again, gave the same weights, optimizer state and "
            f"{replay.compared} recorded losses, bit for bit"
        )
        return f"{said}\n(although not all is as recorded: {environment})" if environment else said
    wrong = [f"{len(replay.tensors)} tensors ({_some(replay.tensors)})"] if replay.tensors else []
    if replay.steps:
        wrong.append(f"the losses of {len(replay.steps)} steps ({_some(map(str, replay.steps))})")
    why = "All is as recorded, so the machine itself or a file of the run is at fault ('gptkit runs verify')."
    if environment:
        why = f"What is not as recorded: {environment}"
    return f"different: {stretch}, trained again, gave other values of {' and '.join(wrong)}.\n{why}"


def _some(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(map(printable, first[:5])) + (", …" if len(first) > 5 else "")
