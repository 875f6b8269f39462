"""Batches copied to a device ahead of their use, and what is imported before the first one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptkit.data.sampler import BatchSampler, EvaluationRule
from gptkit.experiment.schema import Experiment
from gptkit.model.build import build_new_model
from gptkit.plugins.tokenizer import Ids
from gptkit.training.loss import evaluate
from gptkit.training.optim import flatten_parameters
from gptkit.training.prefetch import Prefetcher

IDS = np.random.default_rng(2).integers(0, 20, 3000).astype(np.uint8)


class Counting(BatchSampler):
    """Notes which batches are gathered."""

    gathered: list[int]

    def windows(self, index: int) -> Ids:
        self.gathered.append(index)
        return super().windows(index)


def sampler() -> Counting:
    made = Counting(IDS, context_length=8, batch_size=4, seed=1)
    made.gathered = []
    return made


def test_batches_are_those_of_the_sampler() -> None:
    batches = sampler()
    feed = Prefetcher(batches, torch.device("cpu"))
    for index in (3, 0, 1):
        windows = batches.windows(index)
        for ours, theirs in zip(feed.batch(index), (windows[:, :-1], windows[:, 1:]), strict=True):
            assert ours.dtype == torch.int64
            assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize(
    ("device", "gathered"),
    [("cpu", [0, 1, 7]), ("meta", [0, 1, 2, 7])],  # "meta" acts as a device that computes asynchronously
)
def test_the_next_batch_is_gathered_ahead_and_once(device: str, gathered: list[int]) -> None:
    batches = sampler()
    feed = Prefetcher(batches, torch.device(device))
    assert feed.batch(0)[0].device.type == device
    feed.prefetch(1)
    feed.batch(1)
    feed.prefetch(2)
    feed.batch(7)  # another one than was expected
    assert batches.gathered == gathered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_evaluation_is_the_sum_over_all_windows(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64, chunk by chunk, the last of which is shorter, and the last window: to the last bit."""
    monkeypatch.setattr("gptkit.training.loss.EVALUATION_TOKENS", 8 * 50)
    settings = Experiment.model_validate({"model": {"context_length": 8, "n_embd": 16, "init": "gpt2"}})
    model = build_new_model(settings, 20, seed=1)
    flatten_parameters(model, dtype, settings.optimizer)
    windows = torch.from_numpy(IDS[: 374 * 8].reshape(374, 8).astype(np.int64))
    targets = torch.from_numpy(IDS[1 : 374 * 8 + 1].reshape(374, 8).astype(np.int64))
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for part, wanted in zip(windows.split(50), targets.split(50), strict=True):
            logits = model.eval()(part).flatten(0, 1).float()
            total += F.cross_entropy(logits, wanted.flatten(), reduction="sum")
        old = evaluate(model, IDS, context_length=8, eval_tokens=10**6, rule=EvaluationRule.WHOLE_WINDOWS)
        assert (old.total, old.tokens) == (total.item(), 374 * 8)
        last = torch.from_numpy(IDS[374 * 8 :].astype(np.int64))
        logits = model(last[None, :-1])[0].float()
        total += F.cross_entropy(logits, last[1:], reduction="sum")
    found = evaluate(model, IDS, context_length=8, eval_tokens=10**6)
    assert (found.total, found.tokens) == (total.item(), len(IDS) - 1)


@pytest.mark.slow
def test_training_imports_no_compiler(tiny_experiment: Path) -> None:
    """torch's would take as long to import as torch itself."""
    program = (
        "import sys; from gptkit.cli.app import run_command; "
        f"code = run_command(['train', '{tiny_experiment}', '--quiet', '--steps', '3']); "
        "sys.exit(code or bool({'torch._dynamo', 'sympy', 'torch._inductor'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
