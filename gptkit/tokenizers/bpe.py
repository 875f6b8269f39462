"""The `bpe` tokenizer: byte-level byte-pair encoding, learnt from the text by the library `tokenizers`.

In: text. Out: ids, and a tokenizer.json in the library's own format, which other tools open too. Knows
nothing of files. The library is imported when a tokenizer is made, so that gptkit works without it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field

from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer
from gptkit.tokenizers.byte import ByteStream
from gptkit.tokenizers.char import Ids, smallest_type

if TYPE_CHECKING:
    import tokenizers

_PIECE = 1 << 16  # characters given to the library at a time; to learn from, it buffers some hundreds of them
_LONGEST = 1 << 20  # characters without a place to cut, after which a piece is cut wherever that is
_BATCH = 8  # pieces encoded at a time, in parallel; the library takes about 350 bytes a token meanwhile

# To learn from a word the library takes time in proportion to the square of its length, so longer ones, which
# are texts without spaces, are cut
_LONG_RUN = re.compile(r"\S{1000}|\s{1000}")

# GPT-2's pattern never has white space follow anything else within a token, and never looks back: cut there,
# a text has the tokens it has in one piece. U+180E and U+200B are white space to some versions of Unicode.
_BEFORE_SPACE = re.compile(r"[^\s\u180e\u200b](?=[ \t\n\r\u3000])")


def library() -> ModuleType:
    """The package tokenizers."""
    # It encodes in threads, and warns at every later fork of the process unless this is set
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import tokenizers

    return tokenizers


@contextmanager
def refusals() -> Iterator[None]:
    """Raises ValueError for whatever the library raises; its panics are no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, MemoryError):
            raise
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0][:200]) from error


def open_tokenizer(data: dict[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json. Raises ValueError where it is none."""
    try:
        text = json.dumps(data, allow_nan=False)
    except (RecursionError, TypeError) as error:
        raise ValueError(f"it cannot be JSON: {error}") from None
    with refusals():
        opened: tokenizers.Tokenizer = library().Tokenizer.from_str(text)
    return opened


def pieces(text: str, cut: re.Pattern[str] = _BEFORE_SPACE, longest: int = _LONGEST) -> Iterator[str]:
    """A text in pieces of some 64k characters, each ending where a match of `cut` does.

    Where `longest` characters have no such place the piece ends after them.
    """
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            found = cut.search(text, end - 1, start + longest)
            end = found.end() if found else start + longest
        yield text[start:end]
        start = end


def without_halves(text: str) -> str:
    """The text with "?" for halves of surrogate pairs, as the tokenizer `byte` reads them."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def encode_pieces(opened: tokenizers.Tokenizer, parts: Iterable[str], dtype: np.dtype[Any]) -> Ids:
    """Ids of the parts, one after another. Raises ValueError for what the library cannot encode."""
    parts, found = iter(parts), [np.empty(0, dtype=dtype)]
    while batch := [without_halves(part) for part in islice(parts, _BATCH)]:
        with refusals():
            encoded = opened.encode_batch_fast(batch, add_special_tokens=False)
        found += [np.array(encoding.ids, dtype=dtype) for encoding in encoded]
    return np.concatenate(found)


@cache
def byte_characters() -> tuple[str, ...]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's encoding of bytes).

    A byte that Latin-1 prints stands for itself; the others take the characters from U+0100, in order.
    """
    spare = iter(range(256, 512))
    prints = [chr(byte).isprintable() and not chr(byte).isspace() for byte in range(256)]
    return tuple(chr(byte if printed else next(spare)) for byte, printed in enumerate(prints))


@cache
def bytes_of_characters() -> dict[str, int]:
    """What `byte_characters` says, the other way round."""
    return {character: byte for byte, character in enumerate(byte_characters())}


def byte_level_json(vocab: Mapping[str, int], merges: Sequence[Any]) -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE without special tokens, as the library writes it."""
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
    """A tokenizer.json of the 256 bytes, and of a few merges with their tokens in order."""
    vocab = {character: number for number, character in enumerate(sorted(byte_characters()))}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return byte_level_json(vocab, [list(pair) for pair in merges])


class BpeTokenizer(Tokenizer):
    """Byte-pair encoding of UTF-8, as GPT-2 has it: ids are the 256 bytes and the commonest joins of them.

    No text is unknown. A text is split by GPT-2's pattern, and joins never cross it. Learning takes memory in
    proportion to the distinct words of the training text; encoding takes some 100 MB beside text and ids. The
    ids are those of the whole text in one piece, unless 2**20 characters are without white space: there it is
    cut as if it were two texts.
    """

    class Options(PluginOptions):
        vocab_size: int = Field(
            default=1024,
            ge=256,
            le=1_000_000,
            description="Tokens, the 256 bytes among them; fewer if few recur.",
        )
        min_frequency: int = Field(
            default=2, ge=1, le=1_000_000_000, description="How often a pair must occur to become a token."
        )

    summary = "byte-level BPE, learnt from the text; knows every text"
    needs = ("tokenizers",)

    def __init__(self, data: dict[str, Any]) -> None:
        """Raises ValueError where `data` is not a tokenizer.json of this kind."""
        vocab = _check(data)
        self._data = data
        # Of what was checked the library gets these alone, so that its version and keys do not matter
        model = byte_level_json(data["model"]["vocab"], data["model"]["merges"])
        self._opened = open_tokenizer(model)
        byte_of = bytes_of_characters()
        self._pieces = [bytes([byte_of[character] for character in token]) for token in vocab]
        self._dtype = smallest_type(len(self._pieces))

    @classmethod
    def train(cls, options: Options, splits: Splits) -> Self:
        tokenizers = library()
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
        learner.train_from_iterator(_watched(splits), trainer=trainer)
        return cls(json.loads(learner.to_str()))

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> Ids:
        return encode_pieces(self._opened, pieces(text), self._dtype)

    def decode(self, ids: Sequence[int]) -> str:
        table = self._pieces
        return b"".join([table[token] for token in ids]).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        return ByteStream(self, self._pieces)

    def to_json(self) -> dict[str, Any]:
        return self._data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data)


def _watched(splits: Splits) -> Iterator[str]:
    """The training text in pieces, saying how far it was read."""
    done = 0
    for piece in pieces(splits.train):
        start = 0
        for run in _LONG_RUN.finditer(piece):
            yield without_halves(piece[start : run.end()])
            start = run.end()
        yield without_halves(piece[start:])
        done += len(piece)
        splits.progress(done, len(splits.train))


# What a tokenizer.json must say. A key that is not named here belongs to another version of the library; it
# may be there as long as it says nothing.

_NOTHING: tuple[object, ...] = (None, False, [], {}, "")
_WHOLE = {"version": ("1.0",), "model": (), "pre_tokenizer": (), "decoder": ()}  # (): looked at further
_SPLITTER = {
    "type": ("ByteLevel",),
    "add_prefix_space": (False,),
    "use_regex": (True,),
    "trim_offsets": (True, False),
}
_DECODER = {"type": ("ByteLevel",)} | dict.fromkeys(
    ("add_prefix_space", "use_regex", "trim_offsets"), (True, False)
)
_MODEL = {"type": ("BPE",), "vocab": (), "merges": ()}
_NEEDED = {"version", "type", "model", "pre_tokenizer", "decoder", "vocab", "merges", "add_prefix_space"}


def _check(data: dict[str, Any]) -> list[str]:
    """The tokens in order of id. Raises ValueError unless `data` is a byte-level BPE as `train` makes it."""
    _check_table("it", data, _WHOLE)
    _check_table("its pre_tokenizer", data["pre_tokenizer"], _SPLITTER)
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
    if missing := sorted(_NEEDED & known.keys() - table.keys()):
        raise ValueError(f"{what} has no {missing[0]}")
    for key, said in table.items():
        allowed = known.get(key, _NOTHING)
        # By type too: 0 and 1 are no booleans to the library
        if allowed and not any(type(said) is type(value) and said == value for value in allowed):
            raise ValueError(f"{what} has a {str(key)[:40]!r} that a byte-level BPE of gptkit has not")


def _tokens(vocab: object) -> list[str]:
    ids = _table(vocab)
    if any(type(number) is not int for number in ids.values()):
        raise ValueError("an id of its vocabulary is no whole number")
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
        raise ValueError("its merges are no list")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError("a merge is no pair of tokens")
        if not {*pair, "".join(pair)} <= tokens:
            raise ValueError("a merge is of tokens that its vocabulary lacks")
