"""Builds the GPT of an experiment, new or from recorded weights.

Input: an experiment and the size of its vocabulary. Output: a GPT on the CPU. Knows nothing of text, training
or runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gptkit.errors import CheckpointError, ExperimentError, PluginError
from gptkit.experiment.schema import Experiment
from gptkit.model.gpt import GPT
from gptkit.plugins import ModelShape, registry
from gptkit.seeds import derive_seed
from gptkit.words import nearest

# Numbers in the tensors of a model (64 MB in fp32) up to which it is built on the CPU to read its shapes
_SMALL = 2**24


def build_model(experiment: Experiment, vocab_size: int) -> GPT:
    """The GPT of an experiment, its weights not yet initialized.

    Raises ExperimentError for options that the positional encoding refuses, PluginError where it fails.
    """
    settings = experiment.model
    plugin = registry.load(registry.POSITIONS, settings.position.type)
    shape = ModelShape(settings.context_length, settings.n_embd, settings.n_head)
    try:
        position = plugin(plugin.Options.model_validate(settings.position.options), shape)
    except ValueError as error:
        raise ExperimentError(f"model.position: {error}", field="model.position") from error
    except (TypeError, AttributeError, RuntimeError) as error:
        raise PluginError(f"positional encoding {settings.position.type!r} failed: {error}") from error
    return GPT(settings, vocab_size, position)


def build_new_model(experiment: Experiment, vocab_size: int, seed: int) -> GPT:
    """A model with its initial weights, which depend on `seed` alone. Uses torch's global generator."""
    # A plugin's own parameters may draw from torch's generator when they are made
    torch.manual_seed(derive_seed(seed, "build"))
    model = build_model(experiment, vocab_size)
    model.initialize(torch.Generator().manual_seed(derive_seed(seed, "init")))
    return model


def build_model_for(
    experiment: Experiment, vocab_size: int, tensors: Mapping[str, Tensor], whose: str
) -> GPT:
    """A model that fits recorded weights, its own not yet initialized.

    Raises CheckpointError where names or shapes differ or a weight is not finite, before memory is allocated:
    the sizes in an experiment file may be absurd, those of the tensors are real. `whose` names their origin
    in the message.
    """
    _check_weights(model_shapes(experiment, vocab_size), tensors, whose)
    return build_model(experiment, vocab_size)


def load_weights(model: GPT, tensors: Mapping[str, Tensor], whose: str) -> None:
    """Copies weights into the model by name.

    Raises CheckpointError where names or shapes differ, or a weight is not finite.
    """
    _check_weights(model, tensors, whose)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def freeze(model: GPT, names: Sequence[str]) -> None:
    """Makes parts of a model require no gradient, by the beginnings of their parameters' names.

    Raises ExperimentError for a name that no part has, or if nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        frozen = [parameters[each] for each in parameters if each == name or each.startswith(f"{name}.")]
        if not frozen:
            parts = dict.fromkeys(part for each in parameters for part in _parts(each))
            hint = nearest(name, parts) or f"; it has {', '.join(_top(parts))}"
            raise ExperimentError(
                f"training.freeze: the model has no part {name!r}{hint}", field="training.freeze"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ExperimentError("training.freeze: nothing is left to train", field="training.freeze")


def _top(parts: Iterable[str]) -> list[str]:
    """The largest parts: token_embedding, blocks, …"""
    return [part for part in parts if "." not in part]


def _parts(name: str) -> list[str]:
    """blocks.0.mlp.up.weight -> blocks, blocks.0, blocks.0.mlp, and so on."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(1, len(words) + 1)]


def model_shapes(experiment: Experiment, vocab_size: int) -> GPT:
    """The GPT of an experiment, to read its shapes from: on the meta device if it is large.

    On the meta device it takes no memory, but torch describes some operations there with its compiler, whose
    import takes a second: longer than a small model takes to build.
    """
    model = experiment.model
    tables = model.context_length * max(model.context_length, model.n_embd)  # of a position encoding, at most
    small = matrix_weights(experiment, vocab_size) + vocab_size * model.n_embd + tables <= _SMALL
    with torch.device("cpu" if small else "meta"):
        return build_model(experiment, vocab_size)


def matrix_weights(experiment: Experiment, vocab_size: int) -> int:
    """Number of weights in matrix products: 4 C^2 + 2 C F per block, or 3 C F, and the output projection."""
    model = experiment.model
    C, matrices = model.n_embd, 3 if model.mlp == "swiglu" else 2
    return model.n_layer * C * (4 * C + matrices * model.hidden_width) + vocab_size * C


def _check_weights(model: GPT, tensors: Mapping[str, Tensor], whose: str) -> None:
    own = dict(model.named_parameters())
    wrong = sorted(own.keys() ^ tensors.keys()) or [
        name for name, parameter in own.items() if parameter.shape != tensors[name].shape
    ]
    if wrong:
        raise CheckpointError(f"the weights of {whose} are not of this model: {', '.join(wrong[:3])} differ.")
    require_finite(tensors, f"the weights of {whose}")


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises CheckpointError for NaN or infinite numbers, of which a model computes nothing but NaN."""
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{what} are not finite: {', '.join(bad[:3])}{', …' if len(bad) > 3 else ''} "
            f"contain{'s' if len(bad) == 1 else ''} NaN or infinity. Use another checkpoint or another run."
        )
