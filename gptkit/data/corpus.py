"""A text as a run uses it: split, tokenized, hashed.

In: the text and a tokenizer plugin, or the tokenizer of another run. Out: ids of both splits, with the counts
that a run records. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptkit.errors import DataError, PluginError
from gptkit.plugins import Splits, Tokenizer
from gptkit.plugins.options import ProgressCallback, no_progress

Ids = NDArray[np.integer[Any]]

_LONG_TEXT = 8_000_000  # characters from which on tokenizing may take long enough to be told


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: Ids  # (tokens of the train split,)
    val: Ids  # (tokens of the val split,)
    val_bytes: int  # UTF-8 bytes of the val split, to turn nats a token into bits a byte
    characters: int
    text_sha256: str


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """The first part of the text to train on, the last to evaluate on."""
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
    """Tokenizes a text. `tokenizer` is a Tokenizer, or a class of them to train one with `options`.

    Raises DataError where the text has characters that the tokenizer lacks, or is too short; PluginError
    where the tokenizer gives what no ids can be. `progress` is told how far training the tokenizer has come;
    `tokenizing` the characters of a long text, of which a plugin takes a split in one go.
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
    _check_length(corpus, context_length)
    return corpus


def _encode(tokenizer: Tokenizer, text: str) -> Ids:
    """The ids of a text, which a stranger's tokenizer may get wrong."""
    ids, size, whose = tokenizer.encode(text), tokenizer.vocab_size, type(tokenizer).__name__
    if not (isinstance(ids, np.ndarray) and ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)):
        raise PluginError(
            f"encode of {whose} should give a numpy array of integers, shape (T,), not {_shape_of(ids)}. "
            "Tell its author."
        )
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise PluginError(
            f"{whose} gave ids from {ids.min()} to {ids.max()}, but its vocab_size is {size}. "
            "Tell its author."
        )
    return ids


def _shape_of(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__


def quote_characters(characters: str, at_most: int = 20) -> str:
    """Characters for a message: each quoted, the first few of them."""
    shown = " ".join(repr(character) for character in characters[:at_most])
    return shown + (f" and {len(characters) - at_most} more" if len(characters) > at_most else "")


def _check_length(corpus: Corpus, context_length: int) -> None:
    for name, ids in (("train", corpus.train), ("val", corpus.val)):
        if len(ids) < context_length + 1:
            fits = min(len(corpus.train), len(corpus.val)) - 1
            remedy = (
                f"the largest model.context_length that fits is {fits}" if fits > 0 else "use a longer text"
            )
            raise DataError(
                f"the {name} split of the text has {len(ids)} tokens, needs at least {context_length + 1} "
                f"(model.context_length + 1); {remedy}."
            ).about("model.context_length")


def measure_text(text: str, at_once: int = 1 << 20) -> tuple[int, str]:
    """Bytes and SHA-256 of the text as UTF-8, without ever holding a second copy of it.

    Raises DataError for half a character (a lone surrogate), which no file has but a plugin may give.
    """
    digest, size = hashlib.sha256(), 0
    try:
        for start in range(0, len(text), at_once):
            part = text[start : start + at_once].encode()
            digest.update(part)
            size += len(part)
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has half a character (a lone surrogate) at {start + error.start}."
        ) from None
    return size, digest.hexdigest()
