"""The built-in tokenizers: text to ids and back.

In: text. Out: ids as the smallest numpy integers that hold them, so that a corpus takes as little room as it
can. Knows nothing of models or files; a tokenizer describes itself as JSON.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer

Ids = NDArray[np.integer[Any]]

_CHUNK = 1 << 20  # characters encoded at a time: bounds the memory on top of text and ids


def smallest_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id of a vocabulary."""
    return np.dtype(np.min_scalar_type(max(vocab_size - 1, 0)))


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def distinct_characters(text: str) -> list[str]:
    """The characters of `text`, each once, sorted by code point; in bounded memory."""
    seen: set[str] = set()
    for start in range(0, len(text), _CHUNK):
        chunk = text[start : start + _CHUNK]
        if (
            chunk.isascii()
        ):  # what is known already is deleted byte by byte, far faster than a set takes it in
            known = "".join(character for character in seen if character.isascii())
            chunk = chunk.encode("ascii").translate(None, known.encode("ascii")).decode("ascii")
        seen.update(chunk)
    return sorted(seen)


def _characters_of(splits: Splits) -> list[str]:
    return sorted({*distinct_characters(splits.train), *distinct_characters(splits.val)})


class _Alphabet:
    """Characters and their numbers, by table: character number i is `characters[i]`."""

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        self._dtype = smallest_type(len(characters))
        points = [ord(character) for character in self.characters]
        self._table = np.zeros(max(points, default=0) + 1, dtype=self._dtype)
        self._table[points] = np.arange(len(points), dtype=self._dtype)
        # Text of one byte a character is looked up by the interpreter's own byte translation
        self._bytes: bytes | None = None
        if len(self._table) <= 256 and self._dtype == np.uint8:
            self._bytes = bytes(self._table) + bytes(256 - len(self._table))

    def encode(self, text: str) -> Ids:
        """Numbers of the characters of `text`, all of which must be known."""
        out = np.empty(len(text), dtype=self._dtype)
        for start in range(0, len(text), _CHUNK):
            chunk = text[start : start + _CHUNK]
            if self._bytes is not None:
                ids: Ids = np.frombuffer(chunk.encode("latin-1").translate(self._bytes), dtype=np.uint8)
            else:
                ids = self._table[_code_points(chunk)]
            out[start : start + len(chunk)] = ids
        return out

    def unknown(self, text: str) -> str:
        return "".join(sorted(set(distinct_characters(text)) - set(self.characters)))


def _characters_from_json(data: dict[str, Any], kind: str) -> list[str]:
    characters = data.get("characters")
    if data.get("type") != kind or not isinstance(characters, str) or not characters:
        raise ValueError(f"it does not describe a {kind} tokenizer")
    if len(set(characters)) != len(characters):
        raise ValueError("a character occurs twice")
    if any("\ud800" <= character <= "\udfff" for character in characters):
        raise ValueError("a character is half of a surrogate pair, which no file can hold")
    return list(characters)


def _check_keys(data: dict[str, Any], known: set[str]) -> None:
    if set(data) != known:
        raise ValueError(f"its keys should be {', '.join(sorted(known))}")


class CharTokenizer(Tokenizer):
    """One token for each distinct character of the text, in order of code point."""

    summary = "one token a character, from the text"

    def __init__(self, characters: Sequence[str]) -> None:
        self._alphabet = _Alphabet(characters)

    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        return cls(_characters_of(splits))

    @property
    def vocab_size(self) -> int:
        return len(self._alphabet.characters)

    def encode(self, text: str) -> Ids:
        return self._alphabet.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        characters = self._alphabet.characters
        return "".join([characters[token] for token in ids])

    def unknown_characters(self, text: str) -> str:
        return self._alphabet.unknown(text)

    def to_json(self) -> dict[str, Any]:
        return {"type": "char", "characters": "".join(self._alphabet.characters)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        _check_keys(data, {"type", "characters"})
        return cls(_characters_from_json(data, "char"))


class BigramTokenizer(Tokenizer):
    """Pairs of characters: the commonest pairs of the training text, and single characters for the rest.

    Text is cut into pairs from its beginning. A pair that has no token, and a last character that is alone,
    become single characters, so any text of known characters has ids. Ids below the number of characters are
    the characters; the pairs follow, commonest first.
    """

    class Options(PluginOptions):
        max_pairs: int = Field(default=4096, ge=0, le=1_000_000, description="The commonest pairs kept.")

    summary = "pairs of characters, the commonest of the text"

    def __init__(self, characters: Sequence[str], pairs: Sequence[str]) -> None:
        self._alphabet = _Alphabet(characters)
        self._pairs = tuple(pairs)
        self._pieces = tuple(characters) + self._pairs
        self._dtype = smallest_type(len(self._pieces))
        keys = self._keys(self._alphabet.encode("".join(pairs)))
        self._order = np.argsort(keys, kind="stable")
        self._sorted_keys = keys[self._order]

    def _keys(self, characters: Ids) -> NDArray[np.int64]:
        """One number for each pair of an even count of character numbers."""
        wide = characters.astype(np.int64).reshape(-1, 2)
        keys: NDArray[np.int64] = wide[:, 0] * len(self._alphabet.characters) + wide[:, 1]
        return keys

    @classmethod
    def train(cls, options: Options, splits: Splits) -> Self:
        characters, train_text = _characters_of(splits), splits.train
        plain = cls(characters, [])
        counts: dict[int, int] = {}
        for start in range(0, len(train_text) - 1, _CHUNK):  # _CHUNK is even, so pairs stay together
            chunk = train_text[start : start + _CHUNK]
            keys = plain._keys(plain._alphabet.encode(chunk[: len(chunk) // 2 * 2]))
            for key, count in zip(
                *(part.tolist() for part in np.unique(keys, return_counts=True)), strict=True
            ):
                counts[key] = counts.get(key, 0) + count
        commonest = sorted(counts, key=lambda key: (-counts[key], key))[: options.max_pairs]
        size = len(characters)
        return cls(characters, [characters[key // size] + characters[key % size] for key in commonest])

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> Ids:
        parts = [self._encode_chunk(text[start : start + _CHUNK]) for start in range(0, len(text), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=self._dtype)

    def _encode_chunk(self, text: str) -> Ids:
        characters = self._alphabet.encode(text)
        even = len(characters) // 2 * 2
        singles = characters[:even].reshape(-1, 2)
        keys = self._keys(characters[:even])
        if len(self._sorted_keys):
            at = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self._sorted_keys) - 1)
            known = self._sorted_keys[at] == keys
            pair_ids = self._order[at] + len(self._alphabet.characters)
        else:
            known, pair_ids = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
        slots = singles.astype(np.int64)  # two places for each pair; a known pair fills the first alone
        slots[known, 0] = pair_ids[known]
        slots[known, 1] = -1
        flat = np.concatenate((slots.reshape(-1), characters[even:].astype(np.int64)))
        return flat[flat >= 0].astype(self._dtype)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join([self._pieces[token] for token in ids])

    def unknown_characters(self, text: str) -> str:
        return self._alphabet.unknown(text)

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "bigram",
            "characters": "".join(self._alphabet.characters),
            "pairs": "".join(self._pairs),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        _check_keys(data, {"type", "characters", "pairs"})
        characters, joined = _characters_from_json(data, "bigram"), data["pairs"]
        if not isinstance(joined, str) or len(joined) % 2 or not set(joined) <= set(characters):
            raise ValueError("its pairs are not pairs of its characters")
        pairs = [joined[at : at + 2] for at in range(0, len(joined), 2)]
        if len(set(pairs)) != len(pairs):
            raise ValueError("a pair occurs twice")
        return cls(characters, pairs)


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8: no text is unknown, and no vocabulary is needed."""

    summary = "the bytes of UTF-8; knows every text"

    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        return cls()

    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(list(ids)).decode("utf-8", "replace")  # bytes(array) would copy the array's memory

    def stream_decoder(self) -> StreamDecoder:
        return ByteStream(self, [bytes((byte,)) for byte in range(256)])

    def to_json(self) -> dict[str, Any]:
        return {"type": "byte"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        _check_keys(data, {"type"})
        if data["type"] != "byte":
            raise ValueError("it does not describe a byte tokenizer")
        return cls()


class ByteStream(StreamDecoder):
    """Bytes to characters as they complete; a byte that cannot belong to one gives U+FFFD at once.

    `pieces[id]` is the bytes of each id: any tokenizer whose ids are pieces of UTF-8 can use it.
    """

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes]) -> None:
        super().__init__(tokenizer)
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._pieces[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
