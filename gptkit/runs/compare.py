"""Runs held against one another: what was set otherwise, how the losses went, what each writes.

In: run folders, which strangers may have written. Out: frozen values for a terminal, for JSON, for a page:
nothing here knows how they are shown. Reads experiment.toml, run.json, metrics.jsonl and the last sample of
each run, in bounded memory; loads no plugin and no weights.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from gptkit.runs.run import Run, metric_row
from gptkit.runs.settings import Settings, Value, flatten, read_settings
from gptkit.runs.summaries import RunSummary, number, record_of, summarise

_MOST_POINTS = 2_000  # of a curve; of a longer one every second, fourth, … is kept
_MOST_SAMPLE = 100_000  # bytes

# What does not change what is trained, so that runs of one group may differ in it
_NOT_TRAINED = ("seed", "name")
# What a run began from, of run.json
_ORIGIN = ("dataset.sha256", "loaded_from.run", "loaded_from.step")

_MOST_TOLD = 2  # settings in the title of a group
_LABEL = re.compile(r"[\w .,+-]{1,40}", re.ASCII)


@dataclass(frozen=True)
class Curve:
    """A loss of a run over its training: tuples of one length, in the order of steps."""

    steps: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()  # trained on so far
    seconds: tuple[float, ...] = ()  # of training so far, evaluating and saving left out
    losses: tuple[float, ...] = ()  # mean nats a token
    bits_per_byte: tuple[float | None, ...] = ()  # comparable across tokenizers; recorded of val losses only


@dataclass(frozen=True)
class ComparedRun:
    """A run beside others. What its files do not say is None, or empty."""

    summary: RunSummary  # id, status, dataset, step, best losses, when
    folder: Path
    settings: Settings  # of the resolved experiment, by dotted key: "model.n_embd"
    facts: (
        Settings  # of run.json, by dotted key: "tokenizer.vocab_size", "dataset.sha256", "environment.torch"
    )
    train: Curve
    val: Curve
    sample: str  # the last one that was drawn
    sample_step: int | None

    @property
    def id(self) -> str:
        return self.summary.id

    @property
    def seed(self) -> Value | None:
        return self.settings.get("seed")

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole training."""
        tokens, seconds = self.facts.get("tokens"), self.facts.get("seconds")
        measured = isinstance(tokens, int) and isinstance(seconds, int | float) and seconds >= 0.001
        return tokens / seconds if measured else None  # type: ignore[operator]


@dataclass(frozen=True)
class Spread:
    """One number of several runs."""

    count: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Group:
    """Runs that differ by nothing but their seed (and name); a run that has no such sisters is one alone."""

    title: str  # what tells it from the others: "rope (3 runs)", "n_embd 64"; else "a-1", "a-1 and 2 more"
    members: tuple[int, ...]  # positions in Comparison.runs
    best_val_loss: Spread | None  # of those members that have one
    best_bits_per_byte: Spread | None


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs; a value for each group, None where it is not set.

    Of a seed that differs within a group: all of them, as "1, 2, 3".
    """

    key: str
    values: tuple[Value | None, ...]


@dataclass(frozen=True)
class Comparison:
    """All of it. `notes` say what does not compare, for a person."""

    runs: tuple[ComparedRun, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    in_bits: bool = False  # the tokenizers differ, so only bits a byte compare


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """The runs in the order given. One whose files are damaged is there with what can be read of it."""
    compared = tuple(_read(run) for run in runs)
    groups = _groups(compared)
    differences = _differences(compared, groups)
    in_bits = len({run.facts.get("tokenizer.sha256") for run in compared}) > 1
    return Comparison(compared, _titled(groups, differences), differences, _notes(compared, in_bits), in_bits)


def _read(run: Run) -> ComparedRun:
    record = record_of(run) or {}
    train, val = read_curves(run)
    step, sample = last_sample(run)
    return ComparedRun(
        summary=summarise(run),
        folder=run.path,
        settings=read_settings(run),
        facts=flatten(record),
        train=train,
        val=val,
        sample=sample,
        sample_step=step,
    )


# Groups


def _groups(runs: Sequence[ComparedRun]) -> tuple[Group, ...]:
    together: dict[object, list[int]] = {}
    for position, run in enumerate(runs):
        together.setdefault(_trained_as(run, position), []).append(position)
    return tuple(_group(runs, members) for members in together.values())


def _trained_as(run: ComparedRun, position: int) -> object:
    """Equal for runs that differ by their seed alone: same settings, text and origin, as far as each came."""
    if not run.settings:
        return position
    settings = frozenset(  # with the type, as true is 1 for Python
        (key, type(value), value) for key, value in run.settings.items() if key not in _NOT_TRAINED
    )
    origin = tuple(run.facts.get(key) for key in _ORIGIN)
    came_to = run.summary.status if run.summary.status == "finished" else run.summary.step
    return settings, origin, came_to


def _group(runs: Sequence[ComparedRun], members: Sequence[int]) -> Group:
    ours = [runs[member] for member in members]
    more = f" and {len(ours) - 1} more" if len(ours) > 1 else ""
    return Group(
        title=ours[0].id + more,
        members=tuple(members),
        best_val_loss=_spread([run.summary.best_val_loss for run in ours]),
        best_bits_per_byte=_spread([run.summary.best_bits_per_byte for run in ours]),
    )


def _titled(groups: Sequence[Group], differences: Sequence[Difference]) -> tuple[Group, ...]:
    """The groups under what tells them apart: their names, else the values of a setting or two."""
    keys = [one.key for one in differences]
    names = [one for one in differences if one.key == "name"]
    settings = [
        one
        for one in differences
        if one.key not in (*_NOT_TRAINED, *_ORIGIN) and one.key.rpartition(".")[0] not in keys
    ]
    for chosen in (names, settings if len(settings) <= _MOST_TOLD else []):
        labels = [
            ", ".join(_told(one.key, one.values[position]) for one in chosen)
            for position in range(len(groups))
        ]
        if len(set(labels)) == len(groups) and all(map(_LABEL.fullmatch, labels)):
            counts = [len(group.members) for group in groups]
            return tuple(
                replace(group, title=f"{label} ({count} runs)" if count > 1 else label)
                for group, label, count in zip(groups, labels, counts, strict=True)
            )
    return tuple(groups)


def _told(key: str, value: Value | None) -> str:
    """A setting's value in a few words."""
    if key == "name":
        return str(value)
    word = key.rpartition(".")[2]
    return f"{word} {str(value).lower() if isinstance(value, bool) else '-' if value is None else value}"


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(len(known), fmean(known), min(known), max(known)) if known else None


# Differences


def _differences(runs: Sequence[ComparedRun], groups: Sequence[Group]) -> tuple[Difference, ...]:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    told = []
    for key in keys:
        values = [run.settings.get(key) for run in runs]
        if any(_other(value, values[0]) for value in values):
            told.append(Difference(key, tuple(_of_group(values, group) for group in groups)))
    for key in _ORIGIN:
        values = [run.facts.get(key) for run in runs]
        if any(_other(value, values[0]) for value in values):
            told.append(Difference(key, tuple(_of_group(values, group) for group in groups)))
    return tuple(told)


def _other(value: Value | None, than: Value | None) -> bool:
    """Whether two values differ; true is not 1, as it is for Python."""
    return value != than or isinstance(value, bool) != isinstance(than, bool)


def _of_group(values: Sequence[Value | None], group: Group) -> Value | None:
    ours = list(dict.fromkeys(values[member] for member in group.members))
    return ours[0] if len(ours) == 1 else ", ".join(str(value) for value in ours if value is not None)


def _notes(runs: Sequence[ComparedRun], in_bits: bool) -> tuple[str, ...]:
    notes = []
    if in_bits:
        notes.append(
            "the tokenizers differ, and nats a token do not compare across tokenizers; bits a byte do."
        )
    if len({run.facts.get("dataset.sha256") for run in runs}) > 1:
        notes.append("the texts differ, so no loss of one compares with that of another.")
    elif len({run.settings.get("data.val_fraction") for run in runs}) > 1:
        notes.append("the val splits differ (data.val_fraction), so val losses do not quite compare.")
    return tuple(notes)


# Curves and samples


class _Points:
    """A curve as it is read. Of too many points every second is let go; a step that comes again counts."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, float, float, float | None]] = []
        self._stride = self._seen = 0

    def add(self, row: dict[str, Any], key: str) -> None:
        loss, step = number(row.get(key)), row["step"]
        if loss is None or not 0 <= step < 2**63:
            return
        tokens, seconds = number(row.get("tokens")) or 0, number(row.get("seconds")) or 0.0
        bits = number(row.get("bits_per_byte")) if key == "val_loss" else None
        if self._rows and self._rows[-1][0] >= step:  # trained again from a checkpoint before
            del self._rows[bisect_left(self._rows, step, key=lambda point: point[0]) :]
        self._seen += 1
        if self._stride and self._seen % self._stride:
            return
        self._rows.append((step, int(tokens), float(seconds), loss, bits))
        if len(self._rows) >= 2 * _MOST_POINTS:
            self._rows, self._stride = self._rows[::2], 2 * (self._stride or 1)

    def curve(self) -> Curve:
        return Curve(*map(tuple, zip(*self._rows, strict=True))) if self._rows else Curve()


def read_curves(run: Run) -> tuple[Curve, Curve]:
    """Train and val loss as metrics.jsonl has them."""
    train, val = _Points(), _Points()
    for line in run.metric_lines():
        if row := metric_row(line):
            train.add(row, "train_loss")
            val.add(row, "val_loss")
    return train.curve(), val.curve()


def last_sample(run: Run) -> tuple[int | None, str]:
    """The newest sample and its step; (None, "") where there is none that can be read."""
    try:
        if run.samples.is_symlink():
            return None, ""
        name = max(entry.name for entry in run.samples.iterdir() if entry.match("step-*.txt"))
        path = run.samples / name
        if path.is_symlink() or not path.is_file():
            return None, ""
        with path.open("rb") as file:
            text = file.read(_MOST_SAMPLE).decode(errors="replace")
        return int(name[len("step-") : -len(".txt")]), text
    except (OSError, ValueError):
        return None, ""
