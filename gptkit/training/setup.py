"""From an experiment to a model: built, checked against the memory there is, given its weights, trained."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptkit.backend import SUPPOSED_SPEED, Backend
from gptkit.data.sampler import BatchSampler, Ids
from gptkit.errors import CheckpointError, ExperimentError, OutOfMemoryError, PluginError
from gptkit.experiment import Experiment
from gptkit.model import GPT
from gptkit.plugins import ModelShape, registry
from gptkit.seeds import derive_seed
from gptkit.training.budget import STEPS, Pace
from gptkit.training.optim import Optimizer, weights_for
from gptkit.training.trainer import Progress, Trainer

# Bytes for each parameter in training: fp32 master, gradient, two averages, and a bf16 copy with its gradient
_TRAINING_BYTES = 4 + 4 + 8 + 2 + 2

_SMALL = 2**24  # numbers: 64 MB in fp32, which any machine has


def build_model(experiment: Experiment, vocab_size: int) -> GPT:
    """The GPT of an experiment, on the CPU, its weights not yet drawn. Raises ExperimentError."""
    settings = experiment.model
    plugin = registry.load(registry.POSITIONS, settings.position.type).cls
    shape = ModelShape(settings.context_length, settings.n_embd, settings.n_head)
    try:
        position = plugin(plugin.Options.model_validate(settings.position.options), shape)
    except ValueError as error:
        problem = f"model.position: {error}"
        raise ExperimentError("the experiment", [problem]).about("model.position") from error
    except (TypeError, AttributeError, RuntimeError) as error:
        raise PluginError(f"positional encoding {settings.position.type!r} failed: {error}") from error
    return GPT(settings, vocab_size, position)


def _outline(experiment: Experiment, vocab_size: int) -> GPT:
    """The GPT of an experiment, to ask for its sizes; without memory for its weights where they are many.

    On the meta device torch describes some operations with its compiler, whose import takes a second: more
    than a small model takes to build.
    """
    model = experiment.model
    tables = model.context_length * max(model.context_length, model.n_embd)  # at most, of a position encoding
    small = matrix_weights(experiment, vocab_size) + vocab_size * model.n_embd + tables <= _SMALL
    with torch.device("cpu" if small else "meta"):
        return build_model(experiment, vocab_size)


def matrix_weights(experiment: Experiment, vocab_size: int) -> int:
    """Weights of the model's matrix products, nearly: 12 C^2 a block, and the output projection."""
    model = experiment.model
    return 12 * model.n_layer * model.n_embd**2 + vocab_size * model.n_embd


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


def build_new_model(experiment: Experiment, vocab_size: int, seed: int) -> GPT:
    """A model with its initial weights. Raises OutOfMemoryError before it takes what is not there."""
    _check_memory(experiment, vocab_size)
    # A plugin's own parameters may draw from torch's generator when they are made
    torch.manual_seed(derive_seed(seed, "build"))
    model = build_model(experiment, vocab_size)
    model.initialise(torch.Generator().manual_seed(derive_seed(seed, "init")))
    return model


def _check_memory(experiment: Experiment, vocab_size: int) -> None:
    """Compares the least that training needs with the memory of this machine."""
    parameters = _outline(experiment, vocab_size).parameter_count
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
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else [2**46]
    if torch.cuda.is_available():
        sizes.append(torch.cuda.get_device_properties(0).total_memory)
    return max(sizes)


def build_trainer(
    experiment: Experiment,
    backend: Backend,
    model: GPT,
    ids: Ids,
    progress: Progress,
    *,
    seed: int,
    pace: Pace = STEPS,
) -> Trainer:
    """All that training steps need for a model on its device, whose weights it takes over, and a split."""
    weights = weights_for(model, backend.dtype, experiment.optimizer)
    return Trainer(
        experiment=experiment,
        model=model,
        weights=weights,
        optimizer=Optimizer(weights, experiment.optimizer),
        sampler=BatchSampler(
            ids,
            context_length=experiment.model.context_length,
            batch_size=experiment.training.batch_size,
            seed=seed,
        ),
        seed=seed,
        progress=progress,
        pace=pace,
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


def build_model_for(
    experiment: Experiment, vocab_size: int, tensors: dict[str, torch.Tensor], whose: str
) -> GPT:
    """The model of recorded weights, without them yet. Raises CheckpointError where they are not its own.

    That is found before memory is taken: the sizes that an experiment file states may be absurd, those of the
    tensors are real.
    """
    _check_weights(_outline(experiment, vocab_size), tensors, whose)
    return build_model(experiment, vocab_size)


def load_weights(model: GPT, tensors: dict[str, torch.Tensor], whose: str) -> None:
    """Gives the model weights by name. Raises CheckpointError where names or shapes differ."""
    _check_weights(model, tensors, whose)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _check_weights(model: GPT, tensors: dict[str, torch.Tensor], whose: str) -> None:
    own = dict(model.named_parameters())
    wrong = sorted(own.keys() ^ tensors.keys()) or [
        name for name, parameter in own.items() if parameter.shape != tensors[name].shape
    ]
    if wrong:
        raise CheckpointError(f"the weights of {whose} are not of this model: {', '.join(wrong[:3])} differ.")
