"""`gptkit generate`: write text with a run's model."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from gptkit.cli import options
from gptkit.cli.streams import end_text, log, warn, write_text
from gptkit.errors import UsageError
from gptkit.experiment.overrides import Override


def generate(
    run: options.RunArgument = "latest",
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            "-n",
            min=0,
            metavar="N",
            help="Tokens to write; default: the experiment's number.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT|-|@FILE",
            help="The beginning of the text; - reads standard input.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", metavar="X", help="Below 1 safer, above 1 wilder, 0 greedy."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="N", help="Only the N most likely tokens; 0: all.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p", metavar="X", help="Only the most likely tokens that together have this probability."
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            "--min-p", metavar="X", help="Only tokens with at least this share of the highest probability."
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End when this appears. Repeatable.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", min=1, max=4096, metavar="N", help="How many texts.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same text.")
    ] = None,
    checkpoint: options.Checkpoint = "best",
    unknown: options.Unknown = "error",
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Write the prompt first.")] = True,
    backend: options.Backend = None,
    runs_dir: options.RunsDir = Path("runs"),
) -> None:
    """Examples:

      gptkit generate latest

      gptkit generate shakespeare.c128.e64 --prompt "ROMEO:" -n 300 --temperature 0.8

      cat beginning.txt | gptkit generate latest --prompt - > story.txt

    Writes text as it is generated. Only the text goes to standard output, everything else to standard error.
    """
    skip_unknown = options.skips_unknown(unknown)
    text = _prompt_text(prompt)
    from gptkit.runs import find_run

    folder = find_run(run, runs_dir)
    from gptkit.backend import choose_device
    from gptkit.generation import encode_prompt
    from gptkit.generation import generate as generate_text

    flags = {
        "max_new_tokens": ("--tokens", tokens),
        "temperature": ("--temperature", temperature),
        "top_k": ("--top-k", top_k),
        "top_p": ("--top-p", top_p),
        "min_p": ("--min-p", min_p),
        "stop": ("--stop", stop or None),
    }
    sampling = [
        Override(field, value, _as_typed(flag, value))
        for field, (flag, value) in flags.items()
        if value is not None
    ]
    settings = folder.sampling(sampling)
    loaded = folder.load_model(checkpoint, warn=warn)
    tokenizer = loaded.tokenizer
    text = settings.prompt if text is None else text
    text, ids = encode_prompt(tokenizer, text, skip_unknown=skip_unknown)
    model = loaded.model.to(choose_device(backend or "auto"))
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    progress = loaded.checkpoint.state.get("progress")
    loss = progress.get("val_loss") if isinstance(progress, dict) else None
    shown_loss = f", val loss {loss:.4f}" if isinstance(loss, float) else ""
    log(f"{folder.id}, step {loaded.checkpoint.step}{shown_loss}; seed {seed}")
    started = time.monotonic()
    generation = generate_text(model, tokenizer, ids, settings, seed=seed, num_samples=num_samples, warn=warn)
    _write_samples(generation, text if echo else "", num_samples)
    if sys.stdout.isatty():
        end_text()
    seconds = time.monotonic() - started
    speed = generation.tokens / max(seconds, 1e-9)
    log(f"{generation.tokens} tokens in {seconds:.1f} s ({speed:,.0f} tokens/s)")


def _write_samples(pieces: Iterable[tuple[int, str]], begin: str, num_samples: int) -> None:
    """Writes one sample as it is generated; several, generated in parallel, one after another at the end."""
    if num_samples == 1:
        write_text(begin)
        for _, piece in pieces:
            write_text(piece)
        return
    texts = [begin] * num_samples
    for number, piece in pieces:
        texts[number] += piece
    for number, text in enumerate(texts):
        log(f"sample {number + 1} of {num_samples}")
        write_text(text if text.endswith("\n") else text + "\n")


def _as_typed(flag: str, value: Any) -> str:
    return " ".join([flag, *map(repr, value)]) if isinstance(value, list) else f"{flag} {value}"


def _prompt_text(prompt: str | None) -> str | None:
    """The prompt itself, standard input for '-', the contents of a file for '@FILE'."""
    if prompt is None or not (prompt == "-" or prompt.startswith("@")):
        return prompt
    where = "standard input" if prompt == "-" else prompt[1:]
    try:
        data = sys.stdin.buffer.read() if prompt == "-" else _file(prompt[1:]).read_bytes()
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt from {where} is not UTF-8 at byte {error.start}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the prompt from {where}: {reason}.") from None


def _file(name: str) -> Path:
    return Path(os.path.expanduser(name))  # no shell replaces the ~ of @~/prompt.txt
