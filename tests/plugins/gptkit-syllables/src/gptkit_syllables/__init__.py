"""A tokenizer of syllables: the most frequent ones of a text, and single characters for the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gptkit.plugins import PluginOptions, Splits, Tokenizer

# A syllable, with the space before it: the consonants before its vowels, the vowels, and of the consonants
# after them all that end the word, or the first of several. Or consonants alone, or any one character.
_V, _C = "[AEIOUYaeiouy]", "[B-DF-HJ-NP-TV-XZb-df-hj-np-tv-xz]"
_PIECE = re.compile(rf" ?(?:{_C}*{_V}+(?:{_C}+(?!{_V}|{_C})|{_C}(?={_C}))?|{_C}+)|.", re.DOTALL)


class SyllableTokenizer(Tokenizer):
    """Cuts text into syllables. One that is not in the vocabulary becomes its characters: nothing is lost.

    The first ids are the characters, by code point; the syllables follow, the most frequent first.
    """

    class Options(PluginOptions):
        max_syllables: int = Field(default=2000, ge=0, le=100_000, description="Syllables in the vocabulary.")

    summary = "the most frequent syllables of English words"

    def __init__(self, characters: Sequence[str], syllables: Sequence[str]) -> None:
        self._characters, self._syllables = tuple(characters), tuple(syllables)
        self._pieces = self._characters + self._syllables
        self._ids = {piece: number for number, piece in enumerate(self._pieces)}

    @classmethod
    def train(cls, options: Options, splits: Splits) -> Self:
        """Counts the syllables of the train split; the characters are those of both."""
        counts = Counter(match[0] for match in _PIECE.finditer(splits.train))
        longer = [piece for piece in counts if len(piece) > 1]
        frequent = sorted(longer, key=lambda piece: (-counts[piece], piece))
        characters = sorted({*splits.train, *splits.val})
        return cls(characters, frequent[: options.max_syllables])

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> NDArray[np.integer[Any]]:
        return np.fromiter(self._encode(text), dtype=np.min_scalar_type(self.vocab_size))

    def _encode(self, text: str) -> Iterator[int]:
        ids = self._ids
        for match in _PIECE.finditer(text):
            piece = match[0]
            if piece in ids:
                yield ids[piece]
            else:
                yield from (ids[character] for character in piece)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join([self._pieces[number] for number in ids])

    def unknown_characters(self, text: str) -> str:
        return "".join(sorted(set(text).difference(self._characters)))

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "syllables",
            "characters": "".join(self._characters),
            "syllables": list(self._syllables),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raises ValueError for everything that `to_json` cannot have returned."""
        if data.keys() != {"type", "characters", "syllables"} or data["type"] != "syllables":
            raise ValueError("it does not describe a tokenizer of syllables")
        characters, syllables = data["characters"], data["syllables"]
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
            raise ValueError("its characters are not a string of distinct characters in order")
        if not isinstance(syllables, list) or not all(isinstance(piece, str) for piece in syllables):
            raise ValueError("its syllables are not a list of strings")
        if len(set(syllables)) != len(syllables):
            raise ValueError("a syllable occurs twice")
        if not set("".join(syllables)) <= set(characters):
            raise ValueError("a syllable has a character that is not in the vocabulary")
        if not all(len(piece) > 1 and _PIECE.fullmatch(piece) for piece in syllables):
            raise ValueError("a piece is not a syllable")
        return cls(characters, syllables)
