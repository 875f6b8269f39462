"""Which files a path means: each once, those of gptkit never, and what is passed over is named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from gptkit.data import search
from gptkit.data.catalog import add_text, data_folders, describe_dataset
from gptkit.data.datasets.text import TextDataset, TextOptions
from gptkit.data.search import Reason, find_all_texts, find_texts, is_run, why_no_text
from gptkit.errors import DataError
from gptkit.plugins import DataFolders
from gptkit.runs import folder as run_folder
from tests.support import Command, small_text

NOWHERE = DataFolders(search=())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPTKIT_DATA_DIR", raising=False)
    return tmp_path


def put(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"<{name}>")


def found(*paths: str) -> tuple[list[str], dict[Reason, list[str]]]:
    texts, missing = find_all_texts(paths, NOWHERE)
    assert not missing
    return [path.as_posix() for path in texts.files], {
        reason: list(names.names) for reason, names in texts.passed_over.items()
    }


def put_run(folder: str) -> None:
    put(*(f"{folder}/{name}" for name in ("run.json", "experiment.toml", "metrics.jsonl")))
    put(f"{folder}/samples/step-000000000010.txt", f"{folder}/checkpoints/notes.txt")


# What is read


def test_endings_in_capitals_are_read_and_what_is_passed_over_is_named(here: Path) -> None:
    put("d/a.txt", "d/B.TXT", "d/c.Md", "d/x.pdf", "d/y.tar.gz", "d/.hidden.txt", "d/.git/z.txt")
    put("elsewhere/e.txt")
    os.symlink(here / "elsewhere", "d/linked")
    os.symlink("nowhere", "d/broken.txt")
    os.mkfifo("d/pipe.txt")
    assert found("d") == (
        ["d/B.TXT", "d/a.txt", "d/c.Md"],
        {
            Reason.ENDING: ["d/x.pdf", "d/y.tar.gz"],
            Reason.HIDDEN: ["d/.git", "d/.hidden.txt"],
            Reason.LINKED_FOLDER: ["d/linked"],
            Reason.SPECIAL: ["d/broken.txt", "d/pipe.txt"],
        },
    )


def test_a_folder_that_cannot_be_read_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put("d/a.txt", "d/closed/b.txt")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # as root every folder can be read
    assert found("d") == (["d/a.txt"], {Reason.UNREADABLE: ["d/closed"]})


def test_a_file_with_several_paths_is_read_once(here: Path) -> None:
    put("d/a.txt", "e.txt")
    os.link("d/a.txt", "d/hard.txt")
    os.symlink("a.txt", "d/soft.txt")
    os.symlink("d", "other")
    texts, passed_over = found("d", "e.txt", "other/a.txt", str(here / "e.txt"), "d/*.txt")
    assert texts == ["d/a.txt", "e.txt"]
    again = passed_over[Reason.TWICE]
    assert again[:3] == ["d/hard.txt = d/a.txt", "d/soft.txt = d/a.txt", "other/a.txt = d/a.txt"]
    text = TextDataset(TextOptions(path=["d/a.txt", "d/hard.txt"])).read(NOWHERE)
    assert text == "<d/a.txt>"


def test_a_glob_reads_any_ending_but_nothing_that_is_not_text(here: Path) -> None:
    put("d/a.log", "d/b.txt", "d/inner/c.txt")
    Path("d/image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    Path("d/t.tar.gz").write_bytes(gzip.compress(b"name\0\0\0"))
    Path("d/odd.txt").write_bytes(b"a text with\0in it")
    texts, passed_over = found("d/*")
    assert texts == ["d/a.log", "d/b.txt", "d/odd.txt"]
    assert passed_over == {Reason.BINARY: ["d/image.png", "d/t.tar.gz"], Reason.FOLDER: ["d/inner"]}
    assert Reason.FOLDER not in found("d/**/*")[1]


# Runs


@pytest.mark.parametrize(
    ("path", "run"),
    [(".", "results/any name"), ("**/*.txt", "results/any name"), ("res*/*/*/*", "results/any name")],
)
def test_a_run_is_never_text_whatever_it_is_called(here: Path, path: str, run: str) -> None:
    put("novel.txt", "results/notes.txt", "results/deep/er/more.txt")
    put_run(run)
    texts, passed_over = found(path)
    assert not [text for text in texts if run in text]
    assert texts
    assert passed_over[Reason.RUN] == [run]


def test_a_run_is_recognized_by_what_it_holds(here: Path) -> None:
    put_run("a")
    put("lost/experiment.toml", "lost/metrics.jsonl", "lost/checkpoints/x")
    put("copied/run.json", "copied/experiment.toml")
    put("texts/run.json", "texts/metrics.jsonl", "texts/a.txt")
    put("project/experiment.toml", "project/checkpoints/x", "project/tokenizer.json")
    assert [name for name in sorted(os.listdir()) if is_run(Path(name))] == ["a", "copied", "lost"]
    names = (search.RUN_RECORD, search.RUN_EXPERIMENT, search.RUN_CHECKPOINTS, search.RUN_METRICS)
    assert names == (run_folder.RECORD, run_folder.EXPERIMENT, run_folder.CHECKPOINTS, run_folder.METRICS)
    assert set(names) <= run_folder.OWN


def test_the_samples_of_a_run_can_be_named(here: Path) -> None:
    put_run("runs/a")
    samples = "runs/a/samples"
    for path in (samples, f"{samples}/*.txt", f"{samples}/step-000000000010.txt"):
        assert found(path) == ([f"{samples}/step-000000000010.txt"], {})
    with pytest.raises(DataError, match=r"runs/a is a run of gptkit.*samples are in runs/a/samples"):
        TextDataset(TextOptions(path="runs/a")).read(NOWHERE)


@pytest.mark.slow
def test_a_run_beside_its_text_can_be_resumed(tiny_experiment: Path, gptkit_command: Command) -> None:
    """As a run above its own folder once read what it wrote."""
    often = ("--set", "sampling.sample_interval=2", "--set", "evaluation.eval_interval=2")
    done = gptkit_command("train", tiny_experiment, "--dataset", ".", "--stop-at", 4, *often, "--quiet")
    assert done.code == 0, done.err
    folder = Path(done.out.strip())
    assert list(folder.glob("samples/*.txt"))
    resumed = gptkit_command("resume", folder, "--stop-at", 6)
    assert resumed.code == 0, resumed.err
    assert json.loads((folder / "run.json").read_text())["dataset"]["characters"] == len(small_text())


# What is reported


def test_what_is_read_and_passed_over_is_shown_and_recorded(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    texts = [f"d/{letter}.txt" for letter in "abcdefg"]
    put(*texts[1:], "d/x.pdf")
    Path(texts[0]).write_text(small_text())
    os.link(texts[1], "d/zz.txt")
    expected = {
        "files": 7,
        "read": "d/a.txt, d/b.txt, d/c.txt, d/d.txt, d/e.txt and 2 more",
        "passed_over": "another ending: 1 (d/x.pdf); the same file again: 1 (d/zz.txt = d/b.txt)",
    }
    shown = gptkit_command("datasets", "show", "d").out
    for key, value in expected.items():
        assert f"{key:<17} {value}\n" in shown
    done = gptkit_command("train", tiny_experiment, "--dataset", "d", "--no-save", "--quiet")
    assert done.code == 0, done.err
    passed_over = expected["passed_over"]
    assert f"warning: the text has files: 7 ({expected['read']}). Passed over: {passed_over}.\n" in done.err
    record = json.loads((Path(done.out.strip()) / "run.json").read_text())
    assert record["dataset"]["facts"] == expected


def test_what_a_run_records_of_a_hundred_thousand_files_is_bounded(here: Path) -> None:
    Path("d").mkdir()
    for number in range(300):
        Path(f"d/{'x' * 200}{number:03}.{'txt' if number % 2 else 'bin'}").write_text(f"text {number}")
    dataset = TextDataset(TextOptions(path="d"))
    dataset.read(NOWHERE)
    facts = dataset.facts()
    assert facts["files"] == 150
    assert str(facts["passed_over"]).startswith("another ending: 150 (…xxx")
    assert all(len(str(value)) < 600 for value in facts.values())


def test_hidden_files_alone_are_no_reason_for_a_warning(here: Path) -> None:
    put("d/a.txt", "d/.DS_Store")
    dataset = TextDataset(TextOptions(path="d"))
    dataset.read(NOWHERE)
    assert dataset.notice() == ""
    assert dataset.facts()["passed_over"] == "hidden: 1 (d/.DS_Store)"


def test_files_of_the_same_content_are_read_and_named(here: Path) -> None:
    put("a.txt", "c.txt")
    Path("b.txt").write_text("<a.txt>")
    dataset = TextDataset(TextOptions(path="*.txt"))
    assert dataset.read(NOWHERE) == "<a.txt>\n<a.txt>\n<c.txt>"
    assert dataset.facts()["same_content"] == "b.txt = a.txt"
    assert "b.txt = a.txt. Text to train on may be in the val split as well." in dataset.notice()


def test_one_file_is_not_described_further(here: Path) -> None:
    put("a.txt")
    assert describe_dataset("a.txt", NOWHERE).facts == ()


# What is not a text


def test_the_home_folder_is_found_without_a_shell(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("GPTKIT_DATA_DIR", "~/texts")
    put("novel.txt", "texts/b.txt")
    for path in ("~/novel.txt", "~/nov*"):
        assert found(path) == ([(here / "novel.txt").as_posix()], {})
    assert find_texts("b", data_folders(None)).files == (here / "texts/b.txt",)
    assert describe_dataset("~/novel.txt", NOWHERE).source == str(here / "novel.txt")
    put("~nobody-of-that-name/a.txt")
    assert found("~nobody-of-that-name/a.txt")[0] == ["~nobody-of-that-name/a.txt"]


def test_a_path_that_is_no_text_is_called_what_it_is(here: Path) -> None:
    os.mkfifo("pipe")
    os.symlink("gone", "link")
    os.symlink("loop", "loop")
    put("folder/x.pdf")
    Path("folder/empty.txt").touch()
    put_run("runs/a")
    expected = {
        "pipe": "pipe is a pipe. It can be read only once",
        "-": "'-' would be standard input. It can be read only once",
        "/dev/null": "/dev/null is a device or socket, not a file",
        "link": "link is a link to gone, which does not exist",
        "loop": "loop cannot be read: Too many levels of symbolic links",
        "folder": "Passed over: another ending: 1 (folder/x.pdf); empty: 1 (folder/empty.txt).",
        "runs": "run of gptkit: 1 (runs/a)",
        "runs/a": "runs/a is a run of gptkit",
        "pip*": "pip* matches no text. Passed over: no file: 1 (pipe).",
    }
    for path, words in expected.items():
        with pytest.raises(DataError) as caught:
            describe_dataset(path, NOWHERE)
        assert words in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 3
        with pytest.raises(DataError) as named:
            TextDataset(TextOptions(path=[path])).fetch(NOWHERE)
        assert words in str(named.value)
    assert why_no_text("missing", NOWHERE) == ""


def test_a_stream_is_not_taken_for_the_file_behind_it(here: Path) -> None:
    put("novel.txt")
    with open("novel.txt") as file:
        stream = f"/dev/fd/{file.fileno()}"
        with pytest.raises(DataError, match=rf"Name the file itself: {here / 'novel.txt'}"):
            describe_dataset(stream, NOWHERE)


def test_a_pipe_can_be_added_as_a_text(here: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.write(writing, b"from a pipe")
        os.close(writing)
        target = add_text("mine", Path(f"/dev/fd/{reading}"), data_folders(None))
    finally:
        os.close(reading)
    assert target.read_text() == "from a pipe"


def test_standard_input_can_be_added_as_a_text(workspace: Path, gptkit_command: Command) -> None:
    standard_input, (reading, writing) = os.dup(0), os.pipe()
    try:
        os.dup2(reading, 0)
        os.write(writing, b"from standard input")
        os.close(writing)
        assert gptkit_command("datasets", "add", "mine2", "-").code == 0
    finally:
        os.dup2(standard_input, 0)
        os.close(standard_input)
        os.close(reading)
    assert Path("data/mine2.txt").read_text() == "from standard input"


def test_what_is_neither_a_file_nor_a_pipe_is_not_added(here: Path) -> None:
    for path in ("/dev/null", "."):
        with pytest.raises(DataError, match="is not a file"):
            add_text("other", Path(path), data_folders(None))


# A text that has changed


def test_a_folder_that_has_changed_is_described_when_the_run_is_resumed(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    put("d/a.txt")
    Path("d/b.txt").write_text(small_text())
    done = gptkit_command("train", tiny_experiment, "--dataset", "d", "--stop-at", 2, "--quiet")
    folder = Path(done.out.strip())
    put("d/C.TXT")
    for command in ("resume", "rerun"):
        refused = gptkit_command(command, folder)
        assert refused.code == 4
        files = "Files now: 3 (d/C.TXT, d/a.txt, d/b.txt); before: 2 (d/a.txt, d/b.txt).\n"
        assert files in refused.err
    Path("d/C.TXT").unlink()
    assert gptkit_command("resume", folder, "--stop-at", 3).code == 0


def test_a_run_of_a_version_that_passed_over_capitals_can_be_resumed_by_the_remedy(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    Path("d").mkdir()
    Path("d/a.txt").write_text(small_text())
    done = gptkit_command("train", tiny_experiment, "--dataset", "d", "--stop-at", 2, "--quiet")
    folder = Path(done.out.strip())
    record = json.loads((folder / "run.json").read_text())
    assert record["dataset"]["facts"] == {}  # as that version left it
    put("d/B.TXT", "d/x.pdf")
    refused = gptkit_command("resume", folder)
    assert refused.code == 4
    files = "Files now: 2 (d/B.TXT, d/a.txt); passed over: another ending: 1 (d/x.pdf). gptkit 0.1.0 did"
    assert files in refused.err
    assert len(refused.err.splitlines()) <= 4
    Path("d/B.TXT").rename("B.TXT")
    assert gptkit_command("resume", folder, "--stop-at", 3).code == 0
