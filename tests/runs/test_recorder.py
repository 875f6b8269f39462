"""A run writes its metrics, samples and record as it reports."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from gptkit import events
from gptkit.runs import (
    Recorder,
    Run,
    RunRecord,
)
from tests.support.runs import make_empty as make


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
