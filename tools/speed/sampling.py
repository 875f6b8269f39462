"""Rows about generation: one stream, many streams, texts longer than the context."""

from __future__ import annotations

from dataclasses import replace

from tools.speed.contest import Contestant, Options, compare, compete, nanogpt, transformers
from tools.speed.report import Finding, count

_WITHIN = 63  # tokens after the first: they fill the context of nanoGPT's CPU model
_DEFAULT = 500  # the default of nanoGPT's sample.py
_PAST = 40  # tokens of nanoGPT past the context
_NANO = {"experiment": "nanogpt"}


def one_stream(options: Options) -> list[Finding]:
    """Within the context, the limit of transformers; then the default of nanoGPT's sample.py."""
    what = "sampling one stream, nanoGPT's CPU model"
    _, lines = compare(
        f"{what}, {_WITHIN} tokens",
        _gptkit(streams=1, count=_WITHIN),
        [
            nanogpt(options, "nanogpt_sampling", 6.0, **_NANO, prompt=1, count=_WITHIN),
            transformers("transformers_sampling", 5.0, **_NANO, count=_WITHIN),
        ],
        options,
    )
    _, longer = compare(
        f"{what}, {_DEFAULT} tokens",
        _gptkit(streams=1, count=_DEFAULT),
        [nanogpt(options, "nanogpt_sampling", 6.0, **_NANO, prompt=1, count=_DEFAULT)],
        options,
    )
    ((_, text),) = compete([_gptkit(streams=1, count=_DEFAULT, text=True)], options)
    note = f"; with the tokenizer, as pieces of text, gptkit generates {count(text.tokens)} tokens/s"
    return [*lines, *(replace(line, how=line.how + note) if line.how else line for line in longer)]


def many_streams(options: Options) -> list[Finding]:
    what = f"sampling 64 streams at once, nanoGPT's CPU model, {_WITHIN} tokens each"
    one = nanogpt(
        *(options, "nanogpt_sampling", 40.0), name="one nanoGPT stream", **_NANO, prompt=1, count=_WITHIN
    )
    return compare(what, _gptkit(streams=64, count=_WITHIN), [one], options)[1]


def past_the_context(options: Options) -> list[Finding]:
    """2000 tokens after a prompt that fills the context, so that all are past it."""
    what = "sampling past the context: 2000 tokens at context 256, 6 layers, width 384"
    note = f"nanoGPT over {_PAST} tokens past the context, where each costs the same"
    other = nanogpt(
        *(options, "nanogpt_sampling", 10.0), note=note, experiment="long", prompt=256, count=_PAST
    )
    ours, lines = compare(what, Contestant("gptkit_long"), [other], options)
    early, late = ours.details["early"], ours.details["late"]
    growth = early / late - 1
    return [
        *lines,
        Finding(
            "cost per token as that text grows",
            "does not grow",
            f"{growth:+.1%} ({count(early)} tokens/s from 300 to 1100, {count(late)} from 1200 to 2000)",
            "medians; up to 5 % counts as noise",
            growth <= 0.05,
            {"early": early, "late": late},
        ),
    ]


def _gptkit(**arguments: object) -> Contestant:
    return Contestant("gptkit_sampling", {**_NANO, **arguments})
