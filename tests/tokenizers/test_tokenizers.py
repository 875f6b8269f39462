"""The tokenizers char, bigram and byte, and the corpus of a run: encoded, decoded, saved, streamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gptkit.data.corpus import build_corpus, lost_text
from gptkit.data.source import split_text
from gptkit.errors import DataError, PluginError
from gptkit.plugins import PluginOptions, Splits, StreamDecoder, Tokenizer, registry
from gptkit.plugins.tokenizer import Ids
from gptkit.tokenizers.bigram import BigramTokenizer
from gptkit.tokenizers.byte import ByteTokenizer
from gptkit.tokenizers.char import CharTokenizer, distinct_characters

# Any text that a file can hold: all of Unicode except surrogates
TEXT = st.text(max_size=60)
SOME_TEXT = st.text(min_size=1, max_size=60)
KINDS: list[type[Tokenizer]] = [CharTokenizer, BigramTokenizer, ByteTokenizer]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)

FAMILY = "👩‍👩‍👧 naïve e\u0301a\u0308 \u0000\r\n\ufeff\ufffd \U0010ffff"  # astral, joined, combining, odd
quick = settings(deadline=None, max_examples=80)


def trained(kind: type[Tokenizer], train_text: str, val_text: str = "", **options: Any) -> Tokenizer:
    return kind.train(kind.Options(**options), Splits(train_text, val_text))


def bigram(train_text: str, val_text: str = "", **options: Any) -> BigramTokenizer:
    return BigramTokenizer.train(BigramTokenizer.Options(**options), Splits(train_text, val_text))


def test_they_are_registered_under_the_name_in_their_json() -> None:
    for name, kind in zip(("char", "bigram", "byte"), KINDS, strict=True):
        assert registry.load(registry.TOKENIZERS, name) is kind
        assert trained(kind, "text").to_json()["type"] == name


@EVERY_KIND
@quick
@given(train_text=TEXT, val_text=TEXT)
@example(train_text=FAMILY, val_text=FAMILY[::-1])
@example(train_text="", val_text="")
def test_decoding_restores_any_text(kind: type[Tokenizer], train_text: str, val_text: str) -> None:
    tokenizer = trained(kind, train_text, val_text)
    for text in (train_text, val_text, train_text + val_text, val_text[::-1], ""):
        assert tokenizer.unknown_characters(text) == ""
        ids = tokenizer.encode(text)
        assert ids.ndim == 1
        assert ids.dtype == np.min_scalar_type(max(tokenizer.vocab_size - 1, 0))
        assert all(0 <= token < tokenizer.vocab_size for token in ids.tolist())
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.decode(ids.astype(np.int64)) == text  # type: ignore[arg-type]


@EVERY_KIND
@quick
@given(train_text=SOME_TEXT, val_text=TEXT)
@example(train_text=FAMILY, val_text="")
def test_a_tokenizer_can_be_restored_from_its_json(
    kind: type[Tokenizer], train_text: str, val_text: str
) -> None:
    tokenizer = trained(kind, train_text, val_text)
    described = json.loads(json.dumps(tokenizer.to_json()))
    again = kind.from_json(described)
    assert again.to_json() == tokenizer.to_json()
    assert again.vocab_size == tokenizer.vocab_size
    for text in (train_text, val_text + train_text):
        ids = tokenizer.encode(text)
        np.testing.assert_array_equal(again.encode(text), ids)
        assert again.encode(text).dtype == ids.dtype
        assert again.decode(ids.tolist()) == text


@pytest.mark.parametrize(("distinct", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65537, "u4")])
def test_ids_have_the_smallest_integer_type(distinct: int, dtype: str) -> None:
    text = "".join(chr(0x10000 + number) for number in range(distinct))
    for tokenizer in (trained(CharTokenizer, text), bigram(text, max_pairs=0)):
        ids = tokenizer.encode(text)
        assert ids.dtype == dtype
        np.testing.assert_array_equal(ids, np.arange(distinct))


def test_pairs_count_for_the_integer_type_of_ids() -> None:
    text = "".join(chr(number) for number in range(0x100, 0x200))  # 256 characters in 128 pairs
    assert bigram(text, max_pairs=0).encode(text[::-1]).dtype == np.uint8
    assert bigram(text, max_pairs=1).encode(text[::-1]).dtype == np.uint16


@EVERY_KIND
def test_decoding_restores_a_text_of_several_chunks(kind: type[Tokenizer]) -> None:
    """More than a million characters, of one byte and of more."""
    for text in ("To be, or not to be: " * 60_000, "Žluťoučký kůň 🐎 " * 70_000):
        tokenizer = trained(kind, text)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids.tolist()) == text


@quick
@given(st.lists(SOME_TEXT, min_size=2, max_size=2))
def test_char_has_a_token_for_each_distinct_character_in_order(texts: list[str]) -> None:
    """Of both splits: a letter that occurs only in the val split is known."""
    tokenizer = trained(CharTokenizer, *texts)
    characters = sorted(set("".join(texts)))
    assert tokenizer.vocab_size == len(characters)
    assert tokenizer.encode("".join(characters)).tolist() == list(range(len(characters)))


@quick
@given(TEXT)
def test_byte_has_the_bytes_of_utf8(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.vocab_size == 256
    assert bytes(tokenizer.encode(text).tolist()) == text.encode()


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_byte_decodes_any_bytes(data: bytes) -> None:
    assert ByteTokenizer().decode(list(data)) == data.decode(errors="replace")


@pytest.mark.parametrize("kind", [CharTokenizer, BigramTokenizer])
@quick
@given(text=TEXT, train_text=TEXT)
@example(text="naïve 👩‍👩‍👧", train_text="naive")
def test_unknown_characters_are_named_once_in_order(
    kind: type[Tokenizer], text: str, train_text: str
) -> None:
    unknown = trained(kind, train_text).unknown_characters(text)
    assert unknown == "".join(sorted(set(text) - set(train_text)))


def test_byte_knows_every_character() -> None:
    assert ByteTokenizer().unknown_characters(FAMILY) == ""


# Pairs


def test_the_most_frequent_pairs_of_the_train_split_have_tokens() -> None:
    """Counted where encoding cuts: from the beginning, two by two. Ids: characters, then pairs by count."""
    text = "ab" * 3 + "cd" * 2 + "ac" * 4 + "bd"
    tokenizer = bigram(text, max_pairs=3)
    assert tokenizer.vocab_size == 4 + 3
    assert [tokenizer.decode([token]) for token in range(7)] == ["a", "b", "c", "d", "ac", "ab", "cd"]
    assert tokenizer.encode("acabcdbd").tolist() == [4, 5, 6, 1, 3]
    assert bigram(text).vocab_size == 4 + 4
    assert bigram(text, max_pairs=0).encode("acab").tolist() == [0, 2, 0, 1]


def test_pairs_of_a_long_text_are_counted_and_cut_over_all_of_it() -> None:
    """Over all chunks together: "cd" is more frequent in the text, but not in either chunk."""
    text = "ab" * 300_000 + "cd" * 400_000
    assert bigram(text, max_pairs=1).decode([4]) == "cd"
    assert len(bigram(text).encode(text)) == 700_000


def test_a_pair_that_was_never_seen_becomes_single_characters() -> None:
    tokenizer = bigram("abcd", val_text="e")
    assert tokenizer.encode("abda").tolist() == [5, 3, 0]
    assert tokenizer.encode("bcab").tolist() == [1, 2, 5]
    assert tokenizer.encode("abe").tolist() == [5, 4]
    assert tokenizer.encode("e").tolist() == [4]


def test_the_validation_text_adds_characters_but_no_pairs() -> None:
    assert bigram("abab", val_text="cdcdcd").to_json() == {
        "type": "bigram",
        "characters": "abcd",
        "pairs": "ab",
    }


@quick
@given(text=TEXT, max_pairs=st.integers(0, 20))
def test_no_more_pairs_are_kept_than_asked_for(text: str, max_pairs: int) -> None:
    tokenizer = bigram(text, max_pairs=max_pairs)
    pairs = [text[at : at + 2] for at in range(0, len(text) - 1, 2)]
    assert tokenizer.vocab_size == len(set(text)) + min(max_pairs, len(set(pairs)))
    kept = {tokenizer.decode([token]) for token in range(len(set(text)), tokenizer.vocab_size)}
    left = set(pairs) - kept
    assert not left or not kept or min(map(pairs.count, kept)) >= max(map(pairs.count, left))


# Damaged descriptions

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@EVERY_KIND
@pytest.mark.parametrize(
    "damage",
    [
        {"type": "other"},
        {"type": None},
        {"type": ["char"]},
        {"extra": 1},
        {"characters": 5},
        {"characters": ["a", "b"]},
        {"characters": {"a": 0}},
        {"characters": ""},
        {"characters": "aa"},
        {"characters": "ab\ud800"},
        {"pairs": "a"},
        {"pairs": "abab"},
        {"pairs": "az"},
        {"pairs": ["ab"]},
        {"pairs": None},
    ],
    ids=json.dumps,
)
def test_a_damaged_description_is_refused(kind: type[Tokenizer], damage: dict[str, Any]) -> None:
    good = trained(kind, "abba").to_json()
    assert kind.from_json(good).to_json() == good
    with pytest.raises(ValueError, match=r"does not describe|its keys|twice|not pairs|surrogate"):
        kind.from_json({**good, **damage})


@EVERY_KIND
def test_a_description_that_lacks_something_is_refused(kind: type[Tokenizer]) -> None:
    good = trained(kind, "abba").to_json()
    for key in good:
        with pytest.raises(ValueError, match="its keys should be"):
            kind.from_json({other: value for other, value in good.items() if other != key})


@pytest.mark.slow
@EVERY_KIND
@settings(deadline=None, max_examples=150)
@given(
    data=st.fixed_dictionaries(
        {"type": st.sampled_from(["char", "bigram", "byte"]) | VALUES},
        optional={"characters": VALUES, "pairs": VALUES, "other": VALUES},
    )
    | st.dictionaries(st.text(max_size=5), VALUES, max_size=3)
)
def test_any_description_is_used_completely_or_refused(kind: type[Tokenizer], data: dict[str, Any]) -> None:
    """With a ValueError; and the tokenizer has the same description."""
    try:
        tokenizer = kind.from_json(data)
    except ValueError:
        return
    assert tokenizer.to_json() == data


# Streams


def pieces_of(decoder: StreamDecoder, ids: Iterable[int]) -> list[str]:
    return [*(decoder.push(token) for token in ids), decoder.finish()]


@EVERY_KIND
@quick
@given(TEXT)
@example(FAMILY)
@example("🐎")
def test_a_stream_is_the_text_in_whole_characters(kind: type[Tokenizer], text: str) -> None:
    """As soon as they are complete: after each id, all characters of the ids so far."""
    tokenizer = trained(kind, text)
    ids = tokenizer.encode(text).tolist()
    decoder = tokenizer.stream_decoder()
    shown = ""
    for count, token in enumerate(ids, start=1):
        shown += decoder.push(token)
        if kind is ByteTokenizer:
            assert shown == bytes(ids[:count]).decode(errors="ignore")
        elif "\ufffd" not in text:  # which is held back: it could be the half of a character
            assert shown == tokenizer.decode(ids[:count])
    assert shown + decoder.finish() == text


@settings(deadline=None)
@given(st.binary(max_size=30))
@example(b"\xf0\x9f")
@example(b"\xff" * 20 + "🐎".encode())
@example(b"\xf0\x9f\xf0\x9f\x90\x8ea\x80")
def test_a_stream_of_any_bytes_equals_decoding_them_at_once(data: bytes) -> None:
    decoder = ByteTokenizer().stream_decoder()
    assert "".join(pieces_of(decoder, data)) == data.decode(errors="replace")


@quick
@given(TEXT)
@example(FAMILY)
def test_the_default_stream_of_a_plugin_returns_only_complete_characters(text: str) -> None:
    """With a tokenizer whose ids may be parts of characters."""
    assume("\ufffd" not in text)  # which it cannot tell from a half
    decoder = StreamDecoder(ByteTokenizer())
    pieces = pieces_of(decoder, text.encode())
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_incomplete_characters_are_returned_at_the_end() -> None:
    decoder = StreamDecoder(ByteTokenizer())
    half = "🐎".encode()[:2]
    assert pieces_of(decoder, half) == ["", "", "\ufffd"]
    assert pieces_of(decoder, b"\xe2a") == ["", "\ufffda", ""]
    endless = pieces_of(StreamDecoder(ByteTokenizer()), b"\xff" * 40)
    assert "".join(endless) == "\ufffd" * 40
    assert any(endless[:20])  # it does not wait for ever


# The corpus of a run


def test_a_corpus_is_the_ids_of_both_splits() -> None:
    text = "abcdefghij" * 10 + "é"
    train_text, val_text = split_text(text, 0.25)
    assert train_text + val_text == text
    assert len(train_text) == 75
    corpus = build_corpus(text, CharTokenizer, options=PluginOptions(), val_fraction=0.25, context_length=8)
    assert corpus.tokenizer.decode(corpus.train.tolist()) == train_text
    assert corpus.tokenizer.decode(corpus.val.tolist()) == val_text
    assert corpus.val_bytes == len(val_text) + 1
    assert corpus.characters == 101
    other = build_corpus(text + "!", ByteTokenizer(), val_fraction=0.25, context_length=8)
    assert other.text_sha256 != corpus.text_sha256
    assert other.val_bytes == len(other.val)


class Words(CharTokenizer):
    """Loses case and the kind of white space; knows "the", "cat" and "sat" in addition to "?"."""

    words = ("?", "the", "cat", "sat")
    vocab_size = 4

    def encode(self, text: str) -> Ids:
        return np.array([self.words.index(word) if word in self.words else 0 for word in text.split()])

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[token] for token in ids)


def test_what_a_tokenizer_does_not_return_of_the_val_split_is_measured() -> None:
    known, words = "the cat sat ", Words("?")
    for tokenizer in (trained(CharTokenizer, "the cats"), ByteTokenizer()):
        assert lost_text(tokenizer, known * 20_000) is None
    lost = lost_text(words, (known + "xyzzy dog ") * 20_000)
    assert lost is not None
    assert lost.fraction == pytest.approx(8 / 22, abs=0.02)  # the letters that are no "?"
    assert lost.example == "'cat sat xyzzy dog the ca' comes back as 'cat sat ? ? the cat sat '"
    assert "36" in str(lost)


class LowerCase(ByteTokenizer):
    def encode(self, text: str) -> Ids:
        return super().encode(text.lower())


def test_a_loss_is_found_wherever_it_is_in_a_split_that_is_not_very_long() -> None:
    text = "".join(f"{n} times {n + 3} makes {n * (n + 3)}; so it goes.\n" for n in range(4000))
    assert lost_text(LowerCase(), text) is None
    for at in (text.index("t"), text.index("times", 100_000), text.rindex("t")):
        lost = lost_text(LowerCase(), text[:at] + "T" + text[at + 1 :])
        assert lost is not None
        assert "less than 0.1%" in str(lost)
        assert "T" in lost.example


def test_a_tokenizer_that_cannot_decode_is_refused_before_training() -> None:
    class Broken(CharTokenizer):
        def decode(self, ids: Sequence[int]) -> str:
            raise KeyError(7)

    with pytest.raises(PluginError, match=r"Broken\.decode fails on ids of the text: KeyError: 7"):
        build_corpus("ab" * 50, Broken("ab"), val_fraction=0.5, context_length=8)


def test_a_text_with_characters_that_the_tokenizer_lacks_is_refused() -> None:
    with pytest.raises(DataError, match=r"has 2 characters .* lacks: 'x' 'é'"):
        build_corpus("abxcéx" * 9, trained(CharTokenizer, "abc"), val_fraction=0.5, context_length=2)


@pytest.mark.parametrize(("context_length", "remedy"), [(10, "that fits is 9"), (60, "that fits is 9")])
def test_a_text_too_short_for_the_context_is_refused_with_what_would_fit(
    context_length: int, remedy: str
) -> None:
    text = "ab" * 50
    with pytest.raises(DataError, match=remedy):
        build_corpus(text, ByteTokenizer(), val_fraction=0.1, context_length=context_length)
    build_corpus(text, ByteTokenizer(), val_fraction=0.1, context_length=9)


def test_distinct_characters_are_found_wherever_they_first_appear() -> None:
    """Chunks of 2**20 characters: ASCII and others, new ones in the second and later."""
    text = "ab" * 2**19 + "ba" * 2**19 + "c" + "é" * 2**20 + "d\n" * 3
    assert distinct_characters(text) == ["\n", "a", "b", "c", "d", "é"]
