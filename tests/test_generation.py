"""Generating text: reproducible from its seed, with the right probabilities, cut at stop texts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as running
from hypothesis import strategies as st
from torch import Tensor

from gptkit.errors import UsageError
from gptkit.experiment.schema import Experiment, SamplingSettings
from gptkit.generation import (
    choose_tokens,
    choose_with_numpy,
    choose_with_torch,
    encode_prompt,
    generate,
    generate_tokens,
)
from gptkit.model import GPT
from gptkit.model.build import build_new_model
from gptkit.plugins import StreamDecoder, Tokenizer, registry
from gptkit.plugins.tokenizer import Ids
from gptkit.tokenizers.bigram import BigramTokenizer
from gptkit.tokenizers.byte import ByteTokenizer
from gptkit.tokenizers.char import CharTokenizer
from tests.support.models import perturb, reciter

LETTERS = "abcdefghijk"
CHAR = CharTokenizer(LETTERS)


def build(position: str, **model: Any) -> Experiment:
    shape = {"context_length": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "position": position, **model}
    return Experiment.model_validate({"model": shape})


def tiny(position: str = "rope", **model: Any) -> GPT:
    """A model of the eleven letters with strong and changing opinions."""
    gpt = build_new_model(build(position, **model), len(LETTERS), seed=1)
    perturb(gpt)
    return gpt


def sampling(**fields: Any) -> SamplingSettings:
    return SamplingSettings.model_validate({"max_new_tokens": 30, **fields})


def write(
    model: GPT, settings: SamplingSettings, *, prompt: str = "abc", seed: int = 1, num_samples: int = 1
) -> list[str]:
    """The samples, put together from their pieces."""
    texts = [""] * num_samples
    ids = CHAR.encode(prompt).tolist()
    for number, piece in generate(model, CHAR, ids, settings, seed=seed, num_samples=num_samples):
        assert piece
        texts[number] += piece
    return texts


# Randomness


@pytest.mark.usefixtures("both_ways")
def test_the_same_seed_gives_the_same_text_and_another_one_another() -> None:
    model = tiny()
    torch.manual_seed(1)
    first = write(model, sampling())
    torch.manual_seed(2)
    assert write(model, sampling()) == first
    assert write(model, sampling(), seed=2) != first
    assert len(first[0]) == 30


@pytest.mark.usefixtures("both_ways")
def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    model = tiny()
    four = write(model, sampling(), num_samples=4)
    assert len(set(four)) == 4
    for count in (1, 2, 3, 7):
        assert write(model, sampling(), num_samples=count)[:4] == four[:count]


@pytest.mark.usefixtures("both_ways")
def test_a_longer_sample_begins_like_a_shorter_one() -> None:
    model = tiny()
    (long,) = write(model, sampling(max_new_tokens=50))
    for count in (0, 1, 20):
        assert write(model, sampling(max_new_tokens=count)) == [long[:count]]


@pytest.mark.usefixtures("both_ways")
def test_generating_changes_neither_global_generators_nor_the_model() -> None:
    model = tiny(dropout=0.5).train()
    torch.manual_seed(7)
    first = write(model, sampling())
    assert model.training
    assert torch.rand(1).equal(torch.rand(1, generator=torch.Generator().manual_seed(7)))
    assert write(model.eval(), sampling()) == first  # nothing is dropped
    assert not model.training


# The context


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("prompt", ["a", "abc", "abcdefgh", "abcdefghijkabcdefghijk"])
@pytest.mark.parametrize("position", registry.names(registry.POSITIONS))
def test_generation_continues_past_the_context(position: str, prompt: str) -> None:
    """Logits token by token, without a cache, for the context at that time.

    That is all there is, up to the context; when this is full, the last half of it, and on from there.
    """
    model = tiny(position)
    (text,) = write(model, sampling(temperature=0.0), prompt=prompt)
    assert len(text) == 30

    history = CHAR.encode(prompt).tolist()
    start = max(0, len(history) - 8)
    for _ in range(30):
        if len(history) - start > 8:
            start = len(history) - 4
        with torch.no_grad():
            logits = model.eval()(torch.tensor([history[start:]]))
        history.append(int(logits[0, -1].argmax()))
    assert CHAR.decode(history) == prompt + text


@pytest.mark.usefixtures("both_ways")
def test_a_context_of_one_token_is_enough_to_write() -> None:
    assert len(write(tiny(context_length=1), sampling())[0]) == 30


@pytest.mark.usefixtures("both_ways")
def test_a_model_that_memorized_a_text_reproduces_it() -> None:
    ids = CHAR.encode("abacabadabacabaeabacabadabacaba").tolist()
    model = reciter(ids, len(LETTERS))
    assert write(model, sampling(temperature=0.0), prompt="a") == ["bacabadabacabaeabacabadabacaba"]


# The choice of a token

N = 20_000
GRID = (torch.arange(N, dtype=torch.float64) + 0.5) / N
LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.9, float("-inf"), 0.0, 1.0])


def frequencies(**fields: Any) -> np.ndarray:
    """How often each token is chosen from LOGITS when the chance takes all values between 0 and 1 evenly."""
    tokens = choose_tokens(LOGITS.expand(N, -1), GRID, sampling(**fields))
    return np.bincount(tokens.numpy(), minlength=len(LOGITS)) / N


def expected_frequencies(
    temperature: float = 1.0, top_k: int = 0, min_p: float = 0.0, top_p: float = 1.0
) -> np.ndarray:
    """The same by definition, one token at a time."""
    weights = [math.exp(logit / temperature) for logit in LOGITS.tolist()]
    ranked = sorted(range(len(weights)), key=lambda token: -weights[token])
    if top_k:
        ranked = ranked[:top_k]
    ranked = [token for token in ranked if weights[token] >= min_p * weights[ranked[0]]]
    total, kept, so_far = sum(weights[token] for token in ranked), [], 0.0
    for token in ranked:
        if so_far < top_p * total:
            kept.append(token)
        so_far += weights[token]
    out = np.zeros(len(weights))
    out[kept] = [weights[token] for token in kept]
    return out / out.sum()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 7},
        {"top_k": 100},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"top_p": 0.3},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 1e-9},
        {"temperature": 2.0, "top_k": 5, "min_p": 0.2, "top_p": 0.8},
        {"temperature": 0.7, "top_k": 4, "top_p": 0.6},
        {"top_k": 3, "top_p": 0.7},
    ],
    ids=str,
)
def test_tokens_are_chosen_as_often_as_they_are_probable(fields: dict[str, Any]) -> None:
    """Each to one part in N, and the others never."""
    wanted = expected_frequencies(**fields)
    got = frequencies(**fields)
    np.testing.assert_allclose(got, wanted, atol=1.01 / N)
    assert (got[wanted == 0] == 0).all()


def test_limits_keep_the_right_tokens() -> None:
    """Worked examples with probabilities 0.4, 0.3, 0.2, 0.1."""
    logits = torch.tensor([0.3, 0.1, 0.4, 0.2]).log().expand(N, -1)
    for fields, kept in (
        ({"top_k": 2}, {0, 2}),
        ({"top_p": 0.35}, {2}),
        ({"top_p": 0.65}, {0, 2}),
        ({"top_p": 0.75}, {0, 2, 3}),
        ({"top_p": 0.95}, {0, 1, 2, 3}),
        ({"min_p": 0.45}, {0, 2, 3}),
        ({"min_p": 0.55}, {0, 2}),
        ({"top_k": 2, "top_p": 0.5}, {2}),  # of what top_k leaves, 4/7 is the likeliest's
        ({"min_p": 0.45, "top_p": 0.42}, {2}),  # and of what min_p leaves, 4/9
    ):
        assert set(choose_tokens(logits, GRID, sampling(**fields)).tolist()) == kept, fields


@pytest.mark.parametrize("chance", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_choose_no_token_without_probability(chance: float) -> None:
    logits = torch.tensor([[float("-inf"), 0.1, 0.7, float("-inf")], [0.0, -1000.0, 0.0, -1000.0]])
    uniform = torch.full((2,), chance, dtype=torch.float64)
    tokens = choose_tokens(logits, uniform, sampling())
    assert tokens.tolist() == ([1, 0] if chance == 0 else [2, 2])


def test_each_row_has_its_own_limits() -> None:
    logits = torch.tensor([[5.0, 4.0, 0.0, 0.0], [6.0, 7.0, 8.0, 9.0]])
    for fields in ({"top_k": 2}, {"top_p": 0.85}, {"min_p": 0.2}):
        for chance in np.linspace(0, 0.999, 50):
            uniform = torch.full((2,), float(chance), dtype=torch.float64)
            first, second = choose_tokens(logits, uniform, sampling(**fields)).tolist()
            assert first in (0, 1)
            assert second in (2, 3)


def test_at_temperature_zero_the_most_likely_token_is_taken() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    for fields in ({}, {"top_k": 3, "top_p": 0.1, "min_p": 0.9}):
        tokens = choose_tokens(logits, GRID[:50], sampling(temperature=0.0, **fields))
        assert tokens.tolist() == [int(np.argmax(row)) for row in logits.numpy()]


@running(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**31),
    V=st.integers(1, 80),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 90),
    top_p=st.floats(0.001, 1),
    min_p=st.floats(0, 1),
    alike=st.booleans(),
)
@example(seed=0, V=1, temperature=1.0, top_k=1, top_p=1e-9, min_p=1.0, alike=False)
def test_numpy_and_torch_choose_the_same_tokens(seed: int, V: int, alike: bool, **fields: Any) -> None:
    """Also among tokens that are as likely as one another, or impossible."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(50, V, dtype=torch.float64, generator=generator)
    if V > 3 and alike:
        logits[:, 1] = logits[:, -1]
        logits[:, 2] = float("-inf")
    uniform = torch.rand(50, dtype=torch.float64, generator=generator)
    uniform[0] = 0.0
    settings = sampling(**fields)
    before = logits.clone()
    with_numpy = choose_with_numpy(logits.numpy(), uniform.numpy(), settings)
    assert with_numpy.tolist() == choose_with_torch(logits, uniform, settings).tolist()
    assert torch.equal(logits, before)


def test_bf16_logits_are_sampled_as_finely_as_others() -> None:
    """In bf16 a cumulative distribution over many tokens would lose most of them."""
    tokens = choose_tokens(torch.zeros(N, 1000, dtype=torch.bfloat16), GRID, sampling())
    np.testing.assert_allclose(np.bincount(tokens.numpy(), minlength=1000) / N, 0.001, atol=1.01 / N)


def test_a_samples_tokens_follow_the_model() -> None:
    """First tokens of many samples: as often as the model finds them probable, within chance."""
    model = tiny()
    prompt = torch.tensor([[0, 1, 2]]).expand(4000, -1)
    with torch.no_grad():
        probabilities = model.eval()(prompt[:1])[0, -1].softmax(-1).numpy()
    (tokens,) = generate_tokens(model, prompt, sampling(max_new_tokens=1), seed=3)
    counts = np.bincount(tokens.numpy(), minlength=11)
    wanted = 4000 * probabilities
    # Pearson's statistic has 10 degrees of freedom: above 35 once in ten thousand seeds
    assert ((counts - wanted) ** 2 / wanted).sum() < 35
    assert np.count_nonzero(counts) > 5


# Stop texts


def cut(text: str, stops: list[str]) -> str:
    """What is written before the first stop text that is complete, as if letter by letter."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def recite(tokenizer: Tokenizer, text: str, stops: list[str]) -> list[str]:
    """The pieces in which a model that knows `text` by heart writes it, after a first token."""
    ids = [0, *tokenizer.encode(text).tolist()]
    settings = sampling(temperature=0.0, stop=stops, max_new_tokens=len(ids) - 1)
    model = reciter(ids, tokenizer.vocab_size)
    return [piece for _, piece in generate(model, tokenizer, [0], settings, seed=1)]


def test_a_stop_text_ends_the_sample_and_is_left_out() -> None:
    for stops, wanted in (
        (["cad"], "abra"),
        (["z", "cad"], "abra"),
        (["dab", "c"], "abra"),
        (["a"], ""),
        (["ra", "rac"], "ab"),
        (["rac", "ra"], "ab"),  # one is a beginning of the other: the shorter is complete first
        (["racx", "cad"], "abra"),
        (["brad"], "abracadabra"),
        (["bra!"], "abracadabra"),  # its beginning, at the end, is text
    ):
        for tokenizer in (CharTokenizer("!abcdrxz"), ByteTokenizer()):
            assert "".join(recite(tokenizer, "abracadabra", stops)) == wanted, stops


@running(deadline=None, max_examples=60)
@given(
    text=st.text("abé", min_size=1, max_size=14),
    stops=st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example(text="abab", stops=["ba", "abab"])  # in pairs, "abab" is there as soon as "ba" is
@example(text="aaabb", stops=["aabb"])  # what was held is the beginning of another place to stop
@example(text="aéb", stops=["é"])  # in bytes, it comes in two halves
def test_a_text_is_cut_the_same_whatever_its_tokens(text: str, stops: list[str]) -> None:
    for tokenizer in (
        CharTokenizer("abé"),
        BigramTokenizer("abé", ["ab", "ba", "aa", "éa", "bé"]),
        ByteTokenizer(),
    ):
        pieces = recite(tokenizer, text, stops)
        assert "".join(pieces) == cut(text, stops)
        assert all(pieces)


def test_text_is_returned_as_soon_as_it_cannot_become_a_stop_text() -> None:
    assert recite(CHAR, "abcab", ["abd"]) == ["abc", "ab"]
    assert recite(CHAR, "abcab", []) == ["a", "b", "c", "a", "b"]
    assert recite(CHAR, "aaab", ["aab"]) == ["a"]


@pytest.mark.usefixtures("both_ways")
def test_a_sample_that_has_stopped_does_not_stop_the_others() -> None:
    model = tiny()
    plain = write(model, sampling(), num_samples=4)
    stop = plain[0][4:6]
    assert sum(stop in text for text in plain) < 4
    assert write(model, sampling(stop=[stop]), num_samples=4) == [cut(text, [stop]) for text in plain]


def test_nothing_is_computed_when_every_sample_has_stopped() -> None:
    model, calls = tiny(), []
    model.register_forward_hook(lambda module, inputs, output: calls.append(1))
    write(model, sampling(stop=list(LETTERS)), num_samples=3)
    assert len(calls) == 1


# Prompts


def test_a_prompt_is_its_text_and_its_ids() -> None:
    assert encode_prompt(CHAR, "cab") == ("cab", [2, 0, 1])


@pytest.mark.parametrize("tokenizer", [CHAR, BigramTokenizer(LETTERS, ["ab"])])
def test_characters_that_the_tokenizer_has_never_seen_are_named_or_skipped(tokenizer: Tokenizer) -> None:
    prompt = "aXb\N{HORSE}Xc"
    with pytest.raises(UsageError, match="never seen: 'X' '\N{HORSE}'") as refused:
        encode_prompt(tokenizer, prompt)
    assert refused.value.exit_code == 2
    assert "--unknown skip" in str(refused.value)
    text, ids = encode_prompt(tokenizer, prompt, skip_unknown=True)
    assert text == "abc"
    assert ids == tokenizer.encode("abc").tolist()


class Lines(ByteTokenizer):
    """Has no ids for white space at the end of a text."""

    def encode(self, text: str) -> Ids:
        return super().encode(text.rstrip())


def test_white_space_at_the_end_of_a_prompt_stays_where_the_model_reads_it() -> None:
    assert encode_prompt(ByteTokenizer(), "ab \n")[0] == "ab \n"
    assert encode_prompt(Lines(), "ab \n") == ("ab", [97, 98])


class SilentHalves(ByteTokenizer):
    """Breaks the rule that half a character is U+FFFD."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(list(ids)).decode("utf-8", "ignore")

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder(self)


def test_many_tokens_without_text_are_one_warning_with_the_reason() -> None:
    for tokenizer, words in (
        (SilentHalves(), "'ééé.*stream decoder holds them back.*U\\+FFFD.*plugins check"),
        (SilentHalves(), "stand for no text"),
        (ByteTokenizer(), None),
    ):
        ids = [0, *("é" * 20).encode()] if words != "stand for no text" else [0, *[0x80] * 40]
        warnings: list[str] = []
        settings = sampling(temperature=0.0, max_new_tokens=40)
        list(generate(reciter(ids, 256), tokenizer, [0], settings, seed=1, warn=warnings.append))
        assert len(warnings) == (words is not None)
        if words:
            assert re.search(words, warnings[0], re.DOTALL)


def test_tokens_are_counted_up_to_the_stop_text_of_each_sample() -> None:
    ids = CHAR.encode("abacabadabacaba").tolist()
    for stop, count in ((["cab"], 5), (["x"], 14)):
        settings = sampling(temperature=0.0, stop=stop, max_new_tokens=14)
        generation = generate(reciter(ids, 11), CHAR, ids[:1], settings, seed=1, num_samples=2)
        list(generation)
        assert generation.tokens == 2 * count


@pytest.mark.parametrize(("prompt", "skip_unknown"), [("", False), ("", True), ("XYZ", True)])
def test_a_prompt_without_tokens_is_refused(prompt: str, skip_unknown: bool) -> None:
    with pytest.raises(UsageError, match="the prompt has no tokens"):
        encode_prompt(CHAR, prompt, skip_unknown=skip_unknown)


def test_the_prompt_is_what_the_text_follows() -> None:
    model = tiny()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    write(model, sampling(max_new_tokens=1), prompt="cab", num_samples=2)
    assert seen[0].tolist() == [[2, 0, 1]] * 2
