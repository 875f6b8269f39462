"""One id per character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gptkit.plugins import PluginOptions, Splits, Tokenizer

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
