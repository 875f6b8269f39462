"""Training in fp16: the loss scale, what it skips, and that it resumes exactly. In torch, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gptkit.backend import fast_operations
from gptkit.errors import DivergedError
from gptkit.experiment.load import experiment_from_dict
from gptkit.model import fast
from gptkit.reproduce.verify import Verdict, verify_run
from gptkit.training.context import RunContext
from gptkit.training.optim import LossScale
from gptkit.training.session import resume_run, train_run
from gptkit.training.trainer import Trainer
from tests.support.sums import hashes, losses
from tests.training.test_trainer import trainer_of


def fp16_trainer(optimizer: str = "muon") -> Trainer:
    return trainer("fp16", optimizer)


def trainer(precision: str, optimizer: str) -> Trainer:
    model = {"context_length": 4, "n_embd": 8, "n_layer": 1, "n_head": 1, "init": "gpt2"}
    training = {"gradient_accumulation_steps": 2}
    return trainer_of(precision, model=model, optimizer=optimizer, training=training)


@pytest.fixture(autouse=True)
def operations() -> Iterator[None]:
    """Those of a run on a CPU; in C those that take fp32, such as the updates."""
    with fast.using(fast_operations("cpu", native=True)):
        yield


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_gradient_is_that_of_fp32_whatever_the_scale(optimizer: str) -> None:
    true = trainer("fp32", optimizer)
    true.step()
    for scale in (1.0, 2.0**16):
        in_fp16 = fp16_trainer(optimizer)
        assert in_fp16.optimizer.loss_scale is not None
        in_fp16.optimizer.loss_scale.state[0] = scale
        in_fp16.step()
        found, wanted = in_fp16.parameters.gradient, true.parameters.gradient
        assert (found - wanted).norm() < 0.005 * wanted.norm()
        assert in_fp16.guard.synchronize() == pytest.approx(true.guard.synchronize(), rel=0.005)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_gradient_that_overflows_halves_the_scale_and_changes_nothing_else(optimizer: str) -> None:
    in_fp16 = fp16_trainer(optimizer)
    scale, state = in_fp16.optimizer.loss_scale, in_fp16.optimizer.state_dict()
    assert scale is not None
    scale.state[0] = 2.0**20
    before = in_fp16.parameters.master.clone()
    in_fp16.step()
    after = in_fp16.optimizer.state_dict()
    assert scale.state.tolist() == [2.0**19, 0]
    assert torch.equal(in_fp16.parameters.master, before)
    assert all(torch.equal(after[key], state[key]) for key in state if key != "loss_scale")
    assert in_fp16.progress.step == 1
    while not scale.state[1]:
        in_fp16.step()
    assert not torch.equal(in_fp16.parameters.master, before)


def test_the_scale_grows_after_an_interval_without_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    in_fp16 = fp16_trainer()
    scale = in_fp16.optimizer.loss_scale
    assert scale is not None
    scale.state[0] = 4.0
    found = []
    for _ in range(7):
        in_fp16.step()
        found.append(scale.state[0].item())
    assert found == [4, 4, 8, 8, 8, 16, 16]


def test_a_gradient_that_overflows_at_the_lowest_scale_has_diverged() -> None:
    in_fp16 = fp16_trainer()
    assert in_fp16.optimizer.loss_scale is not None
    in_fp16.optimizer.loss_scale.state[0] = 2.0
    in_fp16.parameters.collect_gradients = lambda scale, add=False: torch.tensor(torch.inf)  # type: ignore[assignment]
    in_fp16.step()  # skipped, and halved to 1
    with pytest.raises(DivergedError, match="step 2"):
        in_fp16.step()


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 9])
def test_a_run_in_fp16_resumes_exactly(
    stop_at: int, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the scale falls, and after it has grown again; its checkpoints verify."""
    monkeypatch.setattr(LossScale, "INITIAL", 2.0**20)
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    recipe = experiment_from_dict(
        {
            "name": "t",
            "seed": 11,
            "data": {"dataset": "sums.txt"},
            "model": {"context_length": 8, "n_embd": 16, "n_layer": 1, "n_head": 2, "dropout": 0.2},
            "training": {"max_steps": 14, "batch_size": 2, "precision": "fp16", "threads": 1},
            "sampling": {"sample_interval": 0},
        }
    )
    straight = train_run(recipe, context).run
    stopped = train_run(recipe, context, stop_at=stop_at).run
    resume_run(stopped, context)
    assert hashes(stopped) == hashes(straight)
    assert losses(stopped) == losses(straight)
    assert {finding.verdict for finding in verify_run(straight)} == {Verdict.OK}
