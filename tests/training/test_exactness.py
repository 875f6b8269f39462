"""Resuming at every step of a 40-step run is exact: each optimizer and precision, dropout, accumulation.

From each of its checkpoints a run is resumed for one step, and what it saves then is compared, byte for byte,
with what the undisturbed run saved there: so, by induction, all that comes later is the same too.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

import gptkit
from gptkit.experiment.load import experiment_from_dict
from gptkit.runs import Run
from gptkit.runs.checkpoint import MODEL, OPTIMIZER, STATE
from gptkit.runs.folder import step_folder
from gptkit.training.context import RunContext
from gptkit.training.session import resume_run, train_run
from tests.support.sums import TEXT, hashes, losses

STEPS = 40


@pytest.fixture
def context(context: RunContext) -> RunContext:
    """With less text, which is read again for each of many runs."""
    context.folders.search[0].joinpath("sums.txt").write_text(TEXT[:6000])
    return context


def experiment(optimizer: str, precision: str) -> gptkit.Experiment:
    return experiment_from_dict(
        {
            "name": "t",
            "seed": 11,
            "data": {"dataset": "sums.txt"},
            "model": {"context_length": 8, "n_embd": 16, "n_layer": 1, "n_head": 2, "dropout": 0.2},
            "training": {
                **{"max_steps": STEPS, "batch_size": 2, "gradient_accumulation_steps": 2},
                **{"threads": 1, "log_interval": 3, "precision": precision},
            },
            "optimizer": {"type": optimizer},
            "schedule": {"type": "cosine", "warmup_steps": 5},
            "evaluation": {"eval_interval": 7, "stop_after_bad_evals": 30},
            "checkpoints": {"checkpoint_interval": 1, "keep_last": STEPS},
            "sampling": {"sample_interval": 0},
        }
    )


def saved(run: Run, step: int) -> tuple[bytes, bytes, dict[str, Any]]:
    """Weights, optimizer state and progress, without the training time."""
    folder = step_folder(run.checkpoints, step)
    state = json.loads((folder / STATE).read_text())
    del state["progress"]["seconds"]
    return (folder / MODEL).read_bytes(), (folder / OPTIMIZER).read_bytes(), state


def only(straight: Run, step: int, name: str) -> Run:
    """The run as it would be if it had been killed after saving `step`; one of that name is replaced."""
    run = Run(straight.path.parent / name)
    shutil.rmtree(run.path, ignore_errors=True)
    shutil.copytree(straight.path, run.path, ignore=shutil.ignore_patterns("checkpoints", "metrics.jsonl"))
    kept = step_folder(straight.checkpoints, step)
    shutil.copytree(kept, step_folder(run.checkpoints, step))
    lines = (straight.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] <= step)
    )
    return run


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_at_every_step_is_exact(optimizer: str, precision: str, context: RunContext) -> None:
    straight = train_run(experiment(optimizer, precision), context).run
    for step in range(1, STEPS):
        resumed = resume_run(only(straight, step, "resumed"), context, stop_at=step + 1).run
        assert saved(resumed, step + 1) == saved(straight, step + 1), step
    for step in (1, 20, 38):
        resumed = resume_run(only(straight, step, "resumed"), context).run
        assert hashes(resumed) == hashes(straight)
        assert losses(resumed) == losses(straight)
