"""One id per character or frequent pair of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gptkit.plugins import PluginOptions, Splits, Tokenizer
from gptkit.tokenizers.char import (
    _CHUNK,
    Ids,
    _Alphabet,
    _characters_from_json,
    _characters_of,
    _check_keys,
    smallest_type,
)


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
