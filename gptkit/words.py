"""Text for messages: the nearest of some names, and text that is safe to print.

Input and output are strings. Knows nothing of the rest of gptkit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(wanted: str, known: Iterable[str]) -> str | None:
    """The closest of `known`, ignoring case; None if none is close."""
    names = {name.lower(): name for name in known}
    match = difflib.get_close_matches(wanted[:200].lower(), list(names), n=1, cutoff=0.6)
    return names[match[0]] if match else None


def nearest(wanted: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `known`, or "" if none is close."""
    match = closest(wanted, known)
    return f"; did you mean {match!r}?" if match else ""


def printable(text: str) -> str:
    """The text with line ends, control characters and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def quote_characters(characters: str, at_most: int = 20) -> str:
    """The first few characters, each quoted, and how many more there are."""
    shown = " ".join(repr(character) for character in characters[:at_most])
    return shown + (f" and {len(characters) - at_most} more" if len(characters) > at_most else "")


def first_difference(one: str, other: str) -> int:
    """The index at which two texts begin to differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
