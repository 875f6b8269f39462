"""`gptkit generate`: text on standard output, from a prompt, with the sampling that was asked for."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest

import gptkit
from gptkit.runs import Run
from gptkit.runs.checkpoint import save_checkpoint
from tests.support import TINY, Command, small_text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, for tests that only read it."""
    root = tmp_path_factory.mktemp("trained")
    (root / "data").mkdir()
    (root / "data" / "mine.txt").write_text(small_text())
    (root / "tiny.toml").write_text(TINY)
    return gptkit.train(root / "tiny.toml", runs_folder=root / "runs", data_dir=root).path


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
    trained: Path, workspace: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompt.txt").write_text("the\nold\n")
    arguments = ("generate", trained, "-n", 10, "--seed", 5, "--prompt")
    given = gptkit_command(*arguments, "the\nold\n")
    assert given.out.startswith("the\nold\n")
    assert gptkit_command(*arguments, "-", stdin=b"the\nold\n").out == given.out
    assert gptkit_command(*arguments, "@prompt.txt").out == given.out
    monkeypatch.setenv("HOME", str(workspace))
    assert gptkit_command(*arguments, "@~/prompt.txt").out == given.out


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


def test_a_random_seed_is_printed_and_gives_the_same_text_again(
    trained: Path, gptkit_command: Command
) -> None:
    drawn = gptkit_command("generate", trained, "-n", 40)
    seed = re.search(r"seed (\d+)", drawn.err)
    assert seed
    assert gptkit_command("generate", trained, "-n", 40, "--seed", seed[1]).out == drawn.out


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


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_not_numbers_are_refused_although_their_hashes_agree(
    number: float, trained: Path, workspace: Path, gptkit_command: Command
) -> None:
    run = Run(workspace / "runs" / "broken")
    shutil.copytree(trained, run.path)
    saved = run.checkpoint("last")
    name = next(iter(saved.model))
    saved.model[name].view(-1)[-1] = number
    save_checkpoint(
        run.checkpoints,
        run_id=run.recorded_id,
        step=saved.step,
        model=saved.model,
        optimizer=saved.optimizer,
        state=saved.state,
    )
    Path("tiny.toml").write_text(TINY)
    for command in (
        ("generate", "broken", "-n", 5),
        ("train", "tiny.toml", "--load", "broken"),
        ("resume", "broken", "--steps", 30),
        ("runs", "verify", "broken"),
    ):
        refused = gptkit_command(*command)
        assert refused.code == 5
        told = refused.out if command[0] == "runs" else refused.err
        assert f"step {saved.step}" in told
        assert f"are not finite: {name} contains NaN or infinity" in told
    assert [path.name for path in run.path.parent.iterdir()] == ["broken"]


def test_a_prompt_that_is_not_utf_8_is_refused(trained: Path, gptkit_command: Command) -> None:
    done = gptkit_command("generate", trained, "--prompt", "-", stdin=b"ok\xff")
    assert (done.code, done.out) == (2, "")
    assert "the prompt from standard input is not UTF-8 at byte 2" in done.err


@pytest.mark.slow
def test_training_and_text_in_a_process_of_its_own(tiny_experiment: Path, run_process: Command) -> None:
    """The tour of the documentation runs every command so; this one is part of every test run."""
    done = run_process("train", tiny_experiment, "--generate", 40, "--set", "sampling.prompt=the old")
    assert (done.code, done.err) == (0, "")
    text = (Run(next(Path("runs").iterdir())).samples / "step-000000000020.txt").read_text()
    assert done.out.endswith(f"\n{text}\n")
    assert text.startswith("the old")
    assert len(text) == 47
