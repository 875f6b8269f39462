"""Key-value cache: keys and values of past tokens, so that generating a token does not recompute them."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values (B, H, context_length, D) of each layer, allocated once.

    The first `length` positions are filled.
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
        """Stores k and v (B, H, T, D) of new tokens; returns the keys and values of all tokens so far.

        `length` stays as it is until every layer has appended (`advance`).
        """
        added, length = k.size(2), self.length
        keys, values = self._keys[layer], self._values[layer]
        keys.narrow(2, length, added).copy_(k)
        values.narrow(2, length, added).copy_(v)
        return keys.narrow(2, 0, length + added), values.narrow(2, 0, length + added)

    def filled(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the filled positions, (B, H, length, D) each."""
        return self._keys[layer].narrow(2, 0, self.length), self._values[layer].narrow(2, 0, self.length)

    def advance(self, tokens: int) -> None:
        """Counts tokens whose keys and values every layer has appended."""
        self.length += tokens

    def clear(self) -> None:
        self.length = 0
