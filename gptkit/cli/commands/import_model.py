"""`gptkit import`: a run of published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import options
from gptkit.cli.streams import log


def import_model(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder of Hugging Face's layout, or nanoGPT's ckpt.pt.")
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The run's name.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="PATH",
            help="Its tokenizer.json, vocab.json or meta.pkl, if that is elsewhere.",
        ),
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """Examples:

      gptkit import gpt2/ --name gpt2

      gptkit import out-shakespeare-char/ckpt.pt --name mine --tokenizer data/shakespeare_char/meta.pkl

    Makes a run of the weights, with which `generate`, `export` and `train --load` work: GPT-2 of any size,
    Llama and models shaped like it, and nanoGPT's checkpoints. Weights are read without running any code of
    theirs; downloads are left to the `hf download` of huggingface_hub.
    """
    from gptkit.interchange.importing import import_model as import_weights

    done = import_weights(path, name=name, runs_folder=runs_dir, tokenizer=tokenizer)
    log(f"{done.kind}, {done.parameters:,} parameters")
    for note in done.notes:
        log(f"note: {note}")
    print(done.run.path)
