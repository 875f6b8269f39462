"""The tokenizer `char`, and the character tables that `bigram` shares with it.

Input: the text of a run. Output: one id per character. Bounded memory in addition to text and ids. Knows no
files and no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Self

import numpy as np

from gptkit.plugins import PluginOptions, Splits, Tokenizer
from gptkit.plugins.tokenizer import Ids

CHUNK = 1 << 20  # characters processed at a time, which bounds the memory in addition to text and ids


def smallest_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds every id of a vocabulary."""
    return np.dtype(np.min_scalar_type(max(vocab_size - 1, 0)))


def distinct_characters(text: str) -> list[str]:
    """The distinct characters of `text`, sorted by code point."""
    return _distinct([text])


def vocabulary_of(splits: Splits) -> list[str]:
    """The distinct characters of both splits: an unseen character of `val` would have no id."""
    return _distinct(chain(splits.train_pieces(), splits.val_pieces()))


def _distinct(texts: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    for text in texts:
        for start in range(0, len(text), CHUNK):
            chunk = text[start : start + CHUNK]
            if chunk.isascii():  # deleting known characters as bytes is much faster than adding all to a set
                known = "".join(character for character in seen if character.isascii())
                chunk = chunk.encode("ascii").translate(None, known.encode("ascii")).decode("ascii")
            seen.update(chunk)
    return sorted(seen)


class Alphabet:
    """Characters and their ids, by table lookup: `characters[i]` has id i."""

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        self._dtype = smallest_type(len(characters))
        points = [ord(character) for character in self.characters]
        self._table = np.zeros(max(points, default=0) + 1, dtype=self._dtype)
        self._table[points] = np.arange(len(points), dtype=self._dtype)
        # bytes.translate is faster than numpy's lookup, where characters and ids are bytes
        self._byte_table: bytes | None = None
        if len(self._table) <= 256 and self._dtype == np.uint8:
            self._byte_table = bytes(self._table) + bytes(256 - len(self._table))

    def encode(self, text: str) -> Ids:
        """Ids of the characters of `text`, shape (T,). All of them must be known."""
        ids = np.empty(len(text), dtype=self._dtype)
        for start in range(0, len(text), CHUNK):
            chunk = text[start : start + CHUNK]
            out = ids[start : start + len(chunk)]
            if self._byte_table is not None:
                out[:] = np.frombuffer(chunk.encode("latin-1").translate(self._byte_table), dtype=np.uint8)
            else:
                code_points = np.frombuffer(chunk.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
                out[:] = self._table[code_points]
        return ids

    def unknown(self, text: str) -> str:
        """The distinct characters of `text` that are not in the alphabet, sorted."""
        return "".join(sorted(set(distinct_characters(text)) - set(self.characters)))


def characters_from_json(data: dict[str, Any], kind: str) -> list[str]:
    """The characters of a tokenizer.json of that type. Raises ValueError."""
    characters = data.get("characters")
    if data.get("type") != kind or not isinstance(characters, str) or not characters:
        raise ValueError(f"it does not describe a {kind} tokenizer")
    if len(set(characters)) != len(characters):
        raise ValueError("a character occurs twice")
    if any("\ud800" <= character <= "\udfff" for character in characters):
        raise ValueError("a character is a lone surrogate, which UTF-8 cannot encode")
    return list(characters)


def check_keys(data: dict[str, Any], expected: set[str]) -> None:
    """Raises ValueError if a tokenizer.json has other keys than these."""
    if set(data) != expected:
        raise ValueError(f"its keys should be {', '.join(sorted(expected))}")


class CharTokenizer(Tokenizer):
    """One token per distinct character of the text, in order of code point."""

    summary = "one token per character of the text"
    keeps = True

    def __init__(self, characters: Sequence[str]) -> None:
        self._alphabet = Alphabet(characters)

    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        return cls(vocabulary_of(splits))

    @property
    def vocab_size(self) -> int:
        return len(self._alphabet.characters)

    def encode(self, text: str) -> Ids:
        return self._alphabet.encode(text)

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        return map(self._alphabet.encode, pieces)

    def decode(self, ids: Sequence[int]) -> str:
        characters = self._alphabet.characters
        return "".join([characters[token] for token in ids])

    def unknown_characters(self, text: str) -> str:
        return self._alphabet.unknown(text)

    def to_json(self) -> dict[str, Any]:
        return {"type": "char", "characters": "".join(self._alphabet.characters)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        check_keys(data, {"type", "characters"})
        return cls(characters_from_json(data, "char"))
