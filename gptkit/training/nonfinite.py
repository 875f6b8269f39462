"""Detects non-finite losses and gradients without synchronizing with the GPU.

Input: each step's loss and gradient norm, on the device, before its update. Output: on a CPU a DivergedError
at once; on a GPU a flag on the device that makes this update and all later ones change nothing, and a
DivergedError that names the step when the host synchronizes. Adds up the losses meanwhile. Knows nothing of
optimizers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gptkit.errors import DivergedError
from gptkit.training.budget import TrainingProgress
from gptkit.training.optim import SKIPPING


class NonFiniteGuard(ABC):
    """Checks every step, and keeps the `loss_sum` of `progress`."""

    immediate: bool  # whether `record` itself raises, so that synchronizing after each step costs nothing

    @abstractmethod
    def record(self, step: int, loss: Tensor, norm: Tensor) -> Tensor | None:
        """Takes the loss and the gradient norm of `step` (fp32 scalars) before its update.

        Returns 1.0 on the device where the update is to be skipped and 0.0 where not, or None if the host
        knows already. Raises DivergedError if it is immediate.
        """

    @abstractmethod
    def synchronize(self) -> float:
        """Waits for the device and brings `progress` up to date; returns the gradient norm of the last step.

        Raises DivergedError if a step since the last call was not finite. `progress` is then that of the
        step before it, except for loss_sum and seconds.
        """


def nonfinite_guard(progress: TrainingProgress, device: torch.device, tokens_per_step: int) -> NonFiniteGuard:
    if is_deferred(device):
        return _DeferredGuard(progress, device, tokens_per_step)
    return _ImmediateGuard(progress)


def is_deferred(device: torch.device) -> bool:
    """Whether reading a scalar waits for the device, and its updates can be skipped without reading one."""
    return device.type != "cpu" and device.type in SKIPPING


class _ImmediateGuard(NonFiniteGuard):
    """Reads each step's scalars, which costs nothing on a CPU."""

    immediate = True

    def __init__(self, progress: TrainingProgress) -> None:
        self._progress = progress
        self._norm = math.nan

    def record(self, step: int, loss: Tensor, norm: Tensor) -> None:
        loss_value, self._norm = loss.item(), norm.item()
        _check(step, loss_value, self._norm)
        self._progress.loss_sum += loss_value

    def synchronize(self) -> float:
        return self._norm


class _DeferredGuard(NonFiniteGuard):
    """Keeps four fp64 numbers on the device between two synchronizations.

    They are the steps since the last one, the sum of losses, the last loss and the last norm. They stop
    changing at the first step that is not finite, so the host finds out which it was. The sum continues the
    one in `progress` in the order of the steps: when the host synchronizes does not change its last bits.
    """

    immediate = False

    def __init__(self, progress: TrainingProgress, device: torch.device, tokens_per_step: int) -> None:
        self._progress = progress
        self._device = device
        self._tokens_per_step = tokens_per_step
        self._norm = math.nan
        self._numbers: Tensor | None = None  # None: no step since the last synchronization
        self._bad: Tensor  # bool scalar
        self._before = 0  # the step before the first of them
        self._one: Tensor  # 1.0

    def record(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        if self._numbers is None:
            start = [0.0, self._progress.loss_sum, 0.0, 0.0]
            self._numbers = torch.tensor(start, dtype=torch.float64, device=self._device)
            self._bad = torch.zeros((), dtype=torch.bool, device=self._device)
            self._one = torch.ones((), device=self._device)
            self._before = step - 1
        values = torch.stack((self._one, loss, norm)).double()
        new = torch.cat((self._numbers[:2] + values[:2], values[1:]))
        self._numbers = torch.where(self._bad, self._numbers, new)
        self._bad = ~torch.isfinite(self._numbers[2] + self._numbers[3])
        return self._bad.float()

    def synchronize(self) -> float:
        if self._numbers is not None:
            steps, loss_sum, loss, self._norm = self._numbers.tolist()
            self._numbers = None
            step = self._before + int(steps)
            try:
                _check(step, loss, self._norm)
            except DivergedError:
                self._roll_back(step - 1)
                raise
            self._progress.loss_sum = loss_sum
        return self._norm

    def _roll_back(self, step: int) -> None:
        """Uncounts the steps after `step`, which were not applied."""
        skipped = self._progress.step - step
        self._progress.step -= skipped
        self._progress.loss_count -= skipped
        self._progress.tokens -= skipped * self._tokens_per_step


def _check(step: int, loss: float, norm: float) -> None:
    if not math.isfinite(loss + norm):
        raise DivergedError(
            f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}. "
            "The step was not applied. Lower optimizer.learning_rate, or lengthen schedule.warmup_steps."
        )
