"""Compares runs: which settings differ, how the losses went, what each model generates.

Input: runs, whose files may be damaged. Output: frozen values for a terminal, JSON or a page, which know
nothing of how they are shown. Reads experiment.toml, run.json, metrics.jsonl and the last sample of each run,
in bounded memory; loads no plugin and no weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from gptkit.events import RunStatus
from gptkit.runs.metrics import Curve, Curves
from gptkit.runs.run import Run, Sample
from gptkit.runs.summary import RunSummary, Settings, Value, flatten, read_settings, summarize

# Settings that do not change how a run is trained, so that runs of one group may differ in them
_NOT_TRAINED = ("seed", "name")
# What a run was trained on and started from, of run.json
_ORIGIN = ("dataset.sha256", "loaded_from.run", "loaded_from.step")

_LOSSLESS = (None, "char", "byte", "bigram", "bpe")  # tokenizers that return every text

_MAX_IN_TITLE = 2  # settings in the title of a group
_LABEL = re.compile(r"[\w .,+-]{1,40}", re.ASCII)


@dataclass(frozen=True)
class ComparedRun:
    """A run in a comparison. What is not recorded is None, or empty."""

    summary: RunSummary
    folder: Path
    settings: Settings  # of the resolved experiment, by dotted key: "model.n_embd"
    facts: Settings  # of run.json, by dotted key: "tokenizer.vocab_size", "dataset.sha256"
    train: Curve  # nats per token
    val: Curve
    last_sample: Sample | None

    @property
    def id(self) -> str:
        return self.summary.id


@dataclass(frozen=True)
class Spread:
    """One number of several runs."""

    count: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed (and name); a run without replicas forms a group of one."""

    title: str  # what distinguishes it: "rope (3 runs)", "n_embd 64"; else its ids, "a-1 and 2 more"
    members: tuple[int, ...]  # positions in Comparison.runs
    best_val_loss: Spread | None  # of those members that have one
    best_bits_per_byte: Spread | None


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs, with its value for each group; None if it is not set.

    Values that differ within a group, such as its seeds, are joined: "1, 2, 3".
    """

    key: str
    values: tuple[Value | None, ...]


@dataclass(frozen=True)
class Comparison:
    """The whole comparison. `notes` are sentences on values that do not compare."""

    runs: tuple[ComparedRun, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    in_bits: bool = False  # the tokenizers differ, so that only bits per byte compare


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Compares the runs in the given order. What cannot be read of one is left out."""
    compared = tuple(map(_read, runs))
    groups = _groups(compared)
    differences = _differences(compared, groups)
    in_bits = len({run.facts.get("tokenizer.sha256") for run in compared}) > 1
    return Comparison(compared, _titled(groups, differences), differences, _notes(compared, in_bits), in_bits)


def _read(run: Run) -> ComparedRun:
    curves = Curves()
    with suppress(OSError):
        curves = run.metrics_log.curves(("train_loss", "val_loss"))
    record, val = run.read_record_or_empty(), curves["val_loss"]
    if record.tokenizer.lossless is False:
        val = replace(val, bits_per_byte=(None,) * len(val))
    return ComparedRun(
        summary=summarize(run, curves=curves),
        folder=run.path,
        settings=read_settings(run),
        facts=flatten(record.to_dict()),
        train=curves["train_loss"],
        val=val,
        last_sample=run.last_sample(),
    )


# Groups


def _groups(runs: Sequence[ComparedRun]) -> tuple[Group, ...]:
    together: dict[object, list[int]] = {}
    for position, run in enumerate(runs):
        together.setdefault(_trained_as(run, position), []).append(position)
    return tuple(_group(runs, members) for members in together.values())


def _trained_as(run: ComparedRun, position: int) -> object:
    """Equal for runs that differ only in their seed: same settings, text and source, and same progress."""
    if not run.settings:
        return position
    settings = frozenset(  # with the type, as true is 1 for Python
        (key, type(value), value) for key, value in run.settings.items() if key not in _NOT_TRAINED
    )
    origin = tuple(run.facts.get(key) for key in _ORIGIN)
    finished = run.summary.status is RunStatus.FINISHED
    return settings, origin, RunStatus.FINISHED if finished else run.summary.step


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
    """The groups with titles: their names, else the values of a setting or two, else the id of a run."""
    keys = [one.key for one in differences]
    names = [one for one in differences if one.key == "name"]
    settings = [
        one
        for one in differences
        if one.key not in (*_NOT_TRAINED, *_ORIGIN) and one.key.rpartition(".")[0] not in keys
    ]
    for chosen in (names, settings if len(settings) <= _MAX_IN_TITLE else []):
        labels = [
            ", ".join(_label(one.key, one.values[position]) for one in chosen)
            for position in range(len(groups))
        ]
        if len(set(labels)) == len(groups) and all(map(_LABEL.fullmatch, labels)):
            counts = [len(group.members) for group in groups]
            return tuple(
                replace(group, title=f"{label} ({count} runs)" if count > 1 else label)
                for group, label, count in zip(groups, labels, counts, strict=True)
            )
    return tuple(groups)


def _label(key: str, value: Value | None) -> str:
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
    different = []
    for key in keys:
        values = [run.settings.get(key) for run in runs]
        if any(_other(value, values[0]) for value in values):
            different.append(Difference(key, tuple(_of_group(values, group) for group in groups)))
    for key in _ORIGIN:
        values = [run.facts.get(key) for run in runs]
        if any(_other(value, values[0]) for value in values):
            different.append(Difference(key, tuple(_of_group(values, group) for group in groups)))
    return tuple(different)


def _other(value: Value | None, than: Value | None) -> bool:
    """Whether two values differ; true is not 1, unlike in Python."""
    return value != than or isinstance(value, bool) != isinstance(than, bool)


def _of_group(values: Sequence[Value | None], group: Group) -> Value | None:
    ours = list(dict.fromkeys(values[member] for member in group.members))
    return ours[0] if len(ours) == 1 else ", ".join(str(value) for value in ours if value is not None)


def _notes(runs: Sequence[ComparedRun], in_bits: bool) -> tuple[str, ...]:
    notes = []
    if in_bits:
        notes += _notes_on_tokenizers(runs)
    if len({run.facts.get("dataset.sha256") for run in runs}) > 1:
        notes.append("the texts differ, so no loss of one compares with that of another.")
    elif len({run.settings.get("data.val_fraction") for run in runs}) > 1:
        notes.append("the val splits differ (data.val_fraction), so val losses compare only roughly.")
    elif len({run.facts.get("dataset.val_sha256") for run in runs}) > 1:
        notes.append("the val texts differ (data.val), so val losses compare only roughly.")
    elif len({run.facts.get("evaluation") for run in runs}) > 1:
        notes.append(
            "some runs are of gptkit 0.1.0, which left the last, shorter window of the val split out, so val "
            "losses compare only roughly."
        )
    return tuple(notes)


def _notes_on_tokenizers(runs: Sequence[ComparedRun]) -> list[str]:
    """What compares between runs whose tokenizers differ."""
    by_tokenizer = {run.facts.get("tokenizer.sha256"): run for run in reversed(runs)}  # the first of each
    lossy = [run for run in by_tokenizer.values() if run.facts.get("tokenizer.lossless") is False]
    comparable = len(by_tokenizer) - len(lossy) > 1
    notes = [
        "the tokenizers differ, so losses in nats per token do not compare"
        + ("; bits per byte do." if comparable else ".")
    ]
    notes += [
        f"the tokenizer of {run.id} does not return the text "
        f"({run.facts.get('tokenizer.example') or 'no example is recorded'}), so its losses compare with "
        "those of no other tokenizer."
        for run in reversed(lossy)
    ]
    notes += [
        f"whether the tokenizer of {run.id} returns the text is not recorded; if not, its bits per byte do "
        "not compare."
        for run in reversed(by_tokenizer.values())
        if run.facts.get("tokenizer.lossless") is None and run.facts.get("tokenizer.type") not in _LOSSLESS
    ]
    return notes
