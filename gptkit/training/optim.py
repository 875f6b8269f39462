"""Gradients to updates: AdamW, Muon, and the learning rate over the steps.

In: flat weights with their gradient. Out: the weights, updated in place. Weight decay is decoupled and
applies to matrices only (embeddings included), as is usual for GPTs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from gptkit.experiment.schema import AdamWSettings, MuonSettings, ScheduleSettings
from gptkit.native import optim as native
from gptkit.native.ops import multiplies_pairs, serves
from gptkit.training.parameters import Slot, Weights

# Newton-Schulz: coefficients of the quintic and number of iterations (Jordan et al. 2024)
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5

# Where torch's fused AdamW heeds `found_inf`; the one of MPS takes it and does not (torch 2.13)
SKIPPING = ("cpu", "cuda")


def learning_rate_factor(schedule: ScheduleSettings, step: int, *, peak: float, max_steps: int) -> float:
    """The learning rate of `step` (from 1) as a share of the peak.

    Warm-up is linear from peak / warmup_steps. Past max_steps the rate stays where the schedule ended.
    """
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.type == "constant" or peak == 0:
        return 1.0
    lowest = min(schedule.min_learning_rate / peak, 1.0)
    start = schedule.warmup_steps
    if schedule.type == "linear":
        start = max(start, round(max_steps * (1 - schedule.warmdown_fraction)))
    if start >= max_steps:
        return 1.0  # no step is left for the rate to fall in
    # The first step after `start` has the full rate, the last one nearly the lowest: no update is wasted on 0
    done = min(max((step - 1 - start) / (max_steps - start), 0.0), 1.0)
    shape = (1 + math.cos(math.pi * done)) / 2 if schedule.type == "cosine" else 1 - done
    return lowest + (1 - lowest) * shape


class Optimizer:
    """AdamW for all parameters, or Muon for the hidden matrices and AdamW for the rest."""

    def __init__(self, weights: Weights, settings: AdamWSettings | MuonSettings) -> None:
        self._weights = weights
        self._settings = settings
        muon = isinstance(settings, MuonSettings)
        self._adamw_rate = (
            settings.adamw_learning_rate if isinstance(settings, MuonSettings) else settings.learning_rate
        )
        self._adamw: list[_Stretch] = []
        self._muon: list[_Stack] = []
        for (kind, *_), slots in groupby(
            weights.slots, key=lambda slot: group_of(slot.name, slot.shape, muon)
        ):
            run = list(slots)
            if kind == _MUON:
                self._muon.append(_Stack.of(run, weights, _matrix_shape(run[0].name, run[0].shape)))
            else:
                self._adamw.append(_Stretch.of(run, weights, decay=kind == _DECAYED))
        # Where there is no fused kernel torch takes the plain one, which cannot skip
        self._fused = weights.master.device.type in ("cpu", "cuda", "mps")

    @torch.no_grad()
    def step(self, factor: float, skip: Tensor | None = None) -> None:
        """One update with every learning rate at `factor` of its peak.

        `skip`, a scalar in fp32 on the device of the weights, is 1.0 for an update that is to change nothing,
        neither weights nor state, and else 0.0. The host does not read it. Raises NotImplementedError where
        `skip` is given and torch's AdamW on that device does not heed it.
        """
        if skip is not None and skip.device.type not in SKIPPING:
            raise NotImplementedError(f"no update can be skipped on {skip.device.type} without looking")
        settings = self._settings
        for part in self._adamw:
            self._update_adamw(part, factor, skip)
        if isinstance(settings, MuonSettings):
            skipped = None if skip is None else skip > 0
            for stack in self._muon:
                stack.update(
                    settings.learning_rate * factor, settings.momentum, settings.weight_decay, skipped
                )
        self._weights.publish()

    def _update_adamw(self, part: _Stretch, factor: float, skip: Tensor | None) -> None:
        settings = self._settings
        rate, decay = self._adamw_rate * factor, settings.weight_decay if part.decay else 0.0
        if serves(part.values.device):
            if skip is not None and skip.item():
                return
            part.step.add_(1)
            native.adamw(
                part.values,
                part.gradient,
                part.exp_avg,
                part.exp_avg_sq,
                step=part.step.item(),
                rate=rate,
                beta1=settings.beta1,
                beta2=settings.beta2,
                eps=settings.eps,
                weight_decay=decay,
            )
            return
        # The function behind torch.optim.AdamW: the class imports torch's compiler, which takes a second
        adamw(
            [part.values],
            [part.gradient],
            [part.exp_avg],
            [part.exp_avg_sq],
            [],
            [part.step],
            fused=self._fused,
            found_inf=skip,
            amsgrad=False,
            beta1=settings.beta1,
            beta2=settings.beta2,
            lr=rate,
            weight_decay=decay,
            eps=settings.eps,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """All that the next update depends on beside the weights, by parameter name; copies on the CPU."""
        out: dict[str, Tensor] = {}
        for part in self._adamw:
            for slot in part.slots:
                for kind, flat in part.averages.items():
                    out[f"{kind}.{slot.name}"] = part.of_slot(flat, slot).cpu().clone()
            out[f"step.{part.slots[0].name}"] = part.step.cpu().clone()
        for stack in self._muon:
            for slot in stack.slots:
                out[f"momentum.{slot.name}"] = stack.of_slot(slot).cpu().clone()
        return out

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Sets what `state` gave. Raises ValueError where names or shapes differ."""
        wanted = set()
        for part in self._adamw:
            for kind, flat in part.averages.items():
                for slot in part.slots:
                    wanted.add(f"{kind}.{slot.name}")
                    _fill(part.of_slot(flat, slot), tensors, f"{kind}.{slot.name}")
            first = part.slots[0].name
            wanted.add(f"step.{first}")
            _fill(part.step, tensors, f"step.{first}")
        for stack in self._muon:
            for slot in stack.slots:
                wanted.add(f"momentum.{slot.name}")
                _fill(stack.of_slot(slot), tensors, f"momentum.{slot.name}")
        if wanted != tensors.keys():
            raise ValueError(f"its optimizer state is not this run's: {sorted(wanted ^ tensors.keys())[:3]}")


def _fill(target: Tensor, tensors: dict[str, Tensor], name: str) -> None:
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    if tensors[name].shape != target.shape:
        raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(target.shape)}")
    target.copy_(tensors[name])


_DECAYED, _PLAIN, _MUON = 0, 1, 2


def group_of(name: str, shape: torch.Size, muon: bool) -> tuple[int, ...]:
    """Sorts parameters: matrices for AdamW, other shapes, and Muon's hidden matrices shape by shape."""
    if muon and len(shape) == 2 and name.startswith("blocks."):
        return (_MUON, *_matrix_shape(name, shape))
    return (_DECAYED,) if len(shape) >= 2 else (_PLAIN,)


def _matrix_shape(name: str, shape: torch.Size) -> tuple[int, int]:
    """What Muon orthogonalises as one: queries, keys and values each for themselves."""
    rows, columns = shape
    return (rows // 3, columns) if name.endswith(".qkv.weight") else (rows, columns)


def weights_for(model: nn.Module, dtype: torch.dtype, settings: AdamWSettings | MuonSettings) -> Weights:
    """The model's weights, laid out so that each kind of update finds its parameters side by side."""
    muon = isinstance(settings, MuonSettings)
    return Weights(model, dtype, order=lambda name, parameter: group_of(name, parameter.shape, muon))


@dataclass(frozen=True)
class _Stretch:
    """Neighbouring parameters that AdamW updates as one tensor, with its averages of their gradients."""

    slots: list[Slot]
    values: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor  # updates so far, a scalar in fp32
    decay: bool

    @property
    def averages(self) -> dict[str, Tensor]:
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    @staticmethod
    def of(slots: list[Slot], weights: Weights, decay: bool) -> _Stretch:
        start, end = slots[0].start, slots[-1].end
        values = weights.master[start:end]
        return _Stretch(
            slots,
            values,
            weights.gradient[start:end],
            exp_avg=torch.zeros_like(values),
            exp_avg_sq=torch.zeros_like(values),
            step=torch.zeros((), device=values.device),
            decay=decay,
        )

    def of_slot(self, flat: Tensor, slot: Slot) -> Tensor:
        """The slot's part of a flat tensor of this stretch."""
        offset = self.slots[0].start
        return flat[slot.start - offset : slot.end - offset].view(slot.shape)


@dataclass(frozen=True)
class _Stack:
    """Matrices of one shape, (N, rows, columns), that Muon updates together.

    The update is torch.optim.Muon's with Nesterov momentum, for all N at once: momentum, orthogonalised by
    Newton-Schulz, scaled by sqrt(max(1, rows / columns)).
    """

    slots: list[Slot]
    values: Tensor
    gradient: Tensor
    momentum: Tensor

    @staticmethod
    def of(slots: list[Slot], weights: Weights, shape: tuple[int, int]) -> _Stack:
        start, end = slots[0].start, slots[-1].end
        values, gradient = (flat[start:end].view(-1, *shape) for flat in (weights.master, weights.gradient))
        return _Stack(slots, values, gradient, torch.zeros_like(values))

    def of_slot(self, slot: Slot) -> Tensor:
        """The slot's part of the momentum."""
        offset = self.slots[0].start
        return self.momentum.view(-1)[slot.start - offset : slot.end - offset].view(slot.shape)

    def _in_c(self) -> bool:
        even = self.values.size(1) % 2 == 0 == self.values.size(2) % 2
        return even and serves(self.values.device) and multiplies_pairs()

    def update(self, rate: float, momentum: float, weight_decay: float, skipped: Tensor | None) -> None:
        """`skipped`, a bool scalar on the device, keeps values and momentum as they are, bit for bit."""
        rows, columns = self.values.shape[1:]
        size = -rate * math.sqrt(max(1, rows / columns))
        if self._in_c():
            if skipped is None or not skipped.item():
                kept = 1 - rate * weight_decay
                native.muon(
                    self.values, self.gradient, self.momentum, momentum=momentum, kept=kept, size=size
                )
            return
        if skipped is None:
            self.momentum.lerp_(self.gradient, 1 - momentum)
            update = orthogonalise(self.gradient.lerp(self.momentum, momentum))
            self.values.mul_(1 - rate * weight_decay).add_(update, alpha=size)
            return
        # The same operations, not in place. Beside the products of orthogonalise these passes cost little
        new = self.momentum.lerp(self.gradient, 1 - momentum)
        torch.where(skipped, self.momentum, new, out=self.momentum)
        update = orthogonalise(torch.lerp(self.gradient, new, momentum, out=new))
        torch.mul(self.values, 1 - rate * weight_decay, out=new).add_(update, alpha=size)
        torch.where(skipped, self.values, new, out=self.values)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Singular values brought near 1: (N, rows, columns) -> the same shape, in bf16.

    Newton-Schulz iteration with the quintic of Jordan et al. 2024, "Muon: an optimizer for hidden layers".
    """
    a, b, c = _QUINTIC
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)).bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
