"""The corpus of a run: a text split, tokenized and hashed.

Input: the text, and a tokenizer or the class of one to train. Output: the ids of both splits, of a large text
in the user's cache, and the counts that a run records. Knows nothing of models.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import numpy as np

from gptkit import files
from gptkit.data import cache
from gptkit.data.source import Part, Text, measure_text
from gptkit.errors import DataError, PluginError
from gptkit.plugins import Splits, Tokenizer
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.plugins.tokenizer import Ids
from gptkit.words import first_difference, quote_characters

_USUAL_FRACTION = 0.1  # of the text in the val split: the default
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
    ids_sha256: str
    val_sha256: str | None  # of the text of its own that is the val split, if there is one
    lost: LostText | None = None  # of the val split; None where the tokenizer returns all of it


@dataclass(frozen=True)
class LostText:
    """What a tokenizer does not return of a text that it encodes and decodes; as a string, a predicate."""

    fraction: float  # of the characters, estimated on passages spread over the text
    example: str  # "'a passage' comes back as 'another'"

    def __str__(self) -> str:
        much = f"{self.fraction:.1%}" if self.fraction >= 0.0005 else "less than 0.1%"
        return f"does not return the text: {much} of the characters are lost: {self.example}"


class _PartsAsSplits(Splits):
    """Splits of a text that may be larger than memory; `train` and `val` read all of it."""

    def __init__(self, train: Part, val: Part, progress: ProgressCallback) -> None:
        self._parts = train, val
        object.__setattr__(self, "progress", progress)

    @cached_property
    def train(self) -> str:
        return self._parts[0].read()

    @cached_property
    def val(self) -> str:
        return self._parts[1].read()

    @property
    def train_characters(self) -> int:
        return len(self._parts[0])

    def train_pieces(self) -> Iterator[str]:
        return self._parts[0].pieces()

    def val_pieces(self) -> Iterator[str]:
        return self._parts[1].pieces()


def build_corpus(
    text: str | Text,
    tokenizer: Tokenizer | type[Tokenizer],
    *,
    options: Any = None,
    val_fraction: float,
    val_text: Text | None = None,
    context_length: int,
    progress: ProgressCallback = no_progress,
    tokenizing: ProgressCallback = no_progress,
    warn: Callable[[str], None] = lambda message: None,
) -> Corpus:
    """Tokenizes a text with `tokenizer`, or with one trained by that class and `options`.

    With `val_text`, that is the val split, and all of `text` is trained on. The ids of a large text are kept
    in the user's cache; those of a small one are in memory, and no file is written. `progress` is called
    while the tokenizer is trained; `tokenizing`, with characters, while a large text is tokenized; `warn` if
    something is wrong with the cache.

    Raises DataError for a text that is too short or has characters that the tokenizer lacks; PluginError for
    ids that are not an array of integers within the vocabulary; DiskError for ids that neither the disk nor
    memory has space for.
    """
    text = Text(text) if isinstance(text, str) else text
    if val_text is None:
        train, val = text.split(val_fraction)
    else:
        train, val = Part(text, 0, text.characters), Part(val_text, 0, val_text.characters)
    if isinstance(tokenizer, type):
        tokenizer = _train(tokenizer, options, train, val, progress)
    for what, one in (("text", text), ("val text", val_text)):
        unknown = tokenizer.unknown_characters(one.distinct()) if one is not None else ""
        if not unknown:
            continue
        raise DataError(
            f"the {what} has {len(unknown)} characters that the run's tokenizer lacks: "
            f"{quote_characters(unknown)}. Use a text without them, or train a new run."
        )
    encoder = _Encoder(tokenizer, tokenizing, warn)
    train_ids, train_facts = encoder.ids(train, "train")
    val_ids, facts = encoder.ids(val, "val")
    hashes = [str(train_facts["sha256"]), str(facts["sha256"])]
    corpus = Corpus(
        tokenizer=tokenizer,
        train=train_ids,
        val=val_ids,
        val_bytes=int(facts["bytes"]),
        characters=text.characters,
        text_sha256=text.sha256,
        ids_sha256=files.sha256("\n".join(hashes).encode()),
        val_sha256=val_text.sha256 if val_text is not None else None,
        lost=LostText(**facts["lost"]) if facts["lost"] else None,
    )
    _check_length(corpus, context_length, val_fraction if val_text is None else None)
    return corpus


def _train(
    cls: type[Tokenizer], options: Any, train: Part, val: Part, progress: ProgressCallback
) -> Tokenizer:
    """A tokenizer trained on a text; of a large one, that of the cache if it was trained before."""
    splits = _PartsAsSplits(train, val, progress)
    if not (cls.keeps and train.text.is_large):
        return cls.train(options, splits)
    chosen = options.model_dump(mode="json") if options is not None else {}
    learned = [_code_of(cls), chosen, train.stop, val.text.sha256]
    stored = cache.known("tokenizer", train.text.sha256, learned)
    if stored is not None:
        with suppress(ValueError):
            return cls.from_json(stored)
    tokenizer = cls.train(options, splits)
    cache.remember("tokenizer", train.text.sha256, learned, tokenizer.to_json())
    return tokenizer


class _Encoder:
    """Ids of the parts of texts: those of a large text from the cache, or put into it."""

    def __init__(self, tokenizer: Tokenizer, progress: ProgressCallback, warn: Callable[[str], None]) -> None:
        self._tokenizer, self._progress, self._warn = tokenizer, progress, warn
        self._dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"  # in which ids are kept and hashed

    @cached_property
    def _hash(self) -> str:
        return files.sha256(files.to_json([_code_of(type(self._tokenizer)), self._tokenizer.to_json()]))

    def ids(self, part: Part, split: str) -> tuple[Ids, dict[str, Any]]:
        """The ids of a part, and facts: their hash and, of the val split, its `bytes` and what is `lost`."""
        if not part.text.is_large:
            ids = _encode(self._tokenizer, part.read())
            facts = self._facts(part, split, measure_text(part.read())[0] if split == "val" else 0)
            return ids, {**facts, "sha256": cache.hash_of_ids(ids, self._dtype)}
        key = cache.Key(part.text.sha256, split, part.start, part.stop, self._hash, self._dtype)
        size = 0

        def encode() -> Iterator[Ids]:
            nonlocal size
            size = 0
            self._progress(part.start, part.text.characters)

            def pieces() -> Iterator[str]:
                nonlocal size
                done = part.start
                for piece in part.pieces():
                    yield piece
                    size += len(piece) if piece.isascii() else len(piece.encode())
                    done += len(piece)
                    self._progress(done, part.text.characters)

            for ids in self._tokenizer.encode_stream(pieces()):
                yield _checked(self._tokenizer, ids)

        needed = len(part) * np.dtype(self._dtype).itemsize
        name = str(self._tokenizer.to_json().get("type", type(self._tokenizer).__name__))
        return cache.cached_ids(
            key,
            encode,
            lambda: self._facts(part, split, size),
            title=part.text.title,
            tokenizer=name,
            needed=needed,
            warn=self._warn,
        )

    def _facts(self, part: Part, split: str, size: int) -> dict[str, Any]:
        lost = lost_text(self._tokenizer, part) if split == "val" else None
        return {"bytes": size, "lost": asdict(lost) if lost else None}


def _code_of(cls: type[Tokenizer]) -> list[str]:
    """Identifies what a class of tokenizers does: its name, its code, the versions of what it needs."""
    source = b""
    with suppress(OSError, TypeError):
        source = Path(inspect.getfile(cls)).read_bytes()
    versions = []
    for module in cls.needs:
        with suppress(PackageNotFoundError):
            versions.append(f"{module} {version(module)}")
    return [f"{cls.__module__}:{cls.__qualname__}", files.sha256(source), *versions]


def _encode(tokenizer: Tokenizer, text: str) -> Ids:
    """The ids of a text, checked, since the tokenizer may be a plugin."""
    return _checked(tokenizer, tokenizer.encode(text))


def _checked(tokenizer: Tokenizer, ids: Ids) -> Ids:
    """Raises PluginError for ids that are not what `encode` should return."""
    size, name = tokenizer.vocab_size, type(tokenizer).__name__
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


def lost_text(tokenizer: Tokenizer, text: str | Part) -> LostText | None:
    """What `tokenizer` does not return of `text`; None if it returns all of it.

    Looks at pieces of the text, spread evenly if it is a long one. Raises PluginError if it cannot decode.
    """
    if isinstance(text, str):
        text = Part(Text(text), 0, len(text))
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


def _pieces(text: Part, length: int, most: int) -> Iterator[str]:
    """At most `most` pieces of about `length` characters, spread evenly over the text.

    They begin and end with whole words: a tokenizer may treat both ends of a text in a way of its own.
    """
    number = max(1, -(-len(text) // length))
    starts = [(index * number // min(number, most)) * length for index in range(min(number, most))]
    passages = text.passages([(start, start + length) for start in starts])
    for start, passage in zip(starts, passages, strict=False):
        piece = passage
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


def _check_length(corpus: Corpus, context_length: int, val_fraction: float | None) -> None:
    """Raises DataError for a split without a whole window, with the fields that can be changed."""
    needed, sizes = context_length + 1, {"train": len(corpus.train), "val": len(corpus.val)}
    for name, size in sizes.items():
        if size >= needed:
            continue
        remedies, field = [], "model.context_length"
        enough = _rounded_up(needed / max(1, sum(sizes.values())))  # the fraction that each split needs
        if val_fraction is not None and enough <= 0.5:
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
