"""The tokenizer hf: any tokenizer.json, used and kept as it is. All files are made here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gptkit
from gptkit.errors import DataError
from gptkit.experiment.schema import SamplingSettings
from gptkit.generation import generate
from gptkit.plugins import Splits
from gptkit.tokenizers import bpe
from gptkit.tokenizers.bpe import small_json
from gptkit.tokenizers.huggingface import HuggingFaceTokenizer
from tests.support import Command, run_of, small_text
from tests.support.models import reciter

tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

GPT4 = (  # nobody's exact pattern: parts that such patterns are made of
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXT = small_text(1200)
quiet: dict[str, Any] = {"show_progress": False}


def byte_level(splitter: Any = None, **options: Any) -> tuple[Any, ...]:
    splitter = splitter or pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, **quiet, **options)
    return models.BPE(), trainer, None, splitter, decoders.ByteLevel()


KINDS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "byte-level": lambda: byte_level(special_tokens=["<|end|>"]),
    "byte-level, prefixed": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "byte-level, split": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(GPT4), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "unigram": lambda: (
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], **quiet),
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
        decoders.Metaspace(),
    ),
    "wordpiece": lambda: (
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], **quiet),
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    ),
    "byte fallback": lambda: (
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"),
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *BYTES], **quiet),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        None,
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    ),
    "suffixed words": lambda: (
        models.BPE(end_of_word_suffix="</w>"),
        trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", **quiet),
        None,
        pre_tokenizers.WhitespaceSplit(),
        decoders.BPEDecoder(),
    ),
    "words": lambda: (
        models.WordLevel(unk_token="[UNK]"),
        trainers.WordLevelTrainer(vocab_size=60, special_tokens=["[UNK]"], **quiet),
        None,
        pre_tokenizers.Whitespace(),
        None,
    ),
    "characters": lambda: (
        models.BPE(),
        trainers.BpeTrainer(vocab_size=1, **quiet),
        None,
        pre_tokenizers.Whitespace(),
        None,
    ),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@cache
def file_of(kind: str) -> str:
    """A tokenizer.json of that kind, trained on TEXT."""
    model, trainer, normalizer, splitter, decoder = KINDS[kind]()
    tokenizer = tokenizers.Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if splitter:
        tokenizer.pre_tokenizer = splitter
    if decoder:
        tokenizer.decoder = decoder
    tokenizer.train_from_iterator([TEXT], trainer=trainer)
    return str(tokenizer.to_str())


def data_of(kind: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(file_of(kind))
    return data


@cache
def opened(kind: str) -> tuple[HuggingFaceTokenizer, Any]:
    """The tokenizer of gptkit, and that of the package."""
    return HuggingFaceTokenizer.from_json(data_of(kind)), tokenizers.Tokenizer.from_str(file_of(kind))


def read(path: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.train(HuggingFaceTokenizer.Options(path=str(path)), Splits("", ""))


def texts(kind: str) -> st.SearchStrategy[str]:
    """Texts of characters that the kind knows, and of odd ones where it knows or replaces any."""
    odd = "" if kind in ("suffixed words", "characters") else "é中🐎\u0301\xa0\u2028\u3000\x1c'1<|end|>\u212b"
    return st.text(alphabet=" \t\nabdehlmorst,.;?" + odd, max_size=40) | st.sampled_from([TEXT[:300], ""])


@EVERY_KIND
def test_ids_are_those_of_the_package(kind: str) -> None:
    ours, library = opened(kind)

    @settings(deadline=None, max_examples=120)
    @given(texts(kind))
    @example("a  b , 's\n\n it's   .")
    def check(text: str) -> None:
        ids = ours.encode(text)
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert all(0 <= token < ours.vocab_size for token in ids.tolist())

    check()


@EVERY_KIND
def test_it_can_be_restored_from_its_json(kind: str) -> None:
    ours, library = opened(kind)
    again = HuggingFaceTokenizer.from_json(json.loads(json.dumps(ours.to_json())))
    assert ours.to_json() == again.to_json() == data_of(kind)
    assert again.vocab_size == ours.vocab_size == library.get_vocab_size()
    assert again.encode(TEXT).tolist() == ours.encode(TEXT).tolist()


@EVERY_KIND
def test_a_stream_is_the_text_of_all_ids(kind: str) -> None:
    ours, library = opened(kind)
    number = st.integers(0, ours.vocab_size - 1) | st.integers(0, min(ours.vocab_size, 300) - 1)
    of_text = texts(kind).map(lambda text: ours.encode(text).tolist())

    @settings(deadline=None, max_examples=120)
    @given(
        st.lists(number, max_size=40)
        | of_text
        | st.lists(of_text, max_size=3).map(lambda parts: [*chain(*parts)])
    )
    def check(ids: list[int]) -> None:
        stream = ours.stream_decoder()
        for _ in range(2):  # after `finish` it begins anew
            shown = "".join(map(stream.push, ids))
            whole = shown + stream.finish()
            assert whole == ours.decode(ids) == library.decode(ids, skip_special_tokens=False)

    check()


@EVERY_KIND
def test_generated_text_continues_its_prompt(kind: str) -> None:
    """Whatever stands between the last token of the prompt and the first that is generated."""
    ours, _ = opened(kind)

    @settings(deadline=None, max_examples=25)
    @given(texts(kind), st.integers(0, 40))
    @example("the lamp hummed while 🐎 é中é the lamp", 3)
    @example("中文字" * 14, 39)
    def check(text: str, after: int) -> None:
        unknown = ours.unknown_characters(text)
        text = "".join(letter for letter in text if letter not in unknown)
        ids = ours.encode(text).tolist()
        prompt = ids[: max(1, min(after, len(ids) - 1))]
        before, whole = ours.decode(prompt), ours.decode(ids)
        if not ids or not whole.startswith(before):  # a character is cut, or a decoder changes earlier text
            return
        sampling = SamplingSettings(temperature=0.0, max_new_tokens=len(ids) - len(prompt))
        pieces = generate(reciter(ids, ours.vocab_size), ours, prompt, sampling, seed=1)
        written = "".join(piece for _, piece in pieces)
        assert before + written == whole
        if len(written) > 3:
            stop = written[2:4]
            sampling = sampling.model_copy(update={"stop": [stop]})
            pieces = generate(reciter(ids, ours.vocab_size), ours, prompt, sampling, seed=1)
            assert "".join(piece for _, piece in pieces) == written[: written.index(stop)]

    check()


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, split", "byte fallback"])
def test_a_stream_never_prints_half_a_character(kind: str) -> None:
    ours, _ = opened(kind)
    stream = ours.stream_decoder()
    pieces = [stream.push(token) for token in ours.encode("lamp 🐎é中 lamp").tolist()] + [stream.finish()]
    assert "".join(pieces) == "lamp 🐎é中 lamp"
    assert not [piece for piece in pieces if "\ufffd" in piece]
    assert len([piece for piece in pieces if piece]) >= 3


def test_a_stream_returns_text_before_its_end() -> None:
    for kind in KINDS:
        ours, _ = opened(kind)
        stream = ours.stream_decoder()
        shown = "".join(map(stream.push, ours.encode("lamp hummed while").tolist()))
        assert "hummed" in shown.replace(" ", "")


def test_incomplete_characters_are_returned_before_the_end() -> None:
    data = data_of("byte-level")
    data["decoder"] = {"type": "Sequence", "decoders": [data["decoder"], {"type": "Fuse"}]}
    ours = HuggingFaceTokenizer.from_json(data)
    half = ours.encode("🐎").tolist()[0]
    stream = ours.stream_decoder()
    assert any(stream.push(half) for _ in range(40))


# Properties


def test_lossless_is_detected() -> None:
    assert opened("byte-level")[0].lossless
    assert opened("byte-level, split")[0].lossless
    assert not opened("byte-level, prefixed")[0].lossless  # it adds a space
    assert not opened("unigram")[0].lossless
    assert not opened("wordpiece")[0].lossless


def test_added_tokens_are_decoded_as_by_the_package() -> None:
    """It decodes the letters of an added token as bytes if it can, which loses text."""
    library = tokenizers.Tokenizer.from_str(file_of("byte-level"))
    library.add_tokens(["<ü y>", "中"])
    assert HuggingFaceTokenizer.from_json(json.loads(library.to_str())).lossless
    library.add_tokens(["é"])
    ours = HuggingFaceTokenizer.from_json(json.loads(library.to_str()))
    assert not ours.lossless
    ids = ours.encode("a é<ü y> 中 <|end|>").tolist()
    stream = ours.stream_decoder()
    assert "".join([*map(stream.push, ids), stream.finish()]) == ours.decode(ids)
    assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)


def test_unknown_characters_are_those_that_the_model_drops() -> None:
    """Neither characters encoded as the unknown token nor removed white space count."""
    text = "lamp é🐎 \n中éz" * 50
    assert opened("characters")[0].unknown_characters(text) == "zé中🐎"
    assert opened("suffixed words")[0].unknown_characters(text) == "zé中🐎"
    for kind in KINDS.keys() - {"characters", "suffixed words"}:
        assert opened(kind)[0].unknown_characters(text) == ""


def test_unknown_words_are_an_error_and_unknown_characters_are_reported() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"lamp": 0, "a": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ours = HuggingFaceTokenizer.from_json(json.loads(words.to_str()))
    assert ours.encode("lamp a lamp").tolist() == [0, 1, 0]
    assert ours.unknown_characters("a z") == "z"
    with pytest.raises(DataError, match="tokenizer 'hf' cannot encode the text"):
        ours.encode("lamps")


def test_truncation_padding_and_dropout_are_switched_off() -> None:
    data = data_of("byte-level")
    data["model"]["dropout"] = 0.9
    changed = tokenizers.Tokenizer.from_str(json.dumps(data))
    changed.enable_truncation(3)
    changed.enable_padding(length=900)
    ours = HuggingFaceTokenizer.from_json(json.loads(changed.to_str()))
    assert ours.encode(TEXT[:400]).tolist() == opened("byte-level")[0].encode(TEXT[:400]).tolist()
    assert ours.to_json() == data_of("byte-level")


def test_ids_may_have_gaps() -> None:
    data = data_of("characters")
    first = next(iter(data["model"]["vocab"]))
    data["model"]["vocab"][first] = 1000
    ours = HuggingFaceTokenizer.from_json(data)
    assert ours.vocab_size == 1001
    assert ours.encode(first).tolist() == [1000]
    assert ours.decode([999, 1000, 998]) == first
    for ids in ([999, 1000, 998], [1000, *[999] * 20, 1000]):
        stream = ours.stream_decoder()
        assert "".join([*map(stream.push, ids), stream.finish()]) == ours.decode(ids)
    assert ours.decode(ids) == f"{first} {first}"


def test_ids_at_which_the_decoder_panics_are_decoded() -> None:
    data = data_of("byte-level")
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 1}
    data["decoder"] = {"type": "Sequence", "decoders": [data["decoder"], strip]}
    ours = HuggingFaceTokenizer.from_json(data)
    space = ours.encode(" ").tolist()
    assert ours.decode(space) == "Ġ"
    assert ours.stream_decoder().push(space[0]) + ours.stream_decoder().finish() in ("Ġ", "")


# Files


def test_a_file_or_the_folder_that_holds_it(tmp_path: Path) -> None:
    options = HuggingFaceTokenizer.Options.example(tmp_path)
    tokenizer = HuggingFaceTokenizer.train(options, Splits("", ""))
    assert tokenizer.lossless
    assert tokenizer.vocab_size == 259
    assert read(tmp_path).to_json() == tokenizer.to_json() == read(tmp_path / "tokenizer.json").to_json()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"\xff{}", "not UTF-8, at byte 0"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (b"{}", "not a usable tokenizer"),
        (b'{"version": "1.0", "model": {"type": "Mine"}}', "not a usable tokenizer"),
        (b'{"a": 1, "a": 2}', "twice"),
    ],
)
def test_any_other_file_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(("prefix", "in_pieces"), [(False, True), (True, False)])
def test_a_large_text_is_encoded_in_pieces_where_they_have_the_same_ids(
    prefix: bool, in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpe, "_PIECE", 50)
    data = small_json([("t", "h"), ("th", "e"), ("Ġ", "the")])
    data["pre_tokenizer"]["add_prefix_space"] = prefix
    tokenizer, text = HuggingFaceTokenizer(data), "the  other the\n\n weather\tis  there; " * 20
    parts = list(tokenizer.encode_stream(text[start : start + 9] for start in range(0, len(text), 9)))
    assert np.concatenate(parts).tolist() == tokenizer.encode(text).tolist()
    assert (len(parts) > 1) == in_pieces


def test_a_file_too_large_to_be_a_tokenizer_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(100_000_001)
    with pytest.raises(DataError, match="more than 100 MB"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"continuing_subword_prefix": "abcdefgh"},  # at which the library panics
        {"merges": [["t", "q"]]},
        {"vocab": {"a": -1}},
        {"vocab": {"a": 2**32 - 1}},
        {"vocab": {}, "merges": []},
        {"vocab": {"a": float("inf")}},
        {"vocab": {"\ud800": 0}},
    ],
    ids=range(7),
)
def test_errors_of_the_package_are_value_errors(change: dict[str, Any]) -> None:
    data = small_json([("t", "h")])
    with pytest.raises(ValueError, match=r"."):
        HuggingFaceTokenizer.from_json({**data, "model": {**data["model"], **change}})


@EVERY_KIND
def test_a_changed_file_is_refused_with_value_error_or_works(kind: str) -> None:
    """Every part of the file in turn replaced by values of other kinds, and by parts of other files."""
    chance = random.Random(kind)
    values: list[Any] = [None, True, -1, 10**20, 0.5, "", "x", [], {}, [1], {"type": "BPE"}]
    parts = [data_of(other)[key] for other in KINDS for key in ("normalizer", "pre_tokenizer", "decoder")]
    for _ in range(60):
        data = data_of(kind)
        place: Any = data
        key: Any = chance.choice(list(data))
        while isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
            place = place[key]
            key = chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
        place[key] = chance.choice(values + parts)
        try:
            tokenizer = HuggingFaceTokenizer.from_json(data)
        except ValueError:
            continue
        ids = list(range(0, tokenizer.vocab_size, max(tokenizer.vocab_size // 50, 1)))
        assert isinstance(tokenizer.decode(ids), str)
        stream = tokenizer.stream_decoder()
        assert isinstance("".join([*map(stream.push, ids), stream.finish()]), str)
        try:
            assert (tokenizer.encode("lamp é") < tokenizer.vocab_size).all()
        except DataError:
            continue


# Where it is used


@pytest.mark.slow
def test_a_run_keeps_its_own_copy_of_the_tokenizer(tiny_experiment: Path, gptkit_command: Command) -> None:
    Path("tokenizer.json").write_text(file_of("byte-level"))
    text = tiny_experiment.read_text()
    tiny_experiment.write_text('tokenizer = { type = "hf", path = "tokenizer.json" }\n' + text)
    trained = gptkit_command("train", tiny_experiment, "--quiet", "--stop-at", 10)
    assert trained.code == 0, trained.err
    run = trained.out.strip()
    Path("tokenizer.json").unlink()
    assert gptkit_command("resume", run).code == 0
    written = gptkit_command("generate", run, "--prompt", "🐎 né", "-n", 8)
    assert written.code == 0, written.err
    assert written.out.startswith("🐎 né")
    again = gptkit_command("train", tiny_experiment)
    assert again.code == 4
    assert "tokenizer.json is not a usable tokenizer: there is no such file." in again.err


@pytest.mark.slow
def test_a_run_whose_tokenizer_loses_text_has_no_bits_per_byte(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "lamp": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save("words.json")
    short = ("--stop-at", 4, "--set", "evaluation.eval_interval=2", "--set", "sampling.sample_interval=2")
    char = run_of(gptkit_command("train", tiny_experiment, "--quiet", *short))
    trained = gptkit_command(
        "train",
        tiny_experiment,
        "--set",
        'tokenizer={ type = "hf", path = "words.json" }',
        "--name",
        "w",
        *short,
    )
    assert trained.code == 0, trained.err
    assert "tokenizer 'hf' does not return the text: " in trained.err
    assert "bits/byte -" in trained.out
    run = gptkit.open_run("w")
    record = run.record()
    assert record["tokenizer"]["lossless"] is False
    assert record["tokenizer"]["lost"] > 0.5
    assert "[UNK]" in record["tokenizer"]["example"]
    assert record["best_bits_per_byte"] is None
    assert not [row for row in run.metrics() if "bits_per_byte" in row]
    assert run.sample_steps() == [2, 4]  # although the default prompt, a line end, has no tokens
    assert run.experiment().sampling.prompt.strip()
    assert char.record()["tokenizer"]["lossless"] is True
    compared = gptkit_command("runs", "compare", run.path, char.path)
    assert "bits per byte do" not in compared.out
    assert f"the tokenizer of {run.id} does not return the text" in compared.out
    assert "so there are no bits per byte" in gptkit_command("runs", "show", run.path).out
    assert gptkit_command("runs", "report", run.path).code == 0
    assert "so there are no bits per byte" in (run.path / "report.html").read_text()
    chosen = gptkit_command(
        *("train", tiny_experiment, "--set", 'tokenizer={ type = "hf", path = "words.json" }'),
        *("--set", "sampling.prompt= "),
    )
    assert chosen.code == 2
    assert "sampling.prompt = ' ' has no tokens with this tokenizer" in chosen.err
