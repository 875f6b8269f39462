"""The tokenizer `hf`: any tokenizer.json that the package `tokenizers` reads, used as it is.

Input: a file in the format of Hugging Face; text. Output: the package's ids, without special tokens around
them; the run keeps the whole file. Knows nothing of training or downloads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from gptkit.errors import DataError
from gptkit.files import parse_json
from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer
from gptkit.plugins.tokenizer import Ids
from gptkit.tokenizers.bpe import (
    bytes_of_characters,
    cut,
    encode_each,
    encode_pieces,
    errors_as_value_error,
    open_tokenizer,
    small_json,
)
from gptkit.tokenizers.byte import ByteStreamDecoder
from gptkit.tokenizers.char import distinct_characters, smallest_type

_FILE = "tokenizer.json"
_MAX_BYTES = 100_000_000  # of a tokenizer.json: three times the largest known, which has 256k tokens
_MAX_IDS = 10_000_000  # an embedding has a row for each id; no known vocabulary has a tenth of this
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")  # one byte of a character that is not in the vocabulary

# What tokenizers are known to change: decomposed and compatibility characters, white space, punctuation,
# scripts, control characters, and what looks like the tokens of some vocabularies
_LOSSLESS_PROBES = (
    "Straße ÉTÉ naïve e\u0301a\u0308 Å \u212b ﬁ ½ Ａ．",
    "two  spaces \t tab\n\n\r\nlines \n",
    " don't can 't stop , now . It 's ?",
    "👩‍👩‍👧 中文，字 \u05d0\u0301 \U0010ffff\ufffd\ufeff",
    "\u0000\u0007\u00ad\u200b\u2028\u00a0\u3000x",
    "#x ##y ▁z Ġw </w> <0x41> [UNK] <unk>",
)


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json in the format of Hugging Face, of any kind: nothing is learned from the text.

    Truncation, padding and BPE dropout are switched off. A character that the file encodes as its unknown
    token does not count as unknown here. A split is encoded in one call, which takes some 350 bytes of memory
    per token meanwhile; a large text in pieces if the file is a byte-level BPE as GPT-2's.
    """

    class Options(PluginOptions):
        path: str = Field(
            min_length=1, description="A tokenizer.json, or the folder that holds one. The run keeps a copy."
        )

        @classmethod
        def example(cls, folder: Path) -> Self:
            """Writes a small byte-level tokenizer.json into `folder`."""
            path = folder / _FILE
            path.write_text(json.dumps(small_json([("t", "h"), ("th", "e"), ("Ġ", "the")])), "utf-8")
            return cls(path=str(path))

    summary = "any tokenizer.json of Hugging Face's format"
    needs = ("tokenizers",)

    def __init__(self, data: dict[str, Any]) -> None:
        """Raises ValueError if the package does not accept `data`."""
        self._data = _without_chance(data)
        self._opened = open_tokenizer(self._data)
        ids = self._opened.get_vocab(with_added_tokens=True).values()
        self._vocab_size = max(ids, default=-1) + 1
        if not 0 < self._vocab_size <= _MAX_IDS:
            raise ValueError(f"its highest id is {self._vocab_size - 1}, not in 0 to {_MAX_IDS - 1}")
        self._dtype = smallest_type(self._vocab_size)
        added = [token.content for token in self._opened.get_added_tokens_decoder().values()]
        self.lossless = all(self._round_trips(text) for text in (*_LOSSLESS_PROBES, " x ".join(added)))

    @classmethod
    def train(cls, options: Options, splits: Splits) -> Self:
        path = Path(options.path).expanduser()
        path = path / _FILE if os.path.isdir(path) else path
        try:
            return cls(_read(path))
        except (ValueError, OSError) as error:
            raise DataError(
                f"{path} is not a usable tokenizer: {error}.\n"
                "The option path of tokenizer 'hf' names a tokenizer.json, or a folder that holds one."
            ) from error

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str) -> Ids:
        """Ids of `text`, shape (T,). Raises DataError if the package cannot encode it."""
        try:
            return encode_pieces(self._opened, [text], self._dtype)
        except ValueError as error:
            raise DataError(
                f"tokenizer 'hf' cannot encode the text: {error}.\nUse a tokenizer.json that can."
            ) from error

    def encode_stream(self, pieces: Iterable[str]) -> Iterator[Ids]:
        """In pieces where the file is a byte-level BPE as GPT-2's, otherwise the text as a whole."""
        if not self._can_be_cut():
            yield self.encode("".join(pieces))
            return
        try:
            yield from encode_each(self._opened, cut(pieces), self._dtype)
        except ValueError as error:
            raise DataError(
                f"tokenizer 'hf' cannot encode the text: {error}.\nUse a tokenizer.json that can."
            ) from error

    def _can_be_cut(self) -> bool:
        """Whether a text has the same ids if it is cut before white space: GPT-2's pattern does that."""
        pattern, data = self._data.get("pre_tokenizer"), self._data
        if not isinstance(pattern, dict) or data.get("normalizer") is not None:
            return False
        byte_level = pattern.get("type") == "ByteLevel" and pattern.get("use_regex", True) is True
        added = self._opened.get_added_tokens_decoder().values()
        apart = all(
            not (token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content))
            for token in added
        )
        return byte_level and pattern.get("add_prefix_space") is False and apart

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; an id that the file leaves out has none."""
        known = [int(token) for token in ids]
        try:
            with errors_as_value_error():
                return str(self._opened.decode(known, skip_special_tokens=False))
        except ValueError:  # a decoder that does not fit the vocabulary: fall back to the tokens as they are
            return "".join(self._opened.id_to_token(token) or "" for token in known)

    def unknown_characters(self, text: str) -> str:
        """Characters that the model drops; what normalizer or pre-tokenizer remove does not count."""
        return "".join(character for character in distinct_characters(text) if self._drops(character))

    def _drops(self, character: str) -> bool:
        """Whether a character reaches the model, alone or inside a word, and gets no id there."""
        try:
            if any(len(self.encode(text)) for text in (character, character * 3)):
                return False
        except DataError:
            return True
        with errors_as_value_error():
            normalizer, pre_tokenizer = self._opened.normalizer, self._opened.pre_tokenizer
            left = normalizer.normalize_str(character) if normalizer else character
            return bool(pre_tokenizer.pre_tokenize_str(left) if pre_tokenizer else left)

    def _round_trips(self, text: str) -> bool:
        try:
            unknown = self.unknown_characters(text)
            text = "".join(character for character in text if character not in unknown)
            return self.decode(self.encode(text).tolist()) == text
        except (DataError, ValueError):
            return False

    def to_json(self) -> dict[str, Any]:
        return self._data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(data)

    def stream_decoder(self) -> StreamDecoder:
        tokens = [self._opened.id_to_token(number) or "" for number in range(self._vocab_size)]
        decoder = self._data.get("decoder")
        if isinstance(decoder, dict) and decoder.get("type") == "ByteLevel":
            return ByteStreamDecoder(self, [_bytes_of(token) for token in tokens])
        byte_tokens = {number for number, token in enumerate(tokens) if _BYTE_TOKEN.fullmatch(token)}
        return _WindowStreamDecoder(self, byte_tokens)


def _bytes_of(token: str) -> bytes:
    """The bytes of a byte-level token; an added token with other characters is text."""
    byte_of = bytes_of_characters()
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()


class _WindowStreamDecoder(StreamDecoder):
    """Streams the text of a tokenizer whose `decode` depends on neighboring ids.

    Decodes the last few ids again with each new one and returns what was added, so that a leading space
    which only the first token loses is kept. A run of byte tokens is held back to its end, because one wrong
    byte makes the whole run U+FFFD. Text that a decoder changes later is not taken back. (The package's own
    DecodeStream raises in that case, waits for a character without end, and needs a later version than 0.20.)
    """

    CONTEXT = 16  # ids before the new ones that are decoded again

    def __init__(self, tokenizer: Tokenizer, byte_tokens: set[int]) -> None:
        super().__init__(tokenizer)
        self._byte_tokens = byte_tokens
        self._start()

    def _start(self) -> None:
        self._ids: list[int] = []  # all so far
        self._done = 0  # how many of them are in `_texts`
        self._texts: list[str] = []  # what was returned so far

    def push(self, token: int) -> str:
        self._ids.append(token)
        if token in self._byte_tokens:
            return ""
        first = max(self._done - self.CONTEXT, 0)
        before = self._tokenizer.decode(self._ids[first : self._done])
        text = self._tokenizer.decode(self._ids[first:])
        waiting = len(self._ids) - self._done
        if not text.startswith(before) or (text.endswith("\ufffd") and waiting < self.LONGEST):
            return ""
        if len(text) > len(before):  # ids without text are not context for those after them
            self._done = len(self._ids)
            self._texts.append(text[len(before) :])
        return text[len(before) :]

    def finish(self) -> str:
        whole, returned = self._tokenizer.decode(self._ids), "".join(self._texts)
        self._start()
        return whole[len(returned) :] if whole.startswith(returned) else ""


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, OSError."""
    if not os.path.isfile(path):
        raise ValueError("there is no such file")
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES // 1_000_000} MB")
    try:
        data = parse_json(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8, at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    return data


def _without_chance(data: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without truncation, padding and dropout. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    model = data.get("model")
    if isinstance(model, dict) and model.get("dropout") is not None:
        data = {**data, "model": {**model, "dropout": None}}
    return {**data, **{key: None for key in ("truncation", "padding") if data.get(key) is not None}}
