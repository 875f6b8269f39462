"""`gptkit bench`: how fast this machine trains and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion, options
from gptkit.errors import UsageError
from gptkit.experiment.overrides import parse_overrides


def bench(
    experiment: Annotated[
        Path | None,
        typer.Argument(
            metavar="[EXPERIMENT]",
            help="A TOML file; without one, the defaults.",
            autocompletion=completion.experiments,
        ),
    ] = None,
    set_: options.Set = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAME",
            help="transformers: also measure the same model there.",
            autocompletion=completion.choice("transformers"),
        ),
    ] = "",
    operations: Annotated[
        bool,
        typer.Option(
            "--operations", help="Instead time every implementation of each operation, and say which is used."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    backend: options.Backend = None,
) -> None:
    """Examples:

      gptkit bench experiments/shakespeare.toml

      gptkit bench experiments/baseline.toml --against transformers

      gptkit bench experiments/shakespeare.toml --operations

    Measures tokens per second in training and in sampling, the share of the machine's peak that training
    reaches, and estimates how long the whole experiment takes. Needs no text and records nothing.
    """
    from gptkit.bench.measure import benchmark, benchmark_operations
    from gptkit.cli.display.tables import show_benchmark, show_operations
    from gptkit.experiment.load import experiment_from_dict, load_experiment

    overrides = parse_overrides(set_ or (), {"training.backend": backend})
    if experiment is None:
        checked = experiment_from_dict({}, overrides)
    else:
        checked = load_experiment(experiment, overrides)
    if operations and against:
        raise UsageError("--operations and --against exclude each other.")
    if operations:
        show_operations(benchmark_operations(checked), as_json=json)
    else:
        show_benchmark(benchmark(checked, against=against), as_json=json)
