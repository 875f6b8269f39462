"""The GPT: equal to transformers, causal, and able to learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gptkit.data.sampler import BatchSampler
from gptkit.experiment.schema import Experiment
from gptkit.model import GPT
from gptkit.model.build import build_model, build_new_model
from gptkit.plugins.tokenizer import Ids
from gptkit.training.budget import TrainingBudget, TrainingProgress
from gptkit.training.loss import cross_entropy
from gptkit.training.optim import Optimizer, flatten_parameters
from gptkit.training.trainer import Trainer
from tests.support.models import model_experiment, perturb, tiny_gpt

# What GPT-2 is, in the words of an experiment file
GPT2 = {
    "position": "learned",
    "norm": "layernorm",
    "mlp": "gelu_tanh",
    "bias": True,
    "tie_embeddings": True,
    "qk_norm": False,
    "init": "gpt2",
}


def random_tokens(*shape: int, vocab_size: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def copy_from_gpt2(gpt: GPT, theirs: nn.Module) -> None:
    """Their linear layers are stored (inputs, outputs); ours (outputs, inputs), as torch's."""
    weights = theirs.state_dict()
    names = {
        "token_embedding": "transformer.wte",
        "position.embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
    }
    for layer in range(gpt.settings.n_layer):
        ours_block, their_block = f"blocks.{layer}", f"transformer.h.{layer}"
        names |= {
            f"{ours_block}.attention_norm": f"{their_block}.ln_1",
            f"{ours_block}.attention.qkv": f"{their_block}.attn.c_attn",
            f"{ours_block}.attention.projection": f"{their_block}.attn.c_proj",
            f"{ours_block}.mlp_norm": f"{their_block}.ln_2",
            f"{ours_block}.mlp.up": f"{their_block}.mlp.c_fc",
            f"{ours_block}.mlp.projection": f"{their_block}.mlp.c_proj",
        }
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            module, kind = name.rsplit(".", 1)
            tensor = weights[f"{names[module]}.{kind}"]
            parameter.copy_(tensor.T if ".c_" in names[module] and kind == "weight" else tensor)


@pytest.mark.parametrize(
    ("context_length", "n_layer", "n_head", "n_embd", "vocab_size", "rows"),
    [(20, 2, 3, 24, 50, 4), (140, 1, 4, 64, 97, 2)],
)
def test_it_is_gpt2_given_the_weights_of_gpt2(
    context_length: int, n_layer: int, n_head: int, n_embd: int, vocab_size: int, rows: int
) -> None:
    """Logits, in evaluation and in training, and the gradient of the loss, as transformers has them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=context_length,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    perturb(theirs, std=0.15)  # biases and gains too, which start as 0 and 1
    shape = {"context_length": context_length, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    ours = build_model(model_experiment({**GPT2, **shape}), vocab_size).eval()
    copy_from_gpt2(ours, theirs)

    tokens = random_tokens(rows, context_length, vocab_size=vocab_size)
    wanted = theirs(tokens).logits
    assert wanted.std() > 0.5
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), wanted, atol=1e-4, rtol=0)
    trained = ours.train()(tokens)
    torch.testing.assert_close(trained, wanted, atol=1e-4, rtol=0)

    targets = random_tokens(rows, context_length, vocab_size=vocab_size, seed=1)
    for logits in (trained, wanted):
        cross_entropy(logits, targets).backward()
    torch.testing.assert_close(
        ours.token_embedding.weight.grad, theirs.transformer.wte.weight.grad, atol=1e-5, rtol=1e-3
    )


def test_it_counts_the_parameters_of_gpt2() -> None:
    """124,439,808 in the smallest that was published; the projection that is tied counts once."""
    shape = {"context_length": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}
    with torch.device("meta"):
        tied = build_model(model_experiment({**GPT2, **shape}), 50257)
        untied = build_model(model_experiment({**GPT2, **shape, "tie_embeddings": False}), 50257)
    assert tied.parameter_count == 124_439_808
    assert untied.parameter_count == 124_439_808 + 50257 * 768


def test_tied_embeddings_are_one_parameter() -> None:
    model = tiny_gpt(tie_embeddings=True)
    assert model.lm_head.weight is model.token_embedding.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    apart = tiny_gpt(tie_embeddings=False)
    assert apart.lm_head.weight is not apart.token_embedding.weight


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + (-x).exp())


@pytest.mark.parametrize(
    ("kind", "hidden", "function"),
    [
        # Hendrycks and Gimpel's own approximation; So et al.; Shazeer, the gate first, 8/3 C rounded up
        ("gelu", 64, lambda up: up / 2 * (1 + (up / math.sqrt(2)).erf())),
        (
            "gelu_tanh",
            64,
            lambda up: up / 2 * (1 + (math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)).tanh()),
        ),
        ("relu2", 64, lambda up: up.clamp(min=0) ** 2),
        ("swiglu", 48, lambda up: up[..., :48] * sigmoid(up[..., :48]) * up[..., 48:]),
    ],
)
def test_each_mlp_is_its_formula(
    kind: str, hidden: int, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    mlp = tiny_gpt(mlp=kind, bias=True).blocks[0].mlp
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    up = x @ mlp.up.weight.T + mlp.up.bias
    wanted = function(up) @ mlp.projection.weight.T + mlp.projection.bias
    assert mlp.projection.in_features == hidden
    torch.testing.assert_close(mlp(x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_with_qk_norm_the_lengths_of_queries_and_keys_do_not_matter(qk_norm: bool) -> None:
    model, tokens = tiny_gpt(qk_norm=qk_norm), random_tokens(1, 12)
    with torch.no_grad():
        before = model(tokens)
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 3  # of queries and keys; values are the last third
        difference = (model(tokens) - before).abs().max().item()
    assert difference < 1e-4 if qk_norm else difference > 0.01


@pytest.mark.parametrize(
    ("mlp", "norm", "qk_norm"),
    [
        ("gelu", "layernorm", False),
        ("gelu_tanh", "rmsnorm", True),
        ("relu2", "rmsnorm", False),
        ("swiglu", "layernorm", True),
    ],
)
@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rope", "alibi", "none"])
def test_later_tokens_do_not_change_earlier_logits(position: str, mlp: str, norm: str, qk_norm: bool) -> None:
    """Another token at any place changes the logits there, and none before it, trained or not."""
    model = tiny_gpt(position=position, mlp=mlp, norm=norm, qk_norm=qk_norm)
    tokens = random_tokens(1, 12)
    changed = tokens.repeat(12, 1)
    places = torch.arange(12)
    changed[places, places] = (changed[places, places] + 1) % 11
    before = places.unsqueeze(0) < places.unsqueeze(1)  # [which is changed, which is looked at]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            difference = (model(changed) - model(tokens.expand(12, -1))).abs().amax(-1).detach()
        assert difference[before].max() == 0
        assert difference.diagonal().min() > 1e-3


@pytest.mark.parametrize(
    ("init", "tied", "embeddings", "linear", "projections", "lm_head"),
    [
        ("gpt2", True, 0.02, 0.02, 0.02 / math.sqrt(6), 0.02),
        ("gpt2", False, 0.02, 0.02, 0.02 / math.sqrt(6), 0.02),
        ("modern", True, 0.02, 1 / 8, 0.0, 0.02),
        ("modern", False, 0.3, 1 / 8, 0.0, 0.0),
    ],
)
def test_initial_weights_are_those_of_the_table(
    init: str, tied: bool, embeddings: float, linear: float, projections: float, lm_head: float
) -> None:
    """Three layers of width 64: 0.02 / sqrt(2 L) is 0.02 / sqrt(6), 1 / sqrt(inputs) is 1 / 8."""
    settings = {
        **GPT2,
        "n_layer": 3,
        "n_embd": 64,
        "context_length": 64,
        "init": init,
        "tie_embeddings": tied,
    }
    model = build_model(model_experiment(settings), 200)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.ones_(module.bias)
    model.initialize(torch.Generator().manual_seed(3))

    wanted = {"token_embedding": embeddings, "position.embedding": embeddings, "lm_head": lm_head}
    for layer in range(3):
        for inward in ("attention.qkv", "mlp.up"):
            wanted[f"blocks.{layer}.{inward}"] = linear
        for outward in ("attention.projection", "mlp.projection"):
            wanted[f"blocks.{layer}.{outward}"] = projections
    modules = dict(model.named_modules())
    for name, std in wanted.items():
        weight = modules[name].weight
        assert weight.std().item() == pytest.approx(std, rel=0.05), name
        assert abs(weight.mean().item()) <= 5 * std / math.sqrt(weight.numel()), name
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in wanted:
            gain = "norm" in name and name.endswith(".weight")
            assert torch.equal(parameter, torch.full_like(parameter, float(gain))), name


def test_initial_weights_come_from_the_seed_alone() -> None:
    settings = model_experiment({"position": "learned", "init": "gpt2"})
    torch.manual_seed(1)
    first = build_new_model(settings, 11, seed=1).state_dict()
    torch.manual_seed(2)
    again = build_new_model(settings, 11, seed=1).state_dict()
    other = build_new_model(settings, 11, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_new_modern_model_predicts_a_uniform_distribution() -> None:
    model = build_new_model(model_experiment({"init": "modern"}), 11, seed=1)
    assert torch.equal(model(random_tokens(2, 5)), torch.zeros(2, 5, 11))


def test_more_tokens_than_the_context_are_refused() -> None:
    model = tiny_gpt(context_length=12)
    assert model(random_tokens(1, 12)).shape == (1, 12, 11)
    with pytest.raises(ValueError, match="13 tokens, but the context holds 12"):
        model(random_tokens(1, 13))
    cache = model.new_cache(1)
    with torch.no_grad():
        model(random_tokens(1, 12), cache)
        with pytest.raises(ValueError, match="13 tokens, but the context holds 12"):
            model(random_tokens(1, 1), cache)


@pytest.mark.parametrize(
    "model", [{}, GPT2, {"mlp": "swiglu", "position": "alibi"}, {"position": "sinusoidal"}]
)
@pytest.mark.parametrize("grad", [True, False])
def test_logits_are_as_wide_as_the_vocabulary_in_either_precision(model: dict[str, Any], grad: bool) -> None:
    gpt = tiny_gpt(vocab_size=13, **model)
    tokens = random_tokens(3, 7, vocab_size=13)
    with torch.set_grad_enabled(grad):
        exact = gpt(tokens)
        assert exact.shape == (3, 7, 13)
        assert exact.dtype == torch.float32
        flatten_parameters(gpt, torch.bfloat16, Experiment().optimizer)
        rough = gpt(tokens)
    assert rough.shape == (3, 7, 13)
    assert rough.dtype == torch.bfloat16
    # bf16 has 8 bits: after two blocks some hundredths of the logits' spread are left to chance
    assert (rough.float() - exact).std() < 0.05 * exact.std()


def test_dropout_drops_in_training_only() -> None:
    model = tiny_gpt(dropout=0.5)
    tokens = random_tokens(1, 12)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


class OneBatch(BatchSampler):
    """The same batch at every step."""

    def windows(self, index: int) -> Ids:
        return super().windows(0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "adamw", "learning_rate": 0.01, "weight_decay": 0.0},
        {"type": "muon", "learning_rate": 0.02, "adamw_learning_rate": 0.02, "weight_decay": 0.0},
    ],
    ids=lambda settings: settings["type"],
)
def test_it_memorizes_one_batch(optimizer: dict[str, Any], precision: torch.dtype) -> None:
    """Four windows of random tokens, through the loop's own update: below 0.05 nats a token."""
    settings = model_experiment(
        {"context_length": 16, "n_embd": 32},
        optimizer=optimizer,
        training={"max_steps": 100, "batch_size": 4},
        seed=3,
    )
    model = build_new_model(settings, 24, seed=3)
    parameters = flatten_parameters(model, precision, settings.optimizer)
    ids = np.random.default_rng(4).integers(0, 24, size=5 * 16)
    sampler = OneBatch(ids, context_length=16, batch_size=4, seed=3)
    assert len(set(sampler.windows(0)[:, 0])) == 4  # else not even the first tokens could tell what follows
    trainer = Trainer(
        experiment=settings,
        model=model,
        parameters=parameters,
        optimizer=Optimizer(parameters, settings.optimizer),
        sampler=sampler,
        seed=3,
        progress=TrainingProgress(),
        budget=TrainingBudget(max_steps=100),
    )
    losses = []
    for _ in range(100):
        before = trainer.progress.loss_sum
        trainer.step()
        losses.append(trainer.progress.loss_sum - before)
    assert losses[0] == pytest.approx(math.log(24), abs=0.01)
    assert losses[-1] < 0.05
