"""A step's gradient, however its windows are split into batches: held against fp64."""

from __future__ import annotations

from typing import Any

import pytest

from gptkit.native import usable
from tools.gradients import errors

SMALL = {"model.context_length": 16, "model.n_layer": 1, "model.n_embd": 16}
MODERN = {"model.norm": "rmsnorm", "model.position": "rope", "model.mlp": "relu2", "model.bias": False}
IN_C = pytest.param(True, marks=pytest.mark.skipif(not usable(), reason="no C compiler, or GPTKIT_NATIVE=0"))


@pytest.mark.slow
@pytest.mark.parametrize("native", [IN_C, False], ids=["in C", "in torch"])
@pytest.mark.parametrize(
    ("settings", "precision"),
    [({}, "bf16"), ({**MODERN, "model.tie_embeddings": True}, "bf16"), ({}, "fp32")],
    ids=["bf16", "bf16, rmsnorm, tied", "fp32"],
)
def test_accumulation_keeps_the_gradient(settings: dict[str, Any], precision: str, native: bool) -> None:
    """Its error is that of the rounded products, in one batch of 256 windows and in 256 batches of one."""
    largest = 0.01 if precision == "bf16" else 1e-5
    for error in errors({**SMALL, **settings}, precision, [(256, 1), (1, 256)], native=native):
        assert error.worst < largest, error
