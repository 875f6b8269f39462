"""The loss of a run's model on a text: that of the run, or any other.

Input: a run, the name or path of a text, how far apart windows start. Output: `TextLoss`. Knows nothing of
terminals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gptkit.backend import choose_device, default_operations
from gptkit.data.catalog import read_dataset, resolve_dataset
from gptkit.data.corpus import lost_text
from gptkit.data.sampler import sliding_windows
from gptkit.data.source import measure_text, split_text
from gptkit.errors import DataError, UsageError
from gptkit.experiment.schema import PluginTable
from gptkit.plugins import DataFolders, Tokenizer
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.runs import Run
from gptkit.training.loss import bits_per_byte, evaluate_windows
from gptkit.words import quote_characters


@dataclass(frozen=True)
class TextLoss:
    """The loss of a model on a text."""

    text: str  # its name, and the split
    step: int  # of the checkpoint
    loss: float  # mean nats per token
    bits_per_byte: float | None  # None where the tokenizer does not return the text
    tokens: int  # that were predicted: all but the first
    bytes: int  # of the text as UTF-8
    stride: int  # tokens from one window to the next

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate_run(
    run: Run,
    folders: DataFolders,
    *,
    dataset: str | None = None,
    stride: int | None = None,
    checkpoint: str | int = "best",
    skip_unknown: bool = False,
    backend: str = "auto",
    progress: ProgressCallback = no_progress,
    warn: Callable[[str], None] = lambda message: None,
) -> TextLoss:
    """The loss on a text, or without `dataset` on the val split of the run's own.

    Windows start `stride` tokens apart, by default a context's length: then each begins with nothing before
    it. A smaller stride predicts each token after more of the text, for more computation. Characters that the
    tokenizer has never seen are left out with `skip_unknown`.

    Raises DataError for a text that is missing, too short or has such characters, UsageError for a stride
    that is not from 1 to the context's length, CheckpointError, PluginError.
    """
    loaded = run.load_model(checkpoint, warn=warn)
    experiment = run.experiment()
    context = experiment.model.context_length
    if stride is not None and not 0 < stride <= context:
        raise UsageError(f"--stride {stride}: expected 1 to {context}, the context's length.")
    own = experiment.data.val or experiment.data.dataset
    name, text = _read(own if dataset is None else PluginTable(type=dataset), folders)
    if dataset is None and experiment.data.val is None:
        name, text = f"val split of {name}", split_text(text, experiment.data.val_fraction)[1]
    text = _known(text, loaded.tokenizer, name, skip=skip_unknown)
    ids = loaded.tokenizer.encode(text)
    if len(ids) < 2:
        raise DataError(f"{name} has {len(ids)} tokens, and a loss needs two at least.")
    device = choose_device(backend)
    model = loaded.model.to(device)
    windows = sliding_windows(len(ids), context_length=context, stride=stride or context)
    with default_operations(device):
        found = evaluate_windows(model, ids, windows, progress=progress)
    size = measure_text(text)[0]
    lossy = lost_text(loaded.tokenizer, text)
    if lossy is not None:
        warn(f"the tokenizer {lossy}\nSo its loss has no bits per byte.")
    return TextLoss(
        text=name,
        step=loaded.checkpoint.step,
        loss=found.mean,
        bits_per_byte=None if lossy else bits_per_byte(found.mean, tokens=len(ids), text_bytes=size),
        tokens=found.tokens,
        bytes=size,
        stride=stride or context,
    )


def _read(table: PluginTable, folders: DataFolders) -> tuple[str, str]:
    """The name of a dataset and its text, downloaded if need be."""
    dataset, used = resolve_dataset(table, folders)
    if not dataset.is_here(folders):
        dataset.fetch(folders)
    return str(used.options.get("path", used.type)), read_dataset(used.type, dataset, folders)


def _known(text: str, tokenizer: Tokenizer, name: str, *, skip: bool) -> str:
    unknown = tokenizer.unknown_characters(text)
    if unknown and not skip:
        raise DataError(
            f"{name} has characters that the run's tokenizer has never seen: {quote_characters(unknown)}.\n"
            "To leave them out: --unknown skip"
        )
    return text.translate(dict.fromkeys(map(ord, unknown))) if unknown else text
