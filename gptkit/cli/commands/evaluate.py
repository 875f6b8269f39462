"""`gptkit evaluate`: the loss of a run's model on a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion, options
from gptkit.cli.streams import warn


def evaluate(
    run: options.RunArgument = "latest",
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME|PATH",
            help="Another text, as a whole; default: the val split of the run's own.",
            autocompletion=completion.datasets,
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            help="Tokens from one window to the next; default: the context's length.",
        ),
    ] = None,
    checkpoint: options.Checkpoint = "best",
    unknown: options.Unknown = "error",
    json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    backend: options.Backend = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """Examples:

      gptkit evaluate latest

      gptkit evaluate shakespeare.c128.e64 --dataset novel.txt --stride 64

    Prints loss, perplexity and bits per byte of a run's model on a text. Each token but the first is
    predicted once. By default windows lie side by side, as in training, and the first tokens of each have
    little before them; with --stride N each token, but those of the first window, has at least the context
    less N before it. That takes longer, and gives a lower loss.
    """
    skip_unknown = options.skips_unknown(unknown)
    from gptkit.cli.display.tables import show_text_loss
    from gptkit.data.catalog import data_folders
    from gptkit.runs import find_run
    from gptkit.training.evaluation import evaluate_run

    found = evaluate_run(
        find_run(run, runs_dir),
        data_folders(data_dir),
        dataset=dataset,
        stride=stride,
        checkpoint=checkpoint,
        skip_unknown=skip_unknown,
        backend=backend or "auto",
        warn=warn,
    )
    show_text_loss(found, as_json=json)
