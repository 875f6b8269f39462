"""`gptkit export`: a run's model in the format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion, options
from gptkit.cli.streams import log, warn
from gptkit.errors import CheckpointError, UsageError


def export(
    run: options.RunArgument,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder or file to write; not there yet.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="hf|gguf",
            help="hf: a folder for transformers; gguf: a file for llama.cpp.",
            autocompletion=completion.choice("hf", "gguf"),
        ),
    ] = "hf",
    checkpoint: options.Checkpoint = "best",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="fp32|bf16",
            help="Of the exported matrices.",
            autocompletion=completion.choice("fp32", "bf16"),
        ),
    ] = "fp32",
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Open the exported model in the other program and compare; default: where it is installed.",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """Examples:

      gptkit export latest my-model

      gptkit export shakespeare.c128.e64 small.gguf --to gguf

    Writes a model that other programs open without any code of gptkit: --to hf a folder for transformers'
    AutoModelForCausalLM and AutoTokenizer, with a model card; --to gguf a file for llama.cpp. Then opens it
    there and compares: the largest difference of logits, 200 greedy tokens, the tokenizer. Exit code 5 if
    they do not agree. Nothing is uploaded; `hf upload NAME FOLDER` of huggingface_hub does that.
    """
    from gptkit.interchange.export import Precision, check_free, export_run
    from gptkit.interchange.mappings import Target

    if to not in list(Target):
        raise UsageError(f"--to {to!r}: expected {' or '.join(Target)}.")
    if precision not in list(Precision):
        raise UsageError(f"--precision {precision!r}: expected {' or '.join(Precision)}.")
    if to == Target.HUGGING_FACE and path.suffix.lower() == ".gguf":
        raise UsageError(f"{path} is the name of a file for llama.cpp: add --to gguf, or name a folder.")
    check_free(path)
    from gptkit.runs import find_run

    folder = find_run(run, runs_dir)
    from gptkit.data.catalog import data_folders
    from gptkit.interchange.verify import missing_program, tokens_to_compare, verify_export

    target = Target(to)
    missing = missing_program(target)
    if verify and missing:
        raise UsageError(f"--verify needs {missing}, which is not installed: pip install {missing}")
    loaded = folder.load_model(checkpoint, warn=warn)
    exported = export_run(folder, loaded, target, path, Precision(precision))
    log(f"{folder.id}, step {exported.step}: {exported.architecture}, {exported.bytes / 1e6:,.1f} MB")
    print(path)
    if verify is False:
        return
    if missing:
        log(f"not verified, as {missing} is not installed; pip install {missing} and export again to compare")
        return
    tokens = tokens_to_compare(folder, loaded.tokenizer, data_folders(data_dir))
    prompt = folder.experiment().sampling.prompt
    found = verify_export(exported, loaded.model, loaded.tokenizer, tokens.ids, prompt)
    log(
        f"{found.program}: largest difference of logits {found.largest_difference:.2g} over {found.tokens} "
        f"tokens of {tokens.origin}; {found.greedy_equal} of {found.greedy_tokens} greedy tokens equal; "
        f"tokenizer {'equal' if found.same_ids else 'different'}"
    )
    if not found.agrees:
        raise CheckpointError(
            f"{found.program} computes something else with {path} than gptkit does; do not use these files.\n"
            "Please report this with the run's experiment.toml."
        )
