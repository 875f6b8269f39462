"""training.freeze: parts of the model that keep their weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptkit.errors import ExperimentError
from gptkit.model.build import build_new_model
from gptkit.training.context import RunContext
from gptkit.training.session import resume_run, train_run
from tests.support import sums

FROZEN = ("token_embedding", "blocks.0.attention")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_parts_keep_their_weights_and_resume_is_exact(
    context: RunContext, both_ways: None, optimizer: str, precision: str
) -> None:
    training = {"max_steps": 6, "freeze": list(FROZEN), "precision": precision}
    experiment = sums.experiment(training=training, optimizer={"type": optimizer, "weight_decay": 0.1})
    whole = train_run(experiment, context)
    initial = build_new_model(experiment, whole.tokenizer.vocab_size, seed=11).state_dict()
    for name, trained in whole.run.checkpoint("last").model.items():
        frozen = any(name.startswith(f"{part}.") for part in FROZEN)
        assert trained.equal(initial[name]) == frozen, name
    stopped = train_run(experiment, replace(context, runs_folder=context.runs_folder / "2"), stop_at=3).run
    resume_run(stopped, context)
    assert sums.hashes(stopped) == sums.hashes(whole.run)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["token_embeding"], "did you mean 'token_embedding'"),
        (["blocks.7"], "no part 'blocks.7'"),
        (["x" * 50], "it has token_embedding"),
        (["token_embedding", "blocks", "lm_head"], "nothing is left to train"),
    ],
)
def test_a_name_that_no_part_has_is_refused(context: RunContext, names: list[str], message: str) -> None:
    with pytest.raises(ExperimentError, match=r"training\.freeze") as caught:
        train_run(sums.experiment(training={"freeze": names}), context)
    assert message in str(caught.value)
    assert not context.runs_folder.exists()
