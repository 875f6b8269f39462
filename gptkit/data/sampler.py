"""Which tokens form the batch of a step: a pure function of (seed, step).

In: the ids of a split. Out: inputs and targets, (B, T) each. An epoch lays windows of T tokens side by side
from a random offset and visits each once, in random order; the next epoch draws another offset and order. So
a token is seen once an epoch (or not, if it is among the few before or after the windows), and a step's batch
is known without what came before it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gptkit.seeds import derive_seed

Ids = NDArray[np.integer[Any]]


class BatchSampler:
    """Batches of windows of `context_length` tokens, `batch_size` at a time, for ever.

    Raises ValueError where the ids hold no window.
    """

    def __init__(self, ids: Ids, *, context_length: int, batch_size: int, seed: int) -> None:
        if len(ids) < context_length + 1:
            raise ValueError(f"{len(ids)} tokens hold no window of {context_length} and its targets")
        # (windows, T + 1): one at every place of the text, overlapping; a view, which takes no memory
        self._windows = sliding_window_view(ids, context_length + 1)
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        # Windows an epoch: as many as fit for any offset below a window, so that the count does not depend on
        # it. The offset goes on to where they end with the text, so that no token is left out for ever.
        shortest = min(context_length - 1, len(ids) - context_length - 1)
        self.windows_per_epoch = (len(ids) - 1 - shortest) // context_length
        self._slack = len(ids) - 1 - self.windows_per_epoch * context_length
        self._epoch_starts = lru_cache(maxsize=2)(self._draw_epoch)

    def batch(self, index: int) -> tuple[Ids, Ids]:
        """Batch number `index` (from 0) as inputs and targets, (B, T) each, int64."""
        windows = self.windows(index)
        return windows[:, :-1], windows[:, 1:]

    def windows(self, index: int) -> NDArray[np.int64]:
        """The windows of batch number `index`, each with the token after it, (B, T + 1)."""
        return self.gather(self.window_starts(index))

    def window_starts(self, index: int) -> NDArray[np.int64]:
        """Where the windows of batch number `index` start, (B,)."""
        first = index * self._batch_size
        numbers = np.arange(first, first + self._batch_size)
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        starts = np.empty(self._batch_size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            chosen = epochs == epoch
            starts[chosen] = self._epoch_starts(epoch)[places[chosen]]
        return starts

    def gather(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows that start at `starts`, each with the token after it, (B, T + 1)."""
        return self._windows[starts].astype(np.int64)

    def _draw_epoch(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "batches", epoch)))
        offset = int(generator.integers(0, self._slack + 1))
        order = generator.permutation(self.windows_per_epoch)
        starts: NDArray[np.int64] = offset + order * self._context_length
        return starts


def evaluation_starts(tokens: int, *, context_length: int, eval_tokens: int) -> NDArray[np.int64]:
    """Where the windows of an evaluation start: side by side over the split, always the same.

    All whole windows where they hold at most `eval_tokens`; else that many, spread evenly.
    """
    windows = (tokens - 1) // context_length
    wanted = max(1, min(windows, eval_tokens // context_length))
    places: NDArray[np.int64] = np.arange(wanted, dtype=np.int64) * windows // wanted
    return places * context_length
