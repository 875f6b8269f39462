"""Gradients and optimizer updates in C.

Input: flat fp32 tensors on the CPU, updated in place. The implementations take the arguments of the
operations in gptkit/training. `src/optimizer.c` and `src/muon.c` document the computation.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from gptkit.experiment.schema import AdamWSettings, MuonSettings
from gptkit.model.ops import Implementation
from gptkit.native.build import declared
from gptkit.native.ops import is_bf16, threads

_CHUNK = 16384  # elements of one partial sum, as in optimizer.c


class _AdamW(ctypes.Structure):
    _fields_ = [
        (name, c_float)
        for name in ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "correction1", "correction2")
    ]


class _Muon(ctypes.Structure):
    _fields_ = [
        *((name, c_float) for name in ("momentum", "decay_factor", "step_size")),
        ("iterations", c_int),
        ("quintics", c_void_p),
    ]


@cache
def _functions() -> Any:
    gradients = [c_void_p, c_void_p, c_int64, c_void_p, c_float, c_int, c_void_p, c_int, c_int]
    return declared(
        {
            "collect_gradients": (c_double, gradients),
            "adamw": (None, [*[c_void_p] * 4, c_int64, c_void_p, c_int]),
            "muon": (c_int, [*[c_void_p] * 3, *[c_int64] * 3, c_void_p, c_int]),
        }
    )


def _not_on_cpu(x: Tensor, *_: Any) -> list[str]:
    return [] if x.is_cpu else [f"the tensors are on {x.device}"]


def _collect_unsupported(gradients: Sequence[Tensor], *_: Any) -> list[str]:
    if not all(gradient.is_contiguous() for gradient in gradients):
        return ["a gradient is not contiguous"]
    if gradients[0].dtype not in (torch.float32, torch.bfloat16):
        return [f"the gradients are in {gradients[0].dtype}"]
    return _not_on_cpu(gradients[0])


@lru_cache(maxsize=16)
def _arrays(starts: tuple[int, ...]) -> tuple[Any, Any, Tensor]:
    """The starts for C, an array for the pointers to the gradients, and the partial sums."""
    sums = torch.empty(-(-starts[-1] // _CHUNK), dtype=torch.float64)
    return (c_int64 * len(starts))(*starts), (c_void_p * (len(starts) - 1))(), sums


def collect_gradients(
    gradients: list[Tensor],
    views: list[Tensor],
    flat: Tensor,
    starts: tuple[int, ...],
    scale: float,
    add: bool,
) -> Tensor:
    """The norm is a scalar in fp64, summed in an order that does not depend on threads."""
    c_starts, pointers, sums = _arrays(starts)
    for number, gradient in enumerate(gradients):
        pointers[number] = gradient.data_ptr()
    norm = _functions().collect_gradients(
        pointers,
        c_starts,
        len(gradients),
        flat.data_ptr(),
        scale,
        add,
        sums.data_ptr(),
        is_bf16(gradients[0]),
        threads(),
    )
    return torch.scalar_tensor(norm, dtype=torch.float64)


def clip_gradient(gradient: Tensor, norm: Tensor, max_norm: float) -> None:
    """Reading the norm costs less than a pass over the gradient: the host is the device."""
    factor = max_norm / (norm.item() + 1e-6)
    if 0 < factor < 1:
        gradient.mul_(factor)


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
    """Updates flat tensors as torch.optim.AdamW does."""
    if skip is not None and skip.item():
        return
    step.add_(1)
    t, beta1, beta2 = step.item(), settings.beta1, settings.beta2
    corrections = 1 - beta1**t, math.sqrt(1 - beta2**t)
    _functions().adamw(
        values.data_ptr(),
        gradient.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        values.numel(),
        ctypes.byref(_AdamW(learning_rate, beta1, beta2, settings.eps, weight_decay, *corrections)),
        threads(),
    )


def _muon_unsupported(values: Tensor, *_: Any) -> list[str]:
    if values.size(1) % 2 or values.size(2) % 2:
        return ["rows or columns are odd: they are multiplied in pairs"]
    return _not_on_cpu(values)


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
    """Updates contiguous matrices (N, rows, columns)."""
    if skipped is not None and skipped.item():
        return
    quintics = (c_float * (3 * len(newton_schulz)))(*(one for quintic in newton_schulz for one in quintic))
    settings = _Muon(
        momentum, decay_factor, step_size, len(newton_schulz), ctypes.cast(quintics, c_void_p).value
    )
    failed = _functions().muon(
        values.data_ptr(),
        gradient.data_ptr(),
        momentum_buffer.data_ptr(),
        *values.shape,
        ctypes.byref(settings),
        threads(),
    )
    if failed:
        raise MemoryError("muon: out of memory")


OPERATIONS = {
    "collect_gradients": (Implementation("C", _collect_unsupported, collect_gradients),),
    "clip_gradient": (Implementation("C", _not_on_cpu, clip_gradient),),
    "update_adamw": (Implementation("C", _not_on_cpu, update_adamw),),
}
MUON = (Implementation("C", _muon_unsupported, update_muon),)
