"""What training costs: FLOP and memory, estimated before it starts, and an error that names what to lower.

Input: an experiment and the size of its vocabulary. Output: numbers, or an OutOfMemoryError. Knows nothing of
runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptkit.backend import SUPPOSED_SPEED
from gptkit.errors import OutOfMemoryError
from gptkit.experiment.schema import Experiment
from gptkit.machine import memory_here, usable_memory, used_memory
from gptkit.model.build import matrix_weights, model_shapes
from gptkit.training.loss import EVALUATION_TOKENS

# Bytes per parameter in training: fp32 master, gradient, two averages, and a 16-bit copy with its gradient
_TRAINING_BYTES = 4 + 4 + 8 + 2 + 2


def training_flops(experiment: Experiment, vocab_size: int) -> float:
    """FLOP of all steps of a run, approximately: per token 6 per weight, and 12 L C T for attention.

    Chowdhery et al. 2022 (PaLM), appendix B. For a time-budgeted run, what a GPU computes in that time.
    """
    if experiment.training.minutes is not None:
        return 60 * experiment.training.minutes * SUPPOSED_SPEED
    model = experiment.model
    attention = 12.0 * model.n_layer * model.n_embd * model.context_length
    tokens = experiment.training.max_steps * experiment.tokens_per_step
    return tokens * (6.0 * matrix_weights(experiment, vocab_size) + attention)


def check_memory(experiment: Experiment, vocab_size: int) -> None:
    """Raises OutOfMemoryError if training needs more memory than this process may use, or a GPU has."""
    parameters = model_shapes(experiment, vocab_size).parameter_count
    model, training = experiment.model, experiment.training
    weights = parameters * _TRAINING_BYTES
    # Per token: logits and their gradient, and in each block about sixteen bf16 numbers per channel
    token = 8 * vocab_size + 32 * model.n_embd * model.n_layer
    activations = training.batch_size * model.context_length * token
    used, available, here = used_memory(), usable_memory(), memory_here()  # used: by the text, most of all
    if torch.cuda.is_available():
        used, available = 0, max(available, torch.cuda.get_device_properties(0).total_memory)
        here = f"this machine has {available / 1e9:.1f} GB"
    if used:
        here += f", of which {used / 1e9:.1f} GB are used"
    if used + weights > available:
        raise OutOfMemoryError(
            f"a model of {parameters:,} parameters needs {weights / 1e9:.1f} GB to train; {here}. "
            "Lower model.n_embd or model.n_layer."
        )
    if used + weights + activations > available:
        raise OutOfMemoryError(
            f"a batch of {training.batch_size} x {model.context_length} tokens needs at least "
            f"{activations / 1e9:.1f} GB; {here}. Lower training.batch_size and raise "
            "training.gradient_accumulation_steps, or lower model.context_length."
        )
    at_once = min(EVALUATION_TOKENS, experiment.evaluation.eval_tokens)
    evaluation = 8 * vocab_size * at_once  # logits and their logarithms
    if used + weights + evaluation > available:
        raise OutOfMemoryError(
            f"an evaluation of {at_once:,} tokens at once needs at least {evaluation / 1e9:.1f} GB; {here}. "
            "Lower evaluation.eval_tokens, or use a tokenizer with fewer tokens."
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
