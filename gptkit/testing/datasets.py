"""What a dataset has to do: the same text always, and true words about it.

In: a dataset class and its options. Out: checks. Where the text is not here those that read it are skipped:
a check downloads nothing. Uses no torch.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from gptkit.data.corpus import measure_text, split_text
from gptkit.plugins import DataFolders
from gptkit.testing.runner import Check, DefectError, Note, SkippedError, asked, require, shown
from gptkit.testing.subject import PluginSubject
from gptkit.testing.subprocess_check import digest_elsewhere

_NEARLY = 0.01  # share of its bytes by which a size may be wrong, for listings
_MARKS = 16  # bytes by which it may be wrong in any case: a byte-order mark, line ends at the end
_CONTEXT = 64  # tokens: the default context_length


@dataclass
class DatasetSubject(PluginSubject):
    """`dataset` is set by the check "made", `here` by "is here", `text` and `appeared` by "text"."""

    dataset: Any = field(init=False, default=None)
    here: bool = field(init=False, default=False)
    text: str = field(init=False, default="")
    appeared: list[str] = field(init=False, default_factory=list)  # where it works, while it was read


def digest_of(text: str) -> str:
    """SHA-256 of the text as UTF-8. Raises DataError for half a character."""
    return measure_text(text)[1]


def check_made(subject: DatasetSubject) -> str:
    subject.dataset = subject.cls(subject.options)
    return "with its options"


def check_here(subject: DatasetSubject) -> str:
    here = subject.dataset.is_here(subject.folders)
    require(isinstance(here, bool), f"is_here() gives {shown(here)}, neither True nor False")
    subject.here = here
    return "yes" if here else "no"


def check_facts(subject: DatasetSubject) -> str:
    facts = subject.dataset.facts()
    require(isinstance(facts, dict), f"facts() gives a {type(facts).__name__}, not a dict")
    for key, value in facts.items():
        require(isinstance(key, str), f"facts() has the key {shown(key)}, not a string")
        right = isinstance(value, str | int | float) and (isinstance(value, str) or math.isfinite(value))
        require(right, f"facts() has {key} = {shown(value)}, neither a string nor a finite number")
    with asked("facts() as JSON"):
        json.dumps(facts, allow_nan=False)
    return ", ".join(f"{key} = {shown(value)}" for key, value in facts.items()) or "none"


def check_text(subject: DatasetSubject) -> str:
    _require_here(subject)
    before, place = _listing(subject.folders, subject.folder), Path.cwd()
    with asked("read()"):
        text = subject.dataset.read(subject.folders)
    if Path.cwd() != place:
        os.chdir(place)
        subject.appeared.append("another working directory")
    subject.appeared += sorted(_listing(subject.folders, subject.folder) - before)
    require(isinstance(text, str), f"read() gives a {type(text).__name__}, not a string")
    require(text, "read() gives an empty text")
    subject.text = text
    return f"{shown(text)}"


def _require_here(subject: DatasetSubject) -> None:
    if not subject.here:
        raise SkippedError(f"not here: gptkit datasets fetch {_name(subject)}")


def _name(subject: DatasetSubject) -> str:
    """The name that it is registered under."""
    address = f"{subject.cls.__module__}:{subject.cls.__qualname__}"
    found = [point.name for point in entry_points(group=subject.family) if point.value == address]
    return found[0] if found else "NAME"


def _listing(folders: DataFolders, folder: Path) -> set[str]:
    """What stands in the working directory, but for what may be written there."""
    allowed = {Path(folders.downloads).absolute(), Path(folder).absolute()}
    here = {entry.absolute() for entry in Path.cwd().iterdir()} if Path.cwd() not in allowed else set()
    inside = {place for place in here for one in allowed if place == one or place in one.parents}
    return {place.name for place in here - inside if place.name != "__pycache__"}


def check_characters(subject: DatasetSubject) -> str:
    try:
        subject.text.encode()
    except UnicodeEncodeError as error:
        wrong = shown(subject.text[max(0, error.start - 8) : error.start + 8])
        raise DefectError(
            f"read() gives half a character at {error.start:,}, which no file can hold: {wrong}"
        ) from None
    return f"{len(set(subject.text)):,} different ones, all whole"


def check_files(subject: DatasetSubject) -> str:
    what = ", ".join(map(shown, subject.appeared[:3]))
    require(not subject.appeared, f"read() leaves {what} where one works; write to folders.downloads")
    return "nothing is left where one works"


def check_same_twice(subject: DatasetSubject) -> str:
    with asked("read() of a second object"):
        again = subject.cls(subject.options).read(subject.folders)
    require(again == subject.text, f"a second object reads another text: {_difference(subject.text, again)}")
    return "a second object reads the same"


def _difference(one: str, other: object) -> str:
    if not isinstance(other, str):
        return shown(other)
    pairs = enumerate(zip(one, other, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    parts = [shown(text[max(0, at - 8) : at + 8]) for text in (one, other)]
    return f"{parts[0]} and {parts[1]}, at character {at:,}"


def check_same_elsewhere(subject: DatasetSubject) -> str:
    there = digest_elsewhere(subject)
    wrong = (
        "a process with another PYTHONHASHSEED reads another text: sort what is a set, seed what is random"
    )
    require(there == digest_of(subject.text), wrong)
    return "the same with another PYTHONHASHSEED"


def check_size(subject: DatasetSubject) -> str:
    size = subject.dataset.size(subject.folders)
    right = size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0)
    require(right, f"size() gives {shown(size)}, neither None nor a number of bytes")
    if size is None:
        return "not told"
    if not subject.text:
        return f"{size:,} bytes, it says"
    real = len(subject.text.encode("utf-8", "surrogatepass"))
    near = abs(size - real) <= max(_MARKS, _NEARLY * real)
    require(near, f"size() gives {size:,} bytes, and the text has {real:,}")
    return f"{size:,} bytes"


def check_hash(subject: DatasetSubject) -> Note:
    size, digest = measure_text(subject.text)
    return Note(f"{len(subject.text):,} characters, {size:,} bytes, SHA-256 {digest}")


def check_split(subject: DatasetSubject) -> Note:
    train, val = split_text(subject.text, 0.1)
    said = f"{len(train):,} characters to train on, {len(val):,} to evaluate on"
    short = len(val) <= _CONTEXT
    return Note(f"{said}: too few for a context of {_CONTEXT} characters" if short else said)


CHECKS: tuple[Check[DatasetSubject], ...] = (
    Check("made", check_made, ("options",)),
    Check("is here", check_here, ("made",)),
    Check("facts", check_facts, ("made",)),
    Check("text", check_text, ("is here",)),
    Check("whole characters", check_characters, ("text",)),
    Check("files", check_files, ("text",)),
    Check("same twice", check_same_twice, ("text",)),
    Check("same elsewhere", check_same_elsewhere, ("same twice", "whole characters", "options in a file")),
    Check("size", check_size, ("made",)),
    Check("hash", check_hash, ("whole characters",)),
    Check("split", check_split, ("whole characters",)),
)
