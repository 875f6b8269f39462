"""Run folders as training leaves them, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomli_w

from gptkit.runs import Run
from tests.support import write_record

RECORD: dict[str, Any] = {
    "format": 1,
    "name": "one",
    "status": "finished",
    "started": "2026-01-01T10:00:00+00:00",
    "ended": "2026-01-01T10:01:00+00:00",
    "target_step": 20,
    "step": 20,
    "best_val_loss": 1.5,
    "best_bits_per_byte": 2.25,
    "best_step": 10,
    "tokens": 1280,
    "seconds": 2.0,
    "parameters": 1000,
    "dataset": {"title": "shakespeare", "sha256": "ab12", "characters": 1000},
    "tokenizer": {"type": "char", "vocab_size": 65, "sha256": "cd34"},
    "hyperparameters": {"context_length": 16, "n_embd": 32, "optimizer": "muon"},
    "plugins": [
        {"family": "gptkit.tokenizers", "name": "char", "distribution": "gptkit", "version": "0.1.0"}
    ],
    "environment": {"torch": "2.13.0", "threads": 2},
}
EXPERIMENT: dict[str, Any] = {
    "name": "one",
    "seed": 1,
    "tokenizer": {"type": "char"},
    "data": {"val_fraction": 0.1, "dataset": {"type": "shakespeare"}},
    "model": {"n_embd": 32, "n_layer": 4, "qk_norm": False, "position": {"type": "rope", "base": 5000.0}},
    "optimizer": {"type": "adamw", "learning_rate": 0.001},
    "schedule": {"type": "cosine"},
}
METRICS = """\
{"step": 10, "train_loss": 2.0, "val_loss": 1.9, "bits_per_byte": 2.8}
{"step": 20, "train_loss": 1.4}
"""


def make(
    name: str,
    record: dict[str, Any] | None = None,
    experiment: dict[str, Any] | None = None,
    *,
    steps: tuple[int, ...] = (),
    runs: Path = Path("runs"),
) -> Run:
    """A run folder as training leaves it, with checkpoints that are whole in their names only."""
    run = Run(runs / name)
    run.checkpoints.mkdir(parents=True)
    run.experiment_file.write_text(tomli_w.dumps({**EXPERIMENT, **(experiment or {})}))
    (run.path / "run.json").write_text(json.dumps({**RECORD, "id": name, **(record or {})}))
    (run.path / "metrics.jsonl").write_text(METRICS)
    for step in steps:
        folder = run.checkpoints / f"step-{step:012d}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return run


def make_empty(runs: Path, name: str, record: dict[str, Any] | None = None) -> Run:
    """A run folder with an experiment file alone, and a record where one is passed."""
    run = Run(runs / name)
    run.path.mkdir(parents=True)
    run.experiment_file.write_text('name = "mine"\n')
    if record is not None:
        write_record(run, record)
    return run
