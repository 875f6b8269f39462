"""The run folder: made, found, locked, recorded, listed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gptkit import events, files
from gptkit.errors import CheckpointError, DiskError, RunInUseError, UsageError
from gptkit.events import RunStatus
from gptkit.runs import (
    Recorder,
    Run,
    RunRecord,
    RunSummary,
    create_run,
    find_run,
    is_locked,
    lock_run,
    run_ids,
    summarise_runs,
)
from tests.support import write_record


def make(runs: Path, name: str, record: dict[str, Any] | None = None) -> Run:
    """A run folder of that id, as small as it can be."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "experiment.toml").write_text('name = "mine"\n')
    run = Run(folder)
    if record is not None:
        write_record(run, record)
    return run


@contextmanager
def held_by_another_process(run: Run) -> Iterator[subprocess.Popen[str]]:
    """The run locked by a process of its own."""
    code = (
        "import sys, time; from pathlib import Path; from gptkit.runs import Run, lock_run\n"
        "with lock_run(Run(Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


# Made


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
    with pytest.raises(DiskError, match="is a file; give a folder with --runs-dir") as caught:
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


# Found


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
def test_what_is_no_run_is_a_usage_error(
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


def test_only_folders_with_an_experiment_are_runs(tmp_path: Path) -> None:
    make(tmp_path, "mine-1")
    make(tmp_path, ".hidden")
    make(tmp_path, "with space")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert run_ids(tmp_path) == ["mine-1"]
    assert run_ids(tmp_path / "none") == []
    assert run_ids(tmp_path / "file") == []


@pytest.mark.parametrize(
    "name", ["checkpoints", "samples", "metrics.jsonl", "run.json", "experiment.toml", ".lock"]
)
def test_a_run_with_a_link_in_it_is_refused(name: str, tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    run.refuse_special_files()
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} is a symbolic link") as caught:
        run.refuse_special_files()
    assert caught.value.exit_code == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders are of POSIX")
@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", ".lock", "anything"])
def test_a_run_with_a_pipe_in_it_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    (run.path / name).unlink(missing_ok=True)
    os.mkfifo(run.path / name)
    with pytest.raises(CheckpointError, match=f"{name} is a pipe or a device"):
        run.refuse_special_files()


# Metrics


def test_lines_of_one_step_are_merged_and_the_later_value_counts(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    (run.path / "metrics.jsonl").write_text(
        '{"step": 20, "train_loss": 2.5}\n'
        '{"step": 10, "train_loss": 3.0}\n'
        '{"step": 20, "val_loss": 2.0, "train_loss": 2.25}\n'
    )
    assert run.metrics() == [
        {"step": 10, "train_loss": 3.0},
        {"step": 20, "train_loss": 2.25, "val_loss": 2.0},
    ]


@pytest.mark.parametrize(
    ("metrics", "step"),
    [
        ('{"step": 9}\n{"step": 4}\n', 4),  # resumed from before, and cut off again
        ("", 0),
        ('{"step": 9}\n{"loss": 1}\n', 9),
        ('{"step": 9}\n[9]\n', 9),
        ('{"step": "9"}\n', 0),
        ('{"step": %s}\n' % ("9" * 30), 0),
    ],
)
def test_the_last_recorded_step_is_that_of_the_last_line(tmp_path: Path, metrics: str, step: int) -> None:
    run = make(tmp_path, "one")
    (run.path / "metrics.jsonl").write_text(metrics)
    assert run.metrics_log.last_step() == step


def test_a_torn_last_line_is_left_out_and_cut_before_more_is_written(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    path = run.path / "metrics.jsonl"
    path.write_text('{"step": 1, "train_loss": 3.0}\n{"step": 2, "train_lo')
    assert run.metrics() == [{"step": 1, "train_loss": 3.0}]
    run.metrics_log.drop_torn_line()
    assert path.read_text() == '{"step": 1, "train_loss": 3.0}\n'
    run.metrics_log.drop_torn_line()
    assert path.read_text() == '{"step": 1, "train_loss": 3.0}\n'


def test_lines_that_are_no_metrics_are_left_out(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    assert run.metrics() == []
    lines = [
        "",
        "[]",
        "5",
        "{}",
        '{"step": "1"}',
        '{"step": NaN}',
        '{"step": 1, "step": 2}',
        "[" * 100_000,
        "\xff",
    ]
    text = "\n".join([*lines, '{"step": 3}', '{"a": ' + "9" * 6000 + "}"])
    (run.path / "metrics.jsonl").write_bytes(text.encode("latin-1"))
    assert run.metrics() == [{"step": 3}]


# Recorded


def recorder(run: Run, record: dict[str, Any] | None = None) -> Recorder:
    return Recorder(
        run, RunRecord.model_validate(record or {"status": "starting"}), lambda: datetime(2026, 1, 2)
    )


def started() -> events.RunStarted:
    return events.RunStarted(
        run_id="mine-1",
        folder=Path("mine-1"),
        dataset="text",
        tokenizer="char",
        vocab_size=9,
        train_tokens=90,
        val_tokens=10,
        parameters=1234,
        device="cpu",
        precision="fp32",
        compiled=False,
        start_step=0,
        stop_step=20,
        max_steps=20,
        tokens_per_step=64,
    )


def stepped(step: int) -> events.StepFinished:
    return events.StepFinished(
        step=step,
        train_loss=2.5,
        learning_rate=0.1,
        grad_norm=1.5,
        tokens=64 * step,
        tokens_per_second=99.99,
        seconds=1.23456,
    )


def evaluated(step: int) -> events.EvaluationFinished:
    return events.EvaluationFinished(
        step=step,
        val_loss=2.0,
        bits_per_byte=2.9,
        best_val_loss=2.0,
        best_step=step,
        tokens=64 * step,
        learning_rate=0.1,
        seconds=1.23456,
    )


def finished(status: str) -> events.RunFinished:
    return events.RunFinished(
        status=status,
        step=20,
        max_steps=20,
        train_loss=2.5,
        val_loss=2.0,
        best_val_loss=2.0,
        best_bits_per_byte=2.9,
        best_step=20,
        tokens=1280,
        seconds=2.0,
        saved=True,
    )


def test_the_recorder_writes_one_line_of_json_a_step_once_the_step_is_done(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    record = recorder(run)
    record(started())
    for event in (stepped(10), events.StepDone(10), events.StepDone(11), stepped(20), evaluated(20)):
        record(event)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10]  # step 20 is not done yet
    record(events.StepDone(20))
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    assert run.metrics()[1] == {
        "step": 20,
        "train_loss": 2.5,
        "val_loss": 2.0,
        "bits_per_byte": 2.9,
        "learning_rate": 0.1,
        "grad_norm": 1.5,
        "tokens": 1280,
        "tokens_per_second": 100.0,
        "seconds": 1.235,
    }


def test_the_record_says_who_runs_it_while_it_runs_and_how_it_ended(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    record = recorder(run, {"status": "starting", "seed": 5})
    record(started())
    now = run.record()
    assert (now["status"], now["process"]["pid"], now["parameters"], now["seed"]) == (
        "running",
        os.getpid(),
        1234,
        5,
    )
    record(events.CheckpointSaved(20, run.checkpoints, 0.1))
    record(finished("stopped"))
    ended = run.record()
    assert (ended["status"], ended["step"], ended["best_step"], ended["last_checkpoint"]) == (
        "stopped",
        20,
        20,
        20,
    )
    assert ended["ended"].startswith("2026-01-02T00:00:00")
    assert "process" not in ended
    assert ended["seed"] == 5


def test_a_step_that_was_logged_but_not_done_when_the_run_ended_is_recorded(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    record = recorder(run)
    record(stepped(10))
    record(finished("failed"))
    assert [row["step"] for row in run.metrics()] == [10]


def test_a_sample_is_a_file_of_exactly_its_text(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    recorder(run)(events.SampleDrawn(20, "a\r\nb\u2028é\n\n"))
    assert (run.samples / "step-000000000020.txt").read_bytes() == "a\r\nb\u2028é\n\n".encode()


def test_a_record_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, "mine-1", {"status": "starting"})
    for operation in ("create", "write", "fsync", "rename"):
        with monkeypatch.context() as patched:

            def full(*arguments: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patched.setattr(files.disk, operation, full)
            with pytest.raises(DiskError, match="disk full while recording the run mine-1"):
                run.write_record(RunRecord(status=RunStatus.RUNNING))
        assert run.record() == {"status": "starting"}
        assert sorted(entry.name for entry in run.path.iterdir()) == ["experiment.toml", "run.json"]


def test_a_command_line_with_bytes_that_are_no_text_is_recorded(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    run.write_record(RunRecord(command="gptkit train \udcff.toml"))
    assert run.record() == {"command": "gptkit train \udcff.toml"}
    (run.path / "run.json").read_bytes().decode()  # and is UTF-8 all the same


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": [-1.5e999]}',
        b'{"a": 1, "a": 2}',
        b"\xff",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 6000 + b"}",
    ],
    ids=[
        "empty",
        "a list",
        "torn",
        "NaN",
        "infinite",
        "infinite below",
        "a key twice",
        "no text",
        "nested",
        "huge number",
    ],
)
def test_a_record_that_is_no_json_object_is_a_checkpoint_error(content: bytes, tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read: "):
        run.record()


def test_a_record_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {})
    os.truncate(run.path / "run.json", 2**40)
    with pytest.raises(CheckpointError, match="it is too large"):
        run.record()


# Locked


def test_a_second_process_is_told_who_holds_the_run_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {"process": {"pid": 4711, "host": "here"}})
    assert not is_locked(run)
    with held_by_another_process(run) as process:
        assert is_locked(run)
        before = (run.path / "run.json").read_bytes()
        with (
            pytest.raises(RunInUseError, match="run mine-1 is in use by process 4711 on here") as caught,
            lock_run(run),
        ):
            pass
        assert caught.value.exit_code == 7
        assert (run.path / "run.json").read_bytes() == before
        process.kill()
        process.wait(10)
        assert not is_locked(run)
        with lock_run(run):
            assert is_locked(run)
    assert not is_locked(run)


@pytest.mark.parametrize("record", [None, {}, {"process": None}, {"process": {}}, {"process": [1]}])
def test_a_run_in_use_is_said_to_be_whatever_its_record_says(
    record: dict[str, Any] | None, tmp_path: Path
) -> None:
    run = make(tmp_path, "mine-1", record)
    with (
        lock_run(run),
        pytest.raises(RunInUseError, match="run mine-1 is in use; wait for it"),
        lock_run(run),
    ):
        pass


def test_the_lock_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    with pytest.raises(ZeroDivisionError), lock_run(run):
        raise ZeroDivisionError
    assert not is_locked(run)


# Listed

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


def test_a_summary_says_what_the_record_says(tmp_path: Path) -> None:
    make(tmp_path, "mine-1", RECORD)
    assert summarise_runs(tmp_path) == [
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
    (crashed,) = summarise_runs(tmp_path)
    assert (crashed.status, crashed.step, crashed.best_val_loss) == ("crashed", 17, 2.0)
    assert crashed.best_bits_per_byte == 2.9
    with lock_run(run):
        (running,) = summarise_runs(tmp_path)
    assert (running.status, running.step, running.best_val_loss) == ("running", 17, 2.0)


def test_runs_are_listed_oldest_first_and_those_that_cannot_be_read_too(tmp_path: Path) -> None:
    make(tmp_path, "later", {**RECORD, "started": "2026-01-02T10:00:00+00:00"})
    make(tmp_path, "earlier", RECORD)
    make(tmp_path, "no-record")
    (make(tmp_path, "torn").path / "run.json").write_text("{")
    assert [(run.id, run.status) for run in summarise_runs(tmp_path)] == [
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
def test_a_record_of_odd_values_is_summarised_all_the_same(change: dict[str, Any], tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {**RECORD, **change})
    (run.path / "metrics.jsonl").write_text('{"step": 1, "val_loss": 1' + "0" * 400 + "}\n")
    (summary,) = summarise_runs(tmp_path)
    assert summary.id == "mine-1"
    assert summary.best_val_loss in (None, 1.5)
