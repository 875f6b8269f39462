"""Cross-entropy, and the loss over a whole split.

In: logits or a model with ids. Out: nats a token. Knows nothing of updates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from gptkit.data.sampler import evaluation_starts
from gptkit.model import ops as kernels
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.training.prefetch import upload

_EVALUATION_TOKENS = 8192  # in one forward pass of an evaluation


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token: logits (B, T, V), targets (B, T) -> scalar, in fp32."""
    return kernels.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(
    model: nn.Module,
    ids: NDArray[np.integer[Any]],
    *,
    context_length: int,
    eval_tokens: int,
    progress: ProgressCallback = no_progress,
) -> float:
    """Mean nats per token over a split: windows side by side, the same ones at every call.

    All of the split up to `eval_tokens`, or that many tokens spread over it. Draws no random number, and
    leaves the model in the mode that it was in. `progress` is told windows after each forward pass; on a GPU
    those that are begun, for which nobody waits, which is a few ahead of those that are done.
    """
    device = next(model.parameters()).device
    starts = evaluation_starts(len(ids), context_length=context_length, eval_tokens=eval_tokens)
    overlapping = sliding_window_view(ids, context_length + 1)  # (windows, T + 1), one at every token
    rows = max(1, _EVALUATION_TOKENS // context_length)
    was_training = model.training
    model.eval()
    losses = []  # scalars in fp32 on the device, which the host waits for once, at the end
    for first in range(0, len(starts), rows):
        windows = upload(overlapping[starts[first : first + rows]].astype(np.int64), device)
        logits = model(windows[:, :-1])
        losses.append(
            F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="sum")
        )
        progress(min(first + rows, len(starts)), len(starts))
    model.train(was_training)
    total = 0.0  # in fp64 and in order, whatever the device
    for loss in torch.stack(losses).tolist():
        total += loss
    return total / (len(starts) * context_length)


def bits_per_byte(nats_per_token: float, *, tokens: int, text_bytes: int) -> float:
    """The loss in a unit that does not depend on the tokenizer: bits for each byte of UTF-8 text."""
    return nats_per_token * tokens / (text_bytes * math.log(2))
