"""A positional encoding inside a small GPT: read with a cache, trained, compiled.

In: what makes one. Out: checks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gptkit.experiment.schema import ModelSettings, MuonSettings
from gptkit.model import GPT
from gptkit.model.decoding import decoder_for
from gptkit.plugins import ModelShape, PluginOptions, PositionalEncoding
from gptkit.testing.runner import SkippedError, asked, raised, require
from gptkit.training.loss import cross_entropy
from gptkit.training.optim import Optimizer, flatten_parameters
from gptkit.training.parameters import clip_factor

_V = 11
_STEPS = 12
_NEAR = 1e-3  # of logits, some of which are above 10; absolute, and relative to each


def _model(position: Any, n_layer: int = 2) -> GPT:
    """A new one, in eval mode, around the encoding."""
    shape: ModelShape = position.shape
    settings = ModelSettings(
        context_length=shape.context_length, n_embd=shape.n_embd, n_head=shape.n_head, n_layer=n_layer
    )
    with torch.random.fork_rng(devices=[]):
        model = GPT(settings, _V, position)
    model.initialise(torch.Generator().manual_seed(1))
    return model.eval()


def _stirred_model(subject: Any, n_layer: int = 2) -> GPT:
    """With weights that matter everywhere; new ones give the same logits for every token."""
    model = _model(subject.make(), n_layer)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    return model


def _tokens(rows: int, count: int) -> Tensor:
    return torch.randint(_V, (rows, count), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def check_cached(subject: Any) -> str:
    """`subject` is the PositionSubject, as with all of these."""
    model = _stirred_model(subject)
    T = model.settings.context_length
    tokens = _tokens(2, T)
    wanted = model(tokens)
    for pieces in ([1] * T, [T // 2, T - T // 2]):
        cache = model.new_cache(2)
        got = torch.cat([model(part, cache) for part in torch.split(tokens, pieces, dim=1)], dim=1)
        how = "token by token" if pieces[0] == 1 else "in two parts"
        _require_close(got, wanted, f"read {how} with a cache, the model has other logits than read whole")
    return "a model reads token by token what it reads whole"


def _require_close(got: Tensor, wanted: Tensor, otherwise: str) -> None:
    apart = (got - wanted).abs().amax(dim=(0, 2))
    at = int(apart.argmax())
    require(
        torch.allclose(got, wanted, rtol=_NEAR, atol=_NEAR),
        f"{otherwise}: at position {at} by {apart[at]:.3g}",
    )


@torch.inference_mode()
def check_decoded(subject: Any) -> str:
    """In the way that generation takes, which on a CPU uses the tables of `rotation`."""
    model = _stirred_model(subject)
    T = model.settings.context_length
    tokens = _tokens(2, T)
    wanted = model(tokens)
    decoder = decoder_for(model, 2)
    got = [decoder.read(tokens[:, :3]).clone()]
    got += [decoder.step(tokens[:, place]).clone() for place in range(3, T)]
    said = "generation has other logits than the model"
    _require_close(torch.stack(got, dim=1), wanted[:, 2:], said)
    return "generation sees what the model sees"


def check_trains_in_fp32(subject: Any) -> str:
    return _trains(subject, torch.float32)


def check_trains_in_bf16(subject: Any) -> str:
    return _trains(subject, torch.bfloat16)


def _trains(subject: Any, dtype: torch.dtype) -> str:
    """A few steps on one batch, as a run makes them; the model can do it by heart."""
    model = _model(subject.make(stirred=False)).train()
    settings = MuonSettings()
    parameters = flatten_parameters(model, dtype, settings)
    optimizer = Optimizer(parameters, settings)
    window = _tokens(4, model.settings.context_length + 1)
    losses = []
    for _ in range(_STEPS):
        with asked("a forward pass"):
            loss = cross_entropy(model(window[:, :-1]), window[:, 1:])
        with asked("the backward pass"):
            loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.position.named_parameters():
            gradient = parameter.grad
            require(gradient is not None, f"{name} gets no gradient: nothing that it gives depends on it")
            assert gradient is not None
            require(bool(gradient.isfinite().all()), f"{name} gets a gradient that is not finite")
        losses.append(loss.item())
        norm = parameters.collect_gradients(scale=1.0)
        parameters.scale_gradient(clip_factor(norm, 1.0))
        optimizer.step(1.0)
    right = losses[-1] < losses[0] - 0.1
    require(right, f"the loss on one batch goes from {losses[0]:.3f} to {losses[-1]:.3f} in {_STEPS} steps")
    return f"the loss on one batch goes from {losses[0]:.2f} to {losses[-1]:.2f}"


@torch.no_grad()
def check_compiled(subject: Any) -> str:
    """With torch's own kernels behind the compiler, so that none need be compiled."""
    model = _stirred_model(subject, n_layer=1)
    plain = _model(PositionalEncoding(PluginOptions(), model.position.shape), n_layer=1)
    tokens = _tokens(2, model.settings.context_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _compiled(plain)(tokens)
        except Exception as error:  # this Python, this platform
            raise SkippedError(f"torch.compile does not work here: it {raised(error)}") from error
        with asked("compiled, the model"):
            got = _compiled(model)(tokens)
    _require_close(got, model(tokens), "compiled, the model has other logits")
    return "a compiled model gives the same"


def _compiled(model: GPT) -> Callable[[Tensor], Tensor]:
    import torch._dynamo

    torch._dynamo.reset()  # it compiles a function only for so many models before it gives up
    return torch.compile(model, backend="aot_eager", dynamic=False)
