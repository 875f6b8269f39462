"""The windows of training batches and of evaluations, and the loss over a split."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gptkit.data.sampler import BatchSampler, EvaluationRule, evaluation_windows
from gptkit.experiment.schema import Experiment
from gptkit.model import GPT
from gptkit.model.build import build_new_model
from gptkit.training.loss import bits_per_byte, cross_entropy, evaluate


def counting(tokens: int) -> np.ndarray:
    """Ids equal to their positions."""
    return np.arange(tokens, dtype=np.uint16)


def sampler(tokens: int, context_length: int = 7, batch_size: int = 3, seed: int = 1) -> BatchSampler:
    return BatchSampler(counting(tokens), context_length=context_length, batch_size=batch_size, seed=seed)


def starts_of(batches: BatchSampler, indices: range) -> list[int]:
    """The first tokens of the windows of some batches, in order: of `counting` ids, where each starts."""
    return [int(window[0]) for index in indices for window in batches.windows(index)]


def tiny(**model: Any) -> GPT:
    shape = {"context_length": 8, "n_layer": 1, "n_head": 2, "n_embd": 16, "init": "gpt2", **model}
    return build_new_model(Experiment.model_validate({"model": shape}), 11, seed=1)


@settings(deadline=None, max_examples=60)
@given(
    context_length=st.integers(1, 12),
    more=st.integers(0, 100),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_an_epoch_visits_every_window_once(
    context_length: int, more: int, batch_size: int, seed: int
) -> None:
    """Windows that lie side by side, as many as the text has, bar one at most."""
    tokens = context_length + 1 + more
    batches = sampler(tokens, context_length, batch_size, seed)
    count = batches.windows_per_epoch
    starts = np.array(starts_of(batches, range(2 * count)))[: 2 * count]
    for epoch in (starts[:count], starts[count:]):
        ordered = np.sort(epoch)
        assert (np.diff(ordered) == context_length).all()
        assert ordered[-1] + context_length + 1 <= tokens
    assert count >= max(1, (tokens - 1) // context_length - 1)


def test_every_token_is_a_target_in_some_epoch() -> None:
    """Those at the ends too, which an epoch may leave out; and at every place in a window."""
    batches = sampler(tokens=40, context_length=7)
    targets = np.concatenate([batches.windows(index)[:, 1:] for index in range(300)])
    assert set(targets.flat) == set(range(1, 40))
    for place in range(7):
        assert set(targets[:, place] % 7) == set(range(7))


def batch_size_of_an_epoch(tokens: int, context_length: int) -> int:
    return sampler(tokens, context_length).windows_per_epoch


def test_a_batch_is_a_function_of_the_seed_and_its_number() -> None:
    """Whatever was asked for before, in any order, by any sampler."""
    one, other = sampler(200), sampler(200)
    forwards = [one.windows(index) for index in range(40)]
    backwards = [other.windows(index) for index in reversed(range(40))][::-1]
    again = [one.windows(index) for index in range(40)]
    np.testing.assert_array_equal(backwards, forwards)
    np.testing.assert_array_equal(again, forwards)
    assert starts_of(sampler(200, seed=2), range(9)) != starts_of(one, range(9))


def test_global_generators_are_not_used() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    first = starts_of(sampler(200), range(9))
    assert np.random.random() == np.random.RandomState(3).random()
    assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(3)))
    assert starts_of(sampler(200), range(9)) == first


def test_epochs_differ_in_order_and_in_where_windows_start() -> None:
    batches = sampler(2000, context_length=7, batch_size=batch_size_of_an_epoch(2000, 7))
    epochs = [starts_of(batches, range(epoch, epoch + 1)) for epoch in range(8)]
    assert len({tuple(np.argsort(epoch)) for epoch in epochs}) == 8
    assert len({min(epoch) for epoch in epochs}) > 2
    assert not any(epoch == sorted(epoch) for epoch in epochs)


def test_a_window_is_a_piece_of_the_text_with_the_token_that_follows() -> None:
    for index in range(20):
        windows = sampler(100).windows(index)
        assert windows.shape == (3, 7 + 1)
        assert windows.dtype == np.int64
        np.testing.assert_array_equal(windows, windows[:, :1] + np.arange(8))


def test_a_batch_can_straddle_epochs() -> None:
    """The order of windows does not depend on the batch size."""
    count = batch_size_of_an_epoch(40, 7)
    assert count == 4
    one_by_one = starts_of(sampler(40, batch_size=1), range(30))
    assert starts_of(sampler(40, batch_size=3), range(10)) == one_by_one
    assert starts_of(sampler(40, batch_size=15), range(2)) == one_by_one  # almost four epochs in a batch


def test_the_smallest_text_has_one_window() -> None:
    batches = sampler(8, context_length=7, batch_size=2)
    assert batches.windows_per_epoch == 1
    np.testing.assert_array_equal(batches.windows(5), [range(8)] * 2)
    with pytest.raises(ValueError, match="7 tokens hold no window of 7"):
        sampler(7, context_length=7)


@settings(deadline=None, max_examples=100)
@given(context_length=st.integers(1, 20), more=st.integers(0, 300), eval_tokens=st.integers(1, 400))
def test_an_evaluation_covers_the_split_or_is_spread_over_it(
    context_length: int, more: int, eval_tokens: int
) -> None:
    tokens = context_length + 1 + more
    first, *rest = evaluation_windows(tokens, context_length=context_length, eval_tokens=eval_tokens)
    starts, windows = first.starts, (tokens - 1) // context_length
    assert first.length == context_length
    assert len(starts) == max(1, min(windows, eval_tokens // context_length))
    assert starts[0] == 0
    assert starts[-1] + context_length + 1 <= tokens
    assert (starts % context_length == 0).all()
    gaps = np.diff(np.append(starts, windows * context_length)) // context_length
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1  # spread evenly
    predicted = [place for one in (first, *rest) for at in one.starts for place in range(at, at + one.length)]
    assert len(predicted) <= max(eval_tokens, context_length)
    if tokens - 1 <= eval_tokens:
        assert sorted(predicted) == list(range(tokens - 1))  # each once


def test_an_evaluation_of_a_split_that_fits_has_every_window() -> None:
    (windows,) = evaluation_windows(99, context_length=7, eval_tokens=98)
    np.testing.assert_array_equal(windows.starts, np.arange(14) * 7)
    _, last = evaluation_windows(100, context_length=7, eval_tokens=99)
    assert (last.starts.tolist(), last.length) == ([98], 1)
    (windows,) = evaluation_windows(100, context_length=7, eval_tokens=99, rule=EvaluationRule.WHOLE_WINDOWS)
    np.testing.assert_array_equal(windows.starts, np.arange(14) * 7)


@pytest.mark.parametrize(
    ("tokens", "eval_tokens"), [(9, 100), (13, 12), (301, 1000), (301, 60), (9000, 100_000)]
)
def test_evaluating_is_a_plain_mean_over_the_tokens(tokens: int, eval_tokens: int) -> None:
    """Each window by itself, the last one shorter, each token by its own probability."""
    model = tiny(dropout=0.3)
    ids = np.random.default_rng(1).integers(0, 11, tokens).astype(np.uint8)
    loss = evaluate(model, ids, context_length=8, eval_tokens=eval_tokens)

    model.eval()
    places = range(0, tokens - 1, 8)
    if eval_tokens < tokens - 1:
        every = ((tokens - 1) // 8) / (eval_tokens // 8)
        places = [8 * int(place * every + 1e-9) for place in range(eval_tokens // 8)]  # type: ignore[assignment]
    losses = []
    with torch.no_grad():
        for start in places:
            window = torch.tensor(ids[start : start + 9].tolist())
            probabilities = model(window[None, :-1])[0].double().softmax(-1)
            losses += [-math.log(probabilities[t, window[t + 1]]) for t in range(len(window) - 1)]
    assert len(losses) == loss.tokens == (tokens - 1 if eval_tokens >= tokens - 1 else eval_tokens // 8 * 8)
    assert loss.mean == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    count = len(loss.block_losses)
    assert count == max(1, min(128, len(losses) // 32))
    ends = [block * len(losses) // count for block in range(count + 1)]
    blocks = [np.mean(losses[start:end]) for start, end in pairwise(ends)]
    np.testing.assert_allclose(loss.block_losses, blocks, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_uses_no_randomness_and_restores_the_model(training: bool) -> None:
    model = tiny(dropout=0.5).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = np.random.default_rng(1).integers(0, 11, 100)
    torch.manual_seed(7)
    np.random.seed(7)
    first = evaluate(model, ids, context_length=8, eval_tokens=1000)
    assert evaluate(model, ids, context_length=8, eval_tokens=1000) == first
    assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(7)))
    assert np.random.random() == np.random.RandomState(7).random()
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cross_entropy_is_the_mean_negative_log_probability() -> None:
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
    loss = cross_entropy(probabilities.log(), torch.tensor([[1, 2]]))
    assert loss.item() == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    rough = cross_entropy(probabilities.log().bfloat16(), torch.tensor([[1, 2]]))
    assert rough.dtype == torch.float32
    logits = 5 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 1, 2], [3, 0, 1]])
    assert cross_entropy(logits, targets).item() == pytest.approx(
        F.nll_loss(logits.log_softmax(-1).flatten(0, 1), targets.flatten()).item()
    )


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut() -> None:
    """A nat per byte is 1/ln 2 bits; also with half as many tokens of twice the loss."""
    assert bits_per_byte(math.log(2), tokens=100, text_bytes=100) == pytest.approx(1.0)
    one = bits_per_byte(1.3, tokens=600, text_bytes=900)
    assert one == pytest.approx(bits_per_byte(2.6, tokens=300, text_bytes=900))
    assert one == pytest.approx(1.3 * 600 / 900 / math.log(2))
