"""Cross-entropy, and the loss over a validation split.

Input: logits and targets, or a model and token ids. Output: nats per token, or their sum and number. Knows
nothing of updates.
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


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token: logits (B, T, V), targets (B, T) -> scalar, in fp32."""
    return ops.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class SplitLoss:
    """The loss over the tokens of a split that an evaluation predicted."""

    total: float  # nats
    tokens: int

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
    """
    device = next(model.parameters()).device
    number = sum(map(len, groups))
    was_training = model.training
    model.eval()
    losses = []  # scalars in fp32 on the device, read back once, at the end
    done = 0
    for group in groups:
        overlapping = sliding_window_view(ids, group.length + 1)  # (windows, T + 1), one for each token
        rows = max(1, EVALUATION_TOKENS // group.length)
        for first in range(0, len(group), rows):
            starts = group.starts[first : first + rows]
            windows = upload(overlapping[starts].astype(np.int64), device)
            logits = model(windows[:, :-1])[:, -group.predicted :]
            targets = windows[:, -group.predicted :]
            losses.append(F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"))
            done += len(starts)
            progress(done, number)
    model.train(was_training)
    total = 0.0  # in fp64 and in order, on every device
    for loss in torch.stack(losses).tolist():
        total += loss
    return SplitLoss(total, sum(len(group) * group.predicted for group in groups))


def bits_per_byte(nats_per_token: float, *, tokens: int, text_bytes: int) -> float:
    """The loss in bits per byte of UTF-8 text, which compares across tokenizers."""
    return nats_per_token * tokens / (text_bytes * math.log(2))
