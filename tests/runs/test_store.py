"""Runs are created, found by path, id or beginning, and listed."""

from __future__ import annotations

import errno
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gptkit import files
from gptkit.errors import DiskError, UsageError
from gptkit.runs import (
    RunSummary,
    create_run,
    find_run,
    lock_run,
    run_ids,
)
from gptkit.runs.store import other_folders, select_runs
from tests.support.runs import make_empty as make


def test_a_new_run_has_its_experiment_and_a_name_of_stem_and_time(tmp_path: Path) -> None:
    before = datetime.now()
    run = create_run(tmp_path / "deep" / "runs", stem="mine.c16", experiment_toml='name = "é"\n')
    assert run.path.parent == tmp_path / "deep" / "runs"
    stem, date, time = run.id.split("-")
    assert stem == "mine.c16"
    made = datetime.strptime(f"{date}-{time}", "%Y%m%d-%H%M%S")
    assert -1 <= (made - before).total_seconds() <= 60
    assert run.experiment_file.read_text(encoding="utf-8") == 'name = "é"\n'
    assert sorted(entry.name for entry in run.path.iterdir()) == ["checkpoints", "experiment.toml"]


def test_runs_started_within_a_second_have_ids_of_their_own(tmp_path: Path) -> None:
    made = [create_run(tmp_path, stem="mine", experiment_toml="") for _ in range(5)]
    assert len({run.id for run in made}) == 5
    assert set(run_ids(tmp_path)) == {run.id for run in made}
    assert all(find_run(run.id, tmp_path).path == run.path for run in made)


def test_a_file_in_place_of_the_runs_folder_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(DiskError, match="is a file; pass a folder with --runs-dir") as caught:
        create_run(tmp_path / "runs", stem="mine", experiment_toml="")
    assert caught.value.exit_code == 6
    with pytest.raises(DiskError):
        create_run(tmp_path / "runs" / "below", stem="mine", experiment_toml="")


def test_a_run_that_cannot_be_made_whole_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.disk, "write", full)
    with pytest.raises(DiskError, match="disk full while creating a run folder"):
        create_run(tmp_path / "runs", stem="mine", experiment_toml="x")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_is_found_by_its_folder_its_id_and_a_unique_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = make(Path("runs"), "mine.c16-1"), make(Path("runs"), "other.c16-1")
    elsewhere = make(tmp_path / "archive", "old.c8-1")
    for wanted in (
        "runs/mine.c16-1",
        "runs/mine.c16-1/",
        "mine.c16-1",
        "mine",
        "m",
        str(one.path.absolute()),
    ):
        assert find_run(wanted).path.absolute() == one.path.absolute()
    assert find_run("ot").id == other.id
    assert find_run("archive/old.c8-1").path.absolute() == elsewhere.path
    assert find_run("old", tmp_path / "archive").path == elsewhere.path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_run("~/archive/old.c8-1").path.absolute() == elsewhere.path


def test_a_run_is_found_from_within_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "runs", "mine.c16-1")
    run.checkpoints.mkdir()
    monkeypatch.chdir(run.path)
    assert find_run(".").id == "mine.c16-1"
    monkeypatch.chdir(run.checkpoints)
    assert find_run("..").id == "mine.c16-1"


def test_an_id_that_begins_others_means_itself(tmp_path: Path) -> None:
    make(tmp_path, "mine-1")
    make(tmp_path, "mine-1-2")
    assert find_run("mine-1", tmp_path).id == "mine-1"
    with pytest.raises(UsageError, match="'mine' is the beginning of 2 runs: mine-1, mine-1-2"):
        find_run("mine", tmp_path)


def test_latest_is_the_one_started_last_whatever_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no runs in"):
        find_run("latest", tmp_path)
    make(tmp_path, "zzz-20990101-000000", {"started": "2026-01-01T10:00:00+00:00"})
    make(tmp_path, "aaa-20200101-000000", {"started": "2026-01-01T10:00:01+00:00"})
    make(tmp_path, "no-record")
    assert find_run("latest", tmp_path).id == "aaa-20200101-000000"


@pytest.mark.parametrize(
    "wanted",
    [
        *("", "\0", "mine\0", "nope", "..", "../", "../runs/nope", "/", "~", "x" * 10_000, "a/" * 3000),
        *("con", "-", "mine.c16-1/experiment.toml", "runs", "*", "[", "\udcff", "mine\n"),
    ],
)
def test_a_name_that_is_not_a_run_is_a_usage_error(
    wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("runs"), "mine.c16-1")
    with pytest.raises(UsageError) as caught:
        find_run(wanted)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_mistyped_id_gets_the_nearest(tmp_path: Path) -> None:
    make(tmp_path, "shakespeare.c64-1")
    with pytest.raises(UsageError, match=r"did you mean 'shakespeare\.c64-1'\?"):
        find_run("shakespear.c64-1", tmp_path)


def test_a_link_to_a_run_is_refused_and_never_listed(tmp_path: Path) -> None:
    real = make(tmp_path / "elsewhere", "real-1")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "linked-1").symlink_to(real.path, target_is_directory=True)
    assert run_ids(runs) == []
    for wanted in ("linked-1", str(runs / "linked-1"), "latest"):
        with pytest.raises(UsageError):
            find_run(wanted, runs)


def test_a_folder_with_an_experiment_is_a_run_whatever_it_is_called(tmp_path: Path) -> None:
    names = ["my best run", "_copy", "-x", ".kept", "шекспир.c16", "日本", "a\nb", "latest"]
    for name in (*names, ".tmp-verify-1", ".trash-mine-1"):  # the last two are gptkit's own temporaries
        make(tmp_path, name)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "file").write_text("")
    assert run_ids(tmp_path) == sorted(names)
    assert other_folders(tmp_path) == ["empty"]
    for name in names[:-1]:
        assert find_run(name, tmp_path).path == tmp_path / name
        assert find_run(str(tmp_path / name)).path == tmp_path / name
    for none in ("none", "file"):
        assert run_ids(tmp_path / none) == other_folders(tmp_path / none) == []


def test_a_name_is_found_whether_its_letters_and_marks_are_composed_or_not(tmp_path: Path) -> None:
    composed, apart = "café-1", unicodedata.normalize("NFD", "café-1")
    assert composed != apart
    for stored, typed in ((composed, apart), (apart, composed)):
        folder = tmp_path / ("composed" if stored is composed else "apart")
        make(folder, stored)
        for wanted in (typed, typed[:-2], f"{folder}/{typed}"):
            assert find_run(wanted, folder).path == folder / stored
        assert [found.run.id for found in select_runs(folder, [f"id={typed}"])] == [stored]
    make(tmp_path / "composed", apart)  # where both are there, each is found by its own
    assert find_run(apart, tmp_path / "composed").id == apart
    assert find_run(composed, tmp_path / "composed").id == composed


RECORD: dict[str, Any] = {
    "status": "finished",
    "started": "2026-01-01T10:00:00+00:00",
    "target_step": 20,
    "step": 20,
    "best_val_loss": 1.5,
    "best_bits_per_byte": 2.25,
    "dataset": {"title": "data/mine.txt"},
    "hyperparameters": {"context_length": 16, "n_embd": 32, "optimizer": "muon"},
}


def summaries(runs: Path) -> list[RunSummary]:
    return [found.run for found in select_runs(runs)]


def test_a_summary_has_the_values_of_the_record(tmp_path: Path) -> None:
    make(tmp_path, "mine-1", RECORD)
    assert summaries(tmp_path) == [
        RunSummary(
            id="mine-1",
            status="finished",
            dataset="data/mine.txt",
            hyperparameters="c16 e32 muon",
            step=20,
            target_step=20,
            best_val_loss=1.5,
            best_bits_per_byte=2.25,
            started="2026-01-01T10:00:00+00:00",
        )
    ]


def test_a_run_whose_process_is_gone_is_shown_as_crashed_with_what_it_reached(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {**RECORD, "status": "running", "step": 3})
    (run.path / "metrics.jsonl").write_text(
        '{"step": 10, "val_loss": 2.0, "bits_per_byte": 2.9}\n{"step": 15, "val_loss": 2.5}\n'
        '{"step": 17, "train_loss": 1}\n{"st'
    )
    (crashed,) = summaries(tmp_path)
    assert (crashed.status, crashed.step, crashed.best_val_loss) == ("crashed", 17, 2.0)
    assert crashed.best_bits_per_byte == 2.9
    with lock_run(run):
        (running,) = summaries(tmp_path)
    assert (running.status, running.step, running.best_val_loss) == ("running", 17, 2.0)


def test_runs_are_listed_oldest_first_and_those_that_cannot_be_read_too(tmp_path: Path) -> None:
    make(tmp_path, "later", {**RECORD, "started": "2026-01-02T10:00:00+00:00"})
    make(tmp_path, "earlier", RECORD)
    make(tmp_path, "no-record")
    (make(tmp_path, "torn").path / "run.json").write_text("{")
    assert [(run.id, run.status) for run in summaries(tmp_path)] == [
        ("no-record", "unreadable"),
        ("torn", "unreadable"),
        ("earlier", "finished"),
        ("later", "finished"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"status": 5, "started": None},
        {"step": "20", "target_step": None},
        {"best_val_loss": "low"},
        {"best_bits_per_byte": [1]},
        {"best_val_loss": 10**400},
        {"best_val_loss": True},
        {"dataset": "x", "hyperparameters": [1]},
        {"dataset": {"title": {}}, "hyperparameters": {"optimizer": {}, "n_embd": {}}},
        {"status": "running", "step": None},
    ],
)
def test_a_record_of_odd_values_is_still_summarized(change: dict[str, Any], tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {**RECORD, **change})
    (run.path / "metrics.jsonl").write_text('{"step": 1, "val_loss": 1' + "0" * 400 + "}\n")
    (summary,) = summaries(tmp_path)
    assert summary.id == "mine-1"
    assert summary.best_val_loss in (None, 1.5)
