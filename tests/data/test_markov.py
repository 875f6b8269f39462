"""The dataset markov: its text has the statistics and the entropy of its chain."""

from __future__ import annotations

import hashlib
import math
import time

import numpy as np
import pytest
from pydantic import ValidationError

from gptkit.data.datasets.markov import FLOOR, MarkovDataset, MarkovOptions
from gptkit.plugins import DataFolders

FOLDERS = DataFolders()


def markov(**options: object) -> MarkovDataset:
    return MarkovDataset(MarkovOptions.model_validate(options))


def contexts_of(text: str, order: int, states: int) -> tuple[np.ndarray, np.ndarray]:
    """The number of each letter's context, and the letters."""
    letters = np.frombuffer(text.encode(), dtype=np.uint8).astype(int) - ord("a")
    count = len(letters) - order
    context = np.zeros(count, dtype=int)
    for place in range(order):
        context = context * states + letters[place : place + count]
    return context, letters[order:]


def test_the_text_follows_from_the_options_alone() -> None:
    text = markov(length=5000).read(FOLDERS)
    assert text == markov(length=5000).read(FOLDERS)
    assert len(text) == 5000
    assert set(text) == set("abcdefgh")
    # Of any numpy and any machine. A change here changes every experiment on markov.
    assert text[:40] == "gadehdbhaacbgbeefebddedehabchbfebfhcadhg"
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f489beea8a7dc070"


@pytest.mark.parametrize("other", [{"seed": 1}, {"order": 1}, {"states": 9}, {"concentration": 0.4}])
def test_every_option_matters(other: dict[str, object]) -> None:
    assert markov(length=1000, **other).read(FOLDERS) != markov(length=1000).read(FOLDERS)


def test_a_longer_text_begins_like_a_shorter_one() -> None:
    assert markov(length=70_000).read(FOLDERS)[:100] == markov(length=100).read(FOLDERS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 0},
        {"order": 1, "states": 26, "concentration": 1.0},
        {"order": 3, "states": 3, "concentration": 0.1},
        {"order": 2, "states": 2, "concentration": 0.05, "seed": 4},
    ],
)
def test_the_text_has_the_statistics_of_the_table(options: dict[str, object]) -> None:
    """Counted over it: contexts as the stationary distribution, letters as their rows, the loss as H."""
    dataset = markov(length=300_000, **options)
    order, states = dataset.options.order, dataset.options.states
    context, letter = contexts_of(dataset.read(FOLDERS), order, states)
    table, stationary = dataset.table(), dataset.stationary()
    assert table.shape == (states**order, states)
    np.testing.assert_allclose(table.sum(axis=1), 1)
    assert table.min() >= FLOOR / states

    seen = np.bincount(context, minlength=states**order) / len(context)
    np.testing.assert_allclose(seen, stationary, atol=0.02)
    common = int(stationary.argmax())
    row = np.bincount(letter[context == common], minlength=states) / (context == common).sum()
    np.testing.assert_allclose(row, table[common], atol=0.02)
    loss = -np.log(table[context, letter]).mean()
    assert loss == pytest.approx(dataset.entropy_rate(), abs=0.005)


def test_the_entropy_rate_of_a_small_chain_equals_the_formula() -> None:
    """Order 1, two letters: p = (b, a) / (a + b) for a = p(b|a), b = p(a|b)."""
    dataset = markov(order=1, states=2, seed=5)
    (_, a), (b, _) = dataset.table()

    def h(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    assert dataset.entropy_rate() == pytest.approx((b * h(a) + a * h(b)) / (a + b), rel=1e-12)


def test_the_stationary_distribution_solves_its_equation() -> None:
    """Against linear algebra: the eigenvector of the whole transition matrix for the eigenvalue 1."""
    dataset = markov(order=2, states=4, concentration=0.1, seed=2)
    table, contexts = dataset.table(), 16
    matrix = np.zeros((contexts, contexts))
    for context in range(contexts):
        for letter in range(4):
            matrix[context, (context * 4 + letter) % contexts] += table[context, letter]
    values, vectors = np.linalg.eig(matrix.T)
    solution = vectors[:, np.abs(values - 1).argmin()].real
    np.testing.assert_allclose(dataset.stationary(), solution / solution.sum(), atol=1e-12)


def test_noise_has_the_entropy_of_noise() -> None:
    assert markov(concentration=1000).entropy_rate() == pytest.approx(math.log(8), rel=0.001)


def test_the_facts_give_the_entropy_rate() -> None:
    dataset = markov()
    assert dataset.facts() == {
        "entropy_rate": dataset.entropy_rate(),
        "entropy_rate_unit": "nats per character",
    }
    assert dataset.size(FOLDERS) == 1_000_000


def test_a_million_characters_take_a_moment() -> None:
    began = time.perf_counter()
    markov().read(FOLDERS)
    assert (
        time.perf_counter() - began < 5
    )  # 0.2 s here; a busy machine may be slow, a slow algorithm is worse


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 4, "states": 26}, "table of 95 MB"),
        ({"order": -1}, "order"),
        ({"states": 1}, "states"),
        ({"states": 27}, "states"),
        ({"length": 0}, "length"),
        ({"seed": -1}, "seed"),
        ({"concentration": 0}, "concentration"),
        ({"color": 1}, "color"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        MarkovOptions.model_validate(options)
