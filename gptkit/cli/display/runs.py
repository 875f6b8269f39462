"""The output of `gptkit runs`, and the verdicts of `gptkit resume --verify` and `gptkit rerun`.

Input: frozen values of gptkit.runs and gptkit.reproduce. Output: standard output, with control characters
escaped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptkit.cli.display.tables import duration, show_table, size_text
from gptkit.cli.streams import log, write_line
from gptkit.runs import Run, RunSummary
from gptkit.runs.folder import foreign_entries, size_of
from gptkit.runs.store import Selected
from gptkit.runs.summary import Value
from gptkit.words import printable

if TYPE_CHECKING:
    from gptkit.reproduce.diff import Comparison
    from gptkit.reproduce.replay import Rerun
    from gptkit.reproduce.verify import Finding
    from gptkit.runs.cleanup import Removable
    from gptkit.runs.summary import PluginDetails, RunDetails

_MOST_OTHERS = 5  # folders that are named

HEADER = ("id", "status", "dataset", "hyperparameters", "steps", "best val loss", "bits/byte", "when")


def show_runs(
    runs: Sequence[Selected], runs_dir: Path, others: Sequence[str] = (), *, chosen: bool = False
) -> None:
    """A table, with a further column for each requested key that has none; `chosen`: by conditions.

    `others` are the folders beside the runs that are none: a line on standard error counts them.
    """
    folder = printable(str(runs_dir))
    if not runs and chosen:
        print(f"No run in {folder} matches.")
    elif not runs:
        print(f"There are no runs in {folder} yet. Make one: gptkit train experiments/shakespeare.toml")
    else:
        more = tuple(map(printable, runs[0].more))
        rows = [(*_cells(found.run), *map(cell, found.more.values())) for found in runs]
        show_table((*HEADER, *more), rows, right=("steps", "best val loss", "bits/byte"))
    if others:
        sys.stdout.flush()
        count = "1 folder is not a run" if len(others) == 1 else f"{len(others)} folders are not runs"
        named = [*map(printable, others[:_MOST_OTHERS]), *["…"] * (len(others) > _MOST_OTHERS)]
        log(f"{count}: {', '.join(named)}")


def _cells(run: RunSummary) -> tuple[str, ...]:
    return tuple(
        printable(word) or "-"
        for word in (
            run.id,
            run.status,
            run.dataset,
            run.hyperparameters,
            f"{run.step}/{run.target_step}" if run.target_step else str(run.step),
            *(
                f"{loss:.4f}" if loss is not None else ""
                for loss in (run.best_val_loss, run.best_bits_per_byte)
            ),
            run.started[:16].replace("T", " "),
        )
    )


def cell(value: Value | None) -> str:
    """A value as in a TOML file, or "-"."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else printable(str(value)) or '""'


def listed(found: Selected, runs_dir: Path) -> dict[str, Any]:
    """A run in `gptkit runs --json`; these names are frozen."""
    run = found.run
    return {
        **asdict(run),
        "target_step": run.target_step or None,
        "started": run.started or None,
        "ended": run.ended or None,
        "folder": str(runs_dir / run.id),
        "fields": found.more,
    }


def print_json(value: object) -> None:
    """ASCII, so that any encoding of the output can express it."""
    print(json.dumps(value, indent=2, allow_nan=False))


def show_details(details: RunDetails) -> None:
    """Facts in two columns, then lists."""
    run = details.summary
    print(printable(f"{run.id}: {run.status}{f' ({details.reason})' if details.reason else ''}"))
    _columns(_facts(details))
    _list("settings that differ from the defaults", _equations(details.settings))
    _list("plugins", map(_plugin, details.plugins))
    kept = [(one.step, f"step {one.step}", size_text(one.bytes)) for one in details.checkpoints]
    last = details.checkpoints[-1].step if kept else None
    marks = {run.best_step: "best", last: "last"} if run.best_step != last else {last: "best, last"}
    _list("checkpoints", (f"{name}  {much}  {marks.get(step, '')}".rstrip() for step, name, much in kept))
    _list("environment", _equations(details.environment))
    _list("go on", (f"{command}  # {what}" for what, command in details.commands))


def _facts(details: RunDetails) -> dict[str, str]:
    run, text, words = details.summary, details.dataset, details.tokenizer
    of = f" of {run.target_step}" if run.target_step else ""
    of = f", {details.minutes:g} minutes" if details.minutes else of
    trained = [f"step {run.step}{of}"]
    trained += [f"{run.tokens:,} tokens"] if run.tokens else []
    trained += [f"{duration(run.seconds)} of training"] if run.seconds is not None else []
    trained += [f"{details.tokens_per_second:,.0f} tokens/s"] if details.tokens_per_second else []
    at = f" at step {run.best_step}" if run.best_step is not None else ""
    loaded = details.loaded_from
    tokens = [
        f"{words[key]:,} tokens to {what}"
        for key, what in (("train_tokens", "train on"), ("val_tokens", "evaluate on"))
        if isinstance(words.get(key), int)
    ]
    return {
        "folder": f"{details.folder} ({size_text(details.bytes)})",
        "started": run.started[:19].replace("T", " "),
        "ended": run.ended[:19].replace("T", " "),
        "trained": ", ".join(trained),
        "best val loss": _loss(run.best_val_loss, run.best_bits_per_byte) + (at if run.best_val_loss else ""),
        "last val loss": _loss(details.val_loss, details.val_bits_per_byte),
        "train loss": _loss(details.train_loss, None),
        "parameters": f"{run.parameters:,}" if run.parameters else "",
        "dataset": ", ".join(
            [
                run.dataset,
                *([f"{text['characters']:,} characters"] if isinstance(text.get("characters"), int) else []),
                *([f"SHA-256 {str(text['sha256'])[:16]}…"] if "sha256" in text else []),
            ]
        ).lstrip(", "),
        "tokenizer": ", ".join(
            [
                str(words.get("type", "")),
                *(
                    [f"vocabulary {words['vocab_size']:,}"]
                    if isinstance(words.get("vocab_size"), int)
                    else []
                ),
                *tokens,
            ]
        ).lstrip(", "),
        "text lost": _lost(words),
        "loaded from": f"{loaded['run']}, step {loaded.get('step')}" if "run" in loaded else "",
        "command": details.command,
    }


def _loss(nats: float | None, bits: float | None) -> str:
    if nats is None:
        return ""
    return f"{nats:.4f}" + (f" ({bits:.4f} bits/byte)" if bits is not None else "")


def _lost(tokenizer: Mapping[str, Value]) -> str:
    """What the tokenizer does not return, and what follows from it; "" for one that returns the text."""
    if tokenizer.get("lossless") is not False:
        return ""
    fraction, example = tokenizer.get("lost"), tokenizer.get("example")
    much = f"{fraction:.1%} of the characters" if isinstance(fraction, float) else "some characters"
    return f"{much}, such as {example}; so there are no bits per byte"


def _columns(facts: dict[str, str]) -> None:
    width = max(map(len, facts))
    for name, text in facts.items():
        if text:
            print(f"  {name:<{width}}  {printable(text)}")


def _list(title: str, lines: Iterable[str]) -> None:
    shown = [f"  {printable(line)}" for line in lines]
    if shown:
        print("\n".join([f"\n{title}", *shown]))


def _equations(values: Mapping[str, Value]) -> Iterator[str]:
    return (f"{key} = {cell(value)}" for key, value in values.items())


def _plugin(plugin: PluginDetails) -> str:
    options = ", ".join(_equations(plugin.options))
    source = f"  # {plugin.source}" if plugin.source else ""
    return f"{plugin.kind} = {plugin.name}{f' ({options})' if options else ''}{source}"


def details_as_json(details: RunDetails) -> dict[str, Any]:
    """A run in `gptkit runs show --json`; these names are frozen."""
    whole = asdict(details)
    run = whole.pop("summary")
    whole["checkpoints"] = [{"step": one.step, "bytes": one.bytes} for one in details.checkpoints]
    whole["commands"] = dict(details.commands)
    return {**run, "target_step": run["target_step"] or None, **whole}


def deletion_question(runs: Sequence[Run]) -> str:
    lines = []
    for run in runs:
        foreign = foreign_entries(run.path)
        also = (
            f", with {', '.join(map(printable, foreign[:5]))}, which gptkit did not make" if foreign else ""
        )
        lines.append(f"{printable(str(run.path))} ({size_text(size_of(run.path))}{also})")
    return "\n".join([*lines, f"Delete {'this run' if len(runs) == 1 else f'these {len(runs)} runs'}? [y/N]"])


def show_removable(things: Sequence[Removable], runs_dir: Path) -> None:
    if not things:
        print(f"Nothing in {runs_dir} can be removed.")
        return
    rows = [(printable(str(thing.path)), thing.description, size_text(thing.bytes)) for thing in things]
    total = size_text(sum(thing.bytes for thing in things))
    show_table(("path", "what it is", "size"), [*rows, ("total", "", total)], right=("size",))
    print("Nothing was removed; to remove all of it: gptkit runs clean --yes")


def show_removed(path: str, freed: int) -> None:
    write_line(f"removed {printable(path)} ({size_text(freed)})")


def show_kept(path: str, why: str) -> None:
    write_line(f"kept    {printable(path)}: {why}")


def show_freed(freed: int) -> None:
    write_line(f"{size_text(freed)} freed")


def show_finding(finding: Finding) -> None:
    """One line, whatever the file contains."""
    line = f"{finding.name}: {finding.message}" if finding.message else finding.name
    print(f"{finding.verdict:<5} {printable(line.replace(chr(10), ' '))}", flush=True)


def describe_replay(replay: Comparison) -> str:
    """Whether the steps of a run that were trained again are identical, and if not, what may be the cause."""
    steps = f"steps {replay.start + 1} to {replay.end}"
    environment = ", ".join(map(printable, replay.differences))
    if replay.identical:
        verdict = (
            f"identical: {steps}, trained again, gave the same weights, optimizer state and "
            f"{replay.compared} recorded losses, bit for bit"
        )
        return verdict + _although(environment)
    wrong = _what_differs(replay.tensors, replay.steps)
    return f"different: {steps}, trained again, gave other values of {wrong}.\n{_why(environment)}"


def describe_rerun(rerun: Rerun) -> str:
    """The same for a whole run that was trained again."""
    same, again = rerun.comparison, rerun.trained.run.id
    if same is None:
        return ""
    environment = ", ".join(map(printable, same.differences))
    if same.identical:
        weights = f"the same weights and optimizer state at step {same.step}" if same.step else ""
        losses = f"{same.compared} recorded losses" if same.compared else ""
        unsaved = (
            "" if same.step else "\n(there is no checkpoint that both have, so weights were not compared)"
        )
        verdict = (
            f"identical: {again} has {' and '.join(filter(None, (weights, losses)))} as {rerun.run.id}, "
            f"bit for bit{unsaved}"
        )
        return verdict + _although(environment)
    at = f", at step {same.step}" if same.tensors else ""
    first = f"The first step whose loss differs: {same.steps[0]}. " if same.steps else ""
    wrong = _what_differs(same.tensors, same.steps, at)
    return f"different: {again} has other values of {wrong} than {rerun.run.id}.\n{first}{_why(environment)}"


def _although(environment: str) -> str:
    return f"\n(although the environment differs from the recorded one: {environment})" if environment else ""


def _why(environment: str) -> str:
    if environment:
        return f"Differences from the recorded environment: {environment}"
    return (
        "The environment is as recorded, so the cause is the machine itself or a file of the run "
        "('gptkit runs verify')."
    )


def _what_differs(tensors: Sequence[str], steps: Sequence[int], at: str = "") -> str:
    wrong = [f"{len(tensors)} tensors ({_some(tensors)}{at})"] if tensors else []
    if steps:
        wrong.append(f"the losses of {len(steps)} steps ({_some(map(str, steps))})")
    return " and ".join(wrong)


def _some(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(map(printable, first[:5])) + (", …" if len(first) > 5 else "")
