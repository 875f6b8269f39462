"""Compares runs: which settings differ, how the losses went, what each model generates, which is better.

Input: runs, whose files may be damaged. Output: frozen values for a terminal, JSON or a page, which know
nothing of how they are shown. Reads experiment.toml, run.json, metrics.jsonl, evaluations.json and the last
sample of each run, in bounded memory; loads no plugin and no weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from gptkit.errors import UsageError
from gptkit.events import RunStatus
from gptkit.runs.metrics import Curve, Curves
from gptkit.runs.record import RunRecord
from gptkit.runs.run import Run, Sample
from gptkit.runs.summary import RunSummary, Settings, Value, flatten, read_settings, summarize
from gptkit.runs.verdict import Doubt, SeedLoss, Verdict, decide, distinct, least_seeds

# Settings that do not change how a run is trained, so that runs of one group may differ in them
_NOT_TRAINED = ("seed", "name")
# What a run was trained on and started from, of run.json
_ORIGIN = ("dataset.sha256", "loaded_from.run", "loaded_from.step")

_LOSSLESS = (None, "char", "byte", "bigram", "bpe")  # tokenizers that return every text

_NOT_COMPARED = "their val losses do not compare."
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
    block_losses: tuple[float, ...] = ()  # of the best evaluation, nats per token; empty where not recorded

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
class Decision:
    """Whether a group is better than the first one, the baseline."""

    group: int  # its position in Comparison.groups
    verdict: Verdict  # in nats per token; in bits per byte where the tokenizers differ
    bits_per_byte: float | None  # the difference; None where bits per byte are not valid
    seconds_per_seed: float | None  # of training, the mean over the runs of both

    @property
    def advice(self) -> str:
        """Why there is no answer, and how many more seeds would probably have one; "" where there is."""
        verdict = self.verdict
        least = least_seeds(verdict.comparisons)
        match verdict.doubt:
            case None:
                return ""
            case Doubt.ONE_SEED:
                return f"one seed has no spread to compare a difference with; {least} seeds of each may tell"
            case Doubt.TOO_FEW_SEEDS:
                p_value = verdict.least_p_value * verdict.comparisons
                why = f"with so few seeds no difference has a p-value below {p_value:.2g}"
            case Doubt.WITHIN_SPREAD:
                why = "the difference is within the spread between seeds and blocks of text"
        if verdict.seeds_needed is None:
            return f"{why}; to tell one of this size, over 1,000 seeds or a longer val split are needed"
        more = max(1, verdict.seeds_needed - min(verdict.seeds))
        time = "" if self.seconds_per_seed is None else f" ({self.seconds_per_seed:.3g} s of training a run)"
        seeds = f"{more} more seed{'s' if more > 1 else ''} of each{time}"
        return f"{why}; {seeds} would probably tell one of this size"


@dataclass(frozen=True)
class Comparison:
    """The whole comparison. `notes` are sentences on values that do not compare."""

    runs: tuple[ComparedRun, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    in_bits: bool = False  # the tokenizers differ, so that only bits per byte compare
    decisions: tuple[Decision, ...] = ()  # on each group but the first, where `with_decisions` made them


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
        block_losses=_best_blocks(run, record),
    )


def _best_blocks(run: Run, record: RunRecord) -> tuple[float, ...]:
    """Empty where those of the recorded best evaluation are not there."""
    best = run.read_evaluations_or_empty().best
    return best.block_losses if best.step is not None and best.step == record.best_step else ()


# Verdicts


def with_decisions(comparison: Comparison) -> Comparison:
    """With a verdict on each group against the first, by the best val losses of its runs.

    Raises UsageError where there is one group, or where its runs do not compare.
    """
    runs, groups = comparison.runs, comparison.groups
    _require_comparable(comparison)
    losses = [
        [_seed_loss(runs[member], in_bits=comparison.in_bits) for member in group.members] for group in groups
    ]
    verdicts = decide(losses[0], losses[1:])
    decisions = []
    for position, verdict in enumerate(verdicts, start=1):
        ours = [runs[member] for group in (groups[0], groups[position]) for member in group.members]
        seconds = [run.summary.seconds for run in ours if run.summary.seconds is not None]
        bits = verdict.difference if comparison.in_bits else _in_bits(verdict.difference, ours[0])
        decisions.append(Decision(position, verdict, bits, fmean(seconds) if seconds else None))
    notes = [
        f"runs of one seed count once: {len(group.members)} runs of {group.title} have {count} seeds."
        for group, each in zip(groups, losses, strict=True)
        if (count := len(distinct(each))) < len(each)
    ]
    evaluations = {len(run.val) for run in runs}
    if len(evaluations) > 1:
        notes.append(
            f"the best of {max(evaluations)} evaluations is lower than that of {min(evaluations)} for the "
            "same model; evaluate all runs equally often."
        )
    if not comparison.in_bits and any(verdict.blocks == 0 for verdict in verdicts):
        notes.append(
            "not every run has recorded its losses by block (evaluations.json), so intervals count the "
            "spread between seeds, not between parts of the text."
        )
    return replace(comparison, decisions=tuple(decisions), notes=(*comparison.notes, *notes))


def evidence(verdict: Verdict) -> str:
    """What a verdict is based on: "5 and 5 seeds, paired, 128 blocks; p for 2 comparisons"."""
    words = f"{verdict.seeds[0]} and {verdict.seeds[1]} seeds"
    words += ", paired" if verdict.paired else ""
    words += f", {verdict.blocks} blocks of the val split" if verdict.blocks else ", no blocks recorded"
    return words + (f"; p is for {verdict.comparisons} comparisons" if verdict.comparisons > 1 else "")


def _seed_loss(run: ComparedRun, *, in_bits: bool) -> SeedLoss:
    loss = run.summary.best_bits_per_byte if in_bits else run.summary.best_val_loss
    assert loss is not None
    return SeedLoss(run.settings.get("seed", run.id), loss, () if in_bits else run.block_losses)


def _in_bits(difference: float, run: ComparedRun) -> float | None:
    """A difference in nats per token, by the tokens per byte of the val split."""
    nats, bits = run.summary.best_val_loss, run.summary.best_bits_per_byte
    return difference * bits / nats if nats and bits is not None else None


def _require_comparable(comparison: Comparison) -> None:
    runs = comparison.runs
    for run in runs:
        summary = run.summary
        if summary.status is not RunStatus.FINISHED or summary.best_val_loss is None:
            problem = summary.status if summary.status is not RunStatus.FINISHED else "without a val loss"
            raise UsageError(f"--decide compares finished runs, and {run.id} is {problem}; leave it out.")
    for key, what in (
        ("dataset.sha256", "texts"),
        ("data.val_fraction", "val splits (data.val_fraction)"),
        ("evaluation", "rules of evaluation, of gptkit 0.1.0 and later"),
    ):
        first, *others = runs
        for other in others:
            if first.settings.get(key, first.facts.get(key)) != other.settings.get(key, other.facts.get(key)):
                raise UsageError(
                    f"--decide: {first.id} and {other.id} have different {what}; {_NOT_COMPARED}"
                )
    if len({_evaluated_part(run) for run in runs}) > 1:
        raise UsageError(
            "--decide: the runs were evaluated on different parts of the val split (evaluation.eval_tokens, "
            f"model.context_length); {_NOT_COMPARED}"
        )
    if len(comparison.groups) < 2:
        raise UsageError(
            "--decide compares groups of runs, and these differ only by their seed or name.\n"
            "Name runs of another experiment too; the first group is the baseline."
        )
    if comparison.in_bits:
        for run in runs:
            known = run.facts.get("tokenizer.lossless") or run.facts.get("tokenizer.type") in _LOSSLESS
            if not known or run.summary.best_bits_per_byte is None:
                raise UsageError(
                    f"--decide: the tokenizers differ, and that of {run.id} is not known to return the text; "
                    f"{_NOT_COMPARED}"
                )


def _evaluated_part(run: ComparedRun) -> tuple[Value | None, ...]:
    """Equal for runs evaluated on the same part of their split: on all of it, or the same windows."""
    tokens, limit = run.facts.get("tokenizer.val_tokens"), run.settings.get("evaluation.eval_tokens")
    whole = not isinstance(tokens, int) or not isinstance(limit, int) or tokens - 1 <= limit
    return () if whole else (limit, run.settings.get("model.context_length"))


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
