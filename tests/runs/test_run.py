"""One run folder: what is read from it, the lock that one process holds, what the recorder writes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gptkit import events
from gptkit.errors import CheckpointError, RunInUseError
from gptkit.runs import (
    Recorder,
    Run,
    RunRecord,
    is_locked,
    lock_run,
)
from tests.support import Command
from tests.support.runs import make_empty as make


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


@pytest.mark.parametrize(
    ("status", "experiment", "reason"),
    [
        ("running", "", "its process was killed at step 37, before its first save at step 200"),
        ("starting", "", "its process was killed at step 37, before its first save at step 200"),
        ("diverged", "", "it diverged at step 37, before its first save"),
        ("failed", "", "an error ended it at step 37, before its first save"),
        ("finished", "", "it ended at step 37, before its first save"),
        ("running", "[checkpoints]\ncheckpoint_interval = 30\n", "those it had are not there any more"),
    ],
)
def test_why_a_run_has_no_checkpoint_and_how_to_begin_again(
    status: str, experiment: str, reason: str, tmp_path: Path
) -> None:
    command = "gptkit train mine.toml --steps 900"
    run = make(tmp_path, "mine-1", {"status": status, "command": command, "target_step": 900})
    run.experiment_file.write_text(f"[evaluation]\neval_interval = 200\n{experiment}")
    run.metrics_log.append({"step": 37, "train_loss": 2.0})
    with pytest.raises(CheckpointError, match=reason) as caught:
        run.checkpoint()
    assert str(caught.value).splitlines()[1] == f"To train it again from the start: {command}"


def test_a_run_that_was_not_to_be_saved_is_trained_again_with_saving(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {"status": "finished", "command": "gptkit train mine.toml --no-save"})
    run.experiment_file.write_text("[checkpoints]\nsave = false\n")
    with pytest.raises(CheckpointError, match="it was trained with --no-save") as caught:
        run.checkpoint()
    assert str(caught.value).endswith(f"{run.train_again_command()} --set checkpoints.save=true")


def test_a_run_that_is_being_trained_and_has_saved_nothing_says_when_it_will(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {"status": "running", "command": "gptkit train mine.toml"})
    with lock_run(run):
        with pytest.raises(CheckpointError, match="it is being trained, and saves first at step 500"):
            run.checkpoint()
        run.metrics_log.append({"step": 37, "train_loss": 2.0})
        with pytest.raises(CheckpointError, match=r"last logged at step 37, .* at step 500") as caught:
            run.checkpoint()
        assert "To train it again" not in str(caught.value)
        with pytest.raises(CheckpointError, match="its process was killed"):
            run.require_checkpoint(locked=True)  # `resume`, which holds the run itself


@pytest.mark.parametrize("command", ["rm -rf runs", "gptkit train a\nb", "gptkit train " + "x" * 1000, None])
def test_a_recorded_command_that_is_not_one_to_train_is_not_repeated(
    command: str | None, tmp_path: Path
) -> None:
    run = make(tmp_path, "mine-1", {"status": "failed", "command": command})
    with pytest.raises(CheckpointError, match=f"from the start: gptkit train {run.experiment_file}"):
        run.checkpoint()


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


def test_a_second_process_gets_an_error_that_names_the_holder_and_the_lock_dies_with_it(
    tmp_path: Path,
) -> None:
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
def test_a_run_in_use_is_refused_whatever_its_record_has(
    record: dict[str, Any] | None, tmp_path: Path
) -> None:
    run = make(tmp_path, "mine-1", record)
    with (
        lock_run(run),
        pytest.raises(RunInUseError, match="run mine-1 is in use; wait for it"),
        lock_run(run),
    ):
        pass


def test_the_lock_is_released_when_the_work_fails(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    with pytest.raises(ZeroDivisionError), lock_run(run):
        raise ZeroDivisionError
    assert not is_locked(run)


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def disk_without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a network disk whose lock service is off, or does not exist."""
    fcntl = pytest.importorskip("fcntl")
    code = getattr(errno, request.param)

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_of_the_disk_a_file_keeps_a_second_process_out(
    disk_without_locks: None, tmp_path: Path
) -> None:
    run = make(tmp_path, "mine-1", {"process": {"pid": os.getpid(), "host": "here"}})
    assert not is_locked(run)
    with lock_run(run):
        assert is_locked(run)
        with pytest.raises(RunInUseError) as caught, lock_run(run):
            pass
        first, second = str(caught.value).splitlines()
        assert first.startswith(f"run mine-1 is in use by process {os.getpid()} on here: ")
        assert str(run.path / ".lock-holder") in first
        assert second.endswith("remove that file.")
        shutil.copytree(run.path, tmp_path / "copy")
    assert not is_locked(run)
    copied = Run(tmp_path / "copy")
    assert is_locked(copied)
    (copied.path / ".lock-holder").unlink()  # as the message says
    with lock_run(copied):
        assert is_locked(copied)


def test_without_locks_of_the_disk_the_lock_of_a_killed_process_ends_with_it(
    disk_without_locks: None, tmp_path: Path
) -> None:
    run = make(tmp_path, "mine-1")
    with lock_run(run):
        marker = (run.path / ".lock-holder").read_text()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(10)
    (run.path / ".lock").write_text("")  # as a disk with locks leaves it
    (run.path / ".lock-holder").write_text(marker.replace(str(os.getpid()), str(ended.pid), 1))
    assert not is_locked(run)
    with lock_run(run):
        pass
    assert not (run.path / ".lock-holder").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows locks what it opens")
def test_whether_another_users_run_is_locked_is_found_out_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, "mine-1")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with lock_run(run), monkeypatch.context() as patched:
        patched.setattr("gptkit.runs.run._acquire", refuse)
        assert is_locked(run)
    monkeypatch.setattr("gptkit.runs.run._acquire", refuse)
    assert not is_locked(run)


def test_a_lock_that_fails_leaves_no_run_behind(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", fail)
    failed = gptkit_command("train", tiny_experiment)
    assert (failed.code, "disk error while locking the run" in failed.err) == (6, True)
    assert list(Path("runs").iterdir()) == []


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


def test_the_recorder_writes_one_line_of_json_per_step_once_the_step_is_done(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    record = recorder(run)
    record(started())
    with_muon = replace(stepped(20), adamw_learning_rate=0.025)
    for event in (stepped(10), events.StepDone(10), events.StepDone(11), with_muon, evaluated(20)):
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
        "adamw_learning_rate": 0.025,
        "grad_norm": 1.5,
        "tokens": 1280,
        "tokens_per_second": 100.0,
        "seconds": 1.235,
    }


def test_the_best_and_the_last_evaluation_are_recorded_by_block_over_all_sessions(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    assert run.read_evaluations_or_empty().best.block_losses == ()  # as in runs of 0.1.0
    first, second, third = (
        replace(evaluated(step), val_loss=loss, best_step=best, block_losses=(loss - 1, loss + 1))
        for step, loss, best in ((10, 2.0, 10), (20, 2.5, 10), (30, 1.5, 30))
    )
    for session in ((first,), (second,)):
        record = recorder(run)
        for event in session:
            record(event)
            record(events.StepDone(event.step))
    found = run.read_evaluations()
    assert (found.best.step, found.best.block_losses) == (10, (1.0, 3.0))
    assert (found.last.step, found.last.val_loss) == (20, 2.5)
    record(third)
    record(finished("diverged"))  # an evaluation whose step was not completed counts too, as in the metrics
    assert run.read_evaluations().best == run.read_evaluations().last
    assert run.read_evaluations().best.step == 30


@pytest.mark.parametrize(
    "value",
    ["", "[]", '{"best": 1}', '{"best": {"block_losses": [1, "2"]}}', '{"best": {"block_losses": [1e999]}}'],
)
def test_damaged_evaluations_are_no_blocks(tmp_path: Path, value: str) -> None:
    run = make(tmp_path, "mine-1")
    (run.path / "evaluations.json").write_text(value)
    assert run.read_evaluations_or_empty().best.block_losses == ()


def test_the_record_names_the_training_process_and_then_how_it_ended(tmp_path: Path) -> None:
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
