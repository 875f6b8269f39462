"""gptkit beside its rivals: those that are here compete, the others are skipped with the reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .contest import Contestant, Options, Rate, compete
from .report import Finding, SkippedError, count

_HOW = "each in a process of its own, blocks in turn, medians"


@dataclass(frozen=True)
class Rival:
    name: str
    target: float  # how many times its rate gptkit should reach
    contestants: Callable[
        [], list[Contestant]
    ]  # the fastest counts; raises SkippedError where it is not here
    note: str = ""


def compare(
    what: str, ours: Contestant, rivals: Sequence[Rival], options: Options
) -> tuple[Rate, list[Finding]]:
    """gptkit's rate, and a line of the table for each rival."""
    here: list[tuple[Rival, list[Contestant]]] = []
    reasons: dict[str, SkippedError] = {}
    for rival in rivals:
        try:
            here.append((rival, rival.contestants()))
        except SkippedError as reason:
            reasons[rival.name] = reason
    (_, mine), *theirs = compete([[ours], *(contestants for _, contestants in here)], options)
    rates = {rival.name: found for (rival, _), found in zip(here, theirs, strict=True)}
    lines = []
    for rival in rivals:
        if rival.name in reasons:
            target = f"≥ {rival.target:g}x {rival.name}"
            alone = f"skipped: {reasons[rival.name]} (gptkit alone: {count(mine.tokens)} tokens/s)"
            lines.append(Finding(what, target, alone))
        else:
            lines.append(_line(what, rival, mine, *rates[rival.name]))
    return mine, lines


def _line(what: str, rival: Rival, ours: Rate, contestant: Contestant, theirs: Rate) -> Finding:
    measured = ours.tokens / theirs.tokens
    how = _HOW
    if precision := contestant.arguments.get("precision"):
        how += f"; {rival.name} in {precision}, the faster of fp32 and bf16"
    return Finding(
        what,
        f"≥ {rival.target:g}x {rival.name}",
        f"{measured:.2f}x ({count(ours.tokens)} against {count(theirs.tokens)} tokens/s)",
        f"{how}; {rival.note}" if rival.note else how,
        measured >= rival.target,
        {"ratio": measured, "gptkit": ours.tokens, rival.name: theirs.tokens},
    )


def nanogpt(
    options: Options, contestant: str, target: float, *, name: str = "nanoGPT", note: str = "", **rest: object
) -> Rival:
    """`contestant` with the folder that the user named."""

    def contestants() -> list[Contestant]:
        return [Contestant(contestant, {"folder": str(options.nanogpt_folder()), **rest})]

    return Rival(name, target, contestants, note)


def transformers(contestant: str, target: float, **rest: object) -> Rival:
    def contestants() -> list[Contestant]:
        if importlib.util.find_spec("transformers") is None:
            raise SkippedError("transformers is not installed here")
        return [Contestant(contestant, {**rest, "precision": precision}) for precision in ("fp32", "bf16")]

    return Rival("transformers", target, contestants)
