"""The example packages of tests/plugins, imported from their sources."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptkit.experiment.schema import ModelSettings
from gptkit.model import GPT
from gptkit.plugins import DataFolders, ModelShape, Splits

PACKAGES = Path(__file__).parent
SYLLABLES, T5, RECIPES = "gptkit-syllables", "gptkit-t5-bias", "gptkit-recipes"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The module of one of the packages, from its sources."""

    def load(name: str) -> Any:
        monkeypatch.syspath_prepend(str(PACKAGES / name / "src"))
        return importlib.import_module(name.replace("-", "_"))

    return load


def test_syllables_are_cut_by_the_rule_and_come_back_as_the_text(package: Callable[[str], Any]) -> None:
    cls = package(SYLLABLES).SyllableTokenizer
    text = "The lantern's reading of strengths, hmm!\n\u00c5se 12  aeiou\U0001f600\r\n" * 3
    known = cls.train(cls.Options(), Splits(text, "q"))
    pieces = [known.decode([number]) for number in known.encode(" the lantern, reading hmm")]
    assert pieces == [" ", "t", "h", "e", " lan", "tern", ",", " rea", "ding", " hmm"]
    for tokenizer in (known, cls.train(cls.Options(max_syllables=3), Splits(text, "q"))):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids.tolist()) == text
        assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
        again = cls.from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert again.to_json() == tokenizer.to_json()
        assert (again.encode(text) == ids).all()
    assert known.unknown_characters("zebra, quiet? zz") == "?bz"
    assert len(known.encode("")) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"type": "char"},
        {"more": 1},
        {"characters": ["a", "b"]},
        {"characters": "ba"},
        {"characters": "aab"},
        {"syllables": "ab"},
        {"syllables": ["ab", 3]},
        {"syllables": ["ab", "ab"]},
        {"syllables": ["a"]},
        {"syllables": ["ac"]},
        {"syllables": ["a b"]},
    ],
)
def test_a_file_that_describes_no_syllables_is_refused(
    change: dict[str, Any], package: Callable[[str], Any]
) -> None:
    cls = package(SYLLABLES).SyllableTokenizer
    good = {"type": "syllables", "characters": " ab", "syllables": ["ab", "ba"]}
    assert cls.from_json(good).to_json() == good
    with pytest.raises(ValueError, match=r"\w"):
        cls.from_json(good | change)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 128), (2, 5), (7, 64), (8, 5)])
def test_distances_have_the_buckets_of_the_paper(
    num_buckets: int, max_distance: int, package: Callable[[str], Any]
) -> None:
    """The formula of Raffel et al.'s code, in plain arithmetic."""
    cls = package(T5).T5Bias
    options = cls.Options(num_buckets=num_buckets, max_distance=max_distance)
    position = cls(options, ModelShape(context_length=400, n_embd=8, n_head=2))
    torch.nn.init.normal_(position.embedding.weight, generator=torch.Generator().manual_seed(1))
    exact = num_buckets // 2
    bias = position.bias(torch.tensor([400]), torch.arange(400))  # (H, 1, 400)
    for key in range(400):
        distance, bucket = 400 - key, 400 - key
        if distance >= exact:
            share = math.log(distance / exact) / math.log(max_distance / exact)
            bucket = min(exact + math.floor(share * (num_buckets - exact) + 1e-9), num_buckets - 1)
        assert torch.equal(bias[:, 0, key], position.embedding.weight[bucket]), distance


@pytest.mark.slow
def test_the_bias_of_explicit_positions_is_right_in_a_cache_in_bf16_and_when_compiled(
    package: Callable[[str], Any],
) -> None:
    cls = package(T5).T5Bias
    settings = ModelSettings(context_length=24, n_embd=32, n_layer=2, n_head=4)
    position = cls(cls.Options(num_buckets=8, max_distance=16), ModelShape(24, 32, 4))
    model = GPT(settings, 11, position)
    drawn = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=drawn)  # so that attention matters
    model.eval()
    tokens = torch.arange(24).remainder(11).view(1, 24)
    with torch.no_grad():
        whole, cache = model(tokens), model.new_cache(1)
        pieces = [model(tokens[:, start:end], cache) for start, end in ((0, 5), (5, 6), (6, 24))]
        assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-4)
        other = tokens.clone()
        other[0, -1] = 3
        assert torch.equal(model(other)[:, :-1], whole[:, :-1])  # the future changes nothing
    here, keys = torch.arange(3, 7), torch.arange(9)  # with keys ahead
    bias = position.bias(here, keys)
    assert bias.shape == (4, 4, 9)
    assert bias.isfinite().all()
    compiled = torch.compile(position.bias, backend="eager", fullgraph=True)
    assert torch.equal(compiled(here, keys), bias)
    assert position.bfloat16().bias(here, keys).dtype == torch.bfloat16


def test_recipes_can_be_worked_out_and_more_of_them_begin_alike(package: Callable[[str], Any]) -> None:
    cls = package(RECIPES).RecipesDataset
    few = cls(cls.Options(count=30, largest=4)).read(DataFolders())
    assert cls(cls.Options(count=60, largest=4)).read(DataFolders()).startswith(few)
    assert cls(cls.Options(count=30, largest=4, seed=1)).read(DataFolders()) != few
    recipes = few.split("\n\n")
    assert len(recipes) == 30
    for recipe in recipes:
        title, first, *_ = recipe.splitlines()
        people = int(title.split()[-1])
        assert 1 <= people <= 4
        assert int(first.split()[1]) == 150 * people
