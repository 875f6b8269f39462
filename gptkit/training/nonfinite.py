"""Whether each step's loss and gradient are finite, found out without waiting for a GPU.

In: a step's loss and gradient norm, on the device, before its update. Out: on a CPU an error at once; on a
GPU a flag on the device that keeps this update and all later ones from changing anything, and an error that
names the step when the host looks. Keeps the sum of losses meanwhile. Knows nothing of what an update is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gptkit.errors import DivergedError
from gptkit.training.optim import SKIPPING
from gptkit.training.progress import Progress


def looks_seldom(device: torch.device) -> bool:
    """Whether the host would wait for the device if it looked at each step, and need not.

    On a CPU looking costs nothing. Elsewhere it is not needed where an update can be skipped unseen.
    """
    return device.type != "cpu" and device.type in SKIPPING


class Watch:
    """Takes in losses and norms step by step, and brings `progress` up to date when it is asked to `look`.

    What it keeps on the device between two looks are four numbers in fp64: the steps since the last look, the
    sum of losses, the last loss, the last norm. They stand still from the first step on that is not finite,
    so that the host finds there which step it was. The sum goes on from the one in `progress`, in the order
    of the steps: where the host looks does not change its last bits.
    """

    def __init__(self, progress: Progress, device: torch.device, tokens_per_step: int) -> None:
        self._progress = progress
        self._device = device
        self._tokens_per_step = tokens_per_step
        self.seldom = looks_seldom(device)
        self._norm = math.nan  # of the last step that was looked at
        self._seen: Tensor | None = None  # the four numbers; None: nothing since the last look
        self._bad: Tensor  # bool scalar
        self._before = 0  # the step before the first of them
        self._one: Tensor  # 1.0

    def take(self, step: int, loss: Tensor, norm: Tensor) -> Tensor | None:
        """Takes in `step` (fp32 scalars) before its update; on a GPU 1.0 where that is to be skipped, or 0.0.

        On a CPU it looks at once, returns None, and raises DivergedError for a step that is not finite.
        """
        if not self.seldom:
            self._check(step, loss.item(), norm.item())
            self._progress.loss_sum += loss.item()
            self._norm = norm.item()
            return None
        if self._seen is None:
            self._begin(step - 1)
        assert self._seen is not None
        values = torch.stack((self._one, loss, norm)).double()
        now = torch.cat((self._seen[:2] + values[:2], values[1:]))
        self._seen = torch.where(self._bad, self._seen, now)
        self._bad = ~torch.isfinite(self._seen[2] + self._seen[3])
        return self._bad.float()

    def look(self) -> float:
        """Waits for the device, and sets the `loss_sum` of `progress`; the gradient norm of the last step.

        Raises DivergedError where a step since the last look was not finite: `progress` then says what it
        said after the step before, its loss_sum and seconds apart.
        """
        if self._seen is not None:
            steps, loss_sum, loss, self._norm = self._seen.tolist()
            self._seen = None
            self._go_back(self._before + int(steps), loss, self._norm)
            self._progress.loss_sum = loss_sum
        return self._norm

    def _begin(self, before: int) -> None:
        numbers = [0.0, self._progress.loss_sum, 0.0, 0.0]
        self._seen = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        self._bad = torch.zeros((), dtype=torch.bool, device=self._device)
        self._one = torch.ones((), device=self._device)
        self._before = before

    def _go_back(self, step: int, loss: float, norm: float) -> None:
        """Takes back what `progress` counted from `step` on, if that was not finite, and raises."""
        try:
            self._check(step, loss, norm)
        except DivergedError:
            progress = self._progress
            skipped = progress.step - (step - 1)
            progress.step -= skipped
            progress.loss_count -= skipped
            progress.tokens -= skipped * self._tokens_per_step
            raise

    @staticmethod
    def _check(step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss + norm):
            raise DivergedError(
                f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}. "
                "The step was not applied. Lower optimizer.learning_rate, or lengthen schedule.warmup_steps."
            )
