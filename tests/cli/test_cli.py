"""The command line as a user meets it: what it writes where, its exit codes, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gptkit
from gptkit.experiment import experiment_from_dict
from gptkit.runs import Run, lock_run, run_ids
from tests.support import TINY, Command, Result, small_text, write_record
from tools.support.disks import disk_that_fails


def run_of(result: Result) -> Run:
    """The run whose folder `--quiet` printed."""
    assert result.code == 0, result.err
    assert result.out.endswith("\n")
    path = Path(result.out.removesuffix("\n"))
    assert path.is_dir()
    return Run(path)


def resolved(run: Run) -> dict[str, Any]:
    return tomllib.loads(run.experiment_file.read_text())


def hashes(run: Run) -> tuple[str, str]:
    """SHA-256 of the weights and of the optimizer of the newest checkpoint."""
    newest = max(run.checkpoints.glob("step-*"))
    weights, optimizer = (newest / f"{name}.safetensors" for name in ("model", "optimizer"))
    return hashlib.sha256(weights.read_bytes()).hexdigest(), hashlib.sha256(
        optimizer.read_bytes()
    ).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, for tests that only read it."""
    root = tmp_path_factory.mktemp("trained")
    (root / "data").mkdir()
    (root / "data" / "mine.txt").write_text(small_text())
    (root / "tiny.toml").write_text(TINY)
    return gptkit.train(root / "tiny.toml", runs_folder=root / "runs", data_dir=root).path


# Help, and how soon


def test_the_help_of_train_has_every_flag_and_the_field_that_it_sets(
    gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = gptkit_command("train", "--help").out
    for flag, _, field in (entry for kind in ("long names", "short names") for entry in FLAGS[kind]):
        assert re.search(rf"{flag}\b", shown), flag
        assert f"[{field.removesuffix('.path')}]" in shown, field


def test_the_version_is_that_of_the_package(gptkit_command: Command) -> None:
    assert gptkit_command("--version") == Result(0, f"gptkit {gptkit.__version__}\n", "")


def test_no_command_at_all_shows_the_help(gptkit_command: Command) -> None:
    shown = gptkit_command()
    assert "Usage: gptkit" in shown.out + shown.err
    assert "Traceback" not in shown.err


def test_what_needs_no_model_imports_no_torch(workspace: Path) -> None:
    code = (
        "import sys; from gptkit.cli.app import run_command\n"
        "assert not run_command(['--help'])\n"
        "assert 'pydantic' not in sys.modules\n"
        "assert not any(map(run_command, (['train', '--help'], ['datasets', 'list'], ['runs'])))\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "safetensors", "pooch", "transformers"} & set(re.findall(r"\w+", done.stderr))


# Training


def test_quiet_prints_the_folder_and_nothing_else(tiny_experiment: Path, gptkit_command: Command) -> None:
    done = gptkit_command("train", tiny_experiment, "--quiet")
    run = run_of(done)
    assert done.out.count("\n") == 1
    assert done.err == ""
    assert re.fullmatch(r"tiny\.c16\.e32\.h2\.b2-\d{8}-\d{6}", run.id)
    assert run.path.parent == Path("runs")
    assert {entry.name for entry in run.path.iterdir()} == {
        *("experiment.toml", "run.json", "metrics.jsonl", "tokenizer.json", "checkpoints", ".lock"),
        "report.html",
    }
    record = run.record()
    assert record["status"] == "finished"
    assert record["command"] == "gptkit train tiny.toml --quiet"
    assert record["step"] == 20


def test_piped_training_is_plain_lines_and_ends_with_the_commands_to_go_on(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    done = gptkit_command("train", tiny_experiment)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("step ")] == ["10", "20"]
    assert "val loss" in done.out
    (run,) = run_ids(Path("runs"))
    assert f"gptkit generate runs/{run}\n" in done.out
    assert done.out.splitlines()[0] == f"run {run}"


FLAGS: dict[str, list[tuple[str, Any, str]]] = {
    "long names": [
        ("--steps", 2, "training.max_steps"),
        ("--batch-size", 3, "training.batch_size"),
        ("--learning-rate", 0.5, "optimizer.learning_rate"),
        ("--ctx", 8, "model.context_length"),
        ("--emb", 24, "model.n_embd"),
        ("--heads", 6, "model.n_head"),
        ("--blocks", 1, "model.n_layer"),
        ("--drop", 0.25, "model.dropout"),
        ("--l2-reg", 0.5, "optimizer.weight_decay"),
        ("--dataset", "mine.txt", "data.dataset.path"),
        ("--backend", "cpu", "training.backend"),
        ("--seed", 99, "seed"),
        ("--output", "novel", "name"),
        ("--eval-interval", 1, "evaluation.eval_interval"),
    ],
    "short names": [
        ("-B", 3, "training.batch_size"),
        ("--lr", 0.5, "optimizer.learning_rate"),
        ("-c", 8, "model.context_length"),
        ("-e", 24, "model.n_embd"),
        ("--bl", 1, "model.n_layer"),
        ("-d", 0.25, "model.dropout"),
        ("--device", "cpu", "training.backend"),
        ("--name", "novel", "name"),
        ("--minutes", 0.0001, "training.minutes"),
    ],
    "zeros": [
        ("-l", 0.0, "optimizer.learning_rate"),
        ("-b", 1, "model.n_layer"),
        ("-d", 0.0, "model.dropout"),
        ("--l2-reg", 0.0, "optimizer.weight_decay"),
        ("--seed", 0, "seed"),
        ("--steps", 1, "training.max_steps"),
    ],
}


@pytest.mark.parametrize("kind", FLAGS)
def test_flags_override_the_fields_of_the_file(
    kind: str, tiny_experiment: Path, gptkit_command: Command
) -> None:
    """The file sets each of them to something else, so that a flag that does nothing is found out."""
    said = 'name = "other"\n' + TINY.replace("n_head = 2", "n_head = 2\ndropout = 0.5")
    tiny_experiment.write_text(said + "[optimizer]\nweight_decay = 0.7\nlearning_rate = 0.7\n")
    flags = [part for flag, value, _ in FLAGS[kind] for part in (flag, value)]
    recorded = resolved(run_of(gptkit_command("train", tiny_experiment, *flags, "--quiet")))
    for flag, value, dotted in FLAGS[kind]:
        field: Any = recorded
        for key in dotted.split("."):
            field = field[key]
        assert field == value, flag
        assert type(field) is type(value), flag


def test_set_and_flags_override_any_field(tiny_experiment: Path, gptkit_command: Command) -> None:
    recorded = resolved(
        run_of(
            gptkit_command(
                *("train", tiny_experiment, "--quiet", "--steps", 3),
                *("--set", "model.position=alibi", "--set", "sampling.stop=['a', 'b']"),
                *(
                    "--set",
                    "tokenizer.type=bigram",
                    "--set",
                    "tokenizer.max_pairs=5",
                    "--set",
                    "model.qk_norm=false",
                ),
            )
        )
    )
    assert recorded["training"]["max_steps"] == 3
    assert recorded["model"]["position"] == {"type": "alibi"}
    assert recorded["model"]["qk_norm"] is False
    assert recorded["tokenizer"] == {"type": "bigram", "max_pairs": 5}
    assert recorded["sampling"]["stop"] == ["a", "b"]


def test_epochs_are_turned_into_steps_and_may_be_a_fraction(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--epochs", 0.01, "--quiet"))
    tokens = run.record()["tokenizer"]["train_tokens"]
    steps = -(-tokens // 100) // (4 * 16) + 1
    assert resolved(run)["training"]["max_steps"] == run.record()["step"] == steps
    assert "epochs" not in resolved(run)["training"]


def test_a_random_seed_is_recorded_and_gives_the_same_run_again(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    first, second = (
        run_of(gptkit_command("train", tiny_experiment, "--set", "seed=random", "--steps", 2, "--quiet"))
        for _ in range(2)
    )
    seeds = [resolved(run)["seed"] for run in (first, second)]
    assert seeds[0] != seeds[1]
    assert hashes(first) != hashes(second)
    again = run_of(gptkit_command("train", first.experiment_file, "--quiet"))
    assert hashes(again) == hashes(first)


def test_a_text_is_found_in_the_data_folder_that_is_given(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    Path("texts").mkdir()
    Path("data/mine.txt").rename("texts/novel.txt")
    arguments = ("train", tiny_experiment, "--steps", 1, "--quiet", "--dataset", "novel")
    assert gptkit_command(*arguments).code == 4
    run = run_of(gptkit_command(*arguments, "--data-dir", "texts"))
    assert run.record()["dataset"]["characters"] == len(small_text())


def test_runs_are_kept_where_they_are_told_to_be(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--steps", 1, "--quiet", "--runs-dir", "deep/er"))
    assert run.path.parent == Path("deep/er")
    assert gptkit_command("generate", "--runs-dir", "deep/er", "-n", 3).code == 0
    assert run.id in gptkit_command("runs", "--runs-dir", "deep/er").out


def test_text_is_written_when_training_ends_where_it_is_asked_for(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    loud = gptkit_command(
        "train", tiny_experiment, "--steps", 2, "--generate", 30, "--set", "sampling.prompt=ol"
    )
    assert loud.code == 0
    (sample,) = Path("runs").glob("*/samples/step-000000000002.txt")
    text = sample.read_text()
    assert text.startswith("ol")
    assert len(text) == 32
    assert loud.out.endswith(f"\n{text}\n")
    quiet = gptkit_command("train", tiny_experiment, "--steps", 2, "-g", 30, "--quiet")
    assert (run_of(quiet).samples / "step-000000000002.txt").is_file()


def test_without_saving_a_run_is_recorded_but_has_nothing_to_generate_from(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--no-save", "--quiet", "--generate", 5))
    assert run.record()["status"] == "finished"
    assert len(run.metrics()) == 2
    assert list(run.checkpoints.iterdir()) == []
    assert (run.samples / "step-000000000020.txt").is_file()  # what --generate asks for needs no checkpoint
    for command in ("generate", "resume"):
        refused = gptkit_command(command, run.path)
        assert (refused.code, refused.out) == (5, "")
        assert "no checkpoint" in refused.err
        assert "--no-save" in refused.err


def test_load_starts_a_new_run_from_the_weights_and_tokenizer_of_another(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    first = run_of(gptkit_command("train", tiny_experiment, "--quiet"))
    Path("data/part.txt").write_text(small_text()[:4000].replace("q", "w"))
    still = ("--steps", 1, "--lr", 0, "--l2-reg", 0, "--set", "optimizer.type=adamw", "--dataset", "part.txt")
    second = run_of(gptkit_command("train", tiny_experiment, "--quiet", "--load", first.id, *still))
    assert second.id != first.id
    assert hashes(second)[0] == hashes(first)[0]  # at a rate of 0 they are still those of the first
    assert second.tokenizer_json() == first.tokenizer_json()
    assert second.record()["loaded_from"] == {"run": first.id, "step": 20}


# Stopping and going on


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


def test_resume_goes_on_past_the_end_and_remembers_how_far(
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


def test_a_finished_run_resumed_again_says_so_and_is_not_harmed(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--quiet"))
    before, metrics = hashes(run), run.metrics()
    again = gptkit_command("resume", run.id)
    assert (again.code, again.err) == (0, "")
    assert "finished: step 20 of 20" in again.out
    assert gptkit_command("resume", run.id, "--steps", 20, "--quiet").code == 0
    assert (hashes(run), run.metrics(), run.record()["status"]) == (before, metrics, "finished")


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
    assert "gptkit generate 'archive/best so far'\n" in resumed.out  # to be copied and run as it stands
    assert gptkit_command("generate", moved.path, "-n", 5).code == 0


def test_a_run_in_use_is_left_alone(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 3, "--quiet"))
    record = run.record()
    with lock_run(run):
        refused = gptkit_command("resume", run.id)
    assert (refused.code, refused.out) == (7, "")
    assert f"run {run.id} is in use" in refused.err
    assert run.record() == record
    assert gptkit_command("generate", run.id, "-n", 3).code == 0  # reading needs no lock


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


# Generating


def test_generate_writes_exactly_the_prompt_and_as_many_characters_as_asked(
    trained: Path, gptkit_command: Command
) -> None:
    done = gptkit_command("generate", trained, "--prompt", "the old", "-n", 60, "--seed", 1)
    assert done.code == 0
    assert done.out.startswith("the old")
    assert len(done.out) == len("the old") + 60  # far past the context of 16, and no newline is added
    assert set(done.out) <= set(small_text())
    assert "seed 1" in done.err


def test_no_echo_leaves_the_prompt_out(trained: Path, gptkit_command: Command) -> None:
    arguments = ("generate", trained, "--prompt", "the old", "-n", 30, "--seed", 4)
    assert "the old" + gptkit_command(*arguments, "--no-echo").out == gptkit_command(*arguments).out


def test_the_prompt_may_come_from_standard_input_or_a_file(
    trained: Path, workspace: Path, gptkit_command: Command
) -> None:
    Path("prompt.txt").write_text("the\nold\n")
    arguments = ("generate", trained, "-n", 10, "--seed", 5, "--prompt")
    given = gptkit_command(*arguments, "the\nold\n")
    assert given.out.startswith("the\nold\n")
    assert gptkit_command(*arguments, "-", stdin=b"the\nold\n").out == given.out
    assert gptkit_command(*arguments, "@prompt.txt").out == given.out


def test_without_a_prompt_the_experiments_own_is_used(trained: Path, gptkit_command: Command) -> None:
    assert gptkit_command("generate", trained, "-n", 4).out[0] == "\n"


def test_the_same_seed_gives_the_same_text_and_another_seed_another(
    trained: Path, gptkit_command: Command
) -> None:
    first, again, other = (
        gptkit_command("generate", trained, "-n", 80, "--seed", seed).out for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_seed_that_was_drawn_is_told_so_that_the_text_can_be_had_again(
    trained: Path, gptkit_command: Command
) -> None:
    drawn = gptkit_command("generate", trained, "-n", 40)
    told = re.search(r"seed (\d+)", drawn.err)
    assert told
    assert gptkit_command("generate", trained, "-n", 40, "--seed", told[1]).out == drawn.out


def test_several_samples_come_one_after_another_each_ending_its_line(
    trained: Path, gptkit_command: Command
) -> None:
    arguments = ("generate", trained, "-n", 20, "--seed", 3, "--prompt", "the")
    one, three = gptkit_command(*arguments), gptkit_command(*arguments, "--num-samples", 3)
    assert three.code == 0
    first = one.out if one.out.endswith("\n") else one.out + "\n"
    assert three.out.startswith(first)
    assert three.out.endswith("\n")
    assert three.out.count("the") >= 3
    assert 3 * 23 <= len(three.out) <= 3 * 24


def test_a_temperature_of_zero_needs_no_seed(trained: Path, gptkit_command: Command) -> None:
    arguments = ("generate", trained, "-n", 30, "--temperature", 0, "--seed")
    assert gptkit_command(*arguments, 1).out == gptkit_command(*arguments, 2).out


def test_a_stop_text_ends_the_sample_and_is_left_out(trained: Path, gptkit_command: Command) -> None:
    arguments = ("generate", trained, "-n", 60, "--seed", 1, "--prompt", "the old", "--no-echo")
    whole = gptkit_command(*arguments).out
    stop = whole[20:22]
    assert gptkit_command(*arguments, "--stop", stop).out == whole[: whole.index(stop)]


def test_zero_tokens_are_none(trained: Path, gptkit_command: Command) -> None:
    assert gptkit_command("generate", trained, "-n", 0, "--prompt", "the").out == "the"
    assert gptkit_command("generate", trained, "-n", 0, "--prompt", "the", "--no-echo").out == ""


def test_unknown_characters_of_a_prompt_can_be_skipped(trained: Path, gptkit_command: Command) -> None:
    done = gptkit_command("generate", trained, "-n", 0, "--prompt", "theΩ oldé", "--unknown", "skip")
    assert (done.code, done.out) == (0, "the old")


@pytest.mark.parametrize("which", ["best", "last", "20", "020"])
def test_a_checkpoint_can_be_chosen(which: str, trained: Path, gptkit_command: Command) -> None:
    arguments = ("generate", trained, "-n", 10, "--seed", 1)
    assert gptkit_command(*arguments, "--checkpoint", which).out == gptkit_command(*arguments).out


def test_a_run_with_a_link_in_it_is_refused(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 2, "--quiet"))
    outside = Path("outside")
    run.checkpoints.rename(outside)
    (outside / ".tmp-mine").mkdir()
    run.checkpoints.symlink_to(outside.absolute(), target_is_directory=True)
    for command in ("generate", "resume"):
        refused = gptkit_command(command, run.path)
        assert (refused.code, refused.out) == (5, "")
        assert "checkpoints is a symbolic link" in refused.err
    assert (outside / ".tmp-mine").is_dir()


def test_sizes_that_only_the_experiment_file_of_a_run_states_take_no_memory(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 2, "--quiet"))
    text = run.experiment_file.read_text()
    run.experiment_file.write_text(text.replace("n_embd = 32", "n_embd = 1048576"))
    for command in ("generate", "resume"):
        refused = gptkit_command(command, run.path)
        assert refused.code == 5
        assert "are not of this model" in refused.err


# The table of runs


def test_the_table_of_runs_is_plain_lines_when_piped(tiny_experiment: Path, gptkit_command: Command) -> None:
    none = gptkit_command("runs")
    assert none.code == 0
    assert "There are no runs in runs yet" in none.out
    first = run_of(gptkit_command("train", tiny_experiment, "--quiet"))
    second = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 3, "--quiet", "--name", "other"))
    (Path("runs") / "odd").mkdir()
    (Path("runs") / "odd" / "experiment.toml").write_text("")
    table = gptkit_command("runs")
    assert (table.code, table.err) == (0, "")
    header, *lines = table.out.splitlines()
    assert header.split() == [
        *("id", "status", "dataset", "hyperparameters", "steps", "best", "val", "loss", "bits/byte", "when")
    ]
    assert [line.split()[:2] for line in lines] == [
        ["odd", "unreadable"],
        [first.id, "finished"],
        [second.id, "stopped"],
    ]
    assert "data/mine.txt" in lines[1]
    assert "c16 e32 h2 b2 B4" in lines[1]
    assert f"20/20  {first.record()['best_val_loss']:.4f}" in lines[1]
    assert "3/20" in lines[2]
    assert table.out.isascii()


def test_what_a_stranger_wrote_into_a_record_cannot_steer_the_terminal(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--steps", 1, "--quiet"))
    write_record(run, {**run.record(), "status": "\x1b[2J\nfine"})
    table = gptkit_command("runs").out
    assert "\x1b" not in table
    assert len(table.splitlines()) == 2


# In a process of its own


def test_the_two_commands_as_a_user_types_them(tiny_experiment: Path, run_process: Command) -> None:
    trained = run_process("train", tiny_experiment, "--quiet")
    assert (trained.code, trained.err) == (0, "")
    written = run_process("generate", trained.out.strip(), "-n", 40, "--prompt", "the old", "--seed", 1)
    assert written.code == 0
    assert len(written.out) == 47
    assert written.out.startswith("the old")


# Bad invocations


@pytest.fixture(scope="module")
def bad_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run called `good`, one without checkpoints, and files of many kinds."""
    root = tmp_path_factory.mktemp("bad")
    contents: dict[str, str | bytes] = {
        "tiny.toml": TINY,
        "data/mine.txt": small_text(),
        "empty.txt": "",
        "short.txt": "x" * 50,
        "tiny.txt": "x",
        "latin.txt": b"caf\xe9 " * 100,
        "greek.txt": "αβγ " * 1000,
        "utf16.toml": "seed = 1".encode("utf-16"),
        "broken.toml": "seed = ",
        "deep.toml": "a = " + "[" * 20_000,
        "dotted.toml": "a." * 30_000 + "a = 1",
        "huge.toml": "#" * 2_000_000,
        "digits.toml": "seed = 0x" + "f" * 9000,
        "wrong.toml": 'seeed = 1\n[model]\nn_layer = "4"\nmax_steps = 4\n[training]\nbatch_size = nan\n',
        "prompt.bin": b"\xff\xfe",
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    runs = root / "runs"
    runs.mkdir()
    for name in ("good", "unsaved"):
        options: dict[str, Any] = {"name": name, "checkpoints": {"save": name == "good"}}
        experiment = experiment_from_dict({**tomllib.loads(TINY), **options})
        gptkit.train(experiment, runs_folder=runs, data_dir=root)
    return root


@pytest.fixture
def in_bad_workspace(bad_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Works there, without a network, and sees to it that nothing was written, changed or removed."""
    monkeypatch.chdir(bad_workspace)
    monkeypatch.delenv("GPTKIT_DATA_DIR", raising=False)
    monkeypatch.setattr(
        "gptkit.data.datasets.shakespeare.ShakespeareDataset.url", "http://127.0.0.1:9/nothing"
    )
    before = snapshot(bad_workspace)
    yield
    assert snapshot(bad_workspace) == before


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


TRAIN = ("train", "tiny.toml")
GENERATE = ("generate", "good")
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")

BAD: list[Any] = [
    # The command line itself
    (("trian",), 2, "No such command 'trian'. Did you mean 'train'?"),
    (("train",), 2, "Missing argument 'EXPERIMENT'"),
    (("resume",), 2, "Missing argument 'RUN'"),
    ((*TRAIN, "--stepz", 3), 2, "No such option: --stepz"),
    ((*TRAIN, "--steps"), 2, "requires an argument"),
    ((*TRAIN, "--steps", "many"), 2, "Invalid value for '--steps'"),
    ((*TRAIN, "--steps", "1e3"), 2, "Invalid value for '--steps'"),
    ((*TRAIN, "another.toml"), 2, "unexpected extra argument"),
    ((*TRAIN, "--stop-at", 0), 2, "Invalid value for '--stop-at'"),
    ((*TRAIN, "--generate", -1), 2, "Invalid value for '--generate'"),
    ((*TRAIN, "--generate", 10**12), 2, "Invalid value for '--generate'"),
    ((*TRAIN, "--steps", 3, "--epochs", 2), 2, "--steps 3 and --epochs 2.0 both set the length of training"),
    (
        (*TRAIN, "--minutes", 3, "--epochs", 2),
        2,
        "--epochs 2.0 and --minutes 3.0 both set the length of training",
    ),
    ((*TRAIN, "--minutes", 0), 2, "training.minutes = 0.0: should be greater than 0"),
    ((*TRAIN, "--minutes", "nan"), 2, "training.minutes = nan: should be a finite number"),
    (("runs", "--all"), 2, "No such option: --all"),
    # The experiment file
    (("train", "nofile.toml"), 2, "there is no experiment file nofile.toml. There are: "),
    (("train", "data"), 2, "data is a folder, not an experiment file"),
    (("train", "x" * 3000), 2, "cannot read xxx"),
    (("train", ""), 2, "is a folder, not an experiment file"),
    (("train", "broken.toml"), 2, "^ not valid TOML: Invalid value"),
    (("train", "utf16.toml"), 2, "utf16.toml: not UTF-8 at byte 0"),
    (("train", "deep.toml"), 2, "deep.toml: not usable TOML: nested too deeply"),
    (("train", "dotted.toml"), 2, "dotted.toml: not usable TOML: nested too deeply"),
    (("train", "huge.toml"), 2, "huge.toml: larger than 1 MB"),
    (("train", "digits.toml"), 2, "^ seed = a number of thousands of digits"),
    (("train", "data/mine.txt"), 2, "data/mine.txt: not valid TOML"),
    (("train", "wrong.toml"), 2, "wrong.toml has 4 problems:\n"),
    # Its fields
    ((*TRAIN, "--steps", -5), 2, "training.max_steps = -5: should be greater than or equal to 1"),
    ((*TRAIN, "--steps", 0), 2, "training.max_steps = 0: should be"),
    ((*TRAIN, "--epochs", 0), 2, "training.epochs = 0.0: should be greater than 0"),
    ((*TRAIN, "--epochs", "nan"), 2, "training.epochs = nan: should be a finite number"),
    ((*TRAIN, "--lr", "inf"), 2, "optimizer.learning_rate = inf: should be a finite number"),
    ((*TRAIN, "--drop", 1), 2, "model.dropout = 1.0: should be less than 1"),
    ((*TRAIN, "--heads", 3), 2, "n_head = 3 does not divide n_embd = 32"),
    ((*TRAIN, "--heads", 32), 2, "model.position: rope turns pairs"),
    ((*TRAIN, "--seed", -1), 2, "seed = -1: should be 'random' or"),
    ((*TRAIN, "--backend", "tpu"), 2, "training.backend = \"tpu\": should be 'auto', 'cpu', 'cuda' or 'mps'"),
    pytest.param(
        (*TRAIN, "--backend", "cuda"), 2, "'cuda' is not available here; there is cpu", marks=NO_CUDA
    ),
    (
        (*TRAIN, "--set", "training.max_step=3"),
        2,
        "training.max_step: unknown key; did you mean 'max_steps'?",
    ),
    ((*TRAIN, "--set", "max_steps=3"), 2, "max_steps: unknown key; it belongs in [training]"),
    ((*TRAIN, "--set", "training.max_steps"), 2, "expected KEY=VALUE"),
    ((*TRAIN, "--set", "model.position.bse=3"), 2, "model.position.bse: unknown key; did you mean 'base'?"),
    ((*TRAIN, "--set", "optimizer.type=adam"), 2, 'optimizer.type = "adam": should be '),
    (
        (*TRAIN, "--set", "sampling.prompt=Ω"),
        2,
        "sampling.prompt has characters that are not in the text: 'Ω'",
    ),
    ((*TRAIN, "--name", "../evil"), 2, 'name = "../evil": should be letters'),
    ((*TRAIN, "--name", "/tmp/evil"), 2, 'name = "/tmp/evil": should be letters'),
    ((*TRAIN, "--name", "a\\b"), 2, "should be letters"),
    ((*TRAIN, "--name", "CON"), 2, "Windows reserves the name 'CON' for a device"),
    ((*TRAIN, "--output", ""), 2, 'name = ""'),
    # Plugins
    ((*TRAIN, "--set", "tokenizer=chars"), 3, "no tokenizer is called 'chars'; did you mean 'char'?"),
    (
        (*TRAIN, "--set", "model.position=roep"),
        3,
        "no positional encoding is called 'roep'; did you mean 'rope'?",
    ),
    # Texts
    ((*TRAIN, "--dataset", "nowhere.txt"), 4, "there is no dataset or text file 'nowhere.txt'"),
    ((*TRAIN, "--dataset", ""), 2, "data.dataset.type"),
    ((*TRAIN, "--dataset", "empty.txt"), 4, "empty.txt is empty"),
    ((*TRAIN, "--dataset", "tiny.txt"), 4, "needs at least 17"),
    ((*TRAIN, "--dataset", "short.txt", "-c", 30), 4, "the largest model.context_length that fits is 4"),
    ((*TRAIN, "--dataset", "latin.txt"), 4, "latin.txt is not UTF-8: byte 0xe9 at offset 3"),
    ((*TRAIN, "--dataset", "harry_potter"), 4, "gptkit datasets add harry_potter FILE"),
    ((*TRAIN, "--dataset", "shakespeare", "--quiet"), 10, "cannot download http://127.0.0.1:9/nothing"),
    # What does not fit
    ((*TRAIN, "-e", 2**20, "--bl", 100), 9, "Lower model.n_embd or model.n_layer"),
    ((*TRAIN, "-B", 2**20, "-c", 2000), 9, "Lower training.batch_size and raise"),
    ((*TRAIN, "--runs-dir", "tiny.toml"), 6, "tiny.toml is a file; give a folder with --runs-dir"),
    # Other runs
    ((*TRAIN, "--load", "nope"), 2, "no run 'nope' in runs"),
    ((*TRAIN, "--load", "unsaved"), 5, "there is no checkpoint"),
    ((*TRAIN, "--load", "good", "-e", 64), 2, "model.n_embd is 32 there, 64 here"),
    ((*TRAIN, "--load", "good", "--dataset", "greek.txt"), 4, "the run's tokenizer lacks: 'α' 'β' 'γ'"),
    (("resume", "nope"), 2, "no run 'nope' in runs"),
    (("resume", "unsaved"), 5, "there is no checkpoint"),
    (("resume", "good", "--steps", 0), 2, "Invalid value for '--steps'"),
    (("resume", "good", "--steps", 10), 2, "is at step 20 already, past --steps 10"),
    (("resume", "good", "--stop-at", 5), 2, "is at step 20 already, past --stop-at 5"),
    (("resume", "good", "--runs-dir", "data"), 2, "no run 'good' in data"),
    # Generating
    (("generate", ""), 2, "names no run"),
    (("generate", ".."), 2, "no experiment.toml"),
    (("generate", "../../etc"), 2, "no run '../../etc' in runs"),
    (("generate", "x" * 3000), 2, "no run 'xxx"),
    (("generate", "goof"), 2, "no run 'goof' in runs"),
    (
        (*GENERATE, "--prompt", "oldΩ"),
        2,
        "has never seen: 'Ω'. Leave them out, or drop them with --unknown skip",
    ),
    ((*GENERATE, "--prompt", ""), 2, "the prompt has no tokens"),
    ((*GENERATE, "--prompt", "Ω", "--unknown", "skip"), 2, "the prompt has no tokens"),
    ((*GENERATE, "--prompt", "@nofile"), 2, "cannot read the prompt from nofile: No such file or directory"),
    ((*GENERATE, "--prompt", "@data"), 2, "cannot read the prompt from data: Is a directory"),
    ((*GENERATE, "--prompt", "@prompt.bin"), 2, "the prompt from prompt.bin is not UTF-8 at byte 0"),
    ((*GENERATE, "--prompt", "-"), 2, "the prompt has no tokens"),  # nothing on standard input
    ((*GENERATE, "--unknown", "maybe"), 2, "--unknown 'maybe': expected error or skip"),
    ((*GENERATE, "--checkpoint", "7"), 5, "there is no checkpoint of step 7"),
    ((*GENERATE, "--checkpoint", "newest"), 2, "--checkpoint 'newest': expected best, last or a step"),
    ((*GENERATE, "--temperature", -1), 2, "temperature = -1.0: should be"),
    ((*GENERATE, "--temperature", "nan", "--top-p", 0), 2, "has 2 problems"),
    ((*GENERATE, "--top-k", -3), 2, "top_k = -3: should be"),
    ((*GENERATE, "--min-p", 2), 2, "min_p = 2.0: should be"),
    ((*GENERATE, "-n", -1), 2, "Invalid value for '--tokens'"),
    ((*GENERATE, "-n", 10**12), 2, "max_new_tokens = 1000000000000: should be"),
    ((*GENERATE, "--num-samples", 0), 2, "Invalid value for '--num-samples'"),
    ((*GENERATE, "--stop", ""), 2, 'stop.0 = "": should have at least 1 character'),
    ((*GENERATE, "--seed", -1), 2, "Invalid value for '--seed'"),
    ((*GENERATE, "--backend", "tpu"), 2, "'tpu' is not available here; there is "),
    (("generate", "unsaved"), 5, "there is no checkpoint"),
    # Datasets
    (("datasets", "show", "nowhere"), 4, "there is no dataset or text file 'nowhere'"),
    (("datasets", "show", "empty.txt"), 4, "empty.txt is empty"),
    (("datasets", "add", "../evil", "data/mine.txt"), 2, "cannot be the name of a text"),
    (("datasets", "add", "con", "data/mine.txt"), 2, "cannot be the name of a text"),
    (("datasets", "add", "new", "nofile.txt"), 4, "there is no file nofile.txt"),
    (("datasets", "add", "new", "latin.txt"), 4, "is not UTF-8"),
    (("datasets", "add", "mine", "data/mine.txt"), 2, "already"),
    (("datasets", "fetch", "avatar_script"), 4, "under copyright"),
    (("datasets", "fetch", "shakespeare"), 10, "cannot download"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), BAD)
@pytest.mark.usefixtures("in_bad_workspace")
def test_a_bad_invocation_says_what_is_wrong_in_a_few_lines_and_leaves_nothing_behind(
    arguments: tuple[object, ...], code: int, said: str, gptkit_command: Command
) -> None:
    done = gptkit_command(*arguments)
    assert done.code == code, done.err
    assert said in done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if not line.startswith("downloading ")]
    assert lines[0].startswith("gptkit: ")
    problems = re.search(r"has (\d+) problems:\n", done.err)
    assert len(lines) <= (2 * int(problems[1]) + 1 if problems else 3)


@pytest.mark.usefixtures("in_bad_workspace")
def test_debug_adds_the_traceback_and_keeps_the_exit_code(gptkit_command: Command) -> None:
    for arguments in (("train", "nofile.toml"), ("generate", "nope"), ("datasets", "show", "nowhere")):
        plain, debug = gptkit_command(*arguments), gptkit_command(*arguments, "--debug")
        assert debug.code == plain.code
        assert "Traceback (most recent call last):" in debug.err
        assert debug.err.endswith(plain.err)


def test_a_defect_is_called_one_and_exits_with_1(
    gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr("gptkit.runs.store.select_runs", fail)
    done = gptkit_command("runs")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("gptkit: ZeroDivisionError: by 0\nThis is a defect of gptkit.")
    assert "Traceback" not in done.err


def test_a_prompt_that_is_not_utf_8_is_refused(trained: Path, gptkit_command: Command) -> None:
    done = gptkit_command("generate", trained, "--prompt", "-", stdin=b"ok\xff")
    assert (done.code, done.out) == (2, "")
    assert "the prompt from standard input is not UTF-8 at byte 2" in done.err


def test_the_metrics_are_one_object_a_line(trained: Path) -> None:
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
