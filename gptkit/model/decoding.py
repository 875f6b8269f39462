"""Decoders: predict the next token of several sequences, one token at a time.

Input: a GPT in eval mode. Output: logits of the next token. `decoder_for` is an operation of the model:
gptkit/native has another decoder for it.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gptkit.model import fast
from gptkit.model.cache import KeyValueCache
from gptkit.model.gpt import GPT
from gptkit.model.ops import operation


class Decoder(Protocol):
    """N sequences of the same length in a context."""

    def read(self, tokens: Tensor) -> Tensor:
        """Starts anew with tokens (N, T); returns the logits (N, V) of the token after them."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Appends tokens (N,); returns the logits (N, V) of the next, which the next call may overwrite."""
        ...


@operation
def decoder_for(model: GPT, samples: int) -> Decoder:
    """A decoder of `samples` sequences. It computes with the implementations that are installed now."""
    return CachedDecoder(model, samples)


class CachedDecoder:
    """Calls the model with a key-value cache."""

    def __init__(self, model: GPT, samples: int) -> None:
        self._model = model
        self._cache: KeyValueCache = model.new_cache(samples)
        self._implementations = fast.installed()

    def read(self, tokens: Tensor) -> Tensor:
        self._cache.clear()
        return self._last_logits(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        return self._last_logits(tokens.unsqueeze(1))

    def _last_logits(self, tokens: Tensor) -> Tensor:
        with fast.using(self._implementations):
            logits: Tensor = self._model(tokens, self._cache)[:, -1]
        return logits
