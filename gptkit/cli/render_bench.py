"""How `gptkit bench` looks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from gptkit.cli.render_tables import duration, show_table

if TYPE_CHECKING:
    from gptkit.workflows.benchmark import Benchmark


def show(result: Benchmark, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(result), "utilisation": result.utilisation}))
        return
    print(
        f"{result.parameters:,} parameters, {result.device}, {result.precision}, {result.threads} threads; "
        f"matrix products reach {result.peak_flops / 1e9:,.0f} GFLOP/s"
    )
    rows = [
        _row("training", result.training, result.rival_training),
        _row("sampling, one stream", result.generation, result.rival_generation),
        _row(f"sampling, {result.streams} streams", result.generation_streams, 0.0),
    ]
    header = ("tokens/s", "gptkit", *((result.rival, "ratio") if result.rival else ()))
    show_table(header, [row[: len(header)] for row in rows], right=header[1:])
    print(
        f"training is {result.training * result.flops_per_token / 1e9:,.0f} GFLOP/s, "
        f"{result.utilisation:.0%} of the peak; the whole experiment takes about "
        f"{duration(result.experiment_seconds)} of training"
    )


def _row(what: str, ours: float, theirs: float) -> tuple[str, str, str, str]:
    if not theirs:
        return what, f"{ours:,.0f}", "-", "-"
    return what, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}x"
