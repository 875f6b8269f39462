"""The tokenizer `byte`, and the stream decoder of every tokenizer whose ids are pieces of UTF-8.

Input: any text. Output: one id per byte of its UTF-8. Nothing is learned from a text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer
from gptkit.plugins.tokenizer import Ids
from gptkit.tokenizers.char import check_keys


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8: no character is unknown. A lone surrogate becomes "?"."""

    summary = "the bytes of UTF-8; knows every character"

    @classmethod
    def train(cls, options: PluginOptions, splits: Splits) -> Self:
        return cls()

    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        return map(self.encode, pieces)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(list(ids)).decode("utf-8", "replace")  # bytes(array) would copy the array's memory

    def stream_decoder(self) -> StreamDecoder:
        return ByteStreamDecoder(self, [bytes((byte,)) for byte in range(256)])

    def to_json(self) -> dict[str, Any]:
        return {"type": "byte"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        check_keys(data, {"type"})
        if data["type"] != "byte":
            raise ValueError("it does not describe a byte tokenizer")
        return cls()


class ByteStreamDecoder(StreamDecoder):
    """Bytes to characters as they complete; a byte that cannot belong to a character gives U+FFFD at once.

    `token_bytes[id]` is the bytes of each id.
    """

    def __init__(self, tokenizer: Tokenizer, token_bytes: Sequence[bytes]) -> None:
        super().__init__(tokenizer)
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_bytes[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
