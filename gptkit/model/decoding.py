"""Reading a prompt and going on token by token, for several sequences at once.

In: a GPT in eval mode. Out: logits of the next token. `decoder_for` picks the way: on a CPU the C code of
gptkit/native, where it can do what the model does; else the model itself with its key-value cache.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from gptkit.model.cache import KeyValueCache
from gptkit.model.gpt import GPT
from gptkit.model.seams import overrides, rotation_of, turns_by_tables
from gptkit.native import attention
from gptkit.native import ops as functions
from gptkit.native.decode import Decode, LayerWeights, Matrix, ModelWeights, Norm, pitch_of

# Weights (bytes) from which several threads read them faster than one does, and sequences that keep them busy
_LARGE = 8 * 2**20
_MANY = 4


class Decoder(Protocol):
    """N sequences of the same length, in a context."""

    def read(self, tokens: Tensor) -> Tensor:
        """Forgets all and reads tokens (N, T): logits (N, V) of what comes after them."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Reads one more token of each, (N,): logits (N, V), which the next call may overwrite."""
        ...


def decoder_for(model: GPT, samples: int) -> Decoder:
    """The fastest way to decode `samples` sequences with this model."""
    if functions.serves(model.token_embedding.weight.device) and _fits(model):
        return _NativeDecoder(model, samples)
    return _TorchDecoder(model, samples)


class _TorchDecoder:
    """The model and its cache."""

    def __init__(self, model: GPT, samples: int) -> None:
        self._model = model
        self._cache: KeyValueCache = model.new_cache(samples)

    def read(self, tokens: Tensor) -> Tensor:
        self._cache.clear()
        logits: Tensor = self._model(tokens, self._cache)[:, -1]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self._model(tokens.unsqueeze(1), self._cache)[:, -1]
        return logits


class _NativeDecoder:
    """Reads with the model, whose keys and values then go over to the caches of the C code."""

    def __init__(self, model: GPT, samples: int) -> None:
        settings = model.settings
        self._model, self._samples = model, samples
        H, D = settings.n_head, settings.n_embd // settings.n_head
        pitch = pitch_of(settings.context_length)
        self._keys = torch.zeros(settings.n_layer, samples, H, D, pitch)
        self._values = torch.zeros(settings.n_layer, samples, H, pitch, D)
        self._places = torch.arange(settings.context_length)
        self._length = 0
        weights = _weights(model, self._keys, self._values)
        size = sum(parameter.numel() for parameter in model.parameters()) * 4
        worthwhile = size >= _LARGE or samples >= _MANY
        self._decode = Decode(weights, samples, functions.threads() if worthwhile else 1)
        self._table = model.token_embedding.weight.detach()
        self._embeds = overrides(model.position, "embed")
        self._biases = overrides(model.position, "bias")

    def read(self, tokens: Tensor) -> Tensor:
        cache = self._model.new_cache(self._samples)
        logits: Tensor = self._model(tokens, cache)[:, -1]
        T = self._length = tokens.size(1)
        for layer in range(len(self._keys)):
            keys, values = cache.filled(layer)  # (N, H, T, D)
            self._keys[layer, :, :, :, :T] = keys.mT
            self._values[layer, :, :, :T] = values
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        place = self._length
        if place >= self._model.settings.context_length:
            raise ValueError(f"the context holds {place} tokens and is full")
        x = torch.index_select(self._table, 0, tokens)  # (N, C)
        here = self._places[place : place + 1]
        if self._embeds:
            x = self._model.position.embed(x.unsqueeze(1), here).float().squeeze(1).contiguous()
        bias = self._bias(here, place) if self._biases else None
        self._length += 1
        return self._decode(x, bias, place)

    def _bias(self, here: Tensor, place: int) -> Tensor | None:
        """(H, place + 1), contiguous."""
        bias = self._model.position.bias(here, self._places[: place + 1])
        if bias is None:
            return None
        H = self._model.settings.n_head
        return bias.float().reshape(-1, place + 1).expand(H, -1).contiguous()


def _fits(model: GPT) -> bool:
    """Whether the C code can do all that this model does."""
    settings = model.settings
    return (
        model.token_embedding.weight.dtype == torch.float32
        and settings.n_embd <= functions.LONGEST_ROW
        and settings.n_embd // settings.n_head <= attention.LARGEST_HEAD
        and turns_by_tables(model.position)
    )


def _layer(block: Any, keys: Tensor, values: Tensor) -> LayerWeights:
    return LayerWeights(
        attention_norm=_norm(block.attention_norm),
        qkv=_matrix(block.attention.qkv),
        projection=_matrix(block.attention.projection),
        mlp_norm=_norm(block.mlp_norm),
        up=_matrix(block.mlp.up),
        down=_matrix(block.mlp.projection),
        keys=keys,
        values=values,
    )


def _weights(model: GPT, keys: Tensor, values: Tensor) -> ModelWeights:
    settings = model.settings
    layers = [_layer(block, keys[number], values[number]) for number, block in enumerate(model.blocks)]
    return ModelWeights(
        layers=layers,
        final_norm=_norm(model.final_norm),
        head=_matrix(model.lm_head),
        n_head=settings.n_head,
        context_length=settings.context_length,
        layer_norm=settings.norm == "layernorm",
        eps=float(cast(Any, model.final_norm).eps),
        qk_norm=settings.qk_norm,
        activation=settings.mlp,
        rotation=rotation_of(model.position),
    )


def _norm(norm: nn.Module) -> Norm:
    return Norm(getattr(norm, "weight", None), getattr(norm, "bias", None))


def _matrix(linear: nn.Linear) -> Matrix:
    return Matrix(linear.weight, linear.bias)
