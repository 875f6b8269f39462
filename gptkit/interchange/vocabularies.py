"""A run's tokenizer in the formats of other programs.

Input: a built-in tokenizer. Output: a tokenizer.json of Hugging Face, or the vocabulary of a GGUF file, with
the same ids; an error with the reason where a format cannot express the tokenizer. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptkit.errors import UsageError
from gptkit.plugins import Tokenizer
from gptkit.tokenizers.bigram import BigramTokenizer
from gptkit.tokenizers.bpe import BpeTokenizer, byte_characters, byte_level_json
from gptkit.tokenizers.byte import ByteTokenizer
from gptkit.tokenizers.char import CharTokenizer
from gptkit.tokenizers.huggingface import HuggingFaceTokenizer

_EMPTY: dict[str, Any] = {
    **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": []},
    **{"normalizer": None, "post_processor": None},
}


def hugging_face_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json with the ids of this tokenizer. Raises UsageError for a tokenizer of a plugin."""
    data, kind = tokenizer.to_json(), type(tokenizer)  # not of a subclass, which may do anything
    if kind is CharTokenizer:
        return _split_json(1, {"type": "WordLevel", "vocab": _numbered(data["characters"]), "unk_token": ""})
    if kind is BigramTokenizer:
        pairs = [data["pairs"][start : start + 2] for start in range(0, len(data["pairs"]), 2)]
        vocab = _numbered([*data["characters"], *pairs])
        return _split_json(2, _bpe_model(vocab, [list(pair) for pair in pairs]))
    if kind is ByteTokenizer:
        return byte_level_json(_numbered(byte_characters()), [])
    if kind in (BpeTokenizer, HuggingFaceTokenizer):
        return data
    raise UsageError(
        f"the tokenizer {kind.__name__} comes from a plugin, and other programs do not have it.\n"
        "Models with the tokenizers char, bigram, byte, bpe and hf can be exported."
    )


def _numbered(tokens: Any) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _split_json(characters: int, model: dict[str, Any]) -> dict[str, Any]:
    """A text cut into pieces of up to so many characters from its beginning; decoded by joining them."""
    pattern = r"[\s\S]{1," + str(characters) + "}"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return _EMPTY | {"pre_tokenizer": split, "decoder": {"type": "Fuse"}, "model": model}


def _bpe_model(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None},
        **{"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
        **{"vocab": vocab, "merges": merges},
    }


@dataclass(frozen=True)
class GgufVocabulary:
    """The vocabulary of a GGUF file: llama.cpp's kind of tokenizer, its tokens by id, and its merges."""

    model: str
    tokens: list[str]
    merges: list[str]
    pre: str | None = None  # the name of the pattern that splits a text first
    unknown: int | None = None  # the id that llama.cpp uses for what has none
    control: frozenset[int] = frozenset()  # ids of special tokens


def gguf_vocabulary(tokenizer: Tokenizer) -> GgufVocabulary:
    """Raises UsageError for a tokenizer that llama.cpp has no form of."""
    data, kind = tokenizer.to_json(), type(tokenizer)  # not of a subclass, which may do anything
    if kind is CharTokenizer:
        tokens = [_escaped(character.encode()) for character in data["characters"]]
        return GgufVocabulary("rwkv", tokens, [], unknown=0)
    if kind is ByteTokenizer:
        return GgufVocabulary("rwkv", [_escaped(bytes([byte])) for byte in range(256)], [], unknown=0)
    if kind in (BpeTokenizer, HuggingFaceTokenizer):
        return _byte_level(data)
    if kind is BigramTokenizer:
        raise UsageError(
            "the tokenizer bigram cuts a text into pairs from its beginning, which llama.cpp cannot.\n"
            "Models with the tokenizers char, byte and bpe can be exported to GGUF."
        )
    raise UsageError(
        f"the tokenizer {kind.__name__} comes from a plugin, and llama.cpp does not have it.\n"
        "Models with the tokenizers char, byte and bpe can be exported to GGUF."
    )


def _byte_level(data: dict[str, Any]) -> GgufVocabulary:
    """A BPE of GPT-2's kind, with its special tokens. Raises UsageError for another tokenizer.json."""
    added = {token["content"]: token["id"] for token in data.get("added_tokens") or []}
    model = data["model"]
    try:
        vocab = {token: number for token, number in model["vocab"].items() if token not in added}
        plain = {**data, "added_tokens": [], "post_processor": None, "model": {**model, "vocab": vocab}}
        BpeTokenizer(plain)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f"gptkit writes tokenizers of GPT-2's kind to GGUF, and this is another: {error}.\n"
            "Export with --to hf, and convert that folder with llama.cpp's own script."
        ) from error
    ids = {**vocab, **added}
    if sorted(ids.values()) != list(range(len(ids))):
        raise UsageError("the ids of the tokenizer have gaps, which GGUF has no place for; use --to hf.")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens = sorted(ids, key=ids.__getitem__)
    return GgufVocabulary("gpt2", tokens, merges, pre="gpt-2", control=frozenset(added.values()))


def _escaped(token: bytes) -> str:
    """A token as llama.cpp's kind rwkv writes it: printable text, other bytes as escapes."""
    names = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r", ord("\\"): "\\\\"}
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in token)
    if text.isprintable() and text != "\\":
        return text
    return "".join(names.get(byte, f"\\x{byte:02x}") for byte in token)
