"""Batches on the device that computes, the next one copied there while this one is used.

Input: a sampler, whose batches are arrays. Output: inputs and targets as tensors. Knows nothing of models.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gptkit.data.sampler import BatchSampler


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on `device`; on a GPU the copy is asynchronous.

    A copy from pageable memory would block the host. torch keeps the pinned block until the copy is done.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Prefetcher:
    """Batches by number. On a CPU nothing is gathered ahead, since nothing would run in parallel."""

    def __init__(self, sampler: BatchSampler, device: torch.device) -> None:
        self._sampler = sampler
        self._device = device
        self._ahead: tuple[int, Tensor] | None = None

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch number `index` (from 0), (B, T) each, int64."""
        ahead, self._ahead = self._ahead, None
        windows = ahead[1] if ahead and ahead[0] == index else self._windows(index)
        return windows[:, :-1], windows[:, 1:]

    def prefetch(self, index: int) -> None:
        """Starts copying batch number `index` to a GPU while it still computes; does nothing on a CPU."""
        if self._device.type != "cpu":
            self._ahead = index, self._windows(index)

    def _windows(self, index: int) -> Tensor:
        return upload(self._sampler.windows(index), self._device)
