"""A split that is too short: the message names the field that is the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptkit.data.corpus import build_corpus
from gptkit.errors import DataError
from gptkit.tokenizers.byte import ByteTokenizer
from tests.support import Command


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
