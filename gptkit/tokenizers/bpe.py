"""The tokenizer `bpe`: byte-level byte-pair encoding, learned from the text by the package `tokenizers`.

Input: text. Output: ids, and a tokenizer.json in the package's own format, which other programs open too.
Knows nothing of files. The package is imported when a tokenizer is made, so that gptkit works without it.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field

from gptkit.errors import GptkitWarning
from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer
from gptkit.plugins.tokenizer import Ids
from gptkit.tokenizers.byte import ByteStreamDecoder
from gptkit.tokenizers.char import smallest_type

if TYPE_CHECKING:
    import tokenizers

_PIECE = 1 << 16  # characters per piece; while it learns, the package buffers some hundreds of pieces
_LONGEST = 1 << 20  # characters without white space after which a text is cut anyway
LEARNED = 100_000_000
"""Characters of the training text from which BPE learns; of a longer text, blocks spread evenly over it."""

_BLOCK = 1 << 20  # characters of such a block
_BATCH = 8  # pieces encoded at a time, in parallel; takes about 350 bytes per token meanwhile

# Learning takes time proportional to the square of a word's length, so longer words (of texts without
# spaces) are cut
_LONG_WORD = re.compile(r"\S{1000}|\s{1000}")

# GPT-2's pattern never lets white space follow anything else within a token, and never looks back: a text cut
# here has the same ids as the whole. U+180E and U+200B are white space in some versions of Unicode.
_BEFORE_SPACE = re.compile(r"[^\s\u180e\u200b](?=[ \t\n\r\u3000])")


def import_tokenizers() -> ModuleType:
    """The package tokenizers."""
    # It encodes in threads, and warns at every later fork of the process unless this is set
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    return tokenizers


@contextmanager
def errors_as_value_error() -> Iterator[None]:
    """Raises ValueError for whatever the package raises; its panics are not even subclasses of Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, MemoryError):
            raise
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0][:200]) from error


def open_tokenizer(data: dict[str, Any]) -> tokenizers.Tokenizer:
    """The package's tokenizer described by a tokenizer.json. Raises ValueError."""
    try:
        text = json.dumps(data, allow_nan=False)
    except (RecursionError, TypeError) as error:
        raise ValueError(f"it is not JSON: {error}") from None
    with errors_as_value_error():
        opened: tokenizers.Tokenizer = import_tokenizers().Tokenizer.from_str(text)
    return opened


def cut(texts: Iterable[str], longest: int = _LONGEST) -> Iterator[str]:
    """The text that `texts` make together in pieces of some 64k characters, cut before white space.

    Where `longest` characters have no white space, the piece ends after them. The cuts do not depend on where
    one of the texts ends.
    """
    text, start = "", 0
    for more in texts:
        text, start = text[start:] + more if start < len(text) else more, 0
        while start + max(longest, _PIECE) < len(
            text
        ):  # so that the end of the text cannot be what ends the piece
            end = _end_of_piece(text, start, longest)
            yield text[start:end]
            start = end
    while start < len(text):
        end = _end_of_piece(text, start, longest)
        yield text[start:end]
        start = end


def _end_of_piece(text: str, start: int, longest: int) -> int:
    end = start + _PIECE
    if end >= len(text):
        return len(text)
    found = _BEFORE_SPACE.search(text, end - 1, start + longest)
    return found.end() if found else start + longest


def replace_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates, as the tokenizer `byte` encodes them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def encode_pieces(opened: tokenizers.Tokenizer, texts: Iterable[str], dtype: np.dtype[Any]) -> Ids:
    """Ids of all texts in one array, shape (T,). Raises ValueError for what the package cannot encode."""
    return np.concatenate([np.empty(0, dtype=dtype), *encode_each(opened, texts, dtype)])


def encode_each(opened: tokenizers.Tokenizer, texts: Iterable[str], dtype: np.dtype[Any]) -> Iterator[Ids]:
    """Ids of each text. Raises ValueError for what the package cannot encode."""
    texts = iter(texts)
    while batch := [replace_surrogates(text) for text in islice(texts, _BATCH)]:
        with errors_as_value_error():
            encoded = opened.encode_batch_fast(batch, add_special_tokens=False)
        for encoding in encoded:
            yield np.array(encoding.ids, dtype=dtype)


@cache
def byte_characters() -> tuple[str, ...]:
    """The character of each byte in a byte-level vocabulary (GPT-2's encoding of bytes).

    A byte that Latin-1 prints is its own character; the others take those from U+0100 on, in order.
    """
    spare = iter(range(256, 512))
    prints = [chr(byte).isprintable() and not chr(byte).isspace() for byte in range(256)]
    return tuple(chr(byte if printed else next(spare)) for byte, printed in enumerate(prints))


@cache
def bytes_of_characters() -> dict[str, int]:
    """The inverse of `byte_characters`."""
    return {character: byte for byte, character in enumerate(byte_characters())}


def byte_level_json(vocab: Mapping[str, int], merges: Sequence[Any]) -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE without special tokens, as the package writes it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None},
        **{"pre_tokenizer": byte_level, "post_processor": None, "decoder": dict(byte_level)},
        "model": {
            **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
            **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
            **{"vocab": vocab, "merges": merges},
        },
    }


def small_json(merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A tokenizer.json of the 256 bytes and these merges, for examples and tests."""
    vocab = {character: number for number, character in enumerate(sorted(byte_characters()))}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return byte_level_json(vocab, [list(pair) for pair in merges])


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding of UTF-8 as in GPT-2: ids are the 256 bytes and their most frequent merges.

    No character is unknown. A text is split by GPT-2's pattern, which merges never cross. Learning takes
    memory proportional to the number of distinct words of the training text, or of a sample of LEARNED
    characters where it is longer; encoding takes some 100 MB
    in addition to text and ids. The ids are those of the whole text, unless 2**20 characters have no white
    space: there it is encoded as two texts.
    """

    class Options(PluginOptions):
        vocab_size: int = Field(
            default=1024,
            ge=256,
            le=1_000_000,
            description="Number of tokens, including the 256 bytes; fewer if few pairs recur.",
        )
        min_frequency: int = Field(
            default=2, ge=1, le=1_000_000_000, description="How often a pair must occur to become a token."
        )

    summary = "byte-level BPE learned from the text; knows every character"
    needs = ("tokenizers",)
    keeps = True

    def __init__(self, data: dict[str, Any]) -> None:
        """Raises ValueError if `data` is not a tokenizer.json of this kind."""
        tokens = _check(data)
        self._data = data
        # Vocabulary and merges alone, so that other keys and versions of the file make no difference
        self._opened = open_tokenizer(byte_level_json(data["model"]["vocab"], data["model"]["merges"]))
        byte_of = bytes_of_characters()
        self._token_bytes = [bytes(byte_of[character] for character in token) for token in tokens]
        self._dtype = smallest_type(len(tokens))

    @classmethod
    def train(cls, options: Options, splits: Splits) -> Self:
        tokenizers = import_tokenizers()
        learner = tokenizers.Tokenizer(tokenizers.models.BPE())
        learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        learner.decoder = tokenizers.decoders.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=options.vocab_size,
            min_frequency=options.min_frequency,
            initial_alphabet=list(byte_characters()),
            special_tokens=[],
            show_progress=False,
        )
        learner.train_from_iterator(_training_pieces(splits), trainer=trainer)
        return cls(json.loads(learner.to_str()))

    @property
    def vocab_size(self) -> int:
        return len(self._token_bytes)

    def encode(self, text: str) -> Ids:
        return encode_pieces(self._opened, cut([text]), self._dtype)

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        return encode_each(self._opened, cut(pieces), self._dtype)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join([self._token_bytes[token] for token in ids]).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        return ByteStreamDecoder(self, self._token_bytes)

    def to_json(self) -> dict[str, Any]:
        return self._data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data)


def _training_pieces(splits: Splits) -> Iterator[str]:
    """The training text in pieces without very long words; reports progress in characters.

    Of a long text it is a sample: blocks that are spread evenly over the text.
    """
    done, total, texts = 0, splits.train_characters, splits.train_pieces()
    if total > LEARNED:
        warnings.warn(
            f"tokenizer 'bpe' learns from {LEARNED:,} of the text's {total:,} characters, spread evenly.",
            GptkitWarning,
            stacklevel=2,
        )
        texts, total = _sample(texts, total), LEARNED
    for piece in cut(texts):
        start = 0
        for word in _LONG_WORD.finditer(piece):
            yield replace_surrogates(piece[start : word.end()])
            start = word.end()
        yield replace_surrogates(piece[start:])
        done += len(piece)
        splits.progress(done, total)


def _sample(texts: Iterable[str], characters: int) -> Iterator[str]:
    """About LEARNED of the characters, in blocks."""
    blocks, wanted = -(-characters // _BLOCK), max(1, LEARNED // _BLOCK)
    chosen = {number * blocks // wanted for number in range(wanted)}
    at = 0
    for text in texts:
        for start in range(at - at % _BLOCK, at + len(text), _BLOCK):
            if start // _BLOCK in chosen:
                yield text[max(0, start - at) : start + _BLOCK - at]
        at += len(text)


# The values that a tokenizer.json of this kind may have; () where a function below checks them. A key that is
# not listed belongs to another version of the package, and is accepted as long as its value is empty.

_EMPTY: tuple[object, ...] = (None, False, [], {}, "")
_FILE = {"version": ("1.0",), "model": (), "pre_tokenizer": (), "decoder": ()}
_PRE_TOKENIZER = {
    "type": ("ByteLevel",),
    "add_prefix_space": (False,),
    "use_regex": (True,),
    "trim_offsets": (True, False),
}
_DECODER = {"type": ("ByteLevel",)} | dict.fromkeys(
    ("add_prefix_space", "use_regex", "trim_offsets"), (True, False)
)
_MODEL = {"type": ("BPE",), "vocab": (), "merges": ()}
_REQUIRED = {"version", "type", "model", "pre_tokenizer", "decoder", "vocab", "merges", "add_prefix_space"}


def _check(data: dict[str, Any]) -> list[str]:
    """The tokens in order of id. Raises ValueError unless `data` is a byte-level BPE as `train` makes it."""
    _check_table("it", data, _FILE)
    _check_table("its pre_tokenizer", data["pre_tokenizer"], _PRE_TOKENIZER)
    _check_table("its decoder", {"add_prefix_space": True, **_table(data["decoder"])}, _DECODER)
    _check_table("its model", data["model"], _MODEL)
    tokens = _tokens(data["model"]["vocab"])
    _check_merges(data["model"]["merges"], set(tokens))
    return tokens


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it does not describe a byte-level BPE tokenizer")
    return value


def _check_table(what: str, value: object, known: Mapping[str, tuple[object, ...]]) -> None:
    table = _table(value)
    if missing := sorted(_REQUIRED & known.keys() - table.keys()):
        raise ValueError(f"{what} has no {missing[0]}")
    for key, found in table.items():
        allowed = known.get(key, _EMPTY)
        # By type too: the package does not take 0 and 1 for booleans
        if allowed and not any(type(found) is type(value) and found == value for value in allowed):
            raise ValueError(f"{what} has an unexpected value of {str(key)[:40]!r}")


def _tokens(vocab: object) -> list[str]:
    ids = _table(vocab)
    if any(type(number) is not int for number in ids.values()):
        raise ValueError("an id of its vocabulary is not an integer")
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("the ids of its vocabulary are not 0, 1, 2 and so on")
    if not set(byte_characters()) <= ids.keys():
        raise ValueError("its vocabulary lacks some of the 256 bytes")
    if "" in ids or not set().union(*tokens) <= set(byte_characters()):
        raise ValueError("a token of its vocabulary is not made of bytes")
    return tokens


def _check_merges(merges: object, tokens: set[str]) -> None:
    """Merges are pairs of tokens that join to a token; older versions write a pair as one string."""
    if not isinstance(merges, list):
        raise ValueError("its merges are not a list")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError("a merge is not a pair of tokens")
        if not {*pair, "".join(pair)} <= tokens:
            raise ValueError("a merge is of tokens that its vocabulary lacks")
