"""Optimizers against torch's own, the learning rate over the steps, and the weights that they update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit.backend import default_operations
from gptkit.experiment.schema import AdamWSettings, Experiment, MuonSettings, ScheduleSettings
from gptkit.model import GPT
from gptkit.model.build import build_new_model
from gptkit.training.optim import Optimizer, flatten_parameters, orthogonalize
from gptkit.training.parameters import FlatParameters
from gptkit.training.schedule import learning_rate_factor, surprises

ADAMW = AdamWSettings(learning_rate=0.01, weight_decay=0.3)
MUON = MuonSettings(learning_rate=0.05, adamw_learning_rate=0.01, weight_decay=0.3, momentum=0.9)
BOTH = pytest.mark.parametrize("settings", [ADAMW, MUON], ids=lambda settings: settings.type)
# A rate that changes from step to step, as a schedule has it
FACTORS = [0.5, 1.0, 1.0, 0.7, 0.1]


def tiny(**model: Any) -> GPT:
    """One of each: matrices tall and wide, biases, gains, embeddings of tokens and of positions."""
    settings = {"context_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "norm": "layernorm"}
    settings |= {"bias": True, "position": "learned", "init": "gpt2", **model}
    return build_new_model(Experiment.model_validate({"model": settings}), 11, seed=1)


def give_gradient(weights: FlatParameters, step: int) -> None:
    weights.gradient.normal_(0, 0.1, generator=torch.Generator().manual_seed(step))


def train(weights: FlatParameters, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        give_gradient(weights, step)
        optimizer.step(FACTORS[step])


def is_hidden_matrix(name: str, tensor: Tensor) -> bool:
    return name.startswith("blocks.") and tensor.ndim == 2


def split(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, the matrix of queries, keys and values cut into the three that it is."""
    out = {}
    for name, tensor in named.items():
        if name.endswith("qkv.weight"):
            out |= {f"{name}.{part}": piece.clone() for part, piece in enumerate(tensor.chunk(3))}
        else:
            out[name] = tensor.clone()
    return out


@pytest.fixture
def rounding(exact: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Exact: in torch, without bf16. Else with the operations of this machine, in C where it can."""
    if exact:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
        yield
    else:
        with default_operations("cpu"):
            yield


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("mlp", ["relu2", "swiglu"])
@BOTH
def test_updates_are_those_of_torch(
    settings: AdamWSettings | MuonSettings, mlp: str, exact: bool, rounding: None
) -> None:
    """Parameter by parameter, with torch.optim.AdamW and torch.optim.Muon, over several steps.

    Muon computes in bf16, and ours rounds at other places than torch's; where both are kept from rounding,
    they have to agree closely.
    """
    weights = flatten_parameters(tiny(mlp=mlp), torch.float32, settings)
    optimizer = Optimizer(weights, settings)
    cut = split if isinstance(settings, MuonSettings) else dict
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in cut(weights.named()).items()}
    initial = {name: tensor.detach().clone() for name, tensor in theirs.items()}
    hidden = {name for name in theirs if isinstance(settings, MuonSettings)}
    hidden = {name for name in hidden if is_hidden_matrix(name, theirs[name])}
    others = [theirs[name] for name in theirs if name not in hidden]
    adamw = torch.optim.AdamW(
        [
            {"params": [tensor for tensor in others if tensor.ndim == 2], "weight_decay": 0.3},
            {"params": [tensor for tensor in others if tensor.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=False,
    )
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, 0.01)]
    if hidden:
        muon = torch.optim.Muon([theirs[name] for name in hidden], weight_decay=0.3, momentum=0.9)
        optimizers.append((muon, 0.05))

    for step, factor in enumerate(FACTORS):
        give_gradient(weights, step)
        for name, gradient in cut(weights.named(weights.gradient)).items():
            theirs[name].grad = gradient.clone()
        optimizer.step(factor)
        for their_optimizer, rate in optimizers:
            for group in their_optimizer.param_groups:
                group["lr"] = rate * factor
            their_optimizer.step()

    for name, ours in cut(weights.named()).items():
        moved = (theirs[name] - initial[name]).std()
        assert moved > 1e-3
        near = 1e-4 if exact or name not in hidden else 0.05
        assert (ours - theirs[name]).std() < near * moved, name


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 64)])
def test_orthogonalizing_keeps_singular_vectors_and_equalizes_singular_values(shape: tuple[int, ...]) -> None:
    """U S V' becomes about U V': singular values between 0.7 and 1.2, from any length."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    matrices *= torch.tensor([1e-3, 1.0, 1e3])[: shape[0]].view(-1, 1, 1)
    ours = orthogonalize(matrices)
    assert ours.shape == matrices.shape
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    ours_turned = U.mT @ ours.float() @ Vh.mT
    diagonal = ours_turned.diagonal(dim1=1, dim2=2)
    assert diagonal.median() > 0.7
    assert diagonal.max() < 1.25
    assert (ours_turned - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_a_matrix_without_gradient_is_not_moved_by_muon() -> None:
    settings = MUON.model_copy(update={"weight_decay": 0.0})
    weights = flatten_parameters(tiny(), torch.float32, settings)
    before = weights.master.clone()
    Optimizer(weights, settings).step(1.0)
    assert torch.equal(weights.master, before)


@BOTH
def test_weight_decay_touches_matrices_only(settings: AdamWSettings | MuonSettings) -> None:
    """Without a gradient, a matrix shrinks by rate times decay, and nothing else moves."""
    weights = flatten_parameters(tiny(), torch.float32, settings)
    weights.master.normal_(generator=torch.Generator().manual_seed(2))
    before = {name: tensor.clone() for name, tensor in weights.named().items()}
    Optimizer(weights, settings).step(0.5)
    kinds = set()
    for name, after in weights.named().items():
        rate = settings.learning_rate if is_hidden_matrix(name, after) else 0.01
        shrunk = 1 - 0.5 * rate * 0.3 if after.ndim == 2 else 1.0
        torch.testing.assert_close(after, before[name] * shrunk, msg=name)
        kinds.add((after.ndim, is_hidden_matrix(name, after)))
    assert kinds == {(1, False), (2, False), (2, True)}


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("tied", [True, False])
@BOTH
def test_an_optimizer_continues_from_its_state_as_if_never_stopped(
    settings: AdamWSettings | MuonSettings, tied: bool, done: int
) -> None:
    weights = flatten_parameters(tiny(tie_embeddings=tied), torch.float32, settings)
    optimizer = Optimizer(weights, settings)
    train(weights, optimizer, range(done))
    saved_weights, saved = weights.state_dict(), optimizer.state_dict()
    saved_weights = {name: tensor.clone() for name, tensor in saved_weights.items()}
    train(weights, optimizer, range(done, 5))

    other = flatten_parameters(tiny(tie_embeddings=tied), torch.float32, settings)
    other.master.zero_()
    resumed = Optimizer(other, settings)
    other.load_state_dict(saved_weights)
    resumed.load_state_dict(saved)
    train(other, resumed, range(done, 5))
    assert torch.equal(other.master, weights.master)
    state, other_state = optimizer.state_dict(), resumed.state_dict()
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[name], other_state[name]) for name in state)


@BOTH
def test_a_state_is_a_copy_by_parameter_name(settings: AdamWSettings | MuonSettings) -> None:
    weights = flatten_parameters(tiny(), torch.float32, settings)
    optimizer = Optimizer(weights, settings)
    train(weights, optimizer, range(1))
    state = optimizer.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    train(weights, optimizer, range(1, 3))
    assert all(torch.equal(state[name], before[name]) for name in state)
    for name, parameter in weights.named().items():
        hidden = isinstance(settings, MuonSettings) and is_hidden_matrix(name, parameter)
        for kind in ("momentum",) if hidden else ("exp_avg", "exp_avg_sq"):
            assert state[f"{kind}.{name}"].shape == parameter.shape


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("missing", "is missing|not this run's"), ("extra", "not this run's"), ("shape", r"has shape \(3, 1\)")],
)
@BOTH
def test_a_state_that_does_not_fit_is_refused(
    settings: AdamWSettings | MuonSettings, wrong: str, message: str
) -> None:
    """States in which one tensor is missing or of another shape, or with one too many."""
    weights = flatten_parameters(tiny(), torch.float32, settings)
    optimizer = Optimizer(weights, settings)
    train(weights, optimizer, range(1))
    state = optimizer.state_dict()
    for name in state:
        if wrong == "missing":
            bad = {key: tensor for key, tensor in state.items() if key != name}
        elif wrong == "extra":
            bad = {**state, f"{name}.more": state[name]}
        else:
            bad = {**state, name: state[name].new_zeros(3, 1)}
        fresh = flatten_parameters(tiny(), torch.float32, settings)
        with pytest.raises(ValueError, match=message):
            Optimizer(fresh, settings).load_state_dict(bad)


def test_the_state_of_another_optimizer_is_refused() -> None:
    states = []
    for settings in (ADAMW, MUON):
        weights = flatten_parameters(tiny(), torch.float32, settings)
        optimizer = Optimizer(weights, settings)
        train(weights, optimizer, range(1))
        states.append((optimizer, optimizer.state_dict()))
    (adamw, adamw_state), (muon, muon_state) = states
    for optimizer, state in ((adamw, muon_state), (muon, adamw_state)):
        with pytest.raises(ValueError, match=r"is missing|not this run's"):
            optimizer.load_state_dict(state)


# The learning rate


def rates(max_steps: int = 10, peak: float = 0.1, past: int = 3, **schedule: Any) -> list[float]:
    """Factors of step 1 to `past` steps after the last."""
    settings = ScheduleSettings.model_validate(schedule)
    steps = range(1, max_steps + past + 1)
    return [learning_rate_factor(settings, step, peak=peak, max_steps=max_steps) for step in steps]


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_the_warm_up_rises_linearly_to_the_peak(kind: str) -> None:
    factors = rates(type=kind, warmup_steps=4)
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[4] == pytest.approx(1.0)


def test_a_constant_rate_is_the_peak_for_ever() -> None:
    assert rates(type="constant", min_learning_rate=0.01) == [1.0] * 13


def test_a_cosine_goes_from_the_peak_to_the_lowest() -> None:
    """By half a period of a cosine over the steps after the warm-up, then flat."""
    factors = rates(type="cosine", warmup_steps=2, min_learning_rate=0.02)
    wanted = [0.2 + 0.8 * (1 + math.cos(math.pi * done / 8)) / 2 for done in range(8)]
    assert factors[2:10] == pytest.approx(wanted)
    assert factors[10:] == pytest.approx([0.2] * 3)


def test_a_linear_warm_down_goes_straight_to_the_lowest() -> None:
    factors = rates(type="linear", warmdown_fraction=1.0, min_learning_rate=0.02)
    assert factors[:10] == pytest.approx([1 - 0.8 * done / 10 for done in range(10)])
    assert factors[10:] == pytest.approx([0.2] * 3)


def test_a_linear_warm_down_takes_the_last_part_of_the_steps() -> None:
    factors = rates(type="linear", warmdown_fraction=0.4, warmup_steps=2)
    assert factors[:2] == pytest.approx([0.5, 1.0])
    assert factors[2:7] == pytest.approx([1.0] * 5)
    assert factors[6:] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0, 0, 0])


def test_without_a_warm_down_the_rate_never_falls() -> None:
    assert rates(type="linear", warmdown_fraction=0.0) == [1.0] * 13


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_warm_up_as_long_as_the_run_leaves_no_step_to_fall_in(kind: str) -> None:
    assert rates(max_steps=4, type=kind, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert rates(max_steps=2, past=0, type=kind, warmup_steps=4) == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_lowest_rate_above_the_peak_is_the_peak(kind: str) -> None:
    assert rates(type=kind, min_learning_rate=0.5) == pytest.approx([1.0] * 13)
    assert all(math.isfinite(factor) for factor in rates(type=kind, peak=0.0, min_learning_rate=0.5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"optimizer": {"learning_rate": 0.0}}, []),
        (
            {"optimizer": {"learning_rate": 0.0, "adamw_learning_rate": 0.005}},
            ["adamw_learning_rate = 0.005"],
        ),
        ({"optimizer": {"learning_rate": 0.0, "adamw_learning_rate": 0.0}}, []),
        ({"schedule": {"min_learning_rate": 0.02}}, []),
        ({"schedule": {"min_learning_rate": 0.03}}, ["min_learning_rate = 0.03 is above"]),
        ({"schedule": {"min_learning_rate": 0.03, "type": "constant"}}, []),
    ],
)
def test_rates_that_do_not_do_what_they_say_are_named(settings: dict[str, Any], words: list[str]) -> None:
    found = surprises(Experiment.model_validate(settings))
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


@BOTH
def test_a_learning_rate_of_zero_changes_no_weight(settings: AdamWSettings | MuonSettings) -> None:
    settings = type(settings)(learning_rate=0.0, weight_decay=0.3)
    weights = flatten_parameters(tiny(), torch.float32, settings)
    before = weights.master.clone()
    train(weights, Optimizer(weights, settings), range(3))
    assert torch.equal(weights.master, before)


@pytest.mark.parametrize("learning_rate", [0.02, 0.03, 1e-5])
def test_one_learning_rate_scales_all(learning_rate: float) -> None:
    """The default is a quarter, which is the 0.005 at 0.02 of version 0.1.0 to the last bit."""
    assert MuonSettings(learning_rate=learning_rate).adamw_peak == learning_rate / 4
    assert MuonSettings().adamw_peak == 0.005
    assert (
        MuonSettings(learning_rate=learning_rate, adamw_learning_rate_ratio=0.5).adamw_peak
        == learning_rate / 2
    )
    assert MuonSettings(learning_rate=learning_rate, adamw_learning_rate=0.5).adamw_peak == 0.5


# Weights


@pytest.mark.parametrize("settings", [ADAMW, MUON], ids=lambda settings: settings.type)
@pytest.mark.parametrize("tied", [True, False])
def test_weights_lie_in_one_tensor_that_the_model_computes_with(
    tied: bool, settings: AdamWSettings | MuonSettings
) -> None:
    model, tokens = tiny(tie_embeddings=tied), torch.arange(8).unsqueeze(0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logits = model(tokens)
    weights = flatten_parameters(model, torch.float32, settings)
    assert torch.equal(model(tokens), logits)
    assert weights.master.numel() == model.parameter_count == weights.gradient.numel()
    named = weights.named()
    assert named.keys() == before.keys()
    assert all(torch.equal(named[name], before[name]) for name in before)

    weights.master.normal_(generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, named[name])
    assert not torch.equal(model(tokens), logits)
    if tied:
        assert model.lm_head.weight is model.token_embedding.weight


def test_a_bf16_model_gets_the_weights_when_they_are_synchronized() -> None:
    model = tiny()
    weights = flatten_parameters(model, torch.bfloat16, ADAMW)
    assert weights.master.dtype == weights.gradient.dtype == torch.float32
    published = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    weights.master.normal_(generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, published[name])
    weights.sync_model()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights.named()[name].bfloat16())


@BOTH
def test_updates_too_small_for_bf16_are_not_lost(settings: AdamWSettings | MuonSettings) -> None:
    """The master weights add up what one update alone would not change in the model; it gets the sum."""
    model = tiny()
    weights = flatten_parameters(model, torch.bfloat16, settings)
    weights.master.fill_(1.0)
    optimizer = Optimizer(weights, settings)
    for _ in range(30):
        weights.gradient.fill_(1.0)
        optimizer.step(0.01)
    for name, parameter in weights.named().items():
        assert parameter.max() < 0.9999, name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights.named()[name].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_collected_in_fp32_scaled_and_taken_from_the_model(dtype: torch.dtype) -> None:
    model = tiny()
    weights = flatten_parameters(model, dtype, ADAMW)
    given = {}
    for name, parameter in model.named_parameters():
        if name != "position.embedding.weight":  # one that took no part has a gradient of zero
            parameter.grad = torch.randn_like(parameter)
            given[name] = parameter.grad.clone()
    weights.gradient.fill_(7.0)
    weights.collect_gradients(scale=0.25)
    for name, gradient in weights.named(weights.gradient).items():
        wanted = given[name].float() / 4 if name in given else torch.zeros_like(gradient)
        assert torch.equal(gradient, wanted), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_many_batches_are_added_in_fp32(dtype: torch.dtype) -> None:
    """In bf16, 256 + 1 is 256."""
    model = tiny()
    weights = flatten_parameters(model, dtype, ADAMW)
    for number in range(300):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        norm = weights.collect_gradients(0.5 if number == 299 else 1.0, add=number > 0)
    assert torch.equal(weights.gradient, torch.full_like(weights.gradient, 150.0))
    assert norm.item() == pytest.approx(150 * weights.master.numel() ** 0.5)


@pytest.mark.parametrize("largest", [0.5, 1000.0])
def test_clipping_is_that_of_torch(largest: float) -> None:
    weights = flatten_parameters(tiny(), torch.float32, ADAMW)
    give_gradient(weights, 1)
    plain = torch.nn.Parameter(weights.master.clone())
    plain.grad = weights.gradient.clone()
    wanted = torch.nn.utils.clip_grad_norm_([plain], largest)
    norm = torch.linalg.vector_norm(weights.gradient)
    torch.testing.assert_close(norm, wanted)
    weights.clip_gradient(norm, largest)
    torch.testing.assert_close(weights.gradient, plain.grad)
    assert weights.gradient.norm() == pytest.approx(min(largest, wanted.item()), rel=1e-4)


@pytest.mark.usefixtures("both_ways")
def test_collecting_returns_the_norm_of_the_gradient() -> None:
    model = tiny()
    weights = flatten_parameters(model, torch.float32, ADAMW)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert weights.collect_gradients(scale=0.5).item() == pytest.approx(0.5 * weights.master.numel() ** 0.5)
    assert weights.gradient.norm() == pytest.approx(0.5 * weights.master.numel() ** 0.5)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = flatten_parameters(tiny(), torch.float32, ADAMW)
    good = {name: tensor.clone() for name, tensor in weights.state_dict().items()}
    name = "blocks.0.mlp.up.weight"
    without = {key: tensor for key, tensor in good.items() if key != name}
    with pytest.raises(ValueError, match=name):
        weights.load_state_dict(without)
    with pytest.raises(ValueError, match="unknown"):
        weights.load_state_dict({**good, "unknown": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.up\.weight has shape \(3, 1\), not \(64, 16\)"):
        weights.load_state_dict({**good, name: torch.zeros(3, 1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_fit_are_what_the_model_computes_with(dtype: torch.dtype) -> None:
    model = tiny()
    weights = flatten_parameters(model, dtype, MUON)
    new = {name: torch.randn_like(tensor) for name, tensor in weights.named().items()}
    weights.load_state_dict(new)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, new[name].to(dtype)), name
