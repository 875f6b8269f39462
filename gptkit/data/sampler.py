"""Batches of training windows: a pure function of (seed, batch number). Windows of an evaluation.

Input: the ids of a split. Output: windows of T + 1 tokens, of which the first T are inputs and the last T
targets. An epoch lays windows of T tokens side by side from a random offset and visits each once, in random
order; the next epoch draws another offset and order. So a token is seen once per epoch (or not, if it is
among the few before or after the windows), and a batch does not depend on the batches before it. Knows no
models.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gptkit.plugins.tokenizer import Ids
from gptkit.seeds import derive_seed


class BatchSampler:
    """An endless sequence of batches of `batch_size` windows of `context_length` tokens.

    Raises ValueError if the ids hold no window.
    """

    def __init__(self, ids: Ids, *, context_length: int, batch_size: int, seed: int) -> None:
        if len(ids) < context_length + 1:
            raise ValueError(f"{len(ids)} tokens hold no window of {context_length} and its targets")
        # (N, T + 1): the window at each position of the text, overlapping; a view, which takes no memory
        self._windows = sliding_window_view(ids, context_length + 1)
        self._batch_size = batch_size
        self._context_length = context_length
        self._seed = seed
        # As many windows as fit for any offset below a window, so that the count does not depend on the
        # offset. Offsets go as far as the last window fits, so that every token is visited in some epoch.
        largest_offset = min(context_length - 1, len(ids) - context_length - 1)
        self.windows_per_epoch = (len(ids) - 1 - largest_offset) // context_length
        self._slack = len(ids) - 1 - self.windows_per_epoch * context_length
        self._epoch_starts = lru_cache(maxsize=2)(self._draw_epoch)

    def windows(self, index: int) -> NDArray[np.int64]:
        """Batch number `index` (from 0): windows with the token that follows each, (B, T + 1), int64."""
        first = index * self._batch_size
        epochs, positions = np.divmod(np.arange(first, first + self._batch_size), self.windows_per_epoch)
        starts = np.empty(self._batch_size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            of_epoch = epochs == epoch
            starts[of_epoch] = self._epoch_starts(epoch)[positions[of_epoch]]
        return self._windows[starts].astype(np.int64)

    def _draw_epoch(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(derive_seed(self._seed, "batches", epoch)))
        offset = int(generator.integers(0, self._slack + 1))
        order = generator.permutation(self.windows_per_epoch)
        starts: NDArray[np.int64] = offset + order * self._context_length
        return starts


class EvaluationRule(StrEnum):
    """Which tokens of a split an evaluation predicts; run.json has it as `evaluation`."""

    EVERY_TOKEN = "every token"  # that has one before it
    WHOLE_WINDOWS = "whole windows"  # runs of 0.1.0, which record no rule: not the last, shorter window


@dataclass(frozen=True)
class Windows:
    """Windows of one length: each reads `length` tokens and predicts what follows the last `predicted`."""

    starts: NDArray[np.int64]
    length: int
    predicted: int

    def __len__(self) -> int:
        return len(self.starts)


def evaluation_windows(
    tokens: int,
    *,
    context_length: int,
    eval_tokens: int,
    rule: EvaluationRule = EvaluationRule.EVERY_TOKEN,
) -> list[Windows]:
    """The windows of an evaluation of a split of that many tokens, the same at every call.

    They lie side by side and predict every token but the first once, the last window being shorter. Where
    these are more than `eval_tokens`, as many windows of `context_length` as make up that number, and at
    least one, are spread evenly over the split.
    """
    predicted = tokens - 1
    whole, rest = divmod(predicted, context_length)
    wanted = max(1, min(whole, eval_tokens // context_length))
    numbers: NDArray[np.int64] = np.arange(wanted, dtype=np.int64) * whole // wanted
    windows = [Windows(numbers * context_length, context_length, context_length)]
    if rest and predicted <= eval_tokens and rule is EvaluationRule.EVERY_TOKEN:
        windows.append(Windows(np.array([whole * context_length], dtype=np.int64), rest, rest))
    return windows


def sliding_windows(tokens: int, *, context_length: int, stride: int) -> list[Windows]:
    """Windows that predict every token but the first once, most of them after much of what is before it.

    Each window starts `stride` tokens after the one before and predicts its last `stride` tokens; the first
    predicts all of its tokens, the last what is left. With a stride of the context's length, windows lie side
    by side.
    """
    predicted = tokens - 1
    first = min(context_length, predicted)
    windows = [Windows(np.zeros(1, dtype=np.int64), first, first)]
    whole, rest = divmod(predicted - first, stride)
    if whole:
        starts = np.arange(1, whole + 1, dtype=np.int64) * stride
        windows.append(Windows(starts, context_length, stride))
    if rest:
        # Side by side, the last window is shorter; otherwise it reads as much as the others
        length = rest if stride == context_length else context_length
        windows.append(Windows(np.array([predicted - length], dtype=np.int64), length, rest))
    return windows
