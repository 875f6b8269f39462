"""The output of `gptkit runs compare`: differences, losses, and a chart of letters in plain ASCII."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from string import ascii_uppercase
from typing import Any

from gptkit.cli.display.curve import letter_chart
from gptkit.cli.display.runs import cell, listed
from gptkit.cli.display.tables import duration, show_table
from gptkit.runs import Curve
from gptkit.runs.compare import ComparedRun, Comparison, Decision, Group, Spread, evidence
from gptkit.runs.store import Selected
from gptkit.words import printable

_WIDTH, _HEIGHT = 64, 12  # of the chart, in letters
_MOST_LETTERS = 300  # of a sample, and of a value in the table
_MOST_VALUE = 60


def show_comparison(comparison: Comparison) -> None:
    """A column for each group of runs, named by a letter, which also draws its curve."""
    for letter, group in zip(_letters(comparison), comparison.groups, strict=True):
        for member in group.members:
            shown = letter if member == group.members[0] else " " * len(letter)
            print(f"{shown}  {printable(comparison.runs[member].id)}")
    print()
    show_table(("", *_letters(comparison)), [*_settings(comparison), *_results(comparison)])
    for line in _decisions(comparison):
        print(line)
    for note in comparison.notes:
        print(f"note: {printable(note)}")
    for line in _chart(comparison):
        print(line)
    for letter, group in zip(_letters(comparison), comparison.groups, strict=True):
        run = comparison.runs[group.members[0]]
        if run.last_sample and run.last_sample.text:
            print(f"\n{letter} writes, at step {run.last_sample.step}:\n{_beginning(run.last_sample.text)}")


def _letters(comparison: Comparison) -> list[str]:
    """A, B, … Z, A1, B1, …"""
    return [
        ascii_uppercase[number % 26] + (str(number // 26) if number >= 26 else "")
        for number in range(len(comparison.groups))
    ]


def _settings(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for difference in comparison.differences:
        values = (_short(cell(value)) for value in difference.values)
        yield (printable(difference.key), *values)


def _results(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """The mean of each group, with the lowest and the highest for several runs."""

    def row(title: str, of_run: Callable[[ComparedRun], float | None], form: str = ".4f") -> tuple[str, ...]:
        return title, *(_mean(comparison, group, of_run, form) for group in comparison.groups)

    runs = [[comparison.runs[member] for member in group.members] for group in comparison.groups]
    yield "status", *(_short(", ".join(dict.fromkeys(run.summary.status for run in ours))) for ours in runs)
    yield row("steps", lambda run: run.summary.step, ",.0f")
    yield "best val loss", *(_spread(group.best_val_loss) for group in comparison.groups)
    yield "best bits/byte", *(_spread(group.best_bits_per_byte) for group in comparison.groups)
    yield row("last train loss", lambda run: run.train.values[-1] if run.train else None)
    yield row("tokens/s", lambda run: run.summary.tokens_per_second, ",.0f")
    seconds = [[run.summary.seconds for run in ours if run.summary.seconds is not None] for ours in runs]
    yield "training", *(duration(sum(of) / len(of)) if of else "-" for of in seconds)


def _decisions(comparison: Comparison) -> Iterator[str]:
    """Two or three lines for each verdict."""
    letters, unit = _letters(comparison), "bits per byte" if comparison.in_bits else "nats per token"
    if comparison.decisions:
        yield f"\nAgainst {letters[0]} ({unit}, lower is better):"
    for decision in comparison.decisions:
        verdict = decision.verdict
        line = f"{letters[decision.group]}  {verdict.outcome}: {verdict.difference:+.4f}"
        if verdict.low is not None and verdict.high is not None:
            line += f" (95 % interval {verdict.low:+.4f} to {verdict.high:+.4f})"
        if decision.bits_per_byte is not None and not comparison.in_bits:
            line += f", {decision.bits_per_byte:+.4f} bits per byte"
        yield f"{line}, p = {verdict.p_value:.2g}"
        margin = " " * len(letters[decision.group])
        for part in filter(None, decision.advice.split("; ")):
            yield f"{margin}  {part}"
        yield f"{margin}  {evidence(verdict)}"


def _mean(
    comparison: Comparison, group: Group, of_run: Callable[[ComparedRun], float | None], form: str
) -> str:
    values = [of_run(comparison.runs[member]) for member in group.members]
    known = [value for value in values if value is not None]
    return format(sum(known) / len(known), form) if known else "-"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    several = f" ({spread.lowest:.4f} to {spread.highest:.4f}, {spread.count} runs)"
    return f"{spread.mean:.4f}" + (several if spread.count > 1 else "")


def _short(text: str) -> str:
    return printable(text if len(text) <= _MOST_VALUE else text[: _MOST_VALUE - 3] + "...")


def _beginning(sample: str) -> str:
    lines = sample[:_MOST_LETTERS].strip("\n").splitlines()[:6]
    return "\n".join(f"  {printable(line)}" for line in lines)


# The chart


def _chart(comparison: Comparison) -> Iterator[str]:
    """Val losses by step, in bits per byte if the tokenizers differ.

    Train losses if no run was evaluated twice; nothing if there are too few points.
    """
    members = [
        (letter[0], comparison.runs[member])
        for letter, group in zip(_letters(comparison), comparison.groups, strict=True)
        for member in group.members
    ]
    val = [(letter, _in_bits(run.val) if comparison.in_bits else run.val) for letter, run in members]
    train = [(letter, run.train) for letter, run in members]
    for curves, name in (
        (val, "val bits/byte" if comparison.in_bits else "val loss"),
        (train, "train loss"),
    ):
        if any(len(curve.steps) > 1 for _, curve in curves):
            yield f"\n{name} by step (*: several)"
            drawn = [
                (letter, list(zip(curve.steps, curve.values, strict=True)))
                for letter, curve in curves
                if curve.steps
            ]
            yield from letter_chart(drawn, width=_WIDTH, height=_HEIGHT)
            return


def _in_bits(curve: Curve) -> Curve:
    pairs = [
        (step, bits) for step, bits in zip(curve.steps, curve.bits_per_byte, strict=True) if bits is not None
    ]
    return Curve(steps=tuple(step for step, _ in pairs), values=tuple(bits for _, bits in pairs))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """`gptkit runs compare --json`; these names are frozen."""
    return {
        "runs": [
            {
                **listed(Selected(run.summary), run.folder.parent),
                "folder": str(run.folder),
                "settings": dict(run.settings),
                "train": _curve_as_json(run.train),
                "val": _curve_as_json(run.val),
                "sample": run.last_sample.text if run.last_sample else "",
                "sample_step": run.last_sample.step if run.last_sample else None,
            }
            for run in comparison.runs
        ],
        "groups": [
            {**asdict(group), "runs": [comparison.runs[member].id for member in group.members]}
            for group in comparison.groups
        ],
        "differences": [asdict(difference) for difference in comparison.differences],
        "notes": list(comparison.notes),
        **(
            {"verdicts": [_decision_as_json(comparison, one) for one in comparison.decisions]}
            if comparison.decisions
            else {}
        ),
    }


def _decision_as_json(comparison: Comparison, decision: Decision) -> dict[str, Any]:
    return {
        "baseline": comparison.groups[0].title,
        "group": comparison.groups[decision.group].title,
        "unit": "bits per byte" if comparison.in_bits else "nats per token",
        **asdict(decision.verdict),
        "bits_per_byte": decision.bits_per_byte,
        "seconds_per_seed": decision.seconds_per_seed,
        "advice": decision.advice,
    }


def _curve_as_json(curve: Curve) -> dict[str, Any]:
    return {"losses" if name == "values" else name: values for name, values in asdict(curve).items()}
