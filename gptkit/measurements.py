"""Measures the implementations of operations at the shapes of an experiment, and keeps what was the fastest.

Input: a backend and an experiment. Output: the backend with the implementation of each operation, and the
precision, that are the fastest here. Measured once per machine, build and shape, and kept beside the compiled
library. Knows nothing of runs: a run records the backend, and is resumed with that.

`GPTKIT_MEASURE=0` measures nothing and keeps the default implementations.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptkit.backend import Backend, fast_operations, fingerprint, keep_freed_memory
from gptkit.errors import UsageError
from gptkit.experiment.schema import Experiment
from gptkit.model.build import build_new_model, matrix_weights
from gptkit.model.measured import BLOCKS, CLEARLY, Measurement, choices, measure
from gptkit.native import cache_folder

# Limits of what is measured, so that it takes about a second at most and little memory
_SECONDS_PER_CALL = 0.03  # of an operation, all its implementations together
_MOST_TOKENS = 2048  # of a batch; a larger one is measured in part
_MOST_LOGITS = 2**24
_MOST_WEIGHTS = 2**25  # of a block and the output projection; beyond, products take nearly all of the time
_MOST_MEASUREMENTS = 200  # that are kept


def with_fastest(backend: Backend, experiment: Experiment, vocab_size: int) -> Backend:
    """The backend with the fastest implementation of each operation at the shapes of an experiment.

    With training.precision = "auto" bf16 becomes fp32 where that is faster. Takes about a second the
    first time on a machine. The backend as it is where nothing is to choose, or it cannot be measured.
    """
    if _not_measured(backend, experiment, vocab_size):
        return backend
    found: Any = _read_measurements().get(_measurement_key(backend, experiment, vocab_size))
    if not _is_choice(found):
        try:
            found = _choice(*measure_operations(backend, experiment, vocab_size))
        except Exception:  # of a plugin, or for lack of memory: training will report it
            return backend
    return replace(backend, precision=found["precision"], operations=found["operations"])


def measure_operations(
    backend: Backend, experiment: Experiment, vocab_size: int
) -> tuple[str, list[Measurement]]:
    """The faster precision, and every implementation of every operation in it. Keeps what was the fastest.

    Raises UsageError where nothing can be measured.
    """
    if reason := _not_measured(backend, experiment, vocab_size):
        raise UsageError(f"the operations cannot be measured: {reason}.")
    precision, found = backend.precision, _measure(backend, experiment, vocab_size)
    if precision == "bf16" and experiment.training.precision == "auto":
        other = _measure(replace(backend, precision="fp32"), experiment, vocab_size)
        if _blocks_seconds(other) * CLEARLY < _blocks_seconds(found):
            precision, found = "fp32", other
    key = _measurement_key(backend, experiment, vocab_size)
    _write_measurements({**_read_measurements(), key: _choice(precision, found)})
    return precision, found


def _measure(backend: Backend, experiment: Experiment, vocab_size: int) -> list[Measurement]:
    training, T = experiment.training, experiment.model.context_length
    rows = max(1, min(training.batch_size, _MOST_TOKENS // T, _MOST_LOGITS // (T * vocab_size)))
    keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        model = build_new_model(_one_block(experiment), vocab_size, seed=0)
        tokens = torch.randint(vocab_size, (rows, T))
        table = fast_operations(backend.device, native=bool(backend.native))
        for parameter in model.parameters():  # buffers stay in fp32, as in training
            parameter.data = parameter.data.to(backend.dtype)
        return measure(model, tokens, tokens, table, _SECONDS_PER_CALL)


def _one_block(experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"model": experiment.model.model_copy(update={"n_layer": 1})})


def _choice(precision: str, measurements: list[Measurement]) -> dict[str, Any]:
    return {"precision": precision, "operations": choices(measurements)}


def _not_measured(backend: Backend, experiment: Experiment, vocab_size: int) -> str:
    """The reason why the operations cannot be measured; "" if they can."""
    if os.environ.get("GPTKIT_MEASURE", "1") == "0":
        return "GPTKIT_MEASURE=0"
    if backend.device != "cpu":
        return f"on {backend.device} each has one implementation"
    if backend.compile:
        return "torch.compile has its own implementations"
    if matrix_weights(_one_block(experiment), vocab_size) > _MOST_WEIGHTS:
        return "the model is too wide"
    if experiment.model.context_length > _MOST_TOKENS:
        return f"the context is longer than {_MOST_TOKENS} tokens"
    return ""


def _blocks_seconds(measurements: list[Measurement]) -> float:
    return sum(
        candidate.seconds or 0.0
        for one in measurements
        for candidate in one.candidates
        if one.operation == BLOCKS and candidate.name == one.chosen
    )


def _measurements_file() -> Path | None:
    folder = cache_folder()
    return folder / "operations.json" if folder else None


def _measurement_key(backend: Backend, experiment: Experiment, vocab_size: int) -> str:
    """Identifies what the times depend on: the code, the processor, the shapes."""
    shape = experiment.model.model_dump(mode="json", exclude={"n_layer", "init", "tie_embeddings"})
    parts = [
        fingerprint(replace(backend, operations=None)),
        shape,
        vocab_size,
        experiment.training.batch_size,
        experiment.training.precision,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _is_choice(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found.get("precision") in ("fp32", "bf16")
        and isinstance(found.get("operations"), dict)
        and all(isinstance(name, str) for name in found["operations"].values())
    )


def _read_measurements() -> dict[str, Any]:
    """What is kept; nothing if the file is missing or damaged."""
    file = _measurements_file()
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(file.read_text("utf-8")) if file else {}
        return found if isinstance(found, dict) else {}
    return {}


def _write_measurements(measurements: dict[str, Any]) -> None:
    """The latest ones. Where two processes write at once one of them measures again."""
    if (file := _measurements_file()) is None:
        return
    latest = dict(list(measurements.items())[-_MOST_MEASUREMENTS:])
    with suppress(OSError), tempfile.TemporaryDirectory(dir=file.parent) as work:
        new = Path(work) / file.name
        new.write_text(json.dumps(latest), "utf-8")
        os.replace(new, file)
