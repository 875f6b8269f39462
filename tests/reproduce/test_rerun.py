"""`gptkit rerun`: a run trained again from the start is identical, or the differences are named."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from gptkit.cli.signals import StopFlag
from gptkit.events import RunStatus
from gptkit.runs import Run, lock_run, run_ids
from gptkit.runs.folder import list_steps
from gptkit.training import trainer
from tests.support import Command, run_of, write_record

QUICK = ("--set", "training.log_interval=2", "--set", "evaluation.eval_interval=6")


@pytest.fixture
def train(tiny_experiment: Path, gptkit_command: Command) -> Command:
    def run(*more: object) -> Run:
        done = gptkit_command("train", tiny_experiment, "--steps", 8, *QUICK, *more, "--quiet")
        assert done.code == 0, done.err
        return Run(Path(done.out.strip()))

    return run  # type: ignore[return-value]


def newest(*others: Run) -> Run:
    (name,) = set(run_ids(Path("runs"))) - {run.id for run in others}
    return Run(Path("runs") / name)


def snapshot(run: Run) -> dict[str, bytes]:
    return {
        str(path.relative_to(run.path)): path.read_bytes() for path in run.path.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_a_run_trained_again_is_a_new_run_that_is_identical(train: Command, gptkit_command: Command) -> None:
    run = train()
    before = snapshot(run)
    done = gptkit_command("rerun", "latest")
    assert (done.code, done.err) == (0, "")
    again = newest(run)
    verdict = done.out.splitlines()[-1]
    assert verdict.startswith(f"identical: {again.id} has the same weights and optimizer state at step 8")
    assert "and 6 recorded losses" in verdict
    assert again.experiment_file.read_bytes() == run.experiment_file.read_bytes()
    assert again.record()["rerun_of"] == run.id
    assert again.record()["status"] == "finished"
    assert snapshot(run) == before
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [one.checkpoints / "step-000000000008" / name for one in (run, again)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_quiet_prints_the_new_folder_alone(train: Command, gptkit_command: Command) -> None:
    run = train()
    assert gptkit_command("rerun", run.path, "--quiet").out.strip() == str(newest(run).path)


@pytest.mark.slow
def test_a_run_that_was_stopped_is_trained_again_to_that_step(
    train: Command, gptkit_command: Command
) -> None:
    run = train("--stop-at", 3)
    done = gptkit_command("rerun", run.id)
    assert done.code == 0
    assert "at step 3 and 1 recorded losses" in done.out
    assert (newest(run).record()["status"], newest(run).record()["step"]) == ("stopped", 3)


@pytest.mark.slow
def test_a_run_that_was_resumed_past_its_end_is_trained_again_as_far(
    train: Command, gptkit_command: Command
) -> None:
    run = train("--set", "schedule.type=constant")
    assert gptkit_command("resume", run.id, "--steps", 11, "--quiet").code == 0
    done = gptkit_command("rerun", run.id)
    assert (done.code, done.err) == (0, "")
    assert "identical" in done.out
    assert newest(run).record()["step"] == 11


@pytest.mark.slow
def test_a_run_that_crashed_is_trained_again_to_its_last_recorded_step(
    train: Command, gptkit_command: Command
) -> None:
    run = train("--stop-at", 6)
    record = run.record()
    write_record(run, {**{key: record[key] for key in record if key != "step"}, "status": "running"})
    done = gptkit_command("rerun", run.id)
    assert done.code == 0
    assert newest(run).record()["step"] == 6


@pytest.mark.slow
def test_a_run_without_checkpoints_is_compared_by_its_losses(train: Command, gptkit_command: Command) -> None:
    run = train("--no-save")
    done = gptkit_command("rerun", run.id)
    assert done.code == 0
    assert "has 6 recorded losses" in done.out
    assert "weights were not compared" in done.out


@pytest.mark.slow
def test_a_run_that_began_from_another_does_so_again(train: Command, gptkit_command: Command) -> None:
    source = train()
    run = train("--load", source.id, "--stop-at", 2)
    assert gptkit_command("rerun", run.id).code == 0
    assert newest(source, run).record()["loaded_from"] == run.record()["loaded_from"]
    source.path.rename(source.path.with_name("moved"))
    refused = gptkit_command("rerun", run.id)
    assert refused.code == 5
    assert f"began from the weights of run {source.id}, which is not in runs" in refused.err


@pytest.mark.slow
def test_other_weights_are_exit_code_5_and_named(
    train: Command, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train()
    good = trainer.learning_rate_factor
    monkeypatch.setattr(trainer, "learning_rate_factor", lambda *given, **named: 1.01 * good(*given, **named))
    different = gptkit_command("rerun", run.id)
    assert different.code == 5
    assert f"different: {newest(run).id} has other values of" in different.err
    assert "tensors (model: blocks.0." in different.err
    assert "The first step whose loss differs: 2." in different.err
    assert "The environment is as recorded" in different.err


def test_an_edited_experiment_is_named_and_nothing_is_trained(
    train: Command, gptkit_command: Command
) -> None:
    run = train("--stop-at", 2)
    text = run.experiment_file.read_text()
    run.experiment_file.write_text(text.replace("momentum = 0.9", "momentum = 0.5"))
    refused = gptkit_command("rerun", run.id)
    assert (refused.code, refused.out) == (5, "")
    assert "optimizer.momentum 0.9 -> 0.5." in refused.err
    assert "machine" not in refused.err
    assert run_ids(Path("runs")) == [run.id]


@pytest.mark.slow
def test_edits_that_change_no_weight_do_not_change_what_is_compared(
    train: Command, gptkit_command: Command
) -> None:
    run = train()
    text = run.experiment_file.read_text()
    for old, new in (("log_interval = 2", "log_interval = 1"), ("eval_interval = 6", "eval_interval = 3")):
        assert old in text
        text = text.replace(old, new)
    run.experiment_file.write_text(text)
    done = gptkit_command("rerun", run.id)
    assert (done.code, "and 6 recorded losses" in done.out) == (0, True), done


@pytest.mark.slow
def test_a_run_that_went_on_with_another_experiment_is_refused_with_the_step(
    train: Command, gptkit_command: Command
) -> None:
    run = train("--stop-at", 4)
    assert gptkit_command("resume", run.id, "--set", "training.grad_clip=0.5", "--quiet").code == 0
    refused = gptkit_command("rerun", run.id)
    assert refused.code == 2
    assert "went on with training.grad_clip 1.0 -> 0.5 after step 4" in refused.err
    assert run_ids(Path("runs")) == [run.id]
    assert gptkit_command("resume", run.id, "--verify").code == 0


@pytest.mark.slow
def test_sessions_that_logged_otherwise_are_compared_by_their_weights(
    train: Command, gptkit_command: Command
) -> None:
    run = train("--stop-at", 4)
    settings = ("--set", "training.log_interval=1", "--set", "evaluation.eval_interval=1")
    assert gptkit_command("resume", run.id, *settings, "--quiet").code == 0
    done = gptkit_command("rerun", run.id)
    assert done.code == 0
    assert "has the same weights and optimizer state at step 8 as" in done.out


@pytest.mark.slow
def test_an_environment_that_a_session_had_is_named(train: Command, gptkit_command: Command) -> None:
    run = train("--stop-at", 4)
    record = run.record()
    write_record(run, {**record, "environment": {**record["environment"], "torch": "1.0"}})
    assert gptkit_command("resume", run.id, "--quiet").code == 0
    resumed = run.record()["resumed"]
    assert [(one["step"], one["changes"], len(one["differences"])) for one in resumed] == [(4, [], 1)]
    write_record(run, {**run.record(), "environment": record["environment"]})  # as on the first machine
    done = gptkit_command("rerun", run.id)
    assert done.code == 0
    assert "although the environment differs from the recorded one: torch 1.0 -> " in done.out
    assert done.out.rstrip().endswith(" from step 5)")


@pytest.mark.slow
def test_a_loss_that_differs_from_the_recorded_one_is_found(train: Command, gptkit_command: Command) -> None:
    run = train()
    metrics = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[2]["val_loss"] += 1e-12
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    different = gptkit_command("rerun", run.id)
    assert different.code == 5
    assert "the losses of 1 steps (6)" in different.err
    assert "tensors" not in different.err


@pytest.mark.slow
def test_a_changed_environment_is_named(train: Command, gptkit_command: Command) -> None:
    run = train()
    record = run.record()
    record["environment"]["torch"] = "1.0"
    write_record(run, record)
    done = gptkit_command("rerun", run.id)
    assert done.code == 0
    assert "although the environment differs from the recorded one: torch 1.0 -> " in done.out


def test_a_tokenizer_that_is_not_the_recorded_one_is_refused(train: Command, gptkit_command: Command) -> None:
    run = train("--stop-at", 2)
    record = run.record()
    record["tokenizer"]["sha256"] = "another"
    write_record(run, record)
    refused = gptkit_command("rerun", run.id)
    assert (refused.code, "is not the tokenizer that run.json recorded" in refused.err) == (5, True)


@pytest.mark.slow
def test_a_tokenizer_that_comes_out_otherwise_or_whose_file_is_gone_is_that_of_the_run(
    train: Command, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    file = Path("mine/tokenizer.json")
    file.parent.mkdir()
    text = Path("data/mine.txt").read_text()
    ids = {character: number for number, character in enumerate(sorted(set(text)))}
    model = {"type": "BPE", "vocab": ids, "merges": [], "dropout": None}
    file.write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    run = train("--set", "tokenizer={ type = 'hf', path = 'mine' }", "--stop-at", 2)
    file.write_text(file.read_text().replace('"version": "1.0"', '"version": "1.0", "truncation": null'))
    changed = gptkit_command("rerun", run.id)
    assert (changed.code, "identical: " in changed.out) == (0, True), changed
    assert "the tokenizer trained on the text, of which the run's own was used" in changed.out
    file.unlink()
    gone = gptkit_command("rerun", run.id)
    assert (gone.code, "identical: " in gone.out, "differs" in gone.out) == (0, True, False), gone


@pytest.mark.slow
def test_a_run_is_continued_and_repeated_from_any_folder(
    train: Command, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(train("--stop-at", 4).path.absolute())
    elsewhere = Path("elsewhere")
    (elsewhere / "data").mkdir(parents=True)
    (elsewhere / "data/mine.txt").write_text("another text of the same name. " * 50)
    monkeypatch.chdir(elsewhere)
    resumed = gptkit_command("resume", run.path)
    assert resumed.out.startswith("resume: exact, from step 4\n"), resumed
    assert gptkit_command("rerun", run.path).code == 0
    text = run.path.parents[1] / "data/mine.txt"
    moved = text.rename("kept.txt").absolute()
    changed = gptkit_command("resume", run.path)
    assert (changed.code, "the text of run" in changed.err) == (4, True)  # the other of the same name
    Path("data/mine.txt").unlink()
    refused = gptkit_command("resume", run.path)
    assert refused.code == 4
    assert f"The run was trained in {run.path.parents[1]}. " in refused.err
    advice = f"gptkit resume {run.path} --set data.dataset.path="
    assert refused.err.endswith(f"If the text is elsewhere now: {advice}FILE\n")
    found = gptkit_command("resume", run.path, "--set", f"data.dataset.path={moved}")
    assert (found.code, found.out.partition(",")[0]) == (0, "resume: exact")
    assert gptkit_command("resume", run.path, "--quiet").code == 0  # it is recorded


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(train: Command, gptkit_command: Command) -> None:
    run = train()
    model = run.checkpoints / "step-000000000008" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert list_steps(run.checkpoints) == [6, 8]
    done = gptkit_command("rerun", run.id)
    assert done.code == 0
    assert "optimizer state at step 6" in done.out


# Refused


def test_a_run_that_the_clock_ended_is_refused(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--minutes", 0.001, "--quiet"))
    refused = gptkit_command("rerun", run.id)
    assert refused.code == 2
    assert "trained for 0.001 minutes" in refused.err
    assert f"gptkit train {run.experiment_file} --steps N" in refused.err
    assert run_ids(Path("runs")) == [run.id]


def test_a_text_that_changed_or_is_gone_is_refused(train: Command, gptkit_command: Command) -> None:
    run = train()
    text = Path("data/mine.txt")
    text.write_text(text.read_text() + "more")
    changed = gptkit_command("rerun", run.id)
    assert (changed.code, "the text of run" in changed.err) == (4, True)
    text.unlink()
    assert gptkit_command("rerun", run.id).code == 4
    assert run_ids(Path("runs")) == [run.id]


def test_a_run_in_use_and_one_that_made_no_step_are_refused(train: Command, gptkit_command: Command) -> None:
    run = train()
    with lock_run(run):
        assert gptkit_command("rerun", run.id).code == 7
    write_record(run, {**run.record(), "step": 0})
    refused = gptkit_command("rerun", run.id)
    assert (refused.code, "made no step" in refused.err) == (5, True)
    assert run_ids(Path("runs")) == [run.id]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_saved(
    number: int, code: int, train: Command, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real, asked = train(), StopFlag.__call__, []

    def after_two_steps(flag: StopFlag) -> RunStatus | None:
        asked.append(1)
        if len(asked) == 3:
            signal.raise_signal(number)
        return real(flag)

    monkeypatch.setattr(StopFlag, "__call__", after_two_steps)
    stopped = gptkit_command("rerun", run.id)
    assert stopped.code == code
    assert "saved" in stopped.err
    assert "identical" not in stopped.out
    again = newest(run)
    assert again.record()["status"] == ("interrupted" if code == 130 else "terminated")
    assert list_steps(again.checkpoints) == [again.record()["step"]]
