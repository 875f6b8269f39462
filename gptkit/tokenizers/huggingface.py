"""The `hf` tokenizer: any tokenizer.json that the library `tokenizers` reads, as it is.

In: a file in the format of Hugging Face; text. Out: the ids that the library gives, without special tokens
around them; the run keeps the whole file. Knows nothing of training or of downloads.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from gptkit.errors import DataError
from gptkit.files import parse_json
from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer
from gptkit.tokenizers.bpe import (
    bytes_of_characters,
    encode_pieces,
    open_tokenizer,
    pieces,
    refusals,
    small_json,
)
from gptkit.tokenizers.byte import ByteStream
from gptkit.tokenizers.char import Ids, distinct_characters, smallest_type

_FILE = "tokenizer.json"
_MOST_BYTES = 100_000_000  # of a tokenizer.json: the largest known, of 256k tokens, has a third of it
_MOST_IDS = 10_000_000  # an embedding has a row for each; no known vocabulary has a tenth of it

# Where `_cuts_at_spaces` says that it changes nothing, a text is cut between a space and what no normalizer
# removes or makes white space: a letter, but for some of Arabic and Greek, a digit, or a sign of ASCII
_BEFORE_SPACE = re.compile(r"(?:[^\W\u037a\ufc00-\ufeff]|[!-~])(?= )")

_TRIED = (
    "Straße ÉTÉ naïve e\u0301a\u0308 Å \u212b ﬁ ½ Ａ．",
    "two  spaces \t tab\n\n\r\nlines \n",
    " don't can 't stop , now . It 's ?",
    "👩‍👩‍👧 中文，字 \u05d0\u0301 \U0010ffff\ufffd\ufeff",
    "\u0000\u0007\u00ad\u200b\u2028\u00a0\u3000x",
    "#x ##y ▁z Ġw </w> <0x41> [UNK] <unk>",
)


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json of Hugging Face's format, of whatever kind: nothing is learnt from the text.

    Truncation, padding and BPE-dropout are switched off. What the file's unknown token stands for is no
    unknown character here, as everywhere in that world.

    The ids are those of the whole text in one piece. Where the parts of the file show that cutting before a
    space changes nothing, a text that has spaces is encoded in pieces, in bounded memory: so with most
    byte-level and BERT-like tokenizers. With any other it takes some 350 bytes of memory a token meanwhile.
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
        """Raises ValueError where the library does not take `data`."""
        self._data = _plain(data)
        self._opened = open_tokenizer(self._data)
        ids = self._opened.get_vocab(with_added_tokens=True).values()
        self._vocab_size = max(ids, default=-1) + 1
        if not 0 < self._vocab_size <= _MOST_IDS:
            raise ValueError(f"its highest id is {self._vocab_size - 1}, not in 0 to {_MOST_IDS - 1}")
        self._dtype = smallest_type(self._vocab_size)
        self._in_pieces = _cuts_at_spaces(self._data)
        added = [token.content for token in self._opened.get_added_tokens_decoder().values()]
        self.lossless = all(self._comes_back(text) for text in (*_TRIED, " x ".join(added)))

    @classmethod
    def train(cls, options: Options, splits: Splits) -> Self:
        path = Path(options.path).expanduser()
        path = path / _FILE if os.path.isdir(path) else path
        try:
            return cls(_read(path))
        except (ValueError, OSError) as error:
            raise DataError(
                f"{path} is no tokenizer that can be read: {error}.\n"
                "The option path of tokenizer 'hf' names a tokenizer.json, or a folder that holds one."
            ) from error

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    def encode(self, text: str) -> Ids:
        """Ids of `text`. Raises DataError where the library cannot encode it."""
        try:
            parts = pieces(text, _BEFORE_SPACE, len(text)) if self._in_pieces else [text]
            return encode_pieces(self._opened, parts, self._dtype)
        except ValueError as error:
            raise DataError(
                f"tokenizer 'hf' cannot encode the text: {error}.\nUse a tokenizer.json that knows it."
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; an id that the file leaves out has none."""
        known = [int(token) for token in ids]
        try:
            with refusals():
                return str(self._opened.decode(known, skip_special_tokens=False))
        except ValueError:  # a decoder that does not fit the vocabulary; the tokens as they are, then
            return "".join(self._opened.id_to_token(token) or "" for token in known)

    def unknown_characters(self, text: str) -> str:
        """Those that the model drops; what the file's normalizer or splitting leaves out is none of them."""
        return "".join(character for character in distinct_characters(text) if self._drops(character))

    def _drops(self, character: str) -> bool:
        """Whether the model has nothing for a character that reaches it, alone or inside a word."""
        try:
            if any(len(self.encode(text)) for text in (character, character * 3)):
                return False
        except DataError:
            return True
        with refusals():
            normalizer, splitter = self._opened.normalizer, self._opened.pre_tokenizer
            left = normalizer.normalize_str(character) if normalizer else character
            return bool(splitter.pre_tokenize_str(left) if splitter else left)

    def _comes_back(self, text: str) -> bool:
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
            return ByteStream(self, [_bytes_of(token) for token in tokens])
        return _Stream(self, {number for number, token in enumerate(tokens) if _FALLBACK.fullmatch(token)})


_FALLBACK = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token of one byte, where a vocabulary lacks the character


def _bytes_of(token: str) -> bytes:
    """The bytes of a byte-level token; one with another character in it stands for itself."""
    byte_of = bytes_of_characters()
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()


class _Stream(StreamDecoder):
    """Text as it grows, from a tokenizer that decodes ids together.

    Decodes the last few ids again with the new ones and gives what is added, so that a leading space which
    only the first token loses is kept. A run of byte tokens is held back to its end: one wrong byte makes the
    whole run U+FFFD. What a decoder changes in hindsight, should one ever do it, is not taken back. (The
    library's own DecodeStream raises there, waits without end for a character, and came after version 0.20.)
    """

    CONTEXT = 16  # ids before the new ones that are decoded again

    def __init__(self, tokenizer: Tokenizer, byte_tokens: set[int]) -> None:
        super().__init__(tokenizer)
        self._byte_tokens = byte_tokens
        self._start()

    def _start(self) -> None:
        self._ids: list[int] = []  # all that came
        self._given = 0  # how many of them are in `_shown`
        self._shown: list[str] = []

    def push(self, token: int) -> str:
        self._ids.append(token)
        if token in self._byte_tokens:
            return ""
        first = max(self._given - self.CONTEXT, 0)
        before = self._tokenizer.decode(self._ids[first : self._given])
        text = self._tokenizer.decode(self._ids[first:])
        waiting = len(self._ids) - self._given
        if not text.startswith(before) or (text.endswith("\ufffd") and waiting < self.LONGEST):
            return ""
        if len(text) > len(before):  # ids that give no text are no context for those after them
            self._given = len(self._ids)
            self._shown.append(text[len(before) :])
        return text[len(before) :]

    def finish(self) -> str:
        whole, shown = self._tokenizer.decode(self._ids), "".join(self._shown)
        self._start()
        return whole[len(shown) :] if whole.startswith(shown) else ""


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, OSError."""
    if not os.path.isfile(path):
        raise ValueError("there is no such file")
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES // 1_000_000} MB")
    try:
        data = parse_json(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8, at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    return data


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """The same without truncation, padding and dropout, which are for other uses and for chance."""
    if not isinstance(data, dict):
        raise ValueError("it is no JSON object")
    model = data.get("model")
    if isinstance(model, dict) and model.get("dropout") is not None:
        data = {**data, "model": {**model, "dropout": None}}
    switched_off = {key: None for key in ("truncation", "padding") if data.get(key) is not None}
    return {**data, **switched_off}


# Where a text may be cut: what is known of the parts of a tokenizer.json

_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Nmt"}
_SPLIT_AT_SPACES = {"ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace"}
_LOCAL_SPLITTERS = {"Digits", "Punctuation", "ByteLevel"}
# Parts of the patterns in common use (GPT-2, GPT-4, Llama 3, Qwen 2), none of which looks back or goes on
# past a space that follows something else. A pattern made of these alone does not either.
_PATTERN_PARTS = {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "(?i:'s", "'d)"),
    *(r"\p{L}+", r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+"),
    *(r"\p{N}", r"\p{N}+", r" ?\p{N}+", r"\p{N}{1,3}"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
}


def _cuts_at_spaces(data: dict[str, Any]) -> bool:
    """Whether pieces cut at `_BEFORE_SPACE` have the ids that they have in the whole text."""
    try:
        normalizers = _steps(data.get("normalizer"), "normalizers")
        splitters = _steps(data.get("pre_tokenizer"), "pretokenizers")
        return (
            all(step.get("type") in _LOCAL_NORMALIZERS for step in normalizers)
            and any(_splits_at_spaces(step) for step in splitters)
            and all(step.get("type") in _LOCAL_SPLITTERS or _splits_at_spaces(step) for step in splitters)
            and all(_stays_whole(token) for token in data.get("added_tokens") or ())
        )
    except (AttributeError, KeyError, TypeError):  # written in some other way than the library writes it
        return False


def _steps(part: Any, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre_tokenizer; one that is no sequence is the only step."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    return [step for inner in part[inside] for step in _steps(inner, inside)]


def _splits_at_spaces(step: dict[str, Any]) -> bool:
    kind = step.get("type")
    if kind == "Split":
        pattern = step.get("pattern", {}).get("Regex")
        return bool(pattern) and not step.get("invert") and set(pattern.split("|")) <= _PATTERN_PARTS
    whole = {"ByteLevel": "use_regex", "Metaspace": "split"}.get(str(kind))
    return kind in _SPLIT_AT_SPACES and (whole is None or step.get(whole, True) is True)


def _stays_whole(token: dict[str, Any]) -> bool:
    """Whether an added token is found in a piece just where it is found in the text."""
    changed = token.get("rstrip") or token.get("single_word")
    return not changed and not re.search(r"\S\s", str(token.get("content")))
