"""A split that is too short: the message names the field that is the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptkit import files
from gptkit.data.corpus import build_corpus
from gptkit.errors import DataError
from gptkit.tokenizers.byte import ByteTokenizer
from tests.support import Command, run_of


def refusal(length: int, val_fraction: float, context_length: int = 9) -> DataError:
    with pytest.raises(DataError) as caught:
        build_corpus("x" * length, ByteTokenizer(), val_fraction=val_fraction, context_length=context_length)
    return caught.value


@pytest.mark.parametrize(
    ("length", "val_fraction", "problem", "remedy", "field"),
    [
        (
            1000,
            1e-9,
            "val split of the text has 1 tokens",
            "raise data.val_fraction from 1e-09 to 0.011",
            "data.val_fraction",
        ),
        (
            1000,
            0.004,
            "val split of the text has 4 tokens",
            "or the largest model.context_length that fits is 3",
            "data.val_fraction",
        ),
        (
            1000,
            0.999,
            "train split of the text has 1 tokens",
            "lower data.val_fraction from 0.999 to 0.989 or less",
            "data.val_fraction",
        ),
        (
            80,
            0.1,
            "val split of the text has 8 tokens",
            "context_length that fits is 7, or raise data.val_fraction from 0.1 to 0.13 or more",
            "model.context_length",
        ),
        (
            15,
            0.1,
            "val split of the text has 2 tokens",
            "; the largest model.context_length that fits is 1.",
            "model.context_length",
        ),
        (5, 0.1, "train split of the text has 4 tokens", "; use a longer text.", "model.context_length"),
    ],
)
def test_the_cause_is_named(length: int, val_fraction: float, problem: str, remedy: str, field: str) -> None:
    error = refusal(length, val_fraction)
    assert problem in str(error)
    assert "needs at least 10 (model.context_length + 1)" in str(error)
    assert remedy in str(error)
    assert error.field == field


@pytest.mark.parametrize(("length", "context_length"), [(1000, 9), (100_000, 64), (81, 9), (1_115_394, 512)])
def test_the_fraction_of_the_message_is_enough(length: int, context_length: int) -> None:
    fraction = float(str(refusal(length, 1e-8, context_length)).split(" or more")[0].split()[-1])
    build_corpus("x" * length, ByteTokenizer(), val_fraction=fraction, context_length=context_length)


def test_the_line_of_the_fraction_is_shown(tiny_experiment: Path, gptkit_command: Command) -> None:
    refused = gptkit_command("train", tiny_experiment, "--set", "data.val_fraction=1e-9")
    assert refused.code == 4
    assert "raise data.val_fraction from 1e-09 to" in refused.err
    assert "--set data.val_fraction=1e-9" in refused.err


def test_val_text_of_its_own(workspace: Path, tiny_experiment: Path, gptkit_command: Command) -> None:
    """All of the dataset is trained on; the other text is evaluated on, recorded, and found again."""
    text = Path("data/mine.txt").read_text()
    Path("val.txt").write_text(text[:600].upper())
    settings = ("--set", "data.val=val.txt", "--set", "tokenizer=byte", "--quiet")
    run = run_of(gptkit_command("train", tiny_experiment, *settings, "--steps", 2))
    record = run.read_record()
    assert (record.tokenizer.train_tokens, record.tokenizer.val_tokens) == (len(text.encode()), 600)
    assert record.dataset.val == {**record.dataset.val, "type": "text", "path": "val.txt"}
    assert record.dataset.val_sha256 == files.sha256(text[:600].upper().encode())
    assert gptkit_command("resume", run.id, "--steps", 3, "--quiet").code == 0
    assert gptkit_command("rerun", run.id, "--quiet").code == 0
    evaluated = gptkit_command("evaluate", run.id)
    assert evaluated.code == 0, evaluated.err
    assert "val.txt" in evaluated.out
    Path("val.txt").write_text(text[:600])
    changed = gptkit_command("resume", run.id, "--steps", 4, "--quiet")
    assert changed.code == 4
    assert "the val text of run" in changed.err
    Path("val.txt").unlink()
    missing = gptkit_command("resume", run.id, "--steps", 4, "--quiet")
    assert missing.code == 4
    assert "--set data.val.path=FILE" in missing.err


def test_val_text_is_part_of_the_vocabulary_and_of_the_message(
    workspace: Path, tiny_experiment: Path, gptkit_command: Command
) -> None:
    Path("val.txt").write_text("ééé")
    short = gptkit_command("train", tiny_experiment, "--set", "data.val=val.txt", "--quiet")
    assert short.code == 4
    assert "the val split of the text has 3 tokens" in short.err
    assert "val_fraction" not in short.err
    toml = tiny_experiment.read_text()
    tiny_experiment.write_text(toml.replace("[data]\n", '[data]\nval = "val.txt"\n'))
    named = gptkit_command("train", tiny_experiment, "--dataset", "data/mine.txt", "--steps", 1, "--quiet")
    assert run_of(named).experiment().data.val is None  # the flag names the one to use
