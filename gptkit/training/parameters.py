"""The weights of a model in training: fp32 in one block of memory, and a copy to compute with.

In: a model. After this its parameters are views of one flat tensor in the precision that it computes in;
the fp32 master weights and the gradients are flat tensors too, laid out alike. So casting, clipping and
updating are one operation each instead of one for each parameter.

Knows nothing of what the update is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptkit.native.ops import serves
from gptkit.native.optim import Collector


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies in the flat tensors."""

    name: str
    start: int
    shape: torch.Size

    @property
    def end(self) -> int:
        return self.start + self.shape.numel()

    def view(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.end].view(self.shape)


class Weights:
    """Master weights (fp32, flat), their gradient (fp32, flat), and the model's own parameters.

    `order` sorts the parameters into the flat tensors, so that those with one fate lie side by side.
    Parameters that are shared (tied) have one slot.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, order: Callable[[str, Tensor], tuple[int, ...]]):
        named = sorted(model.named_parameters(), key=lambda item: order(*item))
        self.slots: list[Slot] = []
        size = 0
        for name, parameter in named:
            self.slots.append(Slot(name, size, parameter.shape))
            size += parameter.numel()
        device = named[0][1].device
        self.master = torch.empty(size, dtype=torch.float32, device=device)
        self.gradient = torch.zeros(size, dtype=torch.float32, device=device)
        self._working = self.master if dtype == torch.float32 else torch.empty_like(self.master, dtype=dtype)
        self._parameters = [parameter for _, parameter in named]
        self._gradient_views = [slot.view(self.gradient) for slot in self.slots]
        self._collector = Collector([slot.shape.numel() for slot in self.slots]) if serves(device) else None
        self._norm: float | None = None  # of the gradient, where collecting it told
        for slot, parameter in zip(self.slots, self._parameters, strict=True):
            slot.view(self.master).copy_(parameter.detach())
            parameter.data = slot.view(self._working)
        self.publish()

    def publish(self) -> None:
        """Has the model compute with the master weights as they are now."""
        if self._working is not self.master:
            self._working.copy_(self.master)

    def collect_gradients(self, scale: float) -> None:
        """Moves the parameters' gradients, times `scale`, into the flat one, in fp32."""
        gradients = [_gradient(parameter) for parameter in self._parameters]
        self._norm = None
        if self._collector and all(gradient.is_contiguous() for gradient in gradients):
            self._norm = self._collector.collect(gradients, self.gradient, scale)
        else:
            torch._foreach_copy_(self._gradient_views, gradients)
            if scale != 1.0:
                self.gradient.mul_(scale)
        for parameter in self._parameters:
            parameter.grad = None

    def clip(self, largest: float) -> Tensor:
        """Scales the gradient down to a norm of `largest` (0: leaves it); the norm before, a scalar."""
        if self._norm is not None:
            factor = largest / (self._norm + 1e-6)
            if 0 < factor < 1:
                self.gradient.mul_(factor)
            return torch.tensor(self._norm)
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        if largest > 0:
            self.gradient.mul_(torch.clamp(largest / (norm + 1e-6), max=1.0))
        return norm

    def named(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Views by parameter name of the master weights, or of another flat tensor of this layout."""
        return {slot.name: slot.view(self.master if flat is None else flat) for slot in self.slots}

    def named_on_cpu(self) -> dict[str, Tensor]:
        """The master weights by name, as they are now, on the CPU."""
        return self.named(self.master.cpu())

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Sets the master weights. Raises ValueError where names or shapes differ."""
        own = self.named()
        if own.keys() != tensors.keys():
            raise ValueError(f"its tensors are not this model's: {sorted(own.keys() ^ tensors.keys())[:3]}")
        for name, view in own.items():
            if view.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(view.shape)}")
            view.copy_(tensors[name])
        self.publish()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
