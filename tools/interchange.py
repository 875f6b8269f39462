"""Exports a model of each row of the table of mappings, and compares it in the other program.

    python -m tools.interchange [--to gguf|hf]

GGUF files need llama-cpp-python, which pip builds from source: that takes minutes, so the tests leave it to
this tool. Weights are random, tokenizers take turns. Prints a line for each model; exit code 1 if one does
not agree.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from gptkit.errors import GptkitError
from gptkit.events import ignore
from gptkit.experiment.load import experiment_from_dict
from gptkit.interchange.export import Precision, export_run
from gptkit.interchange.mappings import MAPPINGS, Mapping, Target
from gptkit.interchange.verify import missing_program, tokens_to_compare, verify_export
from gptkit.plugins import DataFolders
from gptkit.training.context import RunContext
from gptkit.training.session import train_run
from tools.support import argument_parser, small_text

_TOKENIZERS = ("char", "byte", {"type": "bpe", "vocab_size": 300})


def options_of(mapping: Mapping) -> Iterator[dict[str, object]]:
    """Each value of each option of a row at least once."""
    options = mapping.options()
    for number in range(max(map(len, options.values()))):
        yield {key: values[number % len(values)] for key, values in options.items()}


def main() -> int:
    parser = argument_parser("interchange", __doc__)
    parser.add_argument("--to", choices=list(Target), default=Target.GGUF.value)
    target = Target(parser.parse_args().to)
    if missing := missing_program(target):
        print(f"{missing} is not installed: pip install {missing}", file=sys.stderr)
        return 1
    failed = number = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mine.txt").write_text(small_text())
        for mapping in MAPPINGS:
            if mapping.layout(target) is None:
                continue
            for options in options_of(mapping):
                for tied in (False, True):
                    number += 1
                    settings = {**options, "tie_embeddings": tied}
                    try:
                        line, agrees = compare(folder, target, settings, number)
                    except GptkitError as error:
                        line, agrees = str(error), False
                    shown = " ".join(f"{key}={value}" for key, value in settings.items())
                    print(
                        f"{'ok ' if agrees else 'BAD'} {mapping.layout(target)} {shown}: {line}", flush=True
                    )
                    failed += not agrees
    print(f"{number} models, {failed} do not agree")
    return 1 if failed else 0


def compare(folder: Path, target: Target, options: dict[str, object], number: int) -> tuple[str, bool]:
    """What was compared and whether it agrees, for a model with random weights."""
    folders = DataFolders([folder], folder)
    experiment = experiment_from_dict(
        {
            "name": f"m{number}",
            "seed": number,
            "tokenizer": _TOKENIZERS[number % len(_TOKENIZERS)],
            "data": {"dataset": "mine.txt"},
            "model": {"context_length": 64, "n_embd": 64, "n_head": 4, "n_layer": 2, **options},
            "training": {"max_steps": 1, "batch_size": 2, "backend": "cpu", "threads": 1},
            "sampling": {"prompt": "the ", "sample_interval": 0},
        }
    )
    run = train_run(experiment, RunContext(folder / "runs", folders, ignore, writes_report=False)).run
    loaded = run.load_model()
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if gain else 0.05, 0.15, generator=generator)
    precision = list(Precision)[number % 2]
    path = folder / f"exported-{number}"
    exported = export_run(run, loaded, target, path, precision)
    tokens = tokens_to_compare(run, loaded.tokenizer, folders)
    found = verify_export(exported, loaded.model, loaded.tokenizer, tokens.ids, "the ")
    line = (
        f"{precision}, {experiment.tokenizer.type}: difference {found.largest_difference:.2g} of "
        f"{found.largest_logit:.2g}, {found.greedy_equal} of {found.greedy_tokens} greedy tokens, "
        f"{'same' if found.same_ids else 'OTHER'} ids"
    )
    return line, found.agrees


if __name__ == "__main__":
    sys.exit(main())
