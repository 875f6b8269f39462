"""The corpus of a run: a text split, tokenized and hashed.

Input: the text, and a tokenizer or the class of one to train. Output: the ids of both splits, and the counts
that a run records. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import ceil, floor, log10
from typing import Any

import numpy as np

from gptkit.errors import DataError, PluginError
from gptkit.plugins import Splits, Tokenizer
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.plugins.tokenizer import Ids
from gptkit.words import first_difference, quote_characters

_USUAL_FRACTION = 0.1  # of the text in the val split: the default
_LONG_TEXT = 8_000_000  # characters from which on tokenizing takes seconds, so that progress is reported
_PIECE, _MOST_PIECES = 1 << 16, 32  # characters, and pieces, to compare with what comes back of them
_PASSAGE, _MOST_PASSAGES = 300, 32  # to count the characters that are lost, in time like length squared
_WORD = re.compile(r"(?<=\s)\S")


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    train: Ids  # (tokens of the train split,)
    val: Ids  # (tokens of the val split,)
    val_bytes: int  # UTF-8 bytes of the val split, to convert nats per token to bits per byte
    characters: int
    text_sha256: str
    lost: LostText | None = None  # of the val split; None where the tokenizer returns all of it


@dataclass(frozen=True)
class LostText:
    """What a tokenizer does not return of a text that it encodes and decodes; as a string, a predicate."""

    fraction: float  # of the characters, estimated on passages spread over the text
    example: str  # "'a passage' comes back as 'another'"

    def __str__(self) -> str:
        much = f"{self.fraction:.1%}" if self.fraction >= 0.0005 else "less than 0.1%"
        return f"does not return the text: {much} of the characters are lost: {self.example}"


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
        lost=lost_text(tokenizer, val_text),
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


def lost_text(tokenizer: Tokenizer, text: str) -> LostText | None:
    """What `tokenizer` does not return of `text`; None if it returns all of it.

    Looks at pieces of the text, spread evenly if it is a long one. Raises PluginError if it cannot decode.
    """
    for piece in _pieces(text, _PIECE, _MOST_PIECES):
        back = _decode(tokenizer, piece)
        if back == piece:
            continue
        at = max(0, first_difference(piece, back) - 8)
        example = f"{piece[at : at + 24]!r} comes back as {back[at : at + 24]!r}"
        passages = list(_pieces(text, _PASSAGE, _MOST_PASSAGES))
        kept = sum(_kept(passage, _decode(tokenizer, passage)) for passage in passages)
        return LostText(1 - kept / sum(map(len, passages)), example)
    return None


def _pieces(text: str, length: int, most: int) -> Iterator[str]:
    """At most `most` pieces of about `length` characters, spread evenly over the text.

    They begin and end with whole words: a tokenizer may treat both ends of a text in a way of its own.
    """
    number = max(1, -(-len(text) // length))
    for index in range(min(number, most)):
        start = (index * number // min(number, most)) * length
        piece = text[start : start + length]
        if start + length < len(text):
            piece = piece[: max(map(piece.rfind, " \t\n\r\u3000")) + 1].rstrip() or piece
        if start and (word := _WORD.search(piece)):
            piece = piece[word.start() :]
        yield piece


def _decode(tokenizer: Tokenizer, text: str) -> str:
    """What comes back of a text."""
    ids, name = _encode(tokenizer, text).tolist(), type(tokenizer).__name__
    try:
        back = tokenizer.decode(ids)
    except Exception as error:
        raise PluginError(
            f"{name}.decode fails on ids of the text: {type(error).__name__}: {error}. "
            "Report it to its author."
        ) from error
    if not isinstance(back, str):
        raise PluginError(
            f"{name}.decode should return a string, not {_describe(back)}. Report it to its author."
        )
    return back


def _kept(text: str, back: str) -> int:
    """The number of characters of `text` that `back` has too, in the same order."""
    matcher = SequenceMatcher(None, text, back[: 4 * len(text)], autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())


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


def hash_ids(*splits: Ids, at_once: int = 1 << 20) -> str:
    """SHA-256 of the ids of splits, whatever their type."""
    digest = hashlib.sha256()
    for ids in splits:
        digest.update(f"{len(ids)}\n".encode())
        for start in range(0, len(ids), at_once):
            digest.update(ids[start : start + at_once].astype("<i8").tobytes())
    return digest.hexdigest()


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
