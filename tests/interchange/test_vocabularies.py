"""Tokenizers in other programs' formats: the same ids, the same text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptkit.errors import UsageError
from gptkit.interchange.vocabularies import gguf_vocabulary, hugging_face_json
from gptkit.plugins import Splits, Tokenizer
from gptkit.tokenizers.bigram import BigramTokenizer
from gptkit.tokenizers.bpe import BpeTokenizer, small_json
from gptkit.tokenizers.byte import ByteTokenizer
from gptkit.tokenizers.char import CharTokenizer
from gptkit.tokenizers.huggingface import HuggingFaceTokenizer

TEXT = "Hello, wörld!\n\n  two  spaces \t👩‍👩‍👧\r\né 中文 \\ \"quoted\" \u2028x don't 'tis"


def trained(kind: str) -> Tokenizer:
    splits = Splits(train=TEXT * 3, val=TEXT)
    tokenizers: dict[str, Tokenizer] = {
        "char": CharTokenizer.train(CharTokenizer.Options(), splits),
        "bigram": BigramTokenizer.train(BigramTokenizer.Options(max_pairs=20), splits),
        "byte": ByteTokenizer(),
        "bpe": BpeTokenizer.train(BpeTokenizer.Options(vocab_size=280), splits),
        "hf": HuggingFaceTokenizer(small_json([("t", "h"), ("th", "e")])),
    }
    return tokenizers[kind]


@pytest.mark.parametrize("kind", ["char", "bigram", "byte", "bpe", "hf"])
def test_hugging_face_has_the_same_ids_and_text(kind: str) -> None:
    tokenizers: Any = pytest.importorskip("tokenizers")
    ours = trained(kind)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(hugging_face_json(ours)))
    for text in (TEXT, TEXT[1:], TEXT[:7], "x", ""):
        ids = [int(token) for token in ours.encode(text)]
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids) == text
    assert theirs.get_vocab_size() == ours.vocab_size


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_tokens_of_a_gguf_file_unescape_to_the_bytes_of_each_id(kind: str) -> None:
    ours = trained(kind)
    vocabulary = gguf_vocabulary(ours)
    assert vocabulary.model == "rwkv"
    assert len(vocabulary.tokens) == ours.vocab_size
    expected = [bytes([token]) for token in range(256)]
    if kind == "char":
        expected = [ours.decode([token]).encode() for token in range(ours.vocab_size)]
    assert [unescape(token) for token in vocabulary.tokens] == expected


def unescape(token: str) -> bytes:
    """As llama.cpp reads a token of this kind."""
    data, out = token.encode(), b""
    while data:
        if data[:1] != b"\\":
            out, data = out + data[:1], data[1:]
        elif data[1:2] == b"x":
            out, data = out + bytes([int(data[2:4], 16)]), data[4:]
        else:
            known = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
            out, data = out + known.get(data[1:2], data[1:2]), data[2:]
    return out


def test_a_byte_level_vocabulary_keeps_its_merges() -> None:
    vocabulary = gguf_vocabulary(trained("hf"))
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "gpt-2")
    assert vocabulary.merges == ["t h", "th e"]
    assert vocabulary.tokens[256:] == ["th", "the"]
    assert not vocabulary.control


def test_special_tokens_become_control_tokens() -> None:
    data = small_json([("t", "h")])
    data["model"]["vocab"]["<|endoftext|>"] = 257
    data["added_tokens"] = [
        {"id": 257, "content": "<|endoftext|>", "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    ]
    vocabulary = gguf_vocabulary(HuggingFaceTokenizer(data))
    assert vocabulary.tokens[257] == "<|endoftext|>"
    assert vocabulary.control == {257}


class Plugin(CharTokenizer):
    """A tokenizer that no other program has: its ids are turned around."""


@pytest.mark.parametrize("convert", [hugging_face_json, gguf_vocabulary])
def test_a_tokenizer_of_a_plugin_is_refused_by_name(convert: Any) -> None:
    with pytest.raises(UsageError, match="Plugin"):
        convert(Plugin("ab"))


def test_llama_cpp_cannot_have_pairs_nor_other_kinds() -> None:
    with pytest.raises(UsageError, match="bigram"):
        gguf_vocabulary(trained("bigram"))
    words = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"},
    }
    with pytest.raises(UsageError, match="--to hf"):
        gguf_vocabulary(HuggingFaceTokenizer(words))
