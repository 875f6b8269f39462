"""Positional encodings: as their papers have them, and the same with a cache as without."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit.model.positions import AlibiPosition, LearnedPosition, RotaryPosition, SinusoidalPosition
from gptkit.plugins import ModelShape, PluginOptions, registry
from tests.support.models import tiny_gpt

POSITIONS = registry.names(registry.POSITIONS)


def rope(context_length: int = 16, head_size: int = 8, **options: float) -> RotaryPosition:
    return RotaryPosition(
        RotaryPosition.Options(**options), ModelShape(context_length, n_embd=2 * head_size, n_head=2)
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def test_the_built_in_encodings_are_registered() -> None:
    assert {"alibi", "learned", "none", "rope", "sinusoidal"} <= set(POSITIONS)


@pytest.mark.parametrize("n_embd", [8, 7])
def test_sinusoidal_is_the_table_of_vaswani(n_embd: int) -> None:
    position = SinusoidalPosition(PluginOptions(), ModelShape(300, n_embd, n_head=1))
    added = position.embed(torch.zeros(1, 300, n_embd), torch.arange(300))[0]
    for t in (0, 1, 2, 50, 299):
        for channel in range(n_embd):
            angle = t / 10000 ** ((channel - channel % 2) / n_embd)
            wanted = math.cos(angle) if channel % 2 else math.sin(angle)
            assert added[t, channel].item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("cls", [SinusoidalPosition, LearnedPosition])
def test_the_added_embedding_depends_on_the_given_position(cls: type[Any]) -> None:
    position = cls(PluginOptions(), ModelShape(16, 8, n_head=1))
    x = random(2, 16, 8)
    whole = position.embed(x, torch.arange(16))
    some = torch.tensor([3, 11, 4])
    torch.testing.assert_close(position.embed(x[:, some], some), whole[:, some])
    assert not torch.equal(whole[:, 3] - x[:, 3], whole[:, 4] - x[:, 4])


def test_learned_adds_its_row_of_the_table() -> None:
    position = LearnedPosition(PluginOptions(), ModelShape(16, 8, n_head=1))
    added = position.embed(torch.zeros(1, 2, 8), torch.tensor([5, 15]))[0]
    assert torch.equal(added, position.embedding.weight[[5, 15]])


@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_rope_is_the_rotation_of_su(base: float) -> None:
    """Equation 15 of RoFormer: pair (2i, 2i+1) turned by t base^(-2i/D); here that pair is (i, i + D/2)."""
    D, t = 8, 13
    q, k = random(1, 2, 1, D), random(1, 2, 1, D, seed=1)
    turned = rope(head_size=D, base=base).rotate(q, k, torch.tensor([t]))
    paper_order = [channel for i in range(D // 2) for channel in (i, i + D // 2)]
    rotation = torch.zeros(D, D, dtype=torch.float64)
    for i in range(D // 2):
        angle = t * base ** (-2 * i / D)
        rotation[2 * i, 2 * i], rotation[2 * i, 2 * i + 1] = math.cos(angle), -math.sin(angle)
        rotation[2 * i + 1, 2 * i], rotation[2 * i + 1, 2 * i + 1] = math.sin(angle), math.cos(angle)
    for before, after in zip((q, k), turned, strict=True):
        wanted = before[0, :, 0, paper_order].double() @ rotation.T
        torch.testing.assert_close(after[0, :, 0, paper_order].double(), wanted, atol=1e-6, rtol=0)


def test_rope_scores_depend_on_the_distance_alone() -> None:
    position = rope(context_length=200)
    q, k = random(8).expand(1, 1, 200, 8), random(8, seed=1).expand(1, 1, 200, 8)
    turned_q, turned_k = position.rotate(q, k, torch.arange(200))
    scores = (turned_q @ turned_k.mT)[0, 0]
    for distance in (-150, -7, 0, 1, 20, 199):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-4, rtol=0)
    assert abs(scores[20, 0] - scores[21, 0]) > 0.01


def test_rope_refuses_a_head_with_an_odd_size() -> None:
    with pytest.raises(ValueError, match="must be even; it is 5"):
        rope(head_size=5)


@pytest.mark.parametrize(
    ("n_head", "slopes"),
    [
        # Powers of two: the geometric sequence that starts at 2^(-8/H) with the same ratio
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (16, [2 ** (-half / 2) for half in range(1, 17)]),
        # Others: those of the power of two below, then every other one of the power above, from its first
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (12, [*(2**-whole for whole in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_alibi_has_the_slopes_of_press(n_head: int, slopes: list[float]) -> None:
    position = AlibiPosition(PluginOptions(), ModelShape(16, 4 * n_head, n_head))
    queries, keys = torch.tensor([9, 4]), torch.arange(10)
    bias = position.bias(queries, keys)
    assert bias.shape == (n_head, 2, 10)
    for head, slope in enumerate(slopes):
        for row, query in enumerate((9, 4)):
            for key in range(query + 1):
                assert bias[head, row, key].item() == pytest.approx(-slope * (query - key), rel=1e-6)


def test_alibi_penalizes_distance_and_stays_causal() -> None:
    """With nothing else to go by, attention falls by exp(-slope) a step back, and is 0 ahead."""
    gpt = tiny_gpt(position="alibi", vocab_size=16, n_layer=1, n_head=1, qk_norm=False)
    attention, seen = gpt.blocks[0].attention, []
    attention.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        gpt.token_embedding.weight.copy_(torch.eye(16))
        attention.qkv.weight.zero_()  # all scores are 0
        attention.qkv.weight[32:] = torch.eye(16) / 4  # and values what came in; its root mean square is 1/4
        attention.projection.weight.copy_(torch.eye(16))
        gpt(torch.arange(16).unsqueeze(0))
    shares = seen[0]
    assert torch.equal(shares, shares.tril())
    torch.testing.assert_close(shares.sum(1), torch.ones(16), atol=1e-4, rtol=0)
    for near, far in pairwise(reversed(range(16))):
        assert (shares[15, far] / shares[15, near]).item() == pytest.approx(math.exp(-(2**-8)), rel=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pieces", [[16], [3, 4, 2] + [1] * 7, [1] * 16, [9, 7]])
def test_cached_logits_equal_uncached_ones(position: str, pieces: list[int]) -> None:
    model = tiny_gpt(position=position)
    tokens = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = model(tokens)
        cache = model.new_cache(3)
        parts = [model(part, cache) for part in tokens.split(pieces, dim=1)]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(parts, dim=1), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_cache_can_be_cleared_and_used_again(position: str) -> None:
    model = tiny_gpt(position=position)
    first, second = torch.randint(11, (2, 1, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cache = model.new_cache(1)
        model(first, cache)
        cache.clear()
        torch.testing.assert_close(model(second, cache), model(second), atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", POSITIONS)
def test_every_encoding_but_none_depends_on_the_order_of_tokens(position: str) -> None:
    """In one layer; a second one sees the order through the causal mask."""
    model = tiny_gpt(position=position, n_layer=1)
    tokens = torch.tensor([[1, 2, 3, 4, 5], [3, 1, 2, 4, 5]])
    with torch.no_grad():
        logits = model(tokens)[:, -1]
    difference = (logits[0] - logits[1]).abs().max().item()
    assert difference < 1e-5 if position == "none" else difference > 1e-3
