"""The parameters of a model in training: fp32 master values in one flat tensor, and a copy to compute with.

Input: a model. Its parameters become views of one flat tensor in the precision that it computes in; the fp32
master values and the gradients are flat tensors of the same layout. So casting, clipping and updating are one
operation each instead of one per parameter.

Knows nothing of optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptkit.model.ops import operation

# Elements whose norm torch computes at once. On a CPU it adds the squares one by one in fp32: for 100 million
# elements the norm would be 1 % too small, for this many it is right to 1e-5.
_CHUNK = 2**20


@dataclass(frozen=True)
class ParameterSlice:
    """The part of the flat tensors that belongs to one parameter."""

    name: str
    start: int
    shape: torch.Size
    trained: bool = True  # False for a frozen parameter, which no optimizer updates

    @property
    def end(self) -> int:
        return self.start + self.shape.numel()

    def view(self, flat: Tensor, offset: int = 0) -> Tensor:
        """The parameter's view of a flat tensor, or of the part of one that starts at `offset`."""
        return flat[self.start - offset : self.end - offset].view(self.shape)


class FlatParameters:
    """Master values (fp32, flat), their gradient (fp32, flat), and the model's own parameters.

    `order` is the sort key of the parameters in the flat tensors, so that those that are updated in the same
    way are adjacent; frozen ones, which require no gradient, come last. Shared (tied) parameters have one
    slice.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, order: Callable[[str, Tensor], tuple[int, ...]]):
        named = sorted(model.named_parameters(), key=lambda item: (not item[1].requires_grad, *order(*item)))
        self.slices: list[ParameterSlice] = []
        size = 0
        for name, parameter in named:
            self.slices.append(ParameterSlice(name, size, parameter.shape, parameter.requires_grad))
            size += parameter.numel()
        device = named[0][1].device
        self.master = torch.empty(size, dtype=torch.float32, device=device)
        self.gradient = torch.zeros(size, dtype=torch.float32, device=device)
        self.dtype = dtype  # that the model computes in
        self._working = self.master if dtype == torch.float32 else torch.empty_like(self.master, dtype=dtype)
        self._parameters = [parameter for _, parameter in named]
        self._gradient_views = [part.view(self.gradient) for part in self.slices]
        self._starts = (*(part.start for part in self.slices), size)
        for part, parameter in zip(self.slices, self._parameters, strict=True):
            part.view(self.master).copy_(parameter.detach())
            parameter.data = part.view(self._working)
        self.sync_model()

    def sync_model(self) -> None:
        """Copies the master values, rounded, into the parameters that the model computes with."""
        if self._working is not self.master:
            self._working.copy_(self.master)

    def collect_gradients(self, scale: float, *, add: bool = False) -> Tensor:
        """Moves the parameters' gradients into the flat one, in fp32; returns its norm.

        With `add` they are added to what is there: the gradients of a step's batches are summed in fp32
        whatever the model computes in, as bf16 would lose most of a long sum. `scale` multiplies the result.
        The norm is a scalar on the device of the parameters, in fp32, or fp64 where C computes it.
        """
        gradients = [_gradient(parameter) for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        views, starts = self._gradient_views, self._starts
        return collect_gradients(gradients, views, self.gradient, starts, scale, add)

    def clip_gradient(self, norm: Tensor, max_norm: float) -> None:
        """Scales the gradient, whose norm is `norm`, down to a norm of at most `max_norm`."""
        clip_gradient(self.gradient, norm, max_norm)

    def named(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Views by parameter name of the master values, or of another flat tensor of this layout."""
        return {part.name: part.view(self.master if flat is None else flat) for part in self.slices}

    def state_dict(self) -> dict[str, Tensor]:
        """The master values by parameter name, on the CPU. There they are views, on a GPU copies."""
        return self.named(self.master.cpu())

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the master values. Raises ValueError if names or shapes differ."""
        own = self.named()
        if own.keys() != tensors.keys():
            raise ValueError(f"its tensors are not this model's: {sorted(own.keys() ^ tensors.keys())[:3]}")
        for name, view in own.items():
            if view.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(view.shape)}")
            view.copy_(tensors[name])
        self.sync_model()


@operation
def collect_gradients(
    gradients: list[Tensor],
    views: list[Tensor],
    flat: Tensor,
    starts: tuple[int, ...],
    scale: float,
    add: bool,
) -> Tensor:
    """Copies gradients to their views of `flat`, or adds them; then scales `flat` and returns its norm.

    View number i is flat[starts[i] : starts[i + 1]].
    """
    if add:
        torch._foreach_add_(views, gradients)
    else:
        torch._foreach_copy_(views, gradients)
    if scale != 1.0:
        flat.mul_(scale)
    return gradient_norm(flat)


def gradient_norm(flat: Tensor) -> Tensor:
    """The norm of a flat fp32 gradient: a scalar on its device."""
    norms = torch._foreach_norm(flat.split(_CHUNK))  # type: ignore[no-untyped-call]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


@operation
def clip_gradient(gradient: Tensor, norm: Tensor, max_norm: float) -> None:
    """Scales the gradient in place as torch.nn.utils.clip_grad_norm_ does; `norm` is a scalar."""
    gradient.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
