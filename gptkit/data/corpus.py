"""The corpus of a run: a text split, tokenized and hashed.

Input: the text, and a tokenizer or the class of one to train. Output: the ids of both splits, and the counts
that a run records. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import numpy as np

from gptkit.errors import DataError, PluginError
from gptkit.plugins import Splits, Tokenizer
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.plugins.tokenizer import Ids
from gptkit.words import quote_characters

_USUAL_FRACTION = 0.1  # of the text in the val split: the default
_LONG_TEXT = 8_000_000  # characters from which on tokenizing takes seconds, so that progress is reported


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: Ids  # (tokens of the train split,)
    val: Ids  # (tokens of the val split,)
    val_bytes: int  # UTF-8 bytes of the val split, to convert nats per token to bits per byte
    characters: int
    text_sha256: str


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """The train split, which is the beginning of the text, and the val split, which is its end."""
    cut = int(len(text) * (1 - val_fraction))
    return text[:cut], text[cut:]


def build_corpus(
    text: str,
    tokenizer: Tokenizer | type[Tokenizer],
    *,
    options: Any = None,
    val_fraction: float,
    context_length: int,
    progress: ProgressCallback = no_progress,
    tokenizing: ProgressCallback = no_progress,
) -> Corpus:
    """Tokenizes a text with `tokenizer`, or with one trained by that class and `options`.

    `progress` is called while the tokenizer is trained; `tokenizing`, with characters, between the splits of
    a long text. Raises DataError for a text that is too short or has characters that the tokenizer lacks;
    PluginError for ids that are not an array of integers within the vocabulary.
    """
    if len(text) < _LONG_TEXT:
        tokenizing = no_progress
    train_text, val_text = split_text(text, val_fraction)
    if isinstance(tokenizer, type):
        tokenizer = tokenizer.train(options, Splits(train_text, val_text, progress))
    unknown = tokenizer.unknown_characters(text)
    if unknown:
        raise DataError(
            f"the text has {len(unknown)} characters that the run's tokenizer lacks: "
            f"{quote_characters(unknown)}. Use a text without them, or train a new run."
        )
    tokenizing(0, len(text))
    train = _encode(tokenizer, train_text)
    tokenizing(len(train_text), len(text))
    corpus = Corpus(
        tokenizer=tokenizer,
        train=train,
        val=_encode(tokenizer, val_text),
        val_bytes=measure_text(val_text)[0],
        characters=len(text),
        text_sha256=measure_text(text)[1],
    )
    _check_length(corpus, context_length, val_fraction)
    return corpus


def _encode(tokenizer: Tokenizer, text: str) -> Ids:
    """The ids of a text, checked, since the tokenizer may be a plugin."""
    ids, size, name = tokenizer.encode(text), tokenizer.vocab_size, type(tokenizer).__name__
    if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)):
        raise PluginError(
            f"{name}.encode should return a numpy array of integers, shape (T,), not {_describe(ids)}. "
            "Report it to its author."
        )
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise PluginError(
            f"{name} returned ids from {ids.min()} to {ids.max()}, but its vocab_size is {size}. "
            "Report it to its author."
        )
    return ids


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__


def _check_length(corpus: Corpus, context_length: int, val_fraction: float) -> None:
    """Raises DataError for a split without a whole window, with the fields that can be changed."""
    needed, sizes = context_length + 1, {"train": len(corpus.train), "val": len(corpus.val)}
    for name, size in sizes.items():
        if size >= needed:
            continue
        remedies, field = [], "model.context_length"
        enough = _rounded_up(needed / max(1, sum(sizes.values())))  # the fraction that each split needs
        if enough <= 0.5:
            change = f"raise data.val_fraction from {val_fraction:g} to {enough:g} or more"
            if name == "train":
                change = f"lower data.val_fraction from {val_fraction:g} to {1 - enough:g} or less"
            remedies = [change]
            if name == "train" or val_fraction < _USUAL_FRACTION:
                field = "data.val_fraction"
        if (fits := min(sizes.values()) - 1) > 0:
            other = f"the largest model.context_length that fits is {fits}"
            remedies.insert(0 if field == "model.context_length" else 1, other)
        raise DataError(
            f"the {name} split of the text has {size} tokens, needs at least {needed} "
            f"(model.context_length + 1); {', or '.join(remedies) or 'use a longer text'}.",
            field=field,
        )


def _rounded_up(fraction: float) -> float:
    """Two significant digits, and a little more: a split is cut in characters, not in tokens."""
    scale = 10.0 ** (1 - floor(log10(fraction)))
    return ceil(1.02 * fraction * scale) / scale


def measure_text(text: str, at_once: int = 1 << 20) -> tuple[int, str]:
    """Bytes and SHA-256 of the text as UTF-8, without a second copy of it in memory.

    Raises DataError for a lone surrogate, which no file has but a plugin may return.
    """
    digest, size = hashlib.sha256(), 0
    try:
        for start in range(0, len(text), at_once):
            part = text[start : start + at_once].encode()
            digest.update(part)
            size += len(part)
    except UnicodeEncodeError as error:
        raise DataError(f"the text has a lone surrogate at character {start + error.start}.") from None
    return size, digest.hexdigest()
