"""The samples of a run: which of them a page shows.

In: a run's folder. Out: the newest samples and some spread evenly over the rest, each cut off where it is
long, so that a page stays small however many there are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gptkit.runs import Run

NEWEST, SPREAD = 10, 30  # how many are shown of the newest, and of those before
MAX_CHARACTERS = 20_000  # of one sample
_PEEK = 120  # characters of a sample that are shown before it is opened
_SAMPLE = re.compile(r"step-(\d{12})\.txt")


@dataclass(frozen=True)
class Sample:
    step: int
    text: str
    cut: bool  # there is more of it in its file

    @property
    def peek(self) -> str:
        """Its beginning, in one line."""
        words = " ".join(self.text[: 4 * _PEEK].split())
        return words[:_PEEK] + "…" if len(words) > _PEEK else words


def read_samples(run: Run) -> tuple[list[Sample], str]:
    """The samples to show, newest first, and a word on those left out, or ""."""
    folder, notes = run.samples, []
    try:
        names = {} if folder.is_symlink() else _names(folder)
    except OSError as error:
        return [], f"The samples cannot be read: {error.strerror or error}."
    steps = sorted(names)
    chosen = _chosen(steps)
    if len(chosen) < len(steps):
        notes.append(
            f"{len(chosen)} of {len(steps):,} samples are shown: the newest, and some spread evenly over "
            "the rest. All are in the folder samples/."
        )
    samples, unreadable = [], 0
    for step in reversed(chosen):
        try:
            samples.append(_read(step, names[step]))
        except OSError:
            unreadable += 1
    if unreadable:
        notes.append(f"{unreadable} could not be read.")
    return samples, " ".join(notes)


def _names(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = ((_SAMPLE.fullmatch(path.name), path) for path in folder.iterdir())
    return {
        int(match[1]): path for match, path in found if match and path.is_file() and not path.is_symlink()
    }


def _chosen(steps: list[int]) -> list[int]:
    if len(steps) <= NEWEST + SPREAD:
        return steps
    earlier = len(steps) - NEWEST
    spread = sorted({round(number * (earlier - 1) / (SPREAD - 1)) for number in range(SPREAD)})
    return [*(steps[number] for number in spread), *steps[-NEWEST:]]


def _read(step: int, path: Path) -> Sample:
    with path.open("rb") as file:
        data = file.read(4 * MAX_CHARACTERS + 1)  # UTF-8 takes at most four bytes for a character
    text = data.decode("utf-8", "replace")
    return Sample(step, text[:MAX_CHARACTERS], len(text) > MAX_CHARACTERS or len(data) > 4 * MAX_CHARACTERS)
