"""torch.compile, tried before it is relied on.

In: a model and a batch of the shape that it will train on. Out: the model compiled, or why it could not be.
"""

from __future__ import annotations

import os
from typing import cast

import torch
from torch import Tensor, nn

from gptkit.training.loss import cross_entropy


class CompilationError(Exception):
    """The model could not be compiled; the message is the reason, in one line."""


def compile_model(model: nn.Module, inputs: Tensor, targets: Tensor) -> nn.Module:
    """The model compiled for a batch, (B, T) each, forward and backward; it shares the parameters of `model`.

    torch compiles at the first call, so that is made here, and its outcome thrown away. The batch has to be
    one that training has too: another layout in memory is compiled anew.
    Raises CompilationError.
    """
    _keep_cache()
    try:
        # One graph for one shape: whatever else the model is called with, training computes the same
        compiled = cast(nn.Module, torch.compile(model, dynamic=False))
        compiled.train()
        cross_entropy(compiled(inputs), targets).backward()  # type: ignore[no-untyped-call]
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of the compiler, of the compiler's compiler, of the disk its cache is on …
        raise CompilationError(_one_line(error)) from error
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    return compiled


def _keep_cache() -> None:
    """Has torch keep what it compiles in the user's cache folder; where it would is cleared now and then."""
    import pooch

    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    folder = pooch.os_cache("gptkit") / "torch_compile"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # then where torch would
    if os.access(folder, os.W_OK):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
