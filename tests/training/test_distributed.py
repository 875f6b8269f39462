"""Several processes train one run: batches dealt to ranks, the same losses, restarts, messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gptkit.cli import launch
from gptkit.data.sampler import BatchSampler
from gptkit.errors import UsageError
from gptkit.experiment.schema import TrainingSettings
from gptkit.runs import Run
from gptkit.runs.checkpoint import newest_checkpoint
from gptkit.training.distributed import rank_batches
from tests.support import TINY, Command, small_text


@pytest.mark.parametrize(("batch", "accumulation", "count"), [(4, 1, 2), (4, 3, 2), (2, 4, 4), (6, 2, 4)])
def test_ranks_compute_the_sequences_of_the_same_global_batch(
    batch: int, accumulation: int, count: int
) -> None:
    def sequences(size: int, numbers: range) -> list[list[int]]:
        sampler = BatchSampler(np.arange(900), context_length=5, batch_size=size, seed=1)
        return [row for number in numbers for row in sampler.windows(number).tolist()]

    settings = TrainingSettings(batch_size=batch, gradient_accumulation_steps=accumulation)
    share = rank_batches(settings, count)
    assert share.batch_size <= batch
    for step in (1, 2, 7):
        alone = sequences(batch, range((step - 1) * accumulation, step * accumulation))
        dealt = [sequences(share.batch_size, share.numbers(step, rank, count)) for rank in range(count)]
        assert [row for part in dealt for row in part] == alone
        assert len({len(part) for part in dealt}) == 1


def test_one_process_has_the_batches_of_the_file() -> None:
    share = rank_batches(TrainingSettings(batch_size=5, gradient_accumulation_steps=3), 1)
    assert (share.batch_size, share.passes) == (5, 3)
    assert list(share.numbers(2, 0, 1)) == [3, 4, 5]


def test_processes_that_cannot_share_a_step_are_refused_with_numbers_that_would_work() -> None:
    with pytest.raises(UsageError, match=r"Use 4 or 6 processes, or training.batch_size = 15") as raised:
        rank_batches(TrainingSettings(batch_size=12, gradient_accumulation_steps=1), 5)
    assert raised.value.field == "training.batch_size"


def test_the_command_refuses_before_it_starts_processes(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    result = gptkit_command("train", tiny_experiment, "--processes", 3)
    assert result.code == 2
    assert "3 processes cannot share the 4 sequences of a step" in result.err
    assert not list(Path("runs").iterdir())


def test_torchrun_and_processes_must_agree(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    result = gptkit_command("train", tiny_experiment, "--processes", 2)
    assert result.code == 2
    assert "torchrun started 4 processes" in result.err


def test_the_failure_that_others_follow_is_the_one_reported(tmp_path: Path) -> None:
    def note(rank: int, message: str, code: int, seconds: float, *, secondary: bool) -> None:
        fields = {
            "rank": rank,
            "message": message,
            "exit_code": code,
            "secondary": secondary,
            "time": seconds,
        }
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(fields))

    note(0, "lost the others", 3, 1.0, secondary=True)
    note(2, "rank 2: disk full", 6, 2.0, secondary=False)
    cause = launch._cause(tmp_path, {0: 3, 2: 6})
    assert cause is not None
    assert (cause.message, cause.exit_code, cause.by_signal) == ("rank 2: disk full", 6, False)
    (tmp_path / "rank-2.json").unlink()
    cause = launch._cause(tmp_path, {0: 3, 1: -signal.SIGKILL})
    assert cause is not None
    assert cause.message.startswith("rank 1 was ended by SIGKILL")
    assert (cause.exit_code, cause.by_signal) == (137, True)
    note(0, "another process did not answer", 3, 1.0, secondary=False)
    cause = launch._cause(tmp_path, {0: 3, 1: -signal.SIGKILL})  # which the launcher killed
    assert cause is not None
    assert (cause.message, cause.exit_code) == ("another process did not answer", 3)


# Real processes


@dataclass(frozen=True)
class Trained:
    folder: Path
    straight: Run
    restarted: Run
    messages: str


_FIELDS = ("optimizer=adamw", "training.precision=fp32", "training.log_interval=1", "model.dropout=0")
_LONG = ("checkpoints.checkpoint_interval=20", "evaluation.eval_interval=100", "evaluation.eval_tokens=500")


def _command(*words: str) -> list[str]:
    fields = [word for field in (*_FIELDS, *_LONG) for word in ("--set", field)]
    return [
        sys.executable,
        "-m",
        "gptkit",
        "train",
        "tiny.toml",
        "--steps",
        "200",
        "--quiet",
        *fields,
        *words,
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of two processes, and another of which one process was killed."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "data").mkdir()
    (folder / "data" / "mine.txt").write_text(small_text())
    (folder / "tiny.toml").write_text(TINY)
    two = _command("--processes", "2")
    done = subprocess.run(two, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    assert not done.stderr
    straight = Run(folder / done.stdout.strip())

    killed = subprocess.Popen(
        [*two, "--name", "killed", "--max-restarts", "1"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 60
        while not list(folder.glob("runs/killed*/checkpoints/step-*")) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(_children(killed.pid)[-1], signal.SIGKILL)
        out, messages = killed.communicate(timeout=120)
    finally:
        killed.kill()
    assert killed.returncode == 0, messages
    return Trained(folder, straight, Run(folder / out.strip()), messages)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _losses(run: Run) -> list[float]:
    return [row["train_loss"] for row in run.metrics()]


def _weights(run: Run) -> str:
    return newest_checkpoint(run.checkpoints, run_id=run.id, on_bad=lambda step, error: None).weights_sha256


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
class TestTwoProcesses:
    def test_the_losses_are_those_of_one_process(
        self, trained: Trained, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(trained.folder)
        result = gptkit_command(*_command("--stop-at", "20", "--name", "alone")[3:])
        alone = Run(trained.folder / result.out.strip())
        assert _losses(trained.straight)[:20] == pytest.approx(_losses(alone), abs=1e-5)

    def test_a_killed_process_is_restarted_and_the_weights_are_the_same(self, trained: Trained) -> None:
        assert "was ended by SIGKILL" in trained.messages
        assert "start again from the last checkpoint (restart 1 of 1)" in trained.messages
        assert "Traceback" not in trained.messages
        assert _weights(trained.restarted) == _weights(trained.straight)
        assert _losses(trained.restarted) == _losses(trained.straight)

    def test_their_number_is_recorded_but_no_part_of_the_experiment(
        self, trained: Trained, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(trained.folder)
        record = trained.straight.record()
        assert (record["environment"]["processes"], record["environment"]["threads"]) == (2, 1)
        result = gptkit_command("resume", trained.straight.path, "--steps", 202)
        assert result.code == 0, result.err
        assert "resume: valid, not bit-identical (processes 2 -> 1), from step 200" in result.out
