"""From a model to all that its training steps need, checked against the memory of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptkit.backend import SUPPOSED_SPEED, Backend
from gptkit.data.readers import physical_memory
from gptkit.data.sampler import BatchSampler
from gptkit.errors import OutOfMemoryError
from gptkit.experiment import Experiment
from gptkit.model import GPT
from gptkit.model.build import matrix_weights, model_shapes
from gptkit.plugins.tokenizer import Ids
from gptkit.training.budget import TrainingBudget, TrainingProgress
from gptkit.training.optim import Optimizer, flatten_parameters
from gptkit.training.trainer import Trainer

# Bytes for each parameter in training: fp32 master, gradient, two averages, and a bf16 copy with its gradient
_TRAINING_BYTES = 4 + 4 + 8 + 2 + 2


def training_flops(experiment: Experiment, vocab_size: int) -> float:
    """What all steps of a run compute, nearly: 6 FLOP a weight and token, and 12 L C T a token for attention.

    Chowdhery et al. 2022 (PaLM), appendix B. Of a run that the clock ends: what a GPU does in that time.
    """
    if experiment.training.minutes is not None:
        return 60 * experiment.training.minutes * SUPPOSED_SPEED
    model = experiment.model
    attention = 12.0 * model.n_layer * model.n_embd * model.context_length
    tokens = experiment.training.max_steps * experiment.tokens_per_step
    return tokens * (6.0 * matrix_weights(experiment, vocab_size) + attention)


def check_memory(experiment: Experiment, vocab_size: int) -> None:
    """Raises OutOfMemoryError where training needs more memory than this machine has."""
    parameters = model_shapes(experiment, vocab_size).parameter_count
    model, training = experiment.model, experiment.training
    weights = parameters * _TRAINING_BYTES
    # Of a token: logits and their gradient, and in each block about sixteen numbers a channel, in bf16
    token = 8 * vocab_size + 32 * model.n_embd * model.n_layer
    activations = training.batch_size * model.context_length * token
    there = _memory()
    if weights > there:
        raise OutOfMemoryError(
            f"a model of {parameters:,} parameters needs {weights / 1e9:.1f} GB to train; this machine has "
            f"{there / 1e9:.1f} GB. Lower model.n_embd or model.n_layer."
        )
    if weights + activations > there:
        raise OutOfMemoryError(
            f"a batch of {training.batch_size} x {model.context_length} tokens needs at least "
            f"{activations / 1e9:.1f} GB; this machine has {there / 1e9:.1f} GB. Lower training.batch_size "
            "and raise training.gradient_accumulation_steps, or lower model.context_length."
        )


def _memory() -> int:
    """Bytes of the largest memory that a model could be in."""
    sizes = [physical_memory()]
    if torch.cuda.is_available():
        sizes.append(torch.cuda.get_device_properties(0).total_memory)
    return max(sizes)


def build_trainer(
    experiment: Experiment,
    backend: Backend,
    model: GPT,
    ids: Ids,
    progress: TrainingProgress,
    *,
    seed: int,
    budget: TrainingBudget,
) -> Trainer:
    """All that training steps need for a model on its device, whose weights it takes over, and a split."""
    parameters = flatten_parameters(model, backend.dtype, experiment.optimizer)
    return Trainer(
        experiment=experiment,
        model=model,
        parameters=parameters,
        optimizer=Optimizer(parameters, experiment.optimizer),
        sampler=BatchSampler(
            ids,
            context_length=experiment.model.context_length,
            batch_size=experiment.training.batch_size,
            seed=seed,
        ),
        seed=seed,
        progress=progress,
        budget=budget,
    )


@contextmanager
def out_of_memory(experiment: Experiment) -> Iterator[None]:
    """Turns a failed allocation into an OutOfMemoryError that names the field to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if (
            type(error) is RuntimeError
            and "allocate memory" not in str(error)
            and "out of memory" not in str(error)
        ):
            raise
        training, model = experiment.training, experiment.model
        raise OutOfMemoryError(
            f"out of memory with batches of {training.batch_size} x {model.context_length} tokens, "
            f"{model.n_layer} layers of width {model.n_embd}. Lower training.batch_size and raise "
            "training.gradient_accumulation_steps, or lower model.context_length."
        ) from error
