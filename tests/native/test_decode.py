"""Decoding in C computes the logits of the model: every encoding, norm and MLP, at every position."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit.experiment.schema import Experiment
from gptkit.model import GPT, fast
from gptkit.model.build import build_new_model
from gptkit.model.decoding import CachedDecoder, Decoder, decoder_for
from gptkit.model.positions import AlibiPosition, LearnedPosition, RotaryPosition
from gptkit.native.decode import NativeDecoder
from gptkit.plugins import ModelShape, PluginOptions, PositionalEncoding, registry

pytestmark = pytest.mark.usefixtures("native_operations")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More would wait for one another longer than such small models take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


V = 13  # no whole number of vectors


def tiny(position: str = "rope", **model: Any) -> GPT:
    """A model whose weights all matter; new modern ones compute the same logits for every token."""
    shape = {"context_length": 7, "n_layer": 2, "n_head": 2, "n_embd": 20, "position": position, **model}
    gpt = build_new_model(Experiment.model_validate({"model": shape}), V, seed=1).eval()
    return stirred(gpt)


def stirred(gpt: GPT) -> GPT:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    return gpt


def some_tokens(samples: int, T: int) -> Tensor:
    return torch.randint(V, (samples, T), generator=torch.Generator().manual_seed(3))


def native_decoder(gpt: GPT, samples: int) -> Decoder:
    decoder = decoder_for(gpt, samples)
    assert isinstance(decoder, NativeDecoder)
    return decoder


@torch.inference_mode()
def check(gpt: GPT, samples: int, prompts: tuple[int, ...] = (1,)) -> None:
    """At every place behind prompts of some lengths, one after the other, up to the full context."""
    context = gpt.settings.context_length
    tokens = some_tokens(samples, context)
    wanted = gpt(tokens)
    for decoder in (native_decoder(gpt, samples), CachedDecoder(gpt, samples)):
        for prompt in prompts:
            logits = [decoder.read(tokens[:, :prompt]).clone()]
            logits += [decoder.step(tokens[:, place]).clone() for place in range(prompt, context)]
            torch.testing.assert_close(torch.stack(logits, 1), wanted[:, prompt - 1 :], atol=2e-5, rtol=1e-4)
            with pytest.raises(ValueError, match="context"):
                decoder.step(tokens[:, 0])


OPTIONS = list(
    product(
        ["layernorm", "rmsnorm"],
        ["gelu", "gelu_tanh", "relu2", "swiglu"],
        [False, True],
        [False, True],
        [False, True],
    )
)


@pytest.mark.parametrize("position", registry.names(registry.POSITIONS))
def test_every_kind_of_model_decodes_as_it_is(position: str) -> None:
    every_fifth = OPTIONS[registry.names(registry.POSITIONS).index(position) :: 5]  # so each once
    for number, (norm, mlp, qk_norm, bias, tied) in enumerate(every_fifth):
        gpt = tiny(position, norm=norm, mlp=mlp, qk_norm=qk_norm, bias=bias, tie_embeddings=tied)
        check(gpt, samples=(1, 3, 7)[number % 3])


@pytest.mark.parametrize("samples", [1, 3, 7])
@pytest.mark.parametrize("position", registry.names(registry.POSITIONS))
def test_a_new_prompt_makes_it_forget_the_old_one(position: str, samples: int) -> None:
    check(tiny(position), samples, prompts=(7, 2, 5, 1, 6))


@pytest.mark.parametrize(
    "shape",
    [
        {"context_length": 1},
        {"context_length": 64},
        {"context_length": 65},  # caches are in panels of 64 places
        {"context_length": 130, "n_layer": 1},
        {"n_embd": 6, "n_head": 3},
        {"n_embd": 33, "n_head": 1, "position": "alibi"},
        {"n_embd": 5, "n_head": 5, "position": "learned"},
        {"n_embd": 96, "n_head": 2},
        {"n_embd": 256, "n_head": 2, "n_layer": 1},
    ],
    ids=str,
)
def test_contexts_and_heads_of_any_size(shape: dict[str, Any]) -> None:
    check(tiny(**shape), samples=2, prompts=(max(1, shape.get("context_length", 7) - 70),))


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_a_sequence_has_the_same_bits_in_any_batch_and_with_more_threads(position: str) -> None:
    """From an empty context, as torch multiplies what is read at once."""
    gpt, tokens = tiny(position, mlp="swiglu", norm="layernorm"), some_tokens(13, 7)

    @torch.inference_mode()
    def decoded(samples: int, count: int) -> Tensor:
        torch.set_num_threads(count)
        decoder = native_decoder(gpt, samples)
        return torch.stack([decoder.step(tokens[:samples, place]).clone() for place in range(7)])

    wanted = decoded(1, 1)
    for samples, count in ((2, 1), (5, 2), (6, 2), (7, 2), (13, 2), (13, 1), (4, 3)):
        assert torch.equal(decoded(samples, count)[:, :1], wanted), (samples, count)


def test_what_is_nan_stays_nan() -> None:
    gpt = tiny()
    with torch.no_grad():
        gpt.token_embedding.weight[3, 0] = float("nan")
    with torch.inference_mode():
        decoder = native_decoder(gpt, 2)
        assert decoder.read(torch.tensor([[1], [1]])).isfinite().all()
        logits = decoder.step(torch.tensor([2, 3])).clone()
        assert logits[0].isfinite().all()
        assert logits[1].isnan().all()
        again = decoder.step(torch.tensor([2, 2]))
        assert again[0].isfinite().all()
        assert again[1].isnan().all()
        assert decoder.read(torch.tensor([[1], [1]])).isfinite().all()
        assert decoder.step(torch.tensor([2, 2])).isfinite().all()


# Which way is taken


def with_position(cls: type[PositionalEncoding], options: PluginOptions | None = None) -> GPT:
    gpt = tiny("none")
    gpt.position = cls(options or cls.Options(), ModelShape(7, n_embd=20, n_head=2))
    return stirred(gpt)


class TurnsItsOwnWay(PositionalEncoding):
    """As a plugin may be that knows nothing of tables."""

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        scale = (1 + positions.to(q.dtype)).unsqueeze(1)
        return q * scale, k / scale


class TurnsOtherwise(RotaryPosition):
    """Its tables are not what it does any more."""

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotate(q, k, positions * 2 % 7)


class TurnsByHalfOfItsTables(RotaryPosition):
    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return super().rotate(q, k, positions)

    def rotation(self) -> tuple[Tensor, Tensor]:
        return self.cos[:, ::2], self.sin[:, ::2]


@pytest.mark.parametrize("cls", [TurnsItsOwnWay, TurnsOtherwise, TurnsByHalfOfItsTables])
def test_rotations_that_tables_do_not_describe_are_left_to_torch(cls: type[PositionalEncoding]) -> None:
    gpt, tokens = with_position(cls), some_tokens(2, 7)
    with torch.inference_mode():
        decoder, wanted = decoder_for(gpt, 2), gpt(tokens)
        assert isinstance(decoder, CachedDecoder)
        decoder.read(tokens[:, :3])
        for place in range(3, 7):
            torch.testing.assert_close(decoder.step(tokens[:, place]), wanted[:, place], atol=2e-5, rtol=1e-4)


class AddsAndFades(LearnedPosition):
    """Two seams at once; one bias for all heads, and nothing beyond three tokens."""

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = query_positions.unsqueeze(1) - key_positions
        return torch.where(distance > 3, float("-inf"), -distance / 2).unsqueeze(0)


class FadesInDouble(AlibiPosition):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return super().bias(query_positions, key_positions).double()


class TurnsAndFades(RotaryPosition):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor | None:
        return -(query_positions.unsqueeze(1) - key_positions).float().sqrt().expand(2, -1, -1)


class SaysNothing(PositionalEncoding):
    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor | None:
        return None


class TurnsAsItsParent(RotaryPosition):
    """Both of its parent's."""


class HasTablesButTurnsNothing(PositionalEncoding):
    """What `rotate` does counts, and it does nothing."""

    def rotation(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(7, 10), torch.ones(7, 10)


@pytest.mark.parametrize(
    "cls",
    [AddsAndFades, FadesInDouble, TurnsAndFades, SaysNothing, TurnsAsItsParent, HasTablesButTurnsNothing],
)
def test_a_plugins_embeddings_and_biases_are_decoded_in_c(cls: type[PositionalEncoding]) -> None:
    check(with_position(cls), samples=3, prompts=(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("position", registry.names(registry.POSITIONS))
def test_a_model_in_another_precision_is_left_to_torch(position: str, dtype: torch.dtype) -> None:
    gpt, tokens = tiny(position), some_tokens(2, 7)
    with torch.inference_mode():
        wanted = gpt(tokens)
        gpt.to(dtype)  # its tables, too
        decoder = decoder_for(gpt, 2)
        assert isinstance(decoder, CachedDecoder)
        decoder.read(tokens[:, :3])
        logits = torch.stack([decoder.step(tokens[:, place]) for place in range(3, 7)], 1)
    assert logits.dtype == dtype
    error = (logits.double() - wanted[:, 3:].double()).std()
    assert error < (0.1 if dtype == torch.bfloat16 else 1e-5) * wanted.std()


def test_heads_that_are_too_large_and_what_is_switched_off_are_left_to_torch() -> None:
    assert isinstance(decoder_for(tiny(n_head=1, n_embd=130), 1), CachedDecoder)
    native_decoder(tiny(n_head=1, n_embd=128), 1)
    with fast.using(None):
        assert isinstance(decoder_for(tiny(), 1), CachedDecoder)
