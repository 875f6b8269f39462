"""Keys and values of the tokens that a model has read, so that writing on need not read them again."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Room for `context_length` tokens of every layer, allocated once.

    Holds keys and values (B, H, context_length, D) of each layer; the first `length` positions are filled.
    """

    def __init__(
        self,
        *,
        n_layer: int,
        batch: int,
        n_head: int,
        context_length: int,
        head_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (n_layer, batch, n_head, context_length, head_size)
        self._keys = torch.zeros(shape, device=device, dtype=dtype).unbind()
        self._values = torch.zeros(shape, device=device, dtype=dtype).unbind()
        self.context_length = context_length
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds k and v (B, H, T, D) of the tokens being read; returns those of all tokens so far.

        `length` moves on only when the model has been through all its layers (`advance`).
        """
        added, length = k.size(2), self.length
        keys, values = self._keys[layer], self._values[layer]
        keys.narrow(2, length, added).copy_(k)
        values.narrow(2, length, added).copy_(v)
        return keys.narrow(2, 0, length + added), values.narrow(2, 0, length + added)

    def filled(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, H, length, D) each, of what has been read."""
        return self._keys[layer].narrow(2, 0, self.length), self._values[layer].narrow(2, 0, self.length)

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def clear(self) -> None:
        self.length = 0
