"""`gptkit train`: what it writes where, and the flags that override fields of the experiment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gptkit.files import sha256
from gptkit.runs import run_ids
from tests.support import TINY, Command, resolved, run_of, small_text
from tests.support.sums import hashes


def test_quiet_prints_the_folder_and_nothing_else(tiny_experiment: Path, gptkit_command: Command) -> None:
    done = gptkit_command("train", tiny_experiment, "--quiet")
    run = run_of(done)
    assert done.out.count("\n") == 1
    assert done.err == ""
    assert re.fullmatch(r"tiny\.c16\.e32\.h2\.b2-\d{8}-\d{6}", run.id)
    assert run.path.parent == Path("runs")
    assert {entry.name for entry in run.path.iterdir()} == {
        *(
            "experiment.toml",
            "run.json",
            "metrics.jsonl",
            "evaluations.json",
            "tokenizer.json",
            "checkpoints",
        ),
        *(".lock", "report.html"),
    }
    record = run.record()
    assert record["status"] == "finished"
    assert record["command"] == "gptkit train tiny.toml --quiet"
    assert record["step"] == 20


def test_piped_training_is_plain_lines_and_ends_with_the_commands_to_use_next(
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
    text = 'name = "other"\n' + TINY.replace("n_head = 2", "n_head = 2\ndropout = 0.5")
    tiny_experiment.write_text(text + "[optimizer]\nweight_decay = 0.7\nlearning_rate = 0.7\n")
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


@pytest.mark.slow
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


def test_runs_are_kept_in_the_folder_that_is_given(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--steps", 1, "--quiet", "--runs-dir", "deep/er"))
    assert run.path.parent == Path("deep/er")
    assert gptkit_command("generate", "--runs-dir", "deep/er", "-n", 3).code == 0
    assert run.id in gptkit_command("runs", "--runs-dir", "deep/er").out


@pytest.mark.slow
def test_generate_writes_text_when_training_ends(tiny_experiment: Path, gptkit_command: Command) -> None:
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


@pytest.mark.slow
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
    weights = sha256((first.checkpoints / "step-000000000020" / "model.safetensors").read_bytes())
    assert second.record()["loaded_from"] == {"run": first.id, "step": 20, "sha256": weights}


@pytest.fixture
def another_experiment(tiny_experiment: Path) -> Path:
    """One whose model and tokenizer are set, and are others than those of `tiny_experiment`."""
    text = TINY.replace("n_layer = 2", 'n_layer = 1\nposition = "alibi"').replace("n_head = 2", "n_head = 8")
    Path("other.toml").write_text(text.replace("seed = 7", 'seed = 7\ntokenizer = "byte"'))
    return Path("other.toml")


@pytest.mark.slow
def test_with_load_the_settings_that_weights_depend_on_are_those_of_the_run(
    tiny_experiment: Path, another_experiment: Path, gptkit_command: Command
) -> None:
    """`gptkit train experiments/shakespeare.toml --load novel` after experiments/my_text.toml."""
    first = run_of(gptkit_command("train", tiny_experiment, "--quiet", "--steps", 1, "--drop", 0.2))
    flags = ("--steps", 2, "--quiet", "--heads", 2)
    done = gptkit_command("train", another_experiment, "--load", "tiny", *flags)
    second = run_of(done)
    before, after = resolved(first), resolved(second)
    assert after["model"] == before["model"] | {"dropout": 0.0}  # a setting of training, not of the weights
    assert after["tokenizer"] == before["tokenizer"]
    assert done.err == (
        f"gptkit: warning: --load takes the settings of run {first.id}: model.n_layer = 2 (the file has 1), "
        'model.position = { type = "rope", base = 10000.0 } (the file has "alibi"), '
        'tokenizer = "char" (the file has "byte").\n'
    )
    again = run_of(gptkit_command("train", second.experiment_file, "--quiet", "--load", first.id))
    assert resolved(again) == after


@pytest.mark.slow
def test_the_file_of_a_run_that_loaded_weights_trains_the_same_run(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    first = run_of(gptkit_command("train", tiny_experiment, "--quiet", "--steps", 3))
    loads = ("--load", "tiny", "--steps", 2, "--name", "second", "--quiet")
    second = run_of(gptkit_command("train", tiny_experiment, *loads))
    assert resolved(second)["init_from"]["run"] == first.id
    done = gptkit_command("train", second.experiment_file, "--quiet", "--runs-dir", "runs")
    again = run_of(done)
    assert (done.err, resolved(again), hashes(again)) == ("", resolved(second), hashes(second))
    # From elsewhere the run is named by its folder
    far = ("--load", first.path, *loads[2:], "--runs-dir", "far")
    third = run_of(gptkit_command("train", tiny_experiment, *far))
    assert resolved(third)["init_from"]["run"] == str(first.path.absolute())
    assert hashes(third) == hashes(second)
    assert gptkit_command("rerun", third.path, "--runs-dir", "far").code == 0
    # Other weights under the same name are not those
    text = second.experiment_file.read_text()
    weights = resolved(second)["init_from"]["sha256"]
    Path("edited.toml").write_text(text.replace(weights, "0" * 64))
    refused = gptkit_command("train", "edited.toml")
    assert (refused.code, refused.out) == (5, "")
    assert f"step 3 of run {first.id} does not have the weights that init_from.sha256 names" in refused.err
    assert gptkit_command("train", "edited.toml", "--load", second.id, "--quiet").code == 0
    two = gptkit_command("train", "edited.toml", "--load", second.id, "--set", f"init_from.run={first.id}")
    assert (two.code, "both set init_from.run" in two.err) == (2, True)
    Path("missing.toml").write_text(text.replace(first.id, "nobody"))
    missing = gptkit_command("train", "missing.toml")
    assert (missing.code, "no run 'nobody' in runs" in missing.err) == (2, True)


@pytest.mark.slow
def test_with_load_the_context_may_be_another_where_positions_allow_it(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    for position, code in (("rope", 0), ("alibi", 0), ("learned", 2)):
        base = ["--set", f"model.position={position}", "--steps", 2, "--quiet", "--name", position]
        assert gptkit_command("train", tiny_experiment, *base).code == 0
        longer = ["--load", position, "--ctx", 24, "--steps", 2, "--quiet", "--name", "longer"]
        done = gptkit_command("train", tiny_experiment, *longer)
        assert done.code == code, done.err
    assert "model.context_length is 16 there, 24 here" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        (("--heads", 4), "model.n_head is 2 there, 4 here"),
        (("--set", "tokenizer=byte"), 'tokenizer is "char" there, "byte" here'),
        (
            ("--set", "model.position=alibi"),
            'model.position is { type = "rope", base = 10000.0 } there, "alibi" here',
        ),
        (("--set", "model.position.base=500"), "model.position.base is 10000.0 there, 500.0 here"),
    ],
)
def test_with_load_what_is_asked_for_has_to_fit_the_weights(
    asked: tuple[str, object], difference: str, tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--quiet", "--steps", 1))
    refused = gptkit_command("train", tiny_experiment, "--load", run.id, *asked)
    assert (refused.code, refused.out) == (2, "")
    flag, value = asked
    assert refused.err == (
        f"gptkit: the weights of {run.id} do not fit: {difference}.\n"
        "Leave these settings out: --load takes those of the run.\n"
        f"It is set by {flag} {value}.\n"
    )


def test_the_help_of_train_has_every_flag_and_the_field_that_it_sets(
    gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shown = gptkit_command("train", "--help").out
    for flag, _, field in (entry for kind in ("long names", "short names") for entry in FLAGS[kind]):
        assert re.search(rf"{flag}\b", shown), flag
        assert f"[{field.removesuffix('.path')}]" in shown, field
