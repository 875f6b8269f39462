"""The dataset tokens: files of nanoGPT and llm.c, and such files from anybody."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptkit.data.catalog import resolve_dataset
from gptkit.data.corpus import build_corpus
from gptkit.data.datasets import tokens
from gptkit.errors import DataError
from gptkit.experiment.schema import PluginTable
from gptkit.plugins import DataFolders, PluginOptions
from gptkit.tokenizers.char import CharTokenizer
from tests.support import Command, run_of, small_text

TEXT = "déjà vu: “one” €, two 😀\n" * 30
HERE = DataFolders(search=())


def text_of(path: Path | list[Path], tokenizer: Path | None = None) -> str:
    paths = [str(one) for one in path] if isinstance(path, list) else str(path)
    options: dict[str, Any] = {"path": paths}
    if tokenizer is not None:
        options["tokenizer"] = str(tokenizer)
    dataset, _ = resolve_dataset(PluginTable.model_validate({"type": "tokens", **options}), HERE)
    return dataset.read(HERE)


def nano_gpt(folder: Path, text: str = TEXT) -> Path:
    """As nanoGPT's data/shakespeare_char/prepare.py writes them."""
    letters = sorted(set(text))
    ids = [letters.index(letter) for letter in text]
    np.array(ids, dtype=np.uint16).tofile(folder / "train.bin")
    meta = {"vocab_size": len(letters), "itos": dict(enumerate(letters)), "stoi": {}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder / "train.bin"


def test_characters_of_nano_gpt_are_its_text_and_have_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = nano_gpt(tmp_path)
    monkeypatch.setattr(tokens, "_AT_ONCE", 7)
    assert text_of(path) == TEXT
    assert text_of([path, path]) == TEXT * 2
    corpus = build_corpus(
        text_of(path), CharTokenizer, options=PluginOptions(), val_fraction=0.1, context_length=8
    )
    ids = np.concatenate([corpus.train, corpus.val])
    assert ids.tolist() == np.fromfile(path, dtype=np.uint16).tolist()


def test_bytes_of_gpt_2_are_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    from gptkit.tokenizers.bpe import small_json
    from gptkit.tokenizers.huggingface import HuggingFaceTokenizer

    data = small_json([("t", "h"), ("th", "e"), ("Ġ", "the")])
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    ids = HuggingFaceTokenizer(data).encode(TEXT)
    shards = []
    for number, (magic, version, kind) in enumerate([(20240520, 1, "<u2"), (20240801, 7, "<u4")]):
        header = struct.pack("<256i", magic, version, len(ids), *[0] * 253)
        shards.append(tmp_path / f"{number}.bin")
        shards[-1].write_bytes(header + ids.astype(kind).tobytes())
    monkeypatch.setattr(tokens, "_AT_ONCE", 7)  # characters are of up to 4 ids
    assert text_of(shards, tmp_path / "tokenizer.json") == TEXT * 2


def header(magic: int, version: int, count: int) -> bytes:
    return struct.pack("<256i", magic, version, count, *[0] * 253)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has no tokens"),
        (b"\x01", "1 bytes are not ids of 2 bytes each"),
        (b"\x01\0\x63\0\x02\0", "its token 1 (from 0) is 99, and the tokenizer has"),
        (header(20240520, 1, 3) + b"\0\0\0\0", "announces 3 tokens, and it has 1028 bytes"),
        (header(20240520, 1, -3), "announces -3 tokens"),
        (header(20240520, 1, 0), "has no tokens"),
        (header(20240520, 2, 1) + b"\0\0", "version 2 of llm.c's format"),
        (header(20240520, 1, 1)[:40], "announces 1 tokens, and it has 40 bytes"),
        (header(20240801, 7, 1) + b"\xff\xff\xff\xff", "is 4294967295, and the tokenizer has"),
    ],
)
def test_what_is_no_file_of_tokens_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = nano_gpt(tmp_path)
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        text_of(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


class Harm:
    def __reduce__(self) -> Any:
        return (print, ("harm",))


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"no pickle",
        pickle.dumps([1]),
        pickle.dumps({"itos": {0: "a", 2: "b"}}),
        pickle.dumps({"itos": {0: "ab"}}),
        pickle.dumps({"itos": Harm()}),
        pickle.dumps(Harm()),
    ],
)
def test_hostile_meta_is_refused_and_not_run(
    meta: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = nano_gpt(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(meta)
    with pytest.raises(DataError, match=r"is not a meta.pkl of nanoGPT"):
        text_of(path)
    assert capfd.readouterr().out == ""


def test_missing_files_are_named(tmp_path: Path) -> None:
    path = nano_gpt(tmp_path)
    (tmp_path / "meta.pkl").unlink()
    with pytest.raises(DataError, match=r"no meta\.pkl beside it"):
        text_of(path)
    with pytest.raises(DataError, match=r"there is no tokenizer 'nowhere\.json'"):
        text_of(path, Path("nowhere.json"))
    with pytest.raises(DataError, match="there is no file of tokens"):
        text_of(tmp_path / "val.bin")


def test_a_run_is_trained_and_resumed(tiny_experiment: Path, gptkit_command: Command) -> None:
    nano_gpt(Path(), small_text())
    settings = ("--dataset", "tokens", "--set", "data.dataset.path=train.bin")
    run = run_of(gptkit_command("train", tiny_experiment, *settings, "--steps", 2, "--quiet"))
    assert gptkit_command("resume", run.id, "--steps", 3, "--quiet").code == 0
