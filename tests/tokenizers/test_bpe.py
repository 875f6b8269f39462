"""The tokenizer bpe: learning, encoding in pieces, streaming, and strict checks of its file."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptkit.errors import GptkitWarning
from gptkit.plugins import Splits
from gptkit.tokenizers import bpe
from gptkit.tokenizers.bpe import BpeTokenizer, byte_characters, small_json
from tests.support import Command, small_text

tokenizers = pytest.importorskip("tokenizers")

TEXT = st.text(max_size=60)
# Characters at which pieces may be cut: the white space of Unicode and Python, and their neighbours
WHITE_SPACE = st.text(
    alphabet=" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2000\u200b\u2028\u202f\u3000\ufeff"
    ".,'stable1é中🐎\u0301",
    max_size=40,
)
FAMILY = "👩‍👩‍👧 naïve e\u0301a\u0308 \u0000\r\n\ufeff\ufffd \U0010ffff"
quick = settings(deadline=None, max_examples=100)
TRAIN_TEXT = small_text() + FAMILY * 3


def train(train_text: str, val_text: str = "", **options: Any) -> BpeTokenizer:
    return BpeTokenizer.train(BpeTokenizer.Options(**options), Splits(train_text, val_text))


TOKENIZER = train(TRAIN_TEXT, vocab_size=500)


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 3 characters, so that every text of a test is cut often."""
    monkeypatch.setattr(bpe, "_PIECE", 3)


@quick
@given(TEXT | WHITE_SPACE)
@example(FAMILY)
def test_decoding_restores_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.unknown_characters(text) == ""
    assert ids.dtype == np.uint16
    assert all(0 <= token < TOKENIZER.vocab_size for token in ids.tolist())
    assert TOKENIZER.decode(ids.tolist()) == text
    assert TOKENIZER.decode(ids) == text  # type: ignore[arg-type]


def test_it_learns_the_requested_number_of_tokens_from_the_train_split_only() -> None:
    assert train(TRAIN_TEXT, vocab_size=300).vocab_size == 300
    assert train("", "abab" * 50).vocab_size == 256
    assert train(TRAIN_TEXT, vocab_size=256).encode("lamp").tolist() == [
        sorted(byte_characters()).index(letter) for letter in "lamp"
    ]
    assert train("xy xy xy", min_frequency=4).vocab_size == 256
    assert train("xy xy xy", min_frequency=3).vocab_size > 256
    assert len(TOKENIZER.encode(small_text())) < len(small_text()) / 3


def test_merges_stay_within_words() -> None:
    tokens = [TOKENIZER.decode([number]) for number in range(TOKENIZER.vocab_size)]
    assert " someone" in tokens or " harbours" in tokens
    assert not [token for token in tokens if token.strip() and " " in token[1:]]


@pytest.mark.usefixtures("tiny_pieces")
def test_a_text_in_pieces_has_the_ids_of_the_whole_text() -> None:
    whole = tokenizers.Tokenizer.from_str(json.dumps(TOKENIZER.to_json()))

    @settings(deadline=None, max_examples=250)
    @given(WHITE_SPACE | TEXT)
    @example("a  b")
    @example("a \n \u180e b")
    @example("it's 'll  s")
    def check(text: str) -> None:
        assert TOKENIZER.encode(text).tolist() == whole.encode(text).ids

    check()


def test_a_text_is_cut_before_white_space_if_there_is_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bpe, "_PIECE", 3)
    assert list(bpe.cut(["ab  cdefg h\n\n i"])) == ["ab  cdefg", " h\n\n i"]
    assert list(bpe.cut(["abcdefghij k"], longest=5)) == ["abcde", "fghij", " k"]
    assert list(bpe.cut(["      "], longest=4)) == ["    ", "  "]
    assert list(bpe.cut([""])) == []


def test_decoding_restores_a_long_text_without_white_space() -> None:
    text = "ab" * 550_000  # longer than what is encoded without a place to cut
    assert TOKENIZER.decode(TOKENIZER.encode(text).tolist()) == text


def test_lone_surrogates_are_encoded_as_by_the_byte_tokenizer() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b \udc00").tolist()) == "a?b ?"
    assert train("a\ud800b" * 9).vocab_size > 256


def test_progress_is_reported_while_it_learns() -> None:
    reports: list[tuple[int, int]] = []
    text = small_text() * 10
    BpeTokenizer.train(BpeTokenizer.Options(), Splits(text, "", lambda *way: reports.append(way)))
    assert reports == sorted(reports)
    assert len(reports) > 2
    assert reports[-1] == (len(text), len(text))


LEARN = """
import json, sys

from gptkit.plugins import Splits
from gptkit.tokenizers.bpe import BpeTokenizer
text = sys.stdin.buffer.read().decode()
tokenizer = BpeTokenizer.train(BpeTokenizer.Options(vocab_size=700), Splits(text, ""))
print(json.dumps([tokenizer.to_json(), tokenizer.encode(text).tolist()]))
"""


@pytest.mark.slow
def test_the_same_text_gives_the_same_file_whatever_the_hash_seed_and_the_threads() -> None:
    """With many ties between pairs, and several pieces that threads count."""
    chance = random.Random(0)
    words = ("".join(chance.choices("abcdefghijklmnop 🐎", k=5)) for _ in range(60_000))
    text = " ".join(words).encode()
    first, second = (
        subprocess.run(
            [sys.executable, "-c", LEARN],
            input=text,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            timeout=120,
            check=True,
        ).stdout
        for seed, threads in (("1", "1"), ("2", "4"))
    )
    assert first == second
    assert len(json.loads(first)[0]["model"]["vocab"]) == 700


# Its file


def test_the_package_opens_its_file_and_returns_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER.to_json()))
    opened = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (TRAIN_TEXT, FAMILY, " leading", ""):
        ids = TOKENIZER.encode(text).tolist()
        assert opened.encode(text).ids == ids
        assert opened.decode(ids) == text
    assert opened.get_vocab_size() == TOKENIZER.vocab_size


@quick
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30))
def test_any_ids_are_decoded_as_the_library_does_and_streamed_to_the_same(ids: list[int]) -> None:
    opened = tokenizers.Tokenizer.from_str(json.dumps(TOKENIZER.to_json()))
    assert TOKENIZER.decode(ids) == opened.decode(ids)
    stream = TOKENIZER.stream_decoder()
    for _ in range(2):  # after `finish` it begins anew
        assert "".join([*map(stream.push, ids), stream.finish()]) == TOKENIZER.decode(ids)


def test_a_stream_never_prints_half_a_character() -> None:
    stream = TOKENIZER.stream_decoder()
    ids = [
        token
        for byte in "🐎é".encode()
        for token in [sorted(byte_characters()).index(byte_characters()[byte])]
    ]
    assert [stream.push(token) for token in ids] == ["", "", "", "🐎", "", "é"]
    assert stream.finish() == ""


@pytest.mark.parametrize("text", ["", TRAIN_TEXT])
def test_it_can_be_restored_from_its_json(text: str) -> None:
    tokenizer = train(text)
    again = BpeTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert json.dumps(again.to_json()) == json.dumps(tokenizer.to_json())
    assert again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again.encode(TRAIN_TEXT), tokenizer.encode(TRAIN_TEXT))


SMALL = small_json([("t", "h"), ("th", "e"), ("Ġ", "the")])


def changed(*path: str, to: Any) -> dict[str, Any]:
    """SMALL with another value at a path; `...` removes the key."""
    data = copy.deepcopy(SMALL)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return data


def test_small_json_equals_the_file_of_the_package() -> None:
    written = train("th th th the the " * 9, vocab_size=258).to_json()
    merges = [tuple(pair) for pair in written["model"]["merges"]]
    assert small_json(merges)["model"] == written["model"]
    assert BpeTokenizer.from_json(SMALL).encode(" the").tolist() == [258]


@pytest.mark.parametrize(
    "data",
    [
        dict(reversed(SMALL.items())),
        changed("model", "ignore_merges", to=...),
        changed("model", "byte_fallback", to=...),
        changed("model", "continuing_subword_prefix", to=""),
        changed("model", "merges", to=["t h", "th e", "Ġ the"]),
        changed("pre_tokenizer", "use_regex", to=...),
        changed("decoder", "add_prefix_space", to=True),
        {**SMALL, "of_a_later_version": None},
        {**SMALL, "model": {**SMALL["model"], "of_a_later_version": False}},
    ],
    ids=range(9),
)
def test_files_of_other_versions_of_the_package_are_accepted(data: dict[str, Any]) -> None:
    assert BpeTokenizer.from_json(data).encode(" the").tolist() == [258]


VOCAB: dict[str, int] = SMALL["model"]["vocab"]
BYTE_LEVEL = SMALL["decoder"]
HOSTILE = [
    {},
    {"type": "byte"},
    changed("version", to=...),
    changed("version", to="2.0"),
    changed(
        "truncation", to={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    ),
    changed("padding", to={"strategy": {"Fixed": 10}}),
    changed("added_tokens", to=[{"id": 259, "content": "<s>", "special": True}]),
    changed("normalizer", to={"type": "NFC"}),
    changed("post_processor", to=BYTE_LEVEL),
    changed("pre_tokenizer", to=None),
    changed("pre_tokenizer", to={"type": "Whitespace"}),
    changed("pre_tokenizer", "add_prefix_space", to=True),
    changed("pre_tokenizer", "add_prefix_space", to=...),
    changed("pre_tokenizer", "add_prefix_space", to=0),
    changed("pre_tokenizer", "use_regex", to=False),
    changed("decoder", to=None),
    changed("decoder", to={"type": "Fuse"}),
    changed("model", to=None),
    changed("model", "type", to="WordLevel"),
    changed("model", "type", to=...),
    changed("model", "dropout", to=0.5),
    changed("model", "unk_token", to="t"),
    changed("model", "continuing_subword_prefix", to="abcdefgh"),  # at which the library panics
    changed("model", "end_of_word_suffix", to="e"),
    changed("model", "fuse_unk", to=True),
    changed("model", "byte_fallback", to=True),
    changed("model", "ignore_merges", to=True),
    changed("model", "of_a_later_version", to=1),
    changed("of_a_later_version", to={"more": 1}),
    changed("model", "vocab", to=...),
    changed("model", "vocab", to=[]),
    changed("model", "vocab", to={**VOCAB, "t": 300}),
    changed("model", "vocab", to={**VOCAB, "t": -1}),
    changed("model", "vocab", to={**VOCAB, "tt": 260}),
    changed("model", "vocab", to={**VOCAB, "tt": 5}),
    changed("model", "vocab", to={**VOCAB, "tt": 259.0}),
    changed("model", "vocab", to={**VOCAB, "tt": True}),
    changed("model", "vocab", to={**VOCAB, "tt": 10**40}),
    changed("model", "vocab", to={**VOCAB, "t t": 259}),
    changed("model", "vocab", to={**VOCAB, "\ud800": 259}),
    changed("model", "vocab", to={**VOCAB, "": 259}),
    changed("model", "vocab", to={f"{key}x" if key == "t" else key: number for key, number in VOCAB.items()}),
    changed("model", "merges", to=...),
    changed("model", "merges", to={}),
    changed("model", "merges", to=[["t"]]),
    changed("model", "merges", to=[["t", "q"]]),
    changed("model", "merges", to=["t q"]),
    changed("model", "merges", to=["t  h"]),
    changed("model", "merges", to=[["", "t"]]),
    changed("model", "merges", to=[["t", 1]]),
    changed("model", "merges", to=[7]),
]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_any_other_tokenizer_json_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it |its |a token|a merge|an id|the ids|key"):
        BpeTokenizer.from_json(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, some of the vocabulary left out."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in list(value)[:12] + list(value)[-3:]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, (*path, number))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "t", "th", "BPE", "ByteLevel"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(path=st.sampled_from(sorted(set(places(SMALL)), key=repr)), value=VALUES)
def test_a_changed_file_is_refused_with_value_error_or_works(path: tuple[Any, ...], value: Any) -> None:
    try:
        tokenizer = BpeTokenizer.from_json(changed(*path, to=value))
    except ValueError:
        return
    text = f"{FAMILY} the then thethe"
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


@pytest.mark.parametrize(
    "text", ["ab" * 4000, " " * 5000, "a b " * 2000, "é" * 1500 + "\n" * 1500 + "x" * 10]
)
def test_very_long_words_are_cut_for_learning(text: str) -> None:
    """Learning takes quadratic time in a word's length: minutes for a text without spaces."""
    seen: list[int] = []
    parts = list(bpe._training_pieces(Splits(text, "", lambda done, total: seen.append(done))))
    assert "".join(parts) == text
    assert max(len(run) for part in parts for run in re.findall(r"\S+|\s+", part)) <= 1000
    assert seen[-1] == len(text)


def test_a_long_text_is_sampled_evenly_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "LEARNED", 100)
    monkeypatch.setattr(bpe, "_BLOCK", 10)
    text = "".join(f"{number:<10}" for number in range(50))
    with pytest.warns(GptkitWarning, match="learns from 100 of the text's 500 characters, spread evenly"):
        parts = list(bpe._training_pieces(Splits(text, "")))
    assert "".join(parts).split() == [str(number) for number in range(0, 50, 5)]
    in_pieces = bpe._sample([text[start : start + 7] for start in range(0, 500, 7)], 500)
    assert "".join(in_pieces) == "".join(parts)


# Where it is used


def test_its_module_is_imported_without_the_package() -> None:
    code = "import sys; sys.modules['tokenizers'] = None; import gptkit.tokenizers.bpe"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=60)


@pytest.mark.slow
def test_a_run_with_it_trains_resumes_and_generates(tiny_experiment: Path, gptkit_command: Command) -> None:
    """Stopped and resumed; with a prompt of characters that are not in the text."""
    text = tiny_experiment.read_text().replace(
        "seed = 7", 'seed = 7\ntokenizer = { type = "bpe", vocab_size = 300 }'
    )
    tiny_experiment.write_text(text)
    trained = gptkit_command("train", tiny_experiment, "--quiet", "--stop-at", 10)
    assert trained.code == 0, trained.err
    run = Path(trained.out.strip())
    assert json.loads((run / "run.json").read_text())["tokenizer"]["vocab_size"] == 300
    assert tokenizers.Tokenizer.from_file(str(run / "tokenizer.json")).get_vocab_size() == 300
    resumed = gptkit_command("resume", run)
    assert resumed.code == 0, resumed.err
    written = gptkit_command("generate", run, "--prompt", "🐎 né", "-n", 8)
    assert written.code == 0, written.err
    assert written.out.startswith("🐎 né")
    damaged = json.loads((run / "tokenizer.json").read_text())
    (run / "tokenizer.json").write_text(json.dumps({**damaged, "normalizer": {"type": "NFC"}}))
    refused = gptkit_command("generate", run, "--prompt", "a")
    assert refused.code == 5
    assert "normalizer" in refused.err
