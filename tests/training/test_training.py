"""What training promises: exact resume, intervals that change no weight, signals that save."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gptkit
from gptkit import events
from gptkit.data.sampler import EvaluationRule
from gptkit.errors import DataError, DivergedError, ExperimentError
from gptkit.experiment.load import to_toml
from gptkit.native import build_key, usable
from gptkit.plugins import StreamDecoder
from gptkit.reproduce.replay import replay_run, rerun_run
from gptkit.runs import Run
from gptkit.tokenizers.byte import ByteTokenizer
from gptkit.training import session
from gptkit.training.context import RunContext
from gptkit.training.loss import SplitLoss
from gptkit.training.session import resume_run, train_new, train_run
from gptkit.training.setup import prepare_new
from gptkit.training.text import wrong_stream
from gptkit.training.trainer import StepPlan
from tests.support import write_record
from tests.support.sums import TEXT, experiment, hashes, losses


# Each value once; tests/training/test_exactness.py combines optimizers and precisions
@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "schedule", "precision"),
    [("adamw", "constant", "fp32"), ("muon", "cosine", "bf16"), ("muon", "linear", "fp32")],
)
def test_stopping_and_resuming_gives_the_same_bytes(
    context: RunContext, optimizer: str, schedule: str, precision: str
) -> None:
    recipe = experiment(
        optimizer={"type": optimizer},
        schedule={"type": schedule, "warmup_steps": 3},
        training={"precision": precision, "gradient_accumulation_steps": 2, "log_interval": 5},
        evaluation={"eval_interval": 4},
    )
    straight = train_run(recipe, context).run
    stopped = train_run(recipe, context, stop_at=5)
    assert stopped.status == "stopped"
    assert resume_run(stopped.run, context, stop_at=7).status == "stopped"
    assert resume_run(stopped.run, context).status == "finished"
    assert hashes(stopped.run) == hashes(straight)
    assert losses(stopped.run) == losses(straight)


def differences(run: Run, context: RunContext, **how: Any) -> tuple[str, ...]:
    """The messages of resume about the environment in which it continues the run."""
    seen: list[events.Event] = []
    resume_run(run, RunContext(context.runs_folder, context.folders, seen.append), **how)
    return next(event for event in seen if isinstance(event, events.ResumeChecked)).differences


needs_native = pytest.mark.skipif(
    not usable(), reason="no C compiler here: there is only torch's way to compute"
)


@pytest.mark.slow
@needs_native
def test_a_run_without_c_resumes_without_it_exactly(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although there is a compiler now: what the run began with, it ends with."""
    with monkeypatch.context() as patched:
        patched.setenv("GPTKIT_NATIVE", "0")
        straight = train_run(experiment(), context).run
        stopped = train_run(experiment(), context, stop_at=5).run
    assert stopped.record()["environment"]["native"] == ""
    assert differences(stopped, context) == ()
    assert hashes(stopped) == hashes(straight)
    assert hashes(train_run(experiment(), context).run) != hashes(straight)  # C drops something else


@pytest.mark.slow
@needs_native
def test_a_run_with_c_resumes_without_it_and_reports_the_difference(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = train_run(experiment(), context, stop_at=5).run
    was = stopped.record()["environment"]["native"]
    assert was == build_key() != ""
    with monkeypatch.context() as patched:
        patched.setenv("GPTKIT_NATIVE", "0")
        assert differences(stopped, context, stop_at=7) == (f"native {was} -> none",)
    environment = {**stopped.record()["environment"], "native": "of another compiler"}
    write_record(stopped, {**stopped.record(), "environment": environment})
    assert differences(stopped, context) == (f"native of another compiler -> {was}",)


@pytest.mark.slow
@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_is_exact_in_c_and_without(context: RunContext, optimizer: str, precision: str) -> None:
    """With all that C computes: dropout, norms with gains, rotation, a gated MLP, and two threads."""
    recipe = experiment(
        model={"norm": "layernorm", "bias": True, "mlp": "swiglu", "position": "rope"},
        optimizer={"type": optimizer},
        training={"precision": precision, "threads": 2, "max_steps": 6},
    )
    straight = train_run(recipe, context).run
    stopped = train_run(recipe, context, stop_at=2).run
    assert bool(stopped.record()["environment"]["native"]) == usable()
    assert differences(stopped, context) == ()
    assert hashes(stopped) == hashes(straight)
    assert losses(stopped) == losses(straight)


@pytest.mark.slow
def test_the_resolved_experiment_gives_the_same_run(context: RunContext) -> None:
    first = train_run(experiment(seed="random"), context).run
    again = train_run(gptkit.load_experiment(first.experiment_file), context).run
    assert hashes(again) == hashes(first)


@pytest.mark.slow
def test_evaluating_more_often_changes_no_weight(context: RunContext) -> None:
    rarely = train_run(
        experiment(evaluation={"eval_interval": 12}, training={"log_interval": 12}), context
    ).run
    often = train_run(
        experiment(
            evaluation={"eval_interval": 1},
            sampling={"sample_interval": 1, "max_new_tokens": 3},
            checkpoints={"checkpoint_interval": 1},
        ),
        context,
    ).run
    assert hashes(often) == hashes(rarely)


@pytest.mark.slow
def test_another_seed_gives_another_run(context: RunContext) -> None:
    assert hashes(train_run(experiment(), context).run) != hashes(train_run(experiment(seed=12), context).run)


@pytest.mark.slow
def test_resume_trains_past_the_end_and_records_the_new_end(context: RunContext) -> None:
    recipe = experiment(schedule={"type": "constant"})
    run = train_run(recipe, context).run
    assert resume_run(run, context, steps=20, stop_at=15).progress.step == 15
    assert resume_run(run, context).progress.step == 20
    longer = train_run(experiment(schedule={"type": "constant"}, training={"max_steps": 20}), context).run
    assert hashes(run) == hashes(longer)


def test_the_best_checkpoint_and_the_last_ones_stay(context: RunContext) -> None:
    recipe = experiment(
        optimizer={"type": "adamw", "learning_rate": 0.0},
        evaluation={"eval_interval": 2},
        checkpoints={"checkpoint_interval": 1, "keep_last": 2},
    )
    run = train_run(recipe, context).run
    assert [int(folder.name[5:]) for folder in sorted(run.checkpoints.iterdir())] == [2, 11, 12]


def test_a_changed_text_is_refused_by_resume(context: RunContext) -> None:
    run = train_run(experiment(), context, stop_at=3).run
    context.folders.search[0].joinpath("sums.txt").write_text(TEXT.replace("so it goes", "SO IT GOES"))
    with pytest.raises(DataError, match="has changed"):
        resume_run(run, context)


@pytest.mark.slow
def test_a_bad_gradient_stops_the_run_before_it_is_applied(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptkit.training import trainer as loop

    good, calls = loop.cross_entropy, []

    def broken(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return good(logits, targets) * (float("nan") if len(calls) == 8 else 1.0)

    recipe = experiment(checkpoints={"checkpoint_interval": 1})
    monkeypatch.setattr(loop, "cross_entropy", broken)
    seen: list[events.Event] = []
    with pytest.raises(DivergedError, match="step 8"):
        train_run(recipe, RunContext(context.runs_folder, context.folders, seen.append))
    monkeypatch.undo()
    assert isinstance(seen[-1], events.RunFinished)
    assert (seen[-1].status, seen[-1].step) == ("diverged", 7)
    run = Run(next(context.runs_folder.iterdir()))
    assert max(run.checkpoints.iterdir()).name == "step-000000000007"
    assert run.record()["status"] == "diverged"
    straight = train_run(experiment(), context, stop_at=7).run
    assert hashes(run) == hashes(straight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_saves_and_resume_continues_exactly(
    context: RunContext,
    tmp_path: Path,
    python: list[str],
    number: signal.Signals,
    code: int,
    status: str,
) -> None:
    (tmp_path / "e.toml").write_text(to_toml(experiment(training={"max_steps": 4000})))
    command = [*python, "-m", "gptkit", "train", "e.toml", "--data-dir", "."]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3 "):
                break
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait(timeout=60) == code
    assert "gptkit resume" in output
    run = Run(next(context.runs_folder.iterdir()))
    assert run.record()["status"] == status
    stopped = int(re.search(rf"{status}: step (\d+) of 4000", output)[1])  # type: ignore[index]
    assert max(run.checkpoints.iterdir()).name == f"step-{stopped:012d}"
    resume_run(run, context, stop_at=stopped + 3)
    straight = train_run(experiment(training={"max_steps": 4000}), context, stop_at=stopped + 3).run
    assert hashes(run) == hashes(straight)


def test_a_run_can_be_trained_watched_and_read_from_python(context: RunContext, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    run = gptkit.train(experiment(), runs_folder=tmp_path / "r", data_dir=tmp_path, listener=seen.append)
    assert [type(event).__name__ for event in seen[:2]] == ["RunStarted", "StepFinished"]
    assert gptkit.open_run("latest", runs_folder=tmp_path / "r").path == run.path
    model, tokenizer = run.load()
    tokens = torch.from_numpy(tokenizer.encode("12 times").astype("int64"))[None]
    assert model(tokens).shape == (1, 8, tokenizer.vocab_size)
    assert run.metrics()[-1]["step"] == 12
    assert run.generate("12 ", max_new_tokens=9, seed=1) == run.generate("12 ", max_new_tokens=9, seed=1)
    assert len(run.generate("12 ", max_new_tokens=9)) == 12
    with pytest.raises(ExperimentError, match=r"the sampling: top_p = 0: should be greater than 0"):
        run.generate("12 ", top_p=0)


@pytest.mark.slow
def test_training_leaves_torch_as_it_was(context: RunContext) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    train_run(experiment(training={"threads": 2}), context)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_the_clock_of_training_leaves_evaluation_out(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "evaluate", lambda *args, **kwargs: time.sleep(0.3) or SplitLoss(1.0, 1))
    trained = train_run(experiment(evaluation={"eval_interval": 4}), context)
    assert trained.progress.seconds < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [None, 7, {"device": "cpu"}, {"device": "cpu", "precision": "bf16", "threads": 10**9, "compile": False}],
)
def test_a_forged_record_does_not_decide_how_a_run_computes(context: RunContext, environment: object) -> None:
    run = train_run(experiment(), context, stop_at=3).run
    write_record(run, {**run.record(), "environment": environment})
    seen: list[events.Event] = []
    resume_run(run, RunContext(context.runs_folder, context.folders, seen.append), stop_at=4)
    checked = next(event for event in seen if isinstance(event, events.ResumeChecked))
    assert checked.differences


def test_a_record_without_the_text_is_refused(context: RunContext) -> None:
    run = train_run(experiment(), context, stop_at=3).run
    write_record(run, {**run.record(), "dataset": ["not", "a", "table"]})
    with pytest.raises(DataError, match="none recorded"):
        resume_run(run, context)


# What happens between steps


def test_a_sample_that_fails_is_one_warning_and_training_goes_on(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fails(*arguments: object, **named: object) -> None:
        calls.append(1)
        assert list(next(context.runs_folder.iterdir()).glob("checkpoints/step-*"))  # saved before
        raise ValueError("no text today")

    monkeypatch.setattr(session, "generate", fails)
    seen: list[events.Event] = []
    result = train_run(
        experiment(sampling={"sample_interval": 2}, checkpoints={"checkpoint_interval": 2}),
        replace(context, listener=seen.append),
    )
    assert result.status == "finished"
    warnings = [event.message for event in seen if isinstance(event, events.Warned)]
    assert warnings == [
        "no sample at step 2: ValueError: no text today\n"
        "No more are drawn in this session; training continues."
    ]
    assert calls == [1]


def test_a_tokenizer_whose_text_comes_otherwise_one_by_one_is_warned_of_before_training() -> None:
    class Halves(ByteTokenizer):
        def decode(self, ids: Sequence[int]) -> str:
            return bytes(list(ids)).decode("utf-8", "ignore")

        def stream_decoder(self) -> StreamDecoder:
            return StreamDecoder(self)

    class Raises(ByteTokenizer):
        def stream_decoder(self) -> StreamDecoder:
            raise KeyError(3)

    ids = [*"a naïve café".encode()]
    assert wrong_stream(ByteTokenizer(), ids) == wrong_stream(Halves(), [*b"plain"]) == ""
    assert wrong_stream(Halves(), ids) == (
        "one by one, its ids decode to 'a nave caf' where all at once they decode to 'a naïve café'."
    )
    assert wrong_stream(Raises(), ids) == "its stream decoder fails: KeyError: 3."


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_evaluated_continues_as_if_not(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = experiment(
        training={"log_interval": 3},
        evaluation={"eval_interval": 4},
        checkpoints={"checkpoint_interval": 4},
    )
    straight = train_run(recipe, context).run
    folder = next(context.runs_folder.iterdir())
    folder.rename(context.runs_folder.parent / "straight")
    straight = Run(context.runs_folder.parent / "straight")
    monkeypatch.setattr(session, "evaluate", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, context)
    monkeypatch.undo()
    run = Run(next(context.runs_folder.iterdir()))
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000000004"]
    assert [row["step"] for row in run.metrics()] == [3, 4]
    assert "val_loss" not in run.metrics()[1]
    resume_run(run, context)
    assert hashes(run) == hashes(straight)
    assert losses(run) == losses(straight)
    assert [row["grad_norm"] for row in run.metrics()] == [row["grad_norm"] for row in straight.metrics()]
    state, wanted = (one.checkpoint("last").state["progress"] for one in (run, straight))
    assert {**state, "seconds": 0} == {**wanted, "seconds": 0}


def test_a_val_loss_that_is_not_finite_ends_the_run_before_its_weights_are_kept(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [SplitLoss(2.0, 1), SplitLoss(float("nan"), 1)]
    monkeypatch.setattr(session, "evaluate", lambda *arguments, **named: values.pop(0))
    recipe = experiment(evaluation={"eval_interval": 4}, checkpoints={"checkpoint_interval": 4})
    with pytest.raises(DivergedError, match="step 8: the val loss is nan"):
        train_run(recipe, context)
    run = Run(next(context.runs_folder.iterdir()))
    assert [path.name[:6] for path in sorted(run.checkpoints.iterdir())] == [".bad-s", "step-0"]
    assert run.record()["status"] == "diverged"
    monkeypatch.undo()
    assert resume_run(run, context).status == "finished"


# Which tokens an evaluation predicts


@pytest.mark.slow
def test_a_run_of_an_earlier_version_keeps_its_way_to_evaluate(context: RunContext) -> None:
    recipe = experiment(evaluation={"eval_interval": 4}, data={"val_fraction": 0.012})
    new = train_run(recipe, context).run
    setup = replace(prepare_new(recipe, context), evaluation=EvaluationRule.WHOLE_WINDOWS)
    assert (len(setup.corpus.val) - 1) % 16
    old = train_new(setup, context, StepPlan(8, 12)).run
    record = old.record()
    assert new.record()["evaluation"] == "every token"
    assert record.pop("evaluation") == "whole windows"
    write_record(old, record)
    assert replay_run(old, context).identical
    assert resume_run(old, context).status == "finished"
    assert "evaluation" not in old.record()
    assert hashes(old) == hashes(new)
    assert [row[1] for row in losses(old)] == [row[1] for row in losses(new)]
    assert not {row[2] for row in losses(old) if row[2]} & {row[2] for row in losses(new)}
    again = rerun_run(old, context)
    assert again.comparison
    assert again.comparison.identical
    assert again.trained.run.record()["evaluation"] == "whole windows"
    resumed = train_run(recipe, context, stop_at=6).run
    resume_run(resumed, context)
    assert losses(resumed) == losses(new)
