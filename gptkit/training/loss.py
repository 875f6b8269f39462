"""Cross-entropy, and the loss over a validation split.

Input: logits and targets, or a model and token ids. Output: nats per token, or their sum and number, and the
means over contiguous blocks of the split. Knows nothing of updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from gptkit.data.sampler import EvaluationRule, Windows, evaluation_windows
from gptkit.model import ops
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.training.prefetch import upload

EVALUATION_TOKENS = 8192  # in one forward pass of an evaluation
MAX_BLOCKS = 128  # of a split, by which two models are compared on the same tokens
_MIN_BLOCK = 32  # tokens: the losses of neighboring tokens depend on each other


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token: logits (B, T, V), targets (B, T) -> scalar, in fp32."""
    return ops.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class SplitLoss:
    """The loss over the tokens of a split that an evaluation predicted."""

    total: float  # nats
    tokens: int
    block_losses: tuple[float, ...] = ()  # nats per token of contiguous blocks, in order

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / self.tokens


def evaluate(
    model: nn.Module,
    ids: NDArray[np.integer[Any]],
    *,
    context_length: int,
    eval_tokens: int,
    rule: EvaluationRule = EvaluationRule.EVERY_TOKEN,
    progress: ProgressCallback = no_progress,
) -> SplitLoss:
    """The loss over a split, on the windows of `evaluation_windows`, each without what is before it."""
    windows = evaluation_windows(len(ids), context_length=context_length, eval_tokens=eval_tokens, rule=rule)
    return evaluate_windows(model, ids, windows, progress=progress)


@torch.no_grad()
def evaluate_windows(
    model: nn.Module,
    ids: NDArray[np.integer[Any]],
    groups: Sequence[Windows],
    *,
    progress: ProgressCallback = no_progress,
) -> SplitLoss:
    """The loss over the tokens that the windows predict.

    Draws no random number and restores the model's mode. `progress` is called with the number of windows
    after each forward pass; on a GPU those that are enqueued, a few ahead of those that are computed.
    The predicted tokens, in order, are divided into blocks of the same size, or one token more: the same
    blocks for every model that predicts the same tokens in this order, whatever its windows.
    """
    device = next(model.parameters()).device
    number = sum(map(len, groups))
    was_training = model.training
    model.eval()
    losses = []  # scalars in fp32 on the device, read back once, at the end
    tokens = sum(len(group) * group.predicted for group in groups)
    blocks = _Blocks(tokens)
    done = 0
    for group in groups:
        overlapping = sliding_window_view(ids, group.length + 1)  # (windows, T + 1), one for each token
        rows = max(1, EVALUATION_TOKENS // group.length)
        for first in range(0, len(group), rows):
            starts = group.starts[first : first + rows]
            windows = upload(overlapping[starts].astype(np.int64), device)
            logits = model(windows[:, :-1])[:, -group.predicted :]
            targets = windows[:, -group.predicted :]
            log_probabilities = F.log_softmax(logits.flatten(0, 1).float(), dim=-1)
            losses.append(F.nll_loss(log_probabilities, targets.flatten(), reduction="sum"))
            blocks.add(-log_probabilities.gather(1, targets.reshape(-1, 1)))
            done += len(starts)
            progress(done, number)
    model.train(was_training)
    total = 0.0  # in fp64 and in order, on every device
    for loss in torch.stack(losses).tolist():
        total += loss
    return SplitLoss(total, tokens, blocks.means())


class _Blocks:
    """Means over contiguous blocks of the predicted tokens, whose losses come in order, in pieces."""

    def __init__(self, tokens: int) -> None:
        count = max(1, min(MAX_BLOCKS, tokens // _MIN_BLOCK))
        self._ends = np.arange(1, count + 1) * tokens // count  # the number of tokens up to each block's last
        self._sums: list[tuple[int, Tensor]] = []  # of a block's tokens in one piece, by the block's position
        self._added = 0

    def add(self, losses: Tensor) -> None:
        """The losses of the next tokens, (N, 1). Synchronizes with no GPU."""
        first = int(np.searchsorted(self._ends, self._added, side="right"))  # the block of the next token
        last = int(np.searchsorted(self._ends, self._added + len(losses)))
        inside = (self._ends[first:last] - self._added).tolist()
        for block, part in enumerate(losses.tensor_split(inside), start=first):
            self._sums.append((block, part.sum()))
        self._added += len(losses)

    def means(self) -> tuple[float, ...]:
        """Nats per token of each block."""
        sums = np.zeros(len(self._ends))
        for (block, _), value in zip(
            self._sums, torch.stack([part for _, part in self._sums]).tolist(), strict=True
        ):
            sums[block] += value
        return tuple((sums / np.diff(self._ends, prepend=0)).tolist())


def bits_per_byte(nats_per_token: float, *, tokens: int, text_bytes: int) -> float:
    """The loss in bits per byte of UTF-8 text, which compares across tokenizers."""
    return nats_per_token * tokens / (text_bytes * math.log(2))
