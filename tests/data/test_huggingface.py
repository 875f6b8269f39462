"""Datasets of Hugging Face, from local folders. The hub is replaced by a closed port."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gptkit.data.datasets import huggingface as hub
from gptkit.data.datasets.huggingface import HuggingFaceDataset, HuggingFaceOptions
from gptkit.errors import DataError, DiskError, NetworkError
from gptkit.plugins import DataFolders
from tests.support import Command, small_text

datasets: Any = pytest.importorskip("datasets")

HERE = DataFolders(search=(Path("data"),))
ROWS = [f"row {number}" for number in range(1200)]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, a cache of its own, and a closed port instead of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    datasets.disable_progress_bars()
    return tmp_path


def rows_of(*texts: str) -> Any:
    return datasets.Dataset.from_dict({"text": list(texts), "id": list(range(len(texts)))})


def text_of(folders: DataFolders = HERE, **options: str) -> str:
    return HuggingFaceDataset(HuggingFaceOptions.model_validate(options)).read(folders)


def put(path: str, content: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)
    return Path(path)


# Local datasets


@pytest.mark.parametrize("kind", ["saved", "dict", "parquet", "file", "jsonl", "csv"])
def test_the_rows_of_a_local_dataset_are_joined(kind: str) -> None:
    rows = rows_of(*ROWS)
    Path("mine").mkdir()
    if kind == "saved":
        rows.save_to_disk("mine")
    elif kind == "dict":
        datasets.DatasetDict({"test": rows_of("other"), "train": rows}).save_to_disk("mine")
    elif kind == "jsonl":
        rows.to_json("mine/train.jsonl")
    elif kind == "csv":
        rows.to_csv("mine/train.csv")
    else:
        rows.to_parquet("mine/train.parquet")
    path = "mine/train.parquet" if kind == "file" else "mine"
    assert HuggingFaceDataset(HuggingFaceOptions(path=path)).is_here(HERE)
    assert text_of(path=path) == "\n".join(ROWS)
    assert text_of(path=path, split="train[10:12]", separator="|") == "row 10|row 11"
    assert text_of(path=path, split="train[:1%]", separator="") == "".join(ROWS[:12])


def test_splits_may_be_added_up() -> None:
    datasets.DatasetDict({"test": rows_of("t1", "t2"), "train": rows_of(*ROWS)}).save_to_disk("mine")
    assert text_of(path="mine", split="test") == "t1\nt2"
    assert text_of(path="mine", split="test+train[-2:]") == "t1\nt2\nrow 1198\nrow 1199"


def test_a_folder_is_looked_for_as_given_and_then_in_the_data_folders() -> None:
    rows_of("in data").save_to_disk("data/inner/mine")
    assert text_of(path="inner/mine") == "in data"
    rows_of("as given").save_to_disk("inner/mine")
    assert text_of(path="inner/mine") == "as given"
    assert text_of(path=str(Path("data/inner/mine").absolute())) == "in data"


def test_a_folder_may_have_the_name_of_a_file_reader() -> None:
    put("text/train.jsonl", '{"text": "mine"}\n')
    assert text_of(path="text") == "mine"


def test_a_folder_that_has_a_run_in_it_is_refused() -> None:
    put("mine/train.jsonl", '{"text": "mine"}\n')
    assert text_of(path="mine") == "mine"
    put("mine/runs/one/metrics.jsonl", '{"text": "no text"}\n')
    put("mine/runs/one/run.json", "{}")
    put("mine/runs/one/experiment.toml", "")
    with pytest.raises(DataError, match=r"has a run of gptkit in it, .*mine/runs/one, which is never a text"):
        text_of(path="mine")


def test_the_home_folder_is_found_without_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert HuggingFaceDataset(HuggingFaceOptions(path="~")).is_here(HERE)


def test_a_file_that_changed_is_read_again() -> None:
    put("mine/train.jsonl", '{"text": "one"}\n')
    assert text_of(path="mine") == "one"
    put("mine/train.jsonl", '{"text": "another"}\n')
    assert text_of(path="mine") == "another"


def test_progress_is_reported_in_rows_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    rows_of(*ROWS).to_parquet("mine/train.parquet")
    datasets.enable_progress_bars()
    reports: list[tuple[int, int]] = []
    level = logging.getLogger("datasets").level
    capfd.readouterr()
    folders = DataFolders((Path("data"),), Path("data"), lambda done, total: reports.append((done, total)))
    text_of(folders, path="mine")
    assert reports[-1] == (1200, 1200)
    assert len(reports) > 1
    assert reports == sorted(reports)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled(), "what a program had set before stays"
    assert logging.getLogger("datasets").level == level


def test_the_output_of_the_package_is_suppressed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    def load_dataset(*arguments: object, **more: object) -> Any:
        print("chatter")
        warnings.warn("chatter", stacklevel=1)
        logging.getLogger("datasets.load").error("chatter")
        logging.getLogger("huggingface_hub.file_download").error("chatter")
        return rows_of("one")

    logged: list[logging.LogRecord] = []
    listening = logging.Handler()
    monkeypatch.setattr(listening, "emit", logged.append)
    for name in ("datasets", "huggingface_hub"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [listening])
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert text_of(path="who/what") == "one"
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not logged


def test_the_example_of_the_options_is_a_dataset(work: Path) -> None:
    options = HuggingFaceOptions.example(work)
    dataset = HuggingFaceDataset(options)
    assert dataset.facts() == {}
    assert len(dataset.read(HERE)) > 1000
    assert set(dataset.facts()) == {"fingerprint"}


def test_the_commit_that_was_downloaded_is_a_fact() -> None:
    rows = rows_of("one")
    rows.info.download_checksums = {f"hf://datasets/who/what@{'a' * 40}/train.parquet": {}}
    assert hub._facts(rows) == {"revision": "a" * 40}


# Errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "saved", "field": "body"}, "saved has no column 'body'. Its columns: 'text', 'id'"),
        ({"path": "saved", "field": "body"}, 'beside path: field = "text"'),
        ({"path": "saved", "field": "texts"}, "did you mean 'text'?"),
        (
            {"path": "saved", "field": "id"},
            "the column 'id' has values of type int64, not strings. Columns with strings: 'te",
        ),
        ({"path": "lists", "field": "text"}, "has values of type List, not strings"),
        ({"path": "nulls"}, "row 1 (from 0) of the split train has no value in the column 'text'"),
        ({"path": "blank"}, "the split train is empty"),
        ({"path": "saved", "split": "val"}, "Unknown split \"val\". Should be one of ['train']"),
        ({"path": "files", "split": "val"}, "Unknown split \"val\". Should be one of ['train']"),
        ({"path": "files", "split": "val"}, 'Name one, beside path: split = "…"'),
        ({"path": "files", "split": "train[x:"}, "cannot be loaded"),
        ({"path": "saved", "split": "train[x:"}, "cannot be loaded"),
        ({"path": "files", "name": "big"}, "BuilderConfig 'big' not found. Available: ['default']"),
        ({"path": "saved", "name": "big"}, "was saved without configurations"),
        ({"path": "files", "revision": "main"}, "no revision"),
        ({"path": "broken"}, "broken cannot be loaded: JSON parse error"),
        ({"path": "truncated"}, "truncated cannot be loaded"),
        ({"path": "empty"}, "doesn't contain any data files"),
        ({"path": "broken/note.rst"}, "is not a dataset of Hugging Face"),
        ({"path": "../nowhere"}, "no dataset on the hub has such a name"),
        ({"path": "https://example.org/a"}, "no dataset on the hub has such a name"),
        ({"path": "nul\0"}, "no dataset on the hub has such a name"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_a_data_error(options: dict[str, str], words: str) -> None:
    rows_of("one", "two").save_to_disk("saved")
    datasets.Dataset.from_dict({"text": [["a"], ["b"]]}).save_to_disk("lists")
    datasets.Dataset.from_dict({"text": ["a", None]}).save_to_disk("nulls")
    rows_of("", "", "").save_to_disk("blank")
    rows_of("one").save_to_disk("truncated")
    arrow = next(Path("truncated").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:40])
    put("files/train.jsonl", '{"text": "one"}\n')
    put("broken/train.jsonl", '{"text": "one"}\n{"text":')
    put("broken/note.rst", "a note")
    Path("empty").mkdir()
    with pytest.raises(DataError) as caught:
        text_of(**options)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("path", ["text", "json", "parquet", "csv"])
def test_the_name_of_a_file_reader_is_not_a_dataset(path: str) -> None:
    put("train.jsonl", '{"text": "private"}\n')
    with pytest.raises(DataError, match="no dataset on the hub has such a name"):
        text_of(path=path)


def test_nothing_that_comes_with_a_dataset_is_run() -> None:
    put("mine/mine.py", "open('ran', 'w')")
    put("mine/train.jsonl", '{"text": "one"}\n')
    with pytest.raises(DataError, match=r"a loading script, mine\.py, which gptkit does not run"):
        text_of(path="mine")
    with pytest.raises(DataError):
        text_of(path="mine/mine.py")
    assert not Path("ran").exists()


def test_a_package_that_could_run_code_is_forbidden_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those before version 4 could."""
    put("mine/train.jsonl", '{"text": "one"}\n')
    asked: list[object] = []

    def load_dataset(path: str, name: str | None, trust_remote_code: bool | None = None, **more: Any) -> Any:
        asked.append(trust_remote_code)
        return rows_of("one")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert text_of(path="mine") == "one"
    assert asked == [False]


def test_without_network_it_is_a_network_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    dataset = HuggingFaceDataset(HuggingFaceOptions(path="someone/something"))
    assert not dataset.is_here(HERE)
    capfd.readouterr()
    with pytest.raises(NetworkError, match="cannot download someone/something from the hub"):
        dataset.fetch(HERE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (datasets.exceptions.DatasetNotFoundError("it doesn't exist on the Hub"), DataError, "doesn't exist"),
        (TimeoutError("read timed out"), NetworkError, "read timed out"),
        (OSError(28, "No space left on device"), DiskError, "disk full"),
        (OSError("Not enough disk space. Needed: 3 GB"), DiskError, "Needed: 3 GB"),
        (ValueError("Config name is missing.\nPick one: ['a', 'b']"), DataError, r'name = "…"'),
        (ZeroDivisionError(), DataError, "ZeroDivisionError"),
    ],
)
def test_errors_of_the_package_are_translated(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], words: str
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        try:
            raise error
        except Exception as cause:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from cause

    def fail_at_once(*arguments: object, **more: object) -> None:
        raise error

    for way in (fail_at_once, fail) if not isinstance(error, FileNotFoundError) else (fail_at_once,):
        monkeypatch.setattr(datasets, "load_dataset", way)
        with pytest.raises(kind, match=words):
            text_of(path="someone/something")


def test_another_commit_than_the_requested_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the package does if the hub cannot be reached and another commit is in its cache."""
    rows = rows_of("one")
    rows.info.download_checksums = {f"hf://datasets/who/what@{'a' * 40}/train.parquet": {}}
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **more: rows)
    assert text_of(path="who/what", revision="a" * 40) == "one"
    with pytest.raises(DataError, match=f"only revision {'a' * 40} is cached"):
        text_of(path="who/what", revision="b" * 40)


@pytest.mark.parametrize(
    "options", [{}, {"path": ""}, {"path": "a", "split": ""}, {"path": "a", "code": True}]
)
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        HuggingFaceOptions.model_validate(options)


# The command line


def test_a_run_on_a_local_dataset_records_what_it_read(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    datasets.Dataset.from_dict({"body": small_text().splitlines()}).save_to_disk("data/mine")
    given = ("--set", 'data.dataset={ type = "hf", path = "mine", field = "body" }')
    done = gptkit_command("train", tiny_experiment, *given, "--steps", 2, "--quiet")
    assert (done.code, done.err) == (0, "")
    record = json.loads((Path(done.out.strip()) / "run.json").read_text())["dataset"]
    assert record["sha256"] == hashlib.sha256(small_text().rstrip("\n").encode()).hexdigest()
    assert record["title"] == "mine"
    assert set(record["facts"]) == {"fingerprint"}


@pytest.mark.slow
def test_offline_mode_is_a_data_error_and_the_fallback_takes_its_place(
    tiny_experiment: Path, run_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(Path("cache").absolute()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    given = ("--set", 'data.dataset={ type = "hf", path = "someone/something" }', "--steps", "2")
    done = run_process("train", tiny_experiment, *given)
    assert (done.code, done.out) == (4, "")
    assert "someone/something is not here, and offline mode" in done.err
    assert len(done.err.splitlines()) <= 3
    other = run_process("train", tiny_experiment, *given, "--set", "data.fallback=data/mine.txt")
    assert other.code == 0, other.err
    assert "Training on the fallback" in other.out + other.err
