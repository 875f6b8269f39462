"""Small models. The initial weights of a modern GPT compute the same logits for every token; these do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gptkit.experiment.schema import Experiment
from gptkit.model import GPT
from gptkit.model.build import build_model, build_new_model

SHAPE = {"context_length": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}


def model_experiment(model: dict[str, Any] | None = None, **tables: Any) -> Experiment:
    """An experiment whose model is of SHAPE, with these fields instead."""
    return Experiment.model_validate({"model": {**SHAPE, **(model or {})}, **tables})


def tiny_gpt(vocab_size: int = 11, **model: Any) -> GPT:
    """A GPT of SHAPE, in evaluation mode, all of whose weights matter."""
    gpt = build_new_model(model_experiment(model), vocab_size, seed=1)
    perturb(gpt)
    return gpt.eval()


def perturb(module: nn.Module, std: float = 0.3) -> None:
    """Adds noise to every parameter, biases and gains included."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, std, generator=generator))


def reciter(ids: list[int], vocab_size: int) -> GPT:
    """A model that knows one text by heart: at place t the next is ids[t + 1], after any text."""
    size = len(ids)
    shape = {"context_length": size, "n_layer": 1, "n_head": 1, "n_embd": size, "position": "learned"}
    experiment = model_experiment(shape)
    gpt = build_model(experiment, vocab_size)
    gpt.initialize(torch.Generator())  # the modern way: the block adds nothing to what it is given
    with torch.no_grad():
        gpt.token_embedding.weight.zero_()
        gpt.position.embedding.weight.copy_(torch.eye(len(ids)))
        for place, token in enumerate(ids[1:]):
            gpt.lm_head.weight[token, place] = 1.0
    return gpt
