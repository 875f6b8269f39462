"""torch.compile with a trial run, so that a failure is found before training starts.

Input: a model and a batch of the shape that it will train on. Output: the compiled model, or a
CompilationError.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from gptkit.training.loss import cross_entropy


class CompilationError(Exception):
    """The model cannot be compiled; the message is the reason, in one line."""


def compile_model(model: nn.Module, inputs: Tensor, targets: Tensor) -> nn.Module:
    """The model compiled for a batch, (B, T) each, forward and backward; it shares the parameters of `model`.

    torch compiles at the first call, so one is made here and its result discarded. The batch must have the
    memory layout of training batches: for another one torch would compile again.
    Raises CompilationError.
    """
    _use_user_cache()
    try:
        # One graph for one shape: training computes the same whatever else the model is called with
        compiled = cast(nn.Module, torch.compile(model, dynamic=False))
        compiled.train()
        cross_entropy(compiled(inputs), targets).backward()  # type: ignore[no-untyped-call]
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # any failure inside torch.compile means: fall back to eager
        raise CompilationError(_one_line(error)) from error
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    return compiled


def _use_user_cache() -> None:
    """Makes torch cache compiled code in the user's cache folder: its default is cleared now and then."""
    import platformdirs

    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = Path(platformdirs.user_cache_dir("gptkit", appauthor=False)) / "torch_compile"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # then torch uses its default
    if os.access(folder, os.W_OK):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
