"""How `gptkit bench` looks: a table, or one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from gptkit.cli.display.tables import duration, show_table

if TYPE_CHECKING:
    from gptkit.bench.measure import BaselineRate, Benchmark, Rate


def show(result: Benchmark, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))
        return
    peaks = " and ".join(
        f"{flops / 1e9:,.0f} GFLOP/s in {precision}" for precision, flops in result.peaks.items()
    )
    print(f"{result.experiment}: {result.shape}; {result.parameters:,} parameters")
    print(f"{result.device}, {result.threads} threads; matrix products reach {peaks}")
    rows = [
        _row("training", result.training, result.rival_training),
        _row("sampling, one stream", result.generation, result.rival_generation),
        _row(
            f"sampling, {result.streams} streams", result.generation_streams, result.rival_generation_streams
        ),
    ]
    header: tuple[str, ...] = ("", "tokens/s", "precision", "GFLOP/s", "of the peak")
    if result.rival:
        header = (*header, result.rival, "its precision", "ratio")
    show_table(header, [row[: len(header)] for row in rows], right=[name for name in header if name])
    print(f"the whole experiment takes about {duration(result.experiment_seconds)} of training")


def _row(what: str, ours: Rate, theirs: BaselineRate | None) -> tuple[str, ...]:
    cells: tuple[str, ...] = (
        what,
        f"{ours.tokens:,.0f}",
        ours.precision,
        f"{ours.flops / 1e9:,.1f}",
        f"{ours.utilisation:.1%}",
    )
    if theirs is None:
        return cells
    return (*cells, f"{theirs.tokens:,.0f}", theirs.precision, f"{ours.tokens / theirs.tokens:.2f}x")
