"""`gptkit evaluate`: the loss of a model on a text, by windows side by side or sliding ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gptkit.data.sampler import sliding_windows
from gptkit.runs import Run, find_run
from gptkit.training.context import RunContext
from gptkit.training.evaluation import evaluate_run
from tests.support import Command


@pytest.mark.parametrize("tokens", [2, 5, 8, 9, 10, 16, 17, 30])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_but_the_first_is_predicted_once(tokens: int, stride: int) -> None:
    predicted: list[int] = []
    for group in sliding_windows(tokens, context_length=8, stride=stride):
        for start in group.starts:
            last = start + group.length  # the token that the last position predicts
            predicted += range(last - group.predicted + 1, last + 1)
            assert start >= 0
            assert group.length <= 8
    assert sorted(predicted) == list(range(1, tokens))


def test_a_small_stride_leaves_much_before_each_token() -> None:
    for group in sliding_windows(100, context_length=8, stride=2)[1:]:
        assert group.length - group.predicted >= 6


@pytest.fixture
def run(tiny_experiment: Path, gptkit_command: Command) -> Run:
    assert gptkit_command("train", tiny_experiment, "--steps", 3, "--quiet").code == 0
    return find_run("latest", Path("runs"))


def losses_by_hand(run: Run, text: str, stride: int) -> float:
    """The mean loss of each token after the first, predicted from the window that `stride` gives it."""
    model, tokenizer = run.load()
    ids = torch.from_numpy(np.asarray(tokenizer.encode(text), dtype=np.int64))
    context, total = model.settings.context_length, 0.0
    for target in range(1, len(ids)):
        if target <= context:
            start = 0
        elif stride == context:
            start = (target - 1) // context * context
        else:
            start = min(-(-(target - context) // stride) * stride, len(ids) - 1 - context)
        with torch.inference_mode():
            logits = model(ids[start:target].unsqueeze(0))[0, -1]
        total -= float(logits.log_softmax(-1)[ids[target]])
    return total / (len(ids) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [None, 5, 16])
def test_the_loss_is_that_of_each_token_after_its_window(
    run: Run, context: RunContext, stride: int | None
) -> None:
    text = Path("data/mine.txt").read_text()[:75]
    Path("other.txt").write_text(text)
    found = evaluate_run(run, context.folders, dataset="other.txt", stride=stride)
    assert (found.tokens, found.bytes) == (74, 75)
    assert found.loss == pytest.approx(losses_by_hand(run, text, stride or 16), abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))


@pytest.mark.slow
def test_without_a_text_it_is_what_training_recorded(run: Run, gptkit_command: Command) -> None:
    done = gptkit_command("evaluate", run.id, "--json", "--checkpoint", "last")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    record = run.read_record()
    assert values["loss"] == pytest.approx(record.val_loss, abs=1e-4)
    assert values["bits_per_byte"] == pytest.approx(record.best_bits_per_byte, abs=1e-3)
    assert "val split of data/mine.txt" in gptkit_command("evaluate", run.id).out


@pytest.mark.slow
def test_wrong_texts_and_strides_are_refused(run: Run, gptkit_command: Command) -> None:
    Path("greek.txt").write_text("the αβγ lamp")
    Path("one.txt").write_text("t")
    for arguments, code, message in (
        (["--dataset", "greek.txt"], 4, "--unknown skip"),
        (["--dataset", "one.txt"], 4, "two at least"),
        (["--dataset", "nowhere.txt"], 4, "nowhere.txt"),
        (["--stride", "17"], 2, "expected 1 to 16"),
        (["--stride", "0"], 2, "expected 1 to 16"),
        (["--unknown", "maybe"], 2, "expected error or skip"),
    ):
        done = gptkit_command("evaluate", run.id, *arguments)
        assert (done.code, message in done.err) == (code, True), done.err
    skipped = gptkit_command("evaluate", run.id, "--dataset", "greek.txt", "--unknown", "skip")
    assert skipped.code == 0
    assert "8 tokens" in skipped.out
