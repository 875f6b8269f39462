"""One id per byte of UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer
from gptkit.tokenizers.char import Ids, _check_keys


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
