"""A text of sums, a very small experiment on it, and the values by which two runs of it are compared."""

from __future__ import annotations

from typing import Any

from gptkit.experiment.load import experiment_from_dict
from gptkit.experiment.schema import Experiment
from gptkit.runs import Run
from tools.support.outcome import outcome

TEXT = "".join(f"{n} times {n + 3} makes {n * (n + 3)}; so it goes.\n" for n in range(700))


def experiment(**changes: dict[str, Any]) -> Experiment:
    """Twelve steps of a small model, with these tables, or values, instead."""
    tables: dict[str, Any] = {
        "name": "t",
        "seed": 11,
        "data": {"dataset": "sums.txt"},
        "model": {"context_length": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "dropout": 0.1},
        "training": {"max_steps": 12, "batch_size": 3, "threads": 1, "log_interval": 1},
        "sampling": {"sample_interval": 0},
    }
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table} if isinstance(table, dict) else table
    return experiment_from_dict(tables)


def hashes(run: Run) -> tuple[str, str]:
    """SHA-256 of the weights and of the optimizer of the newest checkpoint."""
    result = outcome(run)
    return result.model, result.optimizer


def losses(run: Run) -> list[tuple[int, float, float | None]]:
    return [(row["step"], row["train_loss"], row.get("val_loss")) for row in run.metrics()]
