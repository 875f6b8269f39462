"""The cache of large texts: the same batches, built once, and what happens when a file of it is wrong."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptkit import files
from gptkit.data import cache, readers, source
from gptkit.data.catalog import open_text
from gptkit.data.corpus import Corpus, build_corpus
from gptkit.data.datasets import text as text_dataset
from gptkit.errors import DataError, DiskError
from gptkit.plugins import DataFolders
from gptkit.plugins.tokenizer import Ids, Tokenizer
from gptkit.tokenizers.bigram import BigramTokenizer
from gptkit.tokenizers.bpe import BpeTokenizer
from gptkit.tokenizers.byte import ByteTokenizer
from gptkit.tokenizers.char import CharTokenizer
from tests.support import Command, run_of, small_text

TEXT = "Ein Überblick: the quick brown fox, and jumps over the lazy dog.\n" * 400


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_opened", set())
    return tmp_path / "cache" / "texts"


@pytest.fixture
def every_text_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LARGE", 100)


def corpus_of(text: str, tokenizer: Tokenizer | type[Tokenizer], warnings: list[str] | None = None) -> Corpus:
    options = tokenizer.Options() if isinstance(tokenizer, type) else None
    warn = (warnings if warnings is not None else []).append
    return build_corpus(text, tokenizer, options=options, val_fraction=0.1, context_length=8, warn=warn)


def token_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tokens"))


@pytest.mark.parametrize("cls", [CharTokenizer, ByteTokenizer, BigramTokenizer, BpeTokenizer])
def test_ids_are_those_of_a_small_text(
    cls: type[Tokenizer], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = corpus_of(TEXT, cls)
    assert not folder.exists()
    monkeypatch.setattr(source, "LARGE", 100)
    for large in (corpus_of(TEXT, cls), corpus_of(TEXT, cls)):  # built, then opened
        np.testing.assert_array_equal(large.train, small.train)
        np.testing.assert_array_equal(large.val, small.val)
        assert large.train.dtype == np.uint16
        assert large.tokenizer.to_json() == small.tokenizer.to_json()
        assert replace(large, tokenizer=small.tokenizer, train=small.train, val=small.val) == small


def test_training_has_the_same_weights_and_tokenizes_once(
    tiny_experiment: Path, gptkit_command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data/mine.txt").write_text(small_text() * 3)

    def train() -> dict[str, Any]:
        run = run_of(gptkit_command("train", tiny_experiment, "--steps", 3, "--quiet"))
        (weights,) = run.path.glob("checkpoints/step-*/model.safetensors")
        return {"weights": files.sha256(weights.read_bytes()), "text": run.read_record().dataset}

    small = train()
    assert not folder.exists()
    monkeypatch.setattr(source, "LARGE", 1000)
    assert train() == small
    assert len(token_files(folder)) == 2
    monkeypatch.setattr(CharTokenizer, "encode_stream", None)  # it would fail if it were called
    monkeypatch.setattr(CharTokenizer, "train", None)
    assert train() == small


@pytest.mark.usefixtures("every_text_is_large")
def test_unchanged_file_is_not_read_again(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", tiny_experiment, "--steps", 1, "--quiet")
    monkeypatch.setattr(readers, "_TIMES_ARE_SURE", 0)
    run = run_of(gptkit_command(*train))
    with monkeypatch.context() as patched:
        patched.setattr(text_dataset, "file_pieces", None)  # it would fail if it were called
        run_of(gptkit_command(*train))
        assert gptkit_command("resume", run.id, "--steps", 2, "--quiet").code == 0
    text = Path("data/mine.txt")
    text.write_text(text.read_text().swapcase())  # of the same size
    changed = gptkit_command("resume", run.id, "--steps", 3, "--quiet")
    assert changed.code == 4
    assert files.sha256(text.read_bytes()) in changed.err


@pytest.mark.usefixtures("every_text_is_large")
def test_large_text_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at a time is bounded, whatever the tokenizer; `Text.read` of a split would hold it."""
    path = tmp_path / "large.txt"
    path.write_text(TEXT)
    monkeypatch.setattr(readers, "_CHUNK", 1000)
    dataset = text_dataset.TextDataset(text_dataset.TextOptions(path=str(path)))
    text = open_text("text", dataset, DataFolders(), "large")
    assert isinstance(text, source.StreamedText)
    assert max(map(len, text.pieces(0, text.characters))) < 3000
    read = text.read
    monkeypatch.setattr(source.Text, "read", None)
    for cls in (CharTokenizer, ByteTokenizer, BigramTokenizer, BpeTokenizer):
        corpus = build_corpus(text, cls, options=cls.Options(), val_fraction=0.1, context_length=8)
        np.testing.assert_array_equal(corpus.train, corpus.tokenizer.encode(TEXT[: int(0.9 * len(TEXT))]))
        assert corpus.text_sha256 == files.sha256(TEXT.encode())
    assert read() == TEXT
    path.write_text(TEXT[:-1])
    with pytest.raises(DataError, match="became shorter while it was read"):
        read()


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data.clear()
    elif how == "an id":
        data[101] ^= 0x40
    elif how == "footer":
        data[-100] ^= 1
    elif how == "of another text":
        other = next(one for one in token_files(path.parent) if one != path)
        data = bytearray(other.read_bytes())
    elif how == "of another version":
        data[-8:] = b"GPTKTOK9"
    path.unlink()  # what is mapped stays
    path.write_bytes(data)


@pytest.mark.usefixtures("every_text_is_large")
@pytest.mark.parametrize(
    "how", ["truncated", "empty", "an id", "footer", "of another text", "of another version"]
)
def test_damaged_file_is_built_again(how: str, folder: Path) -> None:
    whole = corpus_of(TEXT, ByteTokenizer())
    contents = {path: path.read_bytes() for path in token_files(folder)}
    damage(token_files(folder)[0], how)
    cache._opened.clear()  # as in another process
    warnings: list[str] = []
    again = corpus_of(TEXT, ByteTokenizer(), warnings)
    np.testing.assert_array_equal(again.train, whole.train)
    np.testing.assert_array_equal(again.val, whole.val)
    assert [path.read_bytes() for path in token_files(folder)] == list(contents.values())
    assert warnings
    assert "the tokens in the cache are damaged and made again" in warnings[0]


@pytest.mark.usefixtures("every_text_is_large")
def test_damaged_measures_and_tokenizers_are_not_used(folder: Path) -> None:
    corpus_of(TEXT, CharTokenizer)
    (stored,) = folder.glob("*.tokenizer.json")
    stored.write_text(stored.read_text().replace("fox", "fax").replace("E", "F"))
    assert corpus_of(TEXT, CharTokenizer).tokenizer.to_json()["characters"] == "".join(sorted(set(TEXT)))


def a_key() -> cache.Key:
    return cache.Key("ab" * 32, "train", 0, 10, "cd" * 32, "<u2")


def ids_of(encode: Any, key: cache.Key | None = None, warnings: list[str] | None = None) -> Ids:
    warn = (warnings if warnings is not None else []).append
    ids, facts = cache.cached_ids(
        key or a_key(), encode, lambda: {"bytes": 1}, title="t", tokenizer="c", needed=20, warn=warn
    )
    assert facts["bytes"] == 1
    return ids


def ten() -> Iterator[Ids]:
    yield np.arange(10, dtype=np.int64)


def test_what_a_killed_build_left_is_removed(folder: Path) -> None:
    def killed() -> Iterator[Ids]:
        yield np.arange(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ids_of(killed)
    assert list(folder.iterdir()) == []
    left = folder / f".tmp-{a_key().name}-0123"
    left.write_bytes(b"half")
    assert ids_of(ten).tolist() == list(range(10))
    assert [path.name for path in folder.iterdir()] == [a_key().name]


def test_second_process_waits_for_the_first(folder: Path) -> None:
    begun, may_end = threading.Event(), threading.Event()
    built: list[Ids] = []

    def slow() -> Iterator[Ids]:
        begun.set()
        may_end.wait(10)
        yield from ten()

    thread = threading.Thread(target=lambda: built.append(ids_of(slow)))
    thread.start()
    begun.wait(10)
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        may_end.set()

    ids, _ = cache.cached_ids(a_key(), lambda: 1 / 0, dict, title="t", tokenizer="c", needed=20, warn=warn)
    thread.join()
    assert ids.tolist() == built[0].tolist() == list(range(10))
    assert warnings == ["another process tokenizes the same text; waiting for it."]


def test_disk_full_holds_the_ids_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.disk, "write", full)
    warnings: list[str] = []
    assert ids_of(ten, warnings=warnings).tolist() == list(range(10))
    assert list(folder.iterdir()) == []
    assert "held in memory" in warnings[0]
    assert "disk full while keeping tokens" in warnings[0]
    monkeypatch.setattr(cache, "usable_memory", lambda: 30)
    with pytest.raises(DiskError, match=r"too much for memory.*XDG_CACHE_HOME"):
        ids_of(ten)


def test_cache_without_a_home_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~/.cache/gptkit")
    warnings: list[str] = []
    assert ids_of(ten, warnings=warnings).tolist() == list(range(10))
    assert "HOME is not set" in warnings[0]


def test_large_file_is_verified_in_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_BLOCK", 64)
    monkeypatch.setattr(cache, "_CHECKED_WHOLE", 100)
    monkeypatch.setattr(cache, "_CHECKED_BLOCKS", 2)
    looked: list[int] = []
    read = cache._read_at
    monkeypatch.setattr(cache, "_read_at", lambda *at: looked.append(at[1]) or read(*at))
    ids_of(lambda: iter([np.arange(1000)]))
    cache._opened.clear()  # as in another process
    looked.clear()
    ids = ids_of(lambda: iter([np.arange(1000)]))
    assert ids.tolist() == list(range(1000))
    assert 2 + 2 <= len(looked) <= 2 + 4  # tail and footer; the first and last block, and two more
    damage(token_files(folder)[0], "truncated")
    assert ids_of(lambda: iter([np.arange(1000)])).tolist() == list(range(1000))


def test_oldest_files_go_beyond_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [replace(a_key(), start=number) for number in range(3)]
    for age, key in enumerate(keys[:2]):
        ids_of(ten, key)
        os.utime(folder / key.name, (1000 + age, 1000 + age))
    ids_of(lambda: 1 / 0, keys[0])  # used again: now the newer one
    monkeypatch.setenv(cache.LIMIT, str(2.5e-9 * (folder / keys[0].name).stat().st_size))
    ids_of(ten, keys[2])
    assert {path.name for path in token_files(folder)} == {keys[0].name, keys[2].name}


@pytest.mark.usefixtures("every_text_is_large")
def test_command_lists_and_clears(tiny_experiment: Path, gptkit_command: Command, folder: Path) -> None:
    assert gptkit_command("datasets", "cache").out.startswith("0 B of at most 50 GB in ")
    run_of(gptkit_command("train", tiny_experiment, "--steps", 1, "--quiet"))
    shown = gptkit_command("datasets", "cache")
    assert shown.code == 0
    assert [line.split()[:3] for line in shown.out.splitlines()[1:3]] == [
        ["data/mine.txt", "val", "char"],
        ["data/mine.txt", "train", "char"],
    ]
    missing = gptkit_command("datasets", "cache", "novel", "--clear")
    assert (missing.code, missing.out.split(" from ")[0]) == (0, "removed 0 B")
    assert gptkit_command("datasets", "cache", "mine", "--clear").out.startswith("removed ")
    assert list(folder.iterdir()) == []
