"""The tokenizer `bigram`: frequent pairs of characters, single characters for the rest.

Input: the text of a run. Output: one id per pair or character. Bounded memory in addition to text and ids.
Knows nothing of files or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gptkit.plugins import PluginOptions, Splits, Tokenizer
from gptkit.plugins.tokenizer import Ids
from gptkit.tokenizers.char import (
    CHUNK,
    Alphabet,
    characters_from_json,
    check_keys,
    smallest_type,
    vocabulary_of,
)


def _chunks(pieces: Iterable[str]) -> Iterator[str]:
    """The text in pieces of CHUNK characters, but the last; CHUNK is even, so no pair is cut."""
    rest = ""
    for piece in pieces:
        rest = rest + piece if rest else piece
        whole = len(rest) // CHUNK * CHUNK
        for start in range(0, whole, CHUNK):
            yield rest[start : start + CHUNK]
        rest = rest[whole:]
    if rest:
        yield rest


class BigramTokenizer(Tokenizer):
    """Pairs of characters: the most frequent pairs of the training text, and its single characters.

    Text is cut into pairs from its beginning. A pair without a token, and a last character without a partner,
    become single characters, so every text of known characters has ids. The first ids are the characters; the
    pairs follow, most frequent first.
    """

    class Options(PluginOptions):
        max_pairs: int = Field(
            default=4096, ge=0, le=1_000_000, description="How many of the most frequent pairs get a token."
        )

    summary = "frequent pairs of characters of the text"
    keeps = True

    def __init__(self, characters: Sequence[str], pairs: Sequence[str]) -> None:
        self._alphabet = Alphabet(characters)
        self._pairs = tuple(pairs)
        self._tokens = tuple(characters) + self._pairs
        self._dtype = smallest_type(len(self._tokens))
        keys = self._keys(self._alphabet.encode("".join(pairs)))
        self._order = np.argsort(keys, kind="stable")
        self._sorted_keys = keys[self._order]

    def _keys(self, character_ids: Ids) -> NDArray[np.int64]:
        """One number per pair: (2N,) ids of characters to (N,)."""
        pairs = character_ids.astype(np.int64).reshape(-1, 2)
        keys: NDArray[np.int64] = pairs[:, 0] * len(self._alphabet.characters) + pairs[:, 1]
        return keys

    @classmethod
    def train(cls, options: Options, splits: Splits) -> Self:
        characters = vocabulary_of(splits)
        without_pairs = cls(characters, [])
        counts: Counter[int] = Counter()
        for chunk in _chunks(splits.train_pieces()):
            keys = without_pairs._keys(without_pairs._alphabet.encode(chunk[: len(chunk) // 2 * 2]))
            distinct, numbers = np.unique(keys, return_counts=True)
            counts.update(dict(zip(distinct.tolist(), numbers.tolist(), strict=True)))
        most_frequent = sorted(counts, key=lambda key: (-counts[key], key))[: options.max_pairs]
        size = len(characters)
        return cls(characters, [characters[key // size] + characters[key % size] for key in most_frequent])

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> Ids:
        return np.concatenate([np.empty(0, dtype=self._dtype), *self.encode_stream([text])])

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        return map(self._encode_chunk, _chunks(pieces))

    def _encode_chunk(self, text: str) -> Ids:
        characters = self._alphabet.encode(text)
        even = len(characters) // 2 * 2
        keys = self._keys(characters[:even])
        if len(self._sorted_keys):
            found = np.minimum(np.searchsorted(self._sorted_keys, keys), len(self._sorted_keys) - 1)
            known = self._sorted_keys[found] == keys
            pair_ids = self._order[found] + len(self._alphabet.characters)
        else:
            known, pair_ids = np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
        ids = characters[:even].reshape(-1, 2).astype(np.int64)
        ids[known, 0] = pair_ids[known]  # a known pair takes the first of its two places,
        ids[known, 1] = -1  # and leaves the second empty
        flat = np.concatenate((ids.reshape(-1), characters[even:].astype(np.int64)))
        return flat[flat >= 0].astype(self._dtype)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join([self._tokens[token] for token in ids])

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
        check_keys(data, {"type", "characters", "pairs"})
        characters, joined = characters_from_json(data, "bigram"), data["pairs"]
        if not isinstance(joined, str) or len(joined) % 2 or not set(joined) <= set(characters):
            raise ValueError("its pairs are not pairs of its characters")
        pairs = [joined[start : start + 2] for start in range(0, len(joined), 2)]
        if len(set(pairs)) != len(pairs):
            raise ValueError("a pair occurs twice")
        return cls(characters, pairs)
