"""`gptkit resume`: continues a run that was stopped, damaged, moved or interrupted by the disk."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from gptkit.experiment.identity import CHANGE_RECORDED_LOSSES, values_of
from gptkit.runs import Run, lock_run
from tests.support import Command, resolved, run_of, small_text
from tests.support.sums import hashes
from tools.support.disks import disk_that_fails


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_and_resumed_is_the_same_as_never_stopped(
    optimizer: str, schedule: str, tiny_experiment: Path, gptkit_command: Command
) -> None:
    settings = ("--drop", 0.1, "--set", f"optimizer.type={optimizer}", "--set", f"schedule.type={schedule}")
    straight = run_of(gptkit_command("train", tiny_experiment, *settings, "--quiet"))
    stopped = run_of(gptkit_command("train", tiny_experiment, *settings, "--stop-at", 9, "--quiet"))
    assert stopped.record()["status"] == "stopped"
    assert stopped.record()["step"] == 9
    assert hashes(stopped) != hashes(straight)
    again = run_of(gptkit_command("resume", stopped.id, "--stop-at", 13, "--quiet"))
    assert again.record()["step"] == 13
    resumed = gptkit_command("resume", "latest")
    assert (resumed.code, resumed.err) == (0, "")
    assert resumed.out.startswith("resume: exact, from step 13\n")
    assert hashes(stopped) == hashes(straight)
    numbers = [(row["step"], row["train_loss"], row.get("val_loss")) for row in straight.metrics()]
    assert [(row["step"], row["train_loss"], row.get("val_loss")) for row in stopped.metrics()] == numbers


@pytest.mark.slow
def test_resume_continues_past_the_end_and_records_the_new_end(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--set", "schedule.type=constant", "--quiet"))
    stopped = gptkit_command("resume", run.id, "--steps", 26, "--stop-at", 23, "--quiet")
    assert run_of(stopped).path == run.path
    assert (run.record()["status"], run.record()["step"]) == ("stopped", 23)
    assert gptkit_command("resume", run.id, "--quiet").code == 0
    assert (run.record()["status"], run.record()["step"]) == ("finished", 26)
    assert resolved(run)["training"]["max_steps"] == 20  # the schedule of the recorded experiment holds
    assert f"{run.id}  finished" in gptkit_command("runs").out
    assert "26/26" in gptkit_command("runs").out


@pytest.mark.slow
def test_resuming_a_finished_run_reports_that_and_changes_nothing(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--quiet"))
    before, metrics = hashes(run), run.metrics()
    again = gptkit_command("resume", run.id)
    assert (again.code, again.err) == (0, "")
    assert "finished: step 20 of 20" in again.out
    assert gptkit_command("resume", run.id, "--steps", 20, "--quiet").code == 0
    assert (hashes(run), run.metrics(), run.record()["status"]) == (before, metrics, "finished")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_leads_to_the_same_weights(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(
        gptkit_command("train", tiny_experiment, "--set", "checkpoints.checkpoint_interval=8", "--quiet")
    )
    before = hashes(run)
    (run.checkpoints / "step-000000000020" / "optimizer.safetensors").write_bytes(b"")
    written = gptkit_command("generate", run.id, "-n", 5)
    assert written.code == 0
    assert "optimizer.safetensors has 0 bytes" in written.err
    resumed = gptkit_command("resume", run.id)
    assert resumed.code == 0
    first = resumed.out.splitlines()[0]
    assert first == "resume: exact, from step 16; the 4 steps recorded after it are trained again"
    assert "optimizer.safetensors has 0 bytes" in resumed.err
    assert "set aside as .bad-step-000000000020" in resumed.err
    assert hashes(run) == before
    assert len(list(run.checkpoints.glob(".bad-step-000000000020-*"))) == 1


@pytest.mark.slow
def test_a_run_whose_folder_was_renamed_or_copied_works_as_before(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    straight = run_of(gptkit_command("train", tiny_experiment, "--quiet"))
    stopped = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 7, "--quiet"))
    Path("archive").mkdir()
    moved = Run(stopped.path.rename("archive/best so far"))
    resumed = gptkit_command("resume", moved.path)
    assert (resumed.code, resumed.err) == (0, "")
    assert hashes(moved) == hashes(straight)
    assert "gptkit generate 'archive/best so far'\n" in resumed.out  # to be copied and run unchanged
    assert gptkit_command("generate", moved.path, "-n", 5).code == 0


def test_checkpoints_are_not_set_aside_for_an_id_that_was_edited(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 2, "--quiet"))
    record, checkpoints = run.path / "run.json", sorted(run.checkpoints.iterdir())
    record.write_text(record.read_text().replace(run.id, "other"))
    refused = gptkit_command("resume", run.path)
    assert refused.code == 5
    assert f"run.json has the id 'other'; the run's checkpoints have the id {run.id}." in refused.err
    assert sorted(run.checkpoints.iterdir()) == checkpoints


@pytest.mark.slow
def test_a_field_that_is_set_counts_from_there_on_and_is_asked_for_once(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 9, "--quiet"))
    text = run.experiment_file.read_text()
    run.experiment_file.write_text(text.replace("seed = 7\n", "seed = 2\n"))
    refused = gptkit_command("resume", run.id)
    assert (refused.code, refused.out) == (5, "")
    edited = f"{run.experiment_file} is not what run {run.id} was trained with: seed 7 -> 2."
    assert edited in refused.err
    assert f"gptkit resume {run.path} --set seed=2\n" in refused.err
    meant = ("--set", "seed=2", "--set", "optimizer.learning_rate=0.03", "--set", "checkpoints.keep_last=9")
    exact = gptkit_command("resume", run.id, *meant, "--require-exact")
    assert (exact.code, "seed 7 -> 2, optimizer.learning_rate 0.02 -> 0.03" in exact.err) == (3, True)
    resumed = gptkit_command("resume", run.id, *meant, "--stop-at", 12)
    assert resumed.out.startswith(
        "resume: valid, not bit-identical (seed 7 -> 2, optimizer.learning_rate 0.02 -> 0.03), from step 9\n"
    )
    assert (resolved(run)["seed"], resolved(run)["checkpoints"]["keep_last"]) == (2, 9)
    assert run.record()["experiment"] == values_of(run.experiment())
    assert run.record()["resumed"] == [
        {
            "step": 9,
            "changes": [
                {"field": "seed", "old": 7, "new": 2},
                {"field": "optimizer.learning_rate", "old": 0.02, "new": 0.03},
            ],
            "differences": [],
        }
    ]
    assert gptkit_command("runs", "verify", run.id).code == 0
    assert gptkit_command("resume", run.id).out.startswith("resume: exact, from step 12\n")
    assert gptkit_command("resume", run.id, "--verify").code == 0
    assert run.record()["status"] == "finished"


@pytest.mark.slow
def test_fields_on_which_no_weight_depends_may_be_set_and_it_stays_exact(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    """All of identity.CHANGE_NO_WEIGHT at once; a field that did change a weight would show in the hashes."""
    straight = run_of(gptkit_command("train", tiny_experiment, "--drop", 0.1, "--quiet"))
    stopped = run_of(gptkit_command("train", tiny_experiment, "--drop", 0.1, "--stop-at", 9, "--quiet"))
    settings = {
        **{"name": "other", "training.log_interval": 3, "tracking": "{}"},
        **{
            "evaluation.eval_interval": 4,
            "evaluation.eval_tokens": 40,
            "evaluation.stop_after_bad_evals": 99,
        },
        **{"checkpoints.checkpoint_interval": 3, "checkpoints.keep_last": 2, "checkpoints.keep_every": 5},
        **{"sampling.prompt": "a", "sampling.max_new_tokens": 3, "sampling.temperature": 0.5},
        **{"sampling.top_k": 3, "sampling.top_p": 0.5, "sampling.min_p": 0.1, "sampling.stop": '["z"]'},
        **{"sampling.sample_interval": 2, "data.dataset.separator": "--"},
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    resumed = gptkit_command("resume", stopped.id, *words)
    assert (resumed.code, resumed.err) == (0, "")
    assert resumed.out.startswith("resume: exact, from step 9\n")
    assert hashes(stopped) == hashes(straight)
    changed = stopped.record()["resumed"][0]["changes"]
    assert {one["field"] for one in changed} == set(CHANGE_RECORDED_LOSSES)


@pytest.mark.slow
def test_a_change_that_now_counts_from_an_earlier_step_is_named(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    settings = ("--set", "checkpoints.checkpoint_interval=4", "--stop-at", 9, "--quiet")
    run = run_of(gptkit_command("train", tiny_experiment, *settings))
    settings = ("--set", "training.grad_clip=0.5", "--stop-at", 11)
    assert gptkit_command("resume", run.id, *settings).code == 0
    for step in (9, 11):
        (run.checkpoints / f"step-{step:012d}" / "model.safetensors").write_bytes(b"")
    refused = gptkit_command("resume", run.id, "--require-exact")
    assert (refused.code, "training.grad_clip 1.0 -> 0.5 from step 9, not 10." in refused.err) == (3, True)
    resumed = gptkit_command("resume", run.id)
    assert "(training.grad_clip 1.0 -> 0.5 from step 9, not 10), from step 8; " in resumed.out
    assert [(one["step"], len(one["changes"])) for one in run.record()["resumed"]] == [(8, 1)]
    assert gptkit_command("runs", "verify", run.id).code == 0


@pytest.mark.slow
def test_whether_the_schedule_changes_with_the_number_of_steps_is_said(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    shorter = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 18, "--quiet"))
    longer = Run(shorter.path.with_name("longer"))
    shutil.copytree(shorter.path, longer.path)
    done = gptkit_command("resume", shorter.id, "--steps", 22)
    assert done.out.startswith(
        "resume: exact, from step 18; its schedule is unchanged and ends at step 20, later steps have its "
        "final learning rate\n"
    )
    assert "For a longer schedule: --set training.max_steps=22." in done.err
    done = gptkit_command("resume", longer.id, "--set", "training.max_steps=22")
    assert done.out.startswith(
        "resume: valid, not bit-identical (training.max_steps 20 -> 22), from step 18\n"
    )
    rates = [run.metrics()[-1]["learning_rate"] for run in (shorter, longer)]
    assert rates[0] == 0 < rates[1]
    assert [run.record()["step"] for run in (shorter, longer)] == [22, 22]


@pytest.mark.parametrize(
    ("setting", "code", "words"),
    [
        ("optimizer.learning_rate=fast", 2, "optimizer.learning_rate"),
        ("training.max_steps=2", 2, "is at step 3 already"),
        ("model.n_embd=64", 2, "the run's weights depend on: model.n_embd is 32, not 64."),
        ("model.position=alibi", 2, "the run's weights depend on: model.position is"),
        ("tokenizer.type=byte", 2, 'the run\'s weights depend on: tokenizer is "char", not "byte".'),
        ("optimizer=adamw", 5, "does not fit the run"),
    ],
)
def test_a_field_that_cannot_be_set_is_refused_and_the_run_is_as_it_was(
    setting: str, code: int, words: str, tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 3, "--quiet"))
    files = (run.experiment_file, run.path / "run.json")
    before = [file.read_bytes() for file in files]
    refused = gptkit_command("resume", run.id, "--set", setting)
    assert (refused.code, words in refused.err) == (code, True), refused.err
    assert code == 5 or refused.out == ""  # nothing reports that resuming is valid
    assert [file.read_bytes() for file in files] == before


@pytest.mark.slow
def test_the_number_of_threads_is_that_of_the_run_or_the_one_that_is_set(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 3, "--quiet"))
    was = run.record()["environment"]["threads"]
    more = gptkit_command("resume", run.id, "--set", f"training.threads={was + 1}", "--stop-at", 4)
    assert more.out.startswith(
        f"resume: valid, not bit-identical (threads {was} -> {was + 1}), from step 3\n"
    )
    assert run.record()["environment"]["threads"] == was + 1
    assert gptkit_command("resume", run.id, "--stop-at", 5).out.startswith("resume: exact, from step 4\n")


def test_a_run_in_use_is_left_alone(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 3, "--quiet"))
    record = run.record()
    with lock_run(run):
        refused = gptkit_command("resume", run.id)
    assert (refused.code, refused.out) == (7, "")
    assert f"run {run.id} is in use" in refused.err
    assert run.record() == record
    assert gptkit_command("generate", run.id, "-n", 3).code == 0  # reading needs no lock


@pytest.mark.slow
def test_a_text_that_changed_is_found_out_before_anything_is_trained(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 3, "--quiet"))
    Path("data/mine.txt").write_text(small_text().replace("lamp", "lump"))
    refused = gptkit_command("resume", run.id)
    assert refused.code == 4
    assert len(re.findall(r"[0-9a-f]{64}", refused.err)) == 2
    Path("data/mine.txt").write_text(small_text())
    assert gptkit_command("resume", run.id, "--quiet").code == 0


@pytest.mark.slow
def test_a_disk_that_fails_while_training_ends_with_code_6_and_the_run_can_be_resumed(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    """Wherever it fails: what was committed verifies, and leads to the weights of an undisturbed run."""
    settings = (
        "--steps",
        6,
        "--set",
        "checkpoints.checkpoint_interval=2",
        "--set",
        "training.log_interval=2",
    )
    undisturbed = hashes(run_of(gptkit_command("train", tiny_experiment, *settings, "--quiet")))
    messages, resumable = [], 0
    for at in range(1, 400, 17):
        runs = Path(f"runs{at}")
        with disk_that_fails(at, stays_full=True):
            done = gptkit_command("train", tiny_experiment, *settings, "--quiet", "--runs-dir", runs)
        if done.code == 0:
            break
        assert (done.code, done.out) == (6, "")
        assert done.err.startswith("gptkit: disk full while ")
        assert done.err.count("\n") == 1
        messages.append(done.err)
        assert not list(runs.glob("*/checkpoints/.tmp-*"))
        if list(runs.glob("*/checkpoints/step-*")):
            resumable += 1
            resumed = gptkit_command("resume", "latest", "--runs-dir", runs, "--quiet")
            assert hashes(run_of(resumed)) == undisturbed
    assert done.code == 0
    assert resumable >= 3
    assert [message for message in messages if "while saving step 4; last good step is 2; " in message]
