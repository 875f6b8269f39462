"""AdamW and Muon over flat parameters.

Input: flat parameters with their gradient. Output: the parameters, updated in place. Weight decay is
decoupled and applies to matrices only (embeddings included), as is usual for GPTs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from gptkit.experiment.schema import AdamWSettings, MuonSettings
from gptkit.model.ops import operation
from gptkit.training.parameters import FlatParameters, ParameterSlice

# Newton-Schulz: the coefficients of the quintic in each iteration (Jordan et al. 2024)
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5

# Where torch's fused AdamW supports `found_inf`; that of MPS accepts and ignores it (torch 2.13)
SKIPPING = ("cpu", "cuda")

_DECAYED, _PLAIN, _MUON = 0, 1, 2  # kinds of parameters, in the order in which they lie in the flat tensors


def flatten_parameters(
    model: nn.Module, dtype: torch.dtype, settings: AdamWSettings | MuonSettings
) -> FlatParameters:
    """The model's parameters, laid out so that those of each kind of update are adjacent."""
    muon = isinstance(settings, MuonSettings)
    return FlatParameters(model, dtype, order=lambda name, tensor: _group_key(name, tensor.shape, muon))


class Optimizer:
    """AdamW for all parameters, or Muon for the hidden matrices and AdamW for the rest."""

    def __init__(self, parameters: FlatParameters, settings: AdamWSettings | MuonSettings) -> None:
        self._parameters = parameters
        self._settings = settings
        self.loss_scale = LossScale(parameters.master.device) if parameters.dtype is torch.float16 else None
        self._adamw: list[AdamWGroup] = []
        self._muon: list[MuonGroup] = []
        muon = isinstance(settings, MuonSettings)
        trained = [part for part in parameters.slices if part.trained]
        for (kind, *_), group in groupby(trained, key=lambda part: _group_key(part.name, part.shape, muon)):
            slices = list(group)
            if kind == _MUON:
                self._muon.append(MuonGroup(slices, parameters))
            else:
                self._adamw.append(AdamWGroup(slices, parameters, decay=kind == _DECAYED))

    @torch.no_grad()
    def step(self, factor: float, skip: Tensor | None = None) -> None:
        """One update with every learning rate at `factor` of its peak; the model gets the new values.

        `skip`, a scalar in fp32 on the device of the parameters, is 1.0 for an update that is to change
        nothing, neither parameters nor state, and else 0.0. The host does not read it. Raises
        NotImplementedError if `skip` is given and torch's AdamW on that device ignores it.
        """
        if skip is not None and skip.device.type not in SKIPPING:
            raise NotImplementedError(f"no update can be skipped on {skip.device.type} without a readback")
        settings = self._settings
        if isinstance(settings, MuonSettings):
            for matrices in self._muon:
                matrices.update(settings, settings.learning_rate * factor, None if skip is None else skip > 0)
            rate = settings.adamw_peak * factor
        else:
            rate = settings.learning_rate * factor
        for group in self._adamw:
            group.update(settings, rate, skip)
        self._parameters.sync_model()

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next update depends on besides the parameters: copies on the CPU.

        Keys are "exp_avg.NAME", "exp_avg_sq.NAME" and "momentum.NAME" by parameter name, and "step.NAME" by
        the first parameter of an AdamW group; in fp16 also "loss_scale".
        """
        return {key: tensor.cpu().clone() for key, tensor in self._state()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError if names or shapes differ."""
        own = dict(self._state())
        for key, target in own.items():
            if key not in tensors:
                raise ValueError(f"{key} is missing")
            if tensors[key].shape != target.shape:
                raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(target.shape)}")
            target.copy_(tensors[key])
        if own.keys() != tensors.keys():
            extra = sorted(tensors.keys() - own.keys())
            raise ValueError(f"its optimizer state is not this run's: {extra[:3]}")

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        """The state by key, as views of the tensors that updates change."""
        for group in self._adamw:
            yield from group.state()
        for matrices in self._muon:
            yield from matrices.state()
        if self.loss_scale is not None:
            yield "loss_scale", self.loss_scale.state


class LossScale:
    """Keeps gradients in the range of fp16 (Micikevicius et al. 2018), without a readback from the device.

    The loss is multiplied by a power of two, and the gradient divided by it in fp32. It is halved where the
    gradient overflows, whose update is then skipped, and doubled after GROWTH_INTERVAL updates without that.
    """

    INITIAL, LARGEST, GROWTH_INTERVAL = 2.0**16, 2.0**24, 2000

    def __init__(self, device: torch.device) -> None:
        self.state = torch.tensor([self.INITIAL, 0.0], device=device)  # the scale; updates since it changed

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.state[0]

    def unscale(self, gradient: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """Divides the gradient, whose norm is `norm`, by the scale, and brings the scale up to date.

        Returns the norm of the true gradient, and 1.0 where it overflowed (the update is to be skipped), else
        0.0. The norm is 0 of a gradient that overflowed; but not with a scale of 1, as no lower one helps.
        """
        scale, updates = self.state.clone()
        overflow = ~torch.isfinite(norm)
        gradient.mul_(1 / scale)  # exact: a power of two
        updates = torch.where(overflow, 0.0, updates + 1)
        grows = updates >= self.GROWTH_INTERVAL
        new = torch.where(overflow, scale / 2, torch.where(grows, scale * 2, scale))
        self.state.copy_(torch.stack((new.clamp(1.0, self.LARGEST), torch.where(grows, 0.0, updates))))
        norm = torch.where(overflow & (scale > 1), 0.0, norm / scale)
        return norm, overflow.float()


class AdamWGroup:
    """Adjacent parameters that AdamW updates as one tensor (Loshchilov and Hutter 2019)."""

    def __init__(self, slices: list[ParameterSlice], parameters: FlatParameters, *, decay: bool) -> None:
        start, end = slices[0].start, slices[-1].end
        self._slices, self._decay = slices, decay
        self.values = parameters.master[start:end]
        self.gradient = parameters.gradient[start:end]
        self.exp_avg = torch.zeros_like(self.values)
        self.exp_avg_sq = torch.zeros_like(self.values)
        self.step = torch.zeros((), device=self.values.device)  # updates so far, a scalar in fp32

    def update(self, settings: AdamWSettings | MuonSettings, rate: float, skip: Tensor | None) -> None:
        """`skip` as in Optimizer.step."""
        update_adamw(
            self.values,
            self.gradient,
            self.exp_avg,
            self.exp_avg_sq,
            self.step,
            settings,
            rate,
            settings.weight_decay if self._decay else 0.0,
            skip,
        )

    def state(self) -> Iterator[tuple[str, Tensor]]:
        start = self._slices[0].start
        for part in self._slices:
            yield f"exp_avg.{part.name}", part.view(self.exp_avg, start)
            yield f"exp_avg_sq.{part.name}", part.view(self.exp_avg_sq, start)
        yield f"step.{self._slices[0].name}", self.step


class MuonGroup:
    """Matrices of one shape, (N, rows, columns), that Muon updates together (Jordan et al. 2024).

    The update is torch.optim.Muon's with Nesterov momentum, for all N at once: momentum, orthogonalized by
    Newton-Schulz, scaled by sqrt(max(1, rows / columns)).
    """

    def __init__(self, slices: list[ParameterSlice], parameters: FlatParameters) -> None:
        start, end = slices[0].start, slices[-1].end
        rows, columns = _matrix_shape(slices[0].name, slices[0].shape)
        self._slices = slices
        self._scale = math.sqrt(max(1, rows / columns))
        self.values = parameters.master[start:end].view(-1, rows, columns)
        self.gradient = parameters.gradient[start:end].view(-1, rows, columns)
        self.momentum_buffer = torch.zeros_like(self.values)

    def update(self, settings: MuonSettings, rate: float, skipped: Tensor | None) -> None:
        """`skipped`, a bool scalar on the device, keeps values and momentum as they are, bit for bit."""
        update_muon(
            self.values,
            self.gradient,
            self.momentum_buffer,
            settings.momentum,
            1 - rate * settings.weight_decay,
            -rate * self._scale,
            NEWTON_SCHULZ,
            skipped,
        )

    def state(self) -> Iterator[tuple[str, Tensor]]:
        start = self._slices[0].start
        for part in self._slices:
            yield f"momentum.{part.name}", part.view(self.momentum_buffer.view(-1), start)


@operation
def update_adamw(
    values: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    settings: AdamWSettings | MuonSettings,
    learning_rate: float,
    weight_decay: float,
    skip: Tensor | None,
) -> None:
    """One update of flat tensors, in place. `step` counts the updates; `skip` as in Optimizer.step."""
    # The function behind torch.optim.AdamW: the class imports torch's compiler, which takes a second
    adamw(
        [values],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [step],
        # Where there is no fused kernel torch takes the plain one, which cannot skip
        fused=values.device.type in ("cpu", "cuda", "mps"),
        found_inf=skip,
        amsgrad=False,
        beta1=settings.beta1,
        beta2=settings.beta2,
        lr=learning_rate,
        weight_decay=weight_decay,
        eps=settings.eps,
        maximize=False,
    )


@operation
def update_muon(
    values: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor,
    momentum: float,
    decay_factor: float,
    step_size: float,
    newton_schulz: Sequence[tuple[float, float, float]],
    skipped: Tensor | None,
) -> None:
    """One update of matrices (N, rows, columns), in place: decay_factor values + step_size update.

    `skipped` as in MuonGroup.update.
    """
    if skipped is None:
        momentum_buffer.lerp_(gradient, 1 - momentum)
        update = orthogonalize(gradient.lerp(momentum_buffer, momentum), newton_schulz)
        values.mul_(decay_factor).add_(update, alpha=step_size)
        return
    # The same operations, not in place. Beside the products of orthogonalize these passes cost little
    new = momentum_buffer.lerp(gradient, 1 - momentum)
    torch.where(skipped, momentum_buffer, new, out=momentum_buffer)
    update = orthogonalize(torch.lerp(gradient, new, momentum, out=new), newton_schulz)
    torch.mul(values, decay_factor, out=new).add_(update, alpha=step_size)
    torch.where(skipped, values, new, out=values)


def orthogonalize(
    matrices: Tensor, newton_schulz: Sequence[tuple[float, float, float]] = NEWTON_SCHULZ
) -> Tensor:
    """Singular values brought near 1: (N, rows, columns) -> the same shape, in bf16.

    Newton-Schulz iteration with the quintic of Jordan et al. 2024, "Muon: an optimizer for hidden layers".
    """
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)).bfloat16()
    for a, b, c in newton_schulz:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _group_key(name: str, shape: torch.Size, muon: bool) -> tuple[int, ...]:
    """Sort key: matrices for AdamW, other shapes, then Muon's hidden matrices by shape."""
    if muon and len(shape) == 2 and name.startswith("blocks."):
        return (_MUON, *_matrix_shape(name, shape))
    return (_DECAYED,) if len(shape) >= 2 else (_PLAIN,)


def _matrix_shape(name: str, shape: torch.Size) -> tuple[int, int]:
    """The shape that Muon orthogonalizes: queries, keys and values are three matrices."""
    rows, columns = shape
    return (rows // 3, columns) if name.endswith(".qkv.weight") else (rows, columns)
