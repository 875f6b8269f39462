"""`runs verify`, `resume --verify` and `--require-exact`: the promises, on the user's own machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from gptkit import events
from gptkit.data.catalog import data_folders
from gptkit.errors import RunInterruptedError
from gptkit.files import sha256, to_json
from gptkit.reproduce.replay import replay_run
from gptkit.runs import Run, find_run, lock_run
from gptkit.runs.folder import step_folder
from gptkit.training import session
from gptkit.training import trainer as loop
from gptkit.training.context import RunContext
from gptkit.training.loss import SplitLoss
from tests.support import Command, Install, run_of, write_record
from tests.support.third_party import TOKENIZER

SETTINGS = (
    *("--drop", 0.1, "--set", "checkpoints.checkpoint_interval=6", "--set", "training.log_interval=4"),
    *("--set", "sampling.sample_interval=10", "--set", "sampling.max_new_tokens=5"),
)


@pytest.fixture
def run(tiny_experiment: Path, gptkit_command: Command) -> Run:
    """A finished run with checkpoints of 6, 12, 18 and 20; kept are the last three."""
    trained = gptkit_command("train", tiny_experiment, *SETTINGS, "--quiet")
    assert trained.code == 0, trained.err
    return find_run("latest")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change_json(path: Path, **changes: object) -> None:
    path.write_bytes(to_json(json.loads(path.read_text()) | changes))


def forge(checkpoint: Path, name: str, data: bytes) -> None:
    """Puts other bytes into a checkpoint, with a manifest that agrees."""
    (checkpoint / name).write_bytes(data)
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    (checkpoint / "MANIFEST.json").write_bytes(to_json(manifest))


# Every file against its hashes


@pytest.mark.slow
def test_an_undamaged_run_verifies_and_nothing_in_it_changes(run: Run, gptkit_command: Command) -> None:
    before = contents(run.path)
    done = gptkit_command("runs", "verify", run.id)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "ok    experiment.toml",
        "ok    run.json: finished, step 20",
        "ok    tokenizer.json: SHA-256 as recorded",
        "ok    metrics.jsonl: 5 lines",
        "ok    evaluations.json: 65 blocks",
        *(f"ok    checkpoint {step}" for step in (12, 18, 20)),
        "ok    samples: 2 of them",
    ]
    assert contents(run.path) == before
    assert gptkit_command("runs", "--runs-dir", "runs", "verify", "latest").code == 0
    assert gptkit_command("runs", "verify", "latest", "--runs-dir", "runs").code == 0
    assert gptkit_command("runs", "list").out == gptkit_command("runs").out != ""


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def no_experiment(run: Run) -> None:
    run.experiment_file.write_text(run.experiment_file.read_text().replace("n_layer", "n_leyar"))


def other_tokenizer(run: Run) -> None:
    tokenizer = run.tokenizer_json()
    tokenizer["characters"] = tokenizer["characters"][::-1]
    (run.path / "tokenizer.json").write_text(json.dumps(tokenizer))


def forged_shape(run: Run) -> None:
    """The optimizer state in the place of the weights: hashes agree, names do not."""
    checkpoint = step_folder(run.checkpoints, 20)
    forge(checkpoint, "model.safetensors", (checkpoint / "optimizer.safetensors").read_bytes())


def forged_optimizer(run: Run) -> None:
    checkpoint = step_folder(run.checkpoints, 20)
    forge(checkpoint, "optimizer.safetensors", (checkpoint / "model.safetensors").read_bytes())


def forged_progress(run: Run) -> None:
    checkpoint = step_folder(run.checkpoints, 20)
    state = json.loads((checkpoint / "state.json").read_text())
    state["progress"]["step"] = 19
    forge(checkpoint, "state.json", to_json(state))


def other_text(run: Run) -> None:
    checkpoint = step_folder(run.checkpoints, 18)
    state = json.loads((checkpoint / "state.json").read_text())
    forge(checkpoint, "state.json", to_json(state | {"text_sha256": "0" * 64}))


def other_experiment(run: Run) -> None:
    """A checkpoint that is whole, of another training with the same shapes, text and id."""
    checkpoint = step_folder(run.checkpoints, 18)
    state = json.loads((checkpoint / "state.json").read_text())
    state["experiment"]["optimizer"]["momentum"] = 0.5
    forge(checkpoint, "state.json", to_json(state))


def other_record(run: Run) -> None:
    record = run.record()
    record["experiment"]["seed"] = 8
    write_record(run, record)


DAMAGE = {
    "a bit of the newest": (
        lambda run: flip(step_folder(run.checkpoints, 20) / "model.safetensors"),
        r"bad   checkpoint 20: .*SHA-256 differs\); 'gptkit resume' continues from step 18",
    ),
    "a bit of an older one": (
        lambda run: flip(step_folder(run.checkpoints, 12) / "optimizer.safetensors"),
        r"bad   checkpoint 12: .*optimizer.safetensors is not what was saved .*; a newer one is undamaged",
    ),
    "a file too many": (
        lambda run: (step_folder(run.checkpoints, 20) / "more").write_text(""),
        "bad   checkpoint 20: .*unexpected more",
    ),
    "other weights": (forged_shape, "bad   checkpoint 20: the weights of step 20 are not of this model"),
    "another optimizer state": (
        forged_optimizer,
        "bad   checkpoint 20: step 20 does not fit the run: .*; its files are as saved",
    ),
    "another step": (forged_progress, "bad   checkpoint 20: step 20 does not fit the run: .*that of step 19"),
    "another experiment": (
        other_experiment,
        "bad   checkpoint 18: step 18 of run .* not trained with .*: optimizer.momentum 0.5 -> 0.9",
    ),
    "an edited record": (
        other_record,
        "bad   run.json: its experiment is not that of its experiment_sha256",
    ),
    "another text": (other_text, "bad   checkpoint 18: it was trained on another text"),
    "the experiment": (no_experiment, "bad   experiment.toml: .*did you mean 'n_layer'"),
    "the record": (
        lambda run: (run.path / "run.json").write_text("{"),
        "bad   run.json: .*cannot be read",
    ),
    "the tokenizer": (other_tokenizer, "bad   tokenizer.json: it is not what run.json recorded"),
    "the metrics": (
        lambda run: (run.path / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": "x"}\n'),
        "bad   metrics.jsonl: no JSON object with a step in line 2, 3",
    ),
    "the losses of blocks": (
        lambda run: (run.path / "evaluations.json").write_text(
            re.sub('"val_loss": ', '"val_loss": 1', (run.path / "evaluations.json").read_text())
        ),
        "bad   evaluations.json: the val loss of its best evaluation is not the mean of its blocks",
    ),
    "a sample": (
        lambda run: (run.samples / "step-000000000010.txt").write_bytes(b"\xff"),
        "bad   samples/step-000000000010.txt: it cannot be read as UTF-8",
    ),
    "all checkpoints": (
        lambda run: [shutil.rmtree(folder) for folder in run.checkpoints.iterdir()],
        "bad   checkpoints: there is no checkpoint of run .*gptkit train tiny.toml",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_named_with_what_to_do(what: str, run: Run, gptkit_command: Command) -> None:
    damage, expected = DAMAGE[what]
    damage(run)
    before = contents(run.path)
    done = gptkit_command("runs", "verify", run.id)
    assert done.code == 5
    lines = [line for line in done.out.splitlines() if line.startswith("bad ")]
    assert any(re.match(expected, line) for line in lines), done.out
    assert " bad.\n" in done.err
    assert contents(run.path) == before


def test_a_plugin_that_is_not_installed_is_not_damage(
    tiny_experiment: Path, gptkit_command: Command, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    settings = ("--set", "tokenizer=upper", "--stop-at", 2, "--quiet")
    run = run_of(gptkit_command("train", tiny_experiment, *settings))
    monkeypatch.setenv("GPTKIT_PLUGINS", "")
    verified = gptkit_command("runs", "verify", run.id)
    assert (verified.code, "can be checked without it is as it was saved" in verified.err) == (3, True)
    lines = verified.out.splitlines()
    assert lines[0].startswith("skip  experiment.toml: tokenizer 'upper' comes from fancy")
    assert lines[0].endswith("pip install fancy==1.2")
    assert "ok    tokenizer.json: SHA-256 as recorded" in lines
    assert "ok    checkpoint 2: undamaged; not compared with the model" in lines
    assert not [line for line in lines if line.startswith("bad")]
    flip(step_folder(run.checkpoints, 2) / "model.safetensors")
    assert gptkit_command("runs", "verify", run.id).code == 5  # damage is found without it too


@pytest.mark.slow
def test_leftovers_of_an_interruption_are_named_but_are_not_damage(run: Run, gptkit_command: Command) -> None:
    for name in (".tmp-3-abc", ".trash-step-000000000003-abc", ".bad-step-000000000003-abc"):
        (run.checkpoints / name).mkdir()
    (run.path / ".tmp-report.html-abc").write_text("<html>")
    (run.samples / ".tmp-step-000000000010.txt-abc").write_text("ROM")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "tra')
    done = gptkit_command("runs", "verify", run.id)
    assert (done.code, done.err) == (0, "")
    notes = [line for line in done.out.splitlines() if line.startswith("note ")]
    assert len(notes) == 6
    assert "its last line was cut off" in notes[0]
    assert [note.split()[1].split("/")[-1][:5] for note in notes[1:]] == [
        *(".tmp-", ".bad-", ".tmp-", ".tras", ".tmp-"),
    ]
    with lock_run(run):
        assert "is being trained now" in gptkit_command("runs", "verify", run.id).out
    assert gptkit_command("resume", run.id).code == 0
    assert [path.name[:5] for path in run.path.rglob(".*") if path.is_dir() or path.name != ".lock"] == [
        ".bad-"
    ]


# A stretch trained again


@pytest.mark.slow
def test_steps_trained_again_are_identical_and_the_run_is_unchanged(
    run: Run, gptkit_command: Command
) -> None:
    before = contents(run.path)
    done = gptkit_command("resume", run.id, "--verify")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("verify: training again to step 20 from step 18, in a temporary folder\n")
    verdict = (
        "identical: steps 19 to 20, trained again, gave the same weights, optimizer state and 2 recorded"
    )
    assert verdict in done.out
    assert "run folder" not in done.out
    assert contents(run.path) == before
    assert [entry.name for entry in Path("runs").iterdir()] == [run.id]


@pytest.mark.slow
def test_where_there_is_one_checkpoint_it_is_trained_from_the_initial_weights(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    first = gptkit_command("train", tiny_experiment, "--stop-at", 7, "--quiet")
    done = gptkit_command("resume", "latest", "--verify")
    assert done.code == 0, done.err
    assert "to step 7 from the initial weights (there is no earlier checkpoint)" in done.out
    assert "identical: steps 1 to 7" in done.out
    loaded = ("--load", Path(first.out.strip()).name, "--stop-at", 2, "--quiet", "--name", "second")
    assert gptkit_command("train", tiny_experiment, *loaded).code == 0
    refused = gptkit_command("resume", "second", "--verify")
    assert refused.code == 5
    assert "began from the weights of another run" in refused.err


@pytest.mark.slow
def test_a_time_budgeted_run_and_one_with_several_sessions_can_be_trained_again(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    assert (
        gptkit_command("train", tiny_experiment, "--minutes", 0.005, "--quiet", "--name", "timed").code == 0
    )
    done = gptkit_command("resume", "timed", "--verify")
    assert (done.code, "identical" in done.out) == (0, True), done
    keep_one = ("--set", "checkpoints.keep_last=1", "--set", "schedule.type=constant", "--steps", 7)
    assert gptkit_command("train", tiny_experiment, *keep_one, "--quiet", "--name", "longer").code == 0
    assert gptkit_command("resume", "longer", "--steps", 9, "--quiet").code == 0
    for folder in sorted(find_run("longer").checkpoints.iterdir())[:-1]:
        shutil.rmtree(folder)
    done = gptkit_command("resume", "longer", "--verify")
    assert (done.code, "identical: steps 1 to 9" in done.out) == (0, True), done


@pytest.mark.slow
def test_differences_of_tensors_and_of_the_environment_are_named(
    run: Run, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = run.record()["environment"] | {"torch": "1.0"}
    write_record(run, {**run.record(), "environment": environment})
    good = loop.learning_rate_factor
    monkeypatch.setattr(loop, "learning_rate_factor", lambda *given, **named: 1.1 * good(*given, **named))
    before = contents(run.path)
    done = gptkit_command("resume", run.id, "--verify")
    assert done.code == 5
    assert "gptkit: different: steps 19 to 20, trained again, gave other values of " in done.err
    assert "tensors (model: " in done.err
    assert "the losses of 1 steps (20)" in done.err
    assert "Differences from the recorded environment: torch 1.0 -> " in done.err
    assert contents(run.path) == before
    assert [entry.name for entry in Path("runs").iterdir()] == [run.id]


@pytest.mark.slow
def test_an_edited_experiment_is_named_by_verify_and_changes_nothing(
    run: Run, gptkit_command: Command
) -> None:
    text = run.experiment_file.read_text()
    edited = text.replace("learning_rate = 0.02", "learning_rate = 0.5").replace("seed = 7", "seed = 2")
    run.experiment_file.write_text(edited)
    before = contents(run.path)
    for command in (("runs", "verify", run.id), ("resume", run.id, "--verify"), ("resume", run.id)):
        done = gptkit_command(*command)
        assert done.code == 5
        assert "seed 7 -> 2, optimizer.learning_rate 0.02 -> 0.5." in done.out + done.err
        assert "--set seed=2 --set optimizer.learning_rate=0.5" in done.out + done.err
        assert "machine" not in done.err
    assert contents(run.path) == before
    comments = text.replace("[model]", "# wider\n[model]").replace("n_head = 2", "n_head     = 0x2")
    run.experiment_file.write_text(comments)
    assert gptkit_command("runs", "verify", run.id).out.startswith("ok    experiment.toml\n")


@pytest.mark.slow
def test_an_edit_that_changes_no_weight_is_a_note_and_the_last_steps_are_compared_as_recorded(
    run: Run, gptkit_command: Command
) -> None:
    text = run.experiment_file.read_text()
    run.experiment_file.write_text(text.replace("log_interval = 4", "log_interval = 1"))
    verified = gptkit_command("runs", "verify", run.id)
    assert verified.code == 0
    note = "note  experiment.toml: edited, but no weight depends on it: training.log_interval 4 -> 1\n"
    assert verified.out.startswith(note)
    done = gptkit_command("resume", run.id, "--verify")
    assert (done.code, "and 2 recorded losses" in done.out) == (0, True), done


@pytest.mark.slow
def test_a_loss_that_differs_from_the_recorded_one_is_found(run: Run, gptkit_command: Command) -> None:
    path = run.path / "metrics.jsonl"
    *rows, last = path.read_text().splitlines()
    row = json.loads(last)
    path.write_text("\n".join([*rows, json.dumps(row | {"val_loss": row["val_loss"] + 1e-15 * 4})]) + "\n")
    done = gptkit_command("resume", run.id, "--verify")
    assert done.code == 5
    assert "gave other values of the losses of 1 steps (20)." in done.err
    assert "The environment is as recorded" in done.err


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(run: Run) -> None:
    before = contents(run.path)
    folders = data_folders(None)
    asked: list[int] = []

    def stop() -> events.RunStatus:
        asked.append(1)
        return events.RunStatus.INTERRUPTED

    with pytest.raises(RunInterruptedError, match="is as it was"):
        replay_run(run, RunContext(folders=folders, stop_requested=stop))
    assert asked
    assert contents(run.path) == before
    assert [entry.name for entry in Path("runs").iterdir()] == [run.id]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
def test_ctrl_c_while_steps_are_trained_again_exits_with_130(
    run: Run, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = loop.cross_entropy

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return good(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "cross_entropy", interrupted)
    done = gptkit_command("resume", run.id, "--verify")
    assert done.code == 130
    assert "interrupted at step 19" in done.err
    assert [entry.name for entry in Path("runs").iterdir()] == [run.id]


@pytest.mark.slow
def test_what_a_kill_left_of_an_earlier_one_is_removed_and_a_failure_leaves_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []

    def fails(*arguments: object, **named: object) -> float:
        kept.extend(Path("runs").glob(".tmp-verify-*"))
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(session, "evaluate", fails)
        with pytest.raises(ZeroDivisionError):
            replay_run(run, RunContext(folders=data_folders(None)))
    assert len(kept) == 1
    assert not kept[0].exists()
    kept[0].mkdir()  # as if it had been killed
    seen: list[events.Event] = []
    assert replay_run(run, RunContext(folders=data_folders(None), listener=seen.append)).identical
    assert [entry.name for entry in Path("runs").iterdir()] == [run.id]
    assert isinstance(seen[0], events.ReplayStarted)
    assert not [event for event in seen if isinstance(event, events.RunFinished | events.CheckpointSaved)]


def test_a_run_in_use_is_not_trained_again(run: Run, gptkit_command: Command) -> None:
    with lock_run(run):
        assert gptkit_command("resume", run.id, "--verify").code == 7
    refused = gptkit_command("resume", run.id, "--verify", "--steps", 30)
    assert (refused.code, "--verify only repeats steps" in refused.err) == (2, True)


# Exact, or not at all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"environment": {"torch": "1.0"}}, "torch 1.0 -> "),
        ({"plugins": {"version": "0.0.1", "distribution": "other"}}, "char of other 0.0.1 -> gptkit "),
    ],
)
def test_a_changed_environment_is_a_warning_or_on_request_a_refusal(
    changes: dict[str, dict[str, str]], difference: str, tiny_experiment: Path, gptkit_command: Command
) -> None:
    assert gptkit_command("train", tiny_experiment, "--stop-at", 5, "--quiet").code == 0
    run = find_run("latest")
    assert gptkit_command("resume", run.id, "--require-exact", "--stop-at", 6, "--quiet").code == 0
    record = run.record()
    for key, change in changes.items():
        if key == "plugins":
            record[key][0] |= change
        else:
            record[key] |= change
    write_record(run, record)
    (run.checkpoints / ".tmp-1-abc").mkdir()
    before = contents(run.path)
    refused = gptkit_command("resume", run.id, "--require-exact")
    assert (refused.code, refused.out) == (3, "")
    assert difference in refused.err
    assert contents(run.path) == before
    assert (run.checkpoints / ".tmp-1-abc").is_dir()  # nothing at all was changed
    done = gptkit_command("resume", run.id)
    assert done.code == 0
    assert f"resume: valid, not bit-identical ({difference}" in done.out


# A run that was killed before it saved anything


def test_for_a_run_without_a_checkpoint_the_message_has_the_reason_and_how_to_train_it_again(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    runs = Path("else where")
    assert gptkit_command("train", tiny_experiment, "--stop-at", 2, "--quiet", "--runs-dir", runs).code == 0
    run = find_run("latest", runs)
    for folder in run.checkpoints.iterdir():
        shutil.rmtree(folder)
    for command in ("resume", "generate"):
        refused = gptkit_command(command, run.path)
        assert refused.code == 5
        lines = refused.err.splitlines()
        assert lines[0] == (
            f"gptkit: there is no checkpoint of run {run.id}: those it had are not there any more."
        )
        assert lines[1] == (
            "To train it again from the start: "
            "gptkit train tiny.toml --stop-at 2 --quiet --runs-dir 'else where'"
        )


# Best and last


@pytest.mark.slow
def test_the_best_the_last_and_any_step_can_be_generated_from_unless_they_are_damaged(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 2.0, 4.0, 5.0, 6.0])  # of steps 4, 8, 12, 16, 20
    with monkeypatch.context() as patched:
        patched.setattr(session, "evaluate", lambda *arguments, **named: SplitLoss(next(values), 1))
        settings = ("--eval-interval", 4, "--set", "checkpoints.checkpoint_interval=5")
        keep = ("--set", "checkpoints.keep_last=2", "--quiet")
        assert gptkit_command("train", tiny_experiment, *settings, *keep).code == 0
    run = find_run("latest")
    assert sorted(int(folder.name[5:]) for folder in run.checkpoints.iterdir()) == [8, 15, 20]
    steps = {"best": 8, "last": 20, "8": 8, "15": 15, "20": 20}
    texts = {}
    for which, step in steps.items():
        done = gptkit_command("generate", run.id, "--checkpoint", which, "-n", 40, "--seed", 1)
        assert done.code == 0
        assert f"{run.id}, step {step}" in done.err
        texts[which] = done.out
    assert texts["best"] == texts["8"] != texts["last"] == texts["20"]
    flip(step_folder(run.checkpoints, 15) / "model.safetensors")
    refused = gptkit_command("generate", run.id, "--checkpoint", "15")
    assert (refused.code, refused.out) == (5, "")
    assert "SHA-256 differs" in refused.err
    assert gptkit_command("generate", run.id, "-n", 1).code == 0
