"""Gradients collected and AdamW's update, in C. `src/optimizer.c` says what each is.

In: flat fp32 tensors on a CPU. Out: the same, changed in place.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gptkit.native.build import declared
from gptkit.native.ops import threads

_SHARE = 16384  # as in optimizer.c


class _AdamW(ctypes.Structure):
    _fields_ = [
        (name, c_float) for name in ("rate", "beta1", "beta2", "eps", "decay", "correction1", "correction2")
    ]


class _Muon(ctypes.Structure):
    _fields_ = [(name, c_float) for name in ("momentum", "kept", "size")]


@cache
def _functions() -> Any:
    gradients = [c_void_p, c_void_p, c_int64, c_void_p, c_float, c_void_p, c_int, c_int]
    return declared(
        {
            "collect_gradients": (c_double, gradients),
            "adamw": (None, [*[c_void_p] * 4, c_int64, c_void_p, c_int]),
            "muon": (c_int, [*[c_void_p] * 3, *[c_int64] * 3, c_void_p, c_int]),
        }
    )


class Collector:
    """Gathers gradients of parameters of these sizes into one flat tensor."""

    def __init__(self, sizes: Sequence[int]) -> None:
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + size)
        self._starts = (c_int64 * len(starts))(*starts)
        self._pointers = (c_void_p * len(sizes))()
        self._sums = torch.empty(-(-starts[-1] // _SHARE), dtype=torch.float64)

    def collect(self, gradients: Sequence[Tensor], flat: Tensor, scale: float) -> float:
        """Moves the gradients, contiguous and of one dtype, fp32 or bf16, times scale; returns their norm."""
        for number, gradient in enumerate(gradients):
            self._pointers[number] = gradient.data_ptr()
        norm: float = _functions().collect_gradients(
            self._pointers,
            self._starts,
            len(gradients),
            flat.data_ptr(),
            scale,
            self._sums.data_ptr(),
            gradients[0].dtype is torch.bfloat16,
            threads(),
        )
        return norm


def adamw(
    values: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: float,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Update number `step` (from 1) of flat tensors, as torch.optim.AdamW makes it."""
    settings = _AdamW(rate, beta1, beta2, eps, weight_decay, 1 - beta1**step, math.sqrt(1 - beta2**step))
    _functions().adamw(
        values.data_ptr(),
        gradient.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        values.numel(),
        ctypes.byref(settings),
        threads(),
    )


def muon(
    values: Tensor, gradient: Tensor, average: Tensor, *, momentum: float, kept: float, size: float
) -> None:
    """One update of matrices (N, rows, columns), contiguous, both even: Nesterov momentum, orthogonalised.

    values becomes kept * values + size * the update; the average of gradients moves on by 1 - momentum.
    """
    settings = _Muon(momentum, kept, size)
    failed = _functions().muon(
        values.data_ptr(),
        gradient.data_ptr(),
        average.data_ptr(),
        *values.shape,
        ctypes.byref(settings),
        threads(),
    )
    if failed:
        raise MemoryError("muon: out of memory")
