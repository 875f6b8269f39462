"""One run in full: what it is, how it went, what it was set to, what it has kept, how to go on.

In: a run folder, which a stranger may have written. Out: a frozen value that knows nothing of how it is
shown. Loads no plugin and no torch.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from gptkit.runs.contents import SavedStep, saved_steps, size_of
from gptkit.runs.run import DEFAULT_RUNS_FOLDER, Run
from gptkit.runs.settings import PLUGIN_TABLES, Value, flatten, read_settings
from gptkit.runs.summaries import RunSummary, last_losses, number, record_of, summarise, text

_MOST_PLUGINS = 100


@dataclass(frozen=True)
class Plugin:
    """A plugin of the run, with every option that it was given; where it came from, if recorded."""

    kind: str  # "tokenizer", "model.position", "data.dataset"
    name: str
    options: dict[str, Value]
    source: str  # "gptkit 0.1.0"


@dataclass(frozen=True)
class RunDetails:
    """What the files do not say is None, or empty."""

    summary: RunSummary
    folder: str
    bytes: int  # all of its files
    reason: str  # why it is finished short of its last step
    minutes: float | None  # that it was to train, where the clock ended it
    train_loss: float | None  # the last that was logged, nats a token
    val_loss: float | None
    val_bits_per_byte: float | None
    tokens_per_second: float | None  # over the whole training
    settings: dict[str, Value]  # those that differ from the defaults; plugins' options are in `plugins`
    experiment: dict[str, Value]  # all of them, as resolved
    plugins: tuple[Plugin, ...]
    dataset: dict[str, Value]  # of run.json
    tokenizer: dict[str, Value]
    environment: dict[str, Value]
    loaded_from: dict[str, Value]
    command: str
    checkpoints: tuple[SavedStep, ...]
    commands: tuple[tuple[str, str], ...]  # how to go on: what for, and the command


def describe_run(run: Run) -> RunDetails:
    """Never raises for what the files say: what cannot be read is left out."""
    record = record_of(run) or {}
    summary = summarise(run, record or None)
    experiment = read_settings(run)
    train_loss, val_loss, bits = last_losses(run)
    tokens, seconds = summary.tokens, summary.seconds
    minutes = experiment.get("training.minutes")
    checkpoints = tuple(saved_steps(run))
    return RunDetails(
        summary=summary,
        folder=str(run.path),
        bytes=size_of(run.path),
        reason=text(record.get("reason")),
        minutes=number(minutes),
        train_loss=train_loss,
        val_loss=val_loss,
        val_bits_per_byte=bits,
        tokens_per_second=tokens / seconds if tokens and seconds and seconds >= 0.001 else None,
        settings=differing(experiment),
        experiment=experiment,
        plugins=_plugins(experiment, record),
        dataset=_table(record, "dataset"),
        tokenizer=_table(record, "tokenizer"),
        environment=_table(record, "environment"),
        loaded_from=_table(record, "loaded_from"),
        command=text(record.get("command")),
        checkpoints=checkpoints,
        commands=_commands(run, summary, bool(checkpoints)),
    )


def differing(experiment: dict[str, Value]) -> dict[str, Value]:
    """Settings that are not the schema's defaults, without a plugin's own options and the run's name."""
    defaults = _defaults(str(experiment.get("optimizer", "")))
    return {
        key: value
        for key, value in experiment.items()
        if not key.startswith(tuple(f"{table}." for table in PLUGIN_TABLES))
        and key != "name"
        and (key not in defaults or defaults[key] != value)
    }


def _defaults(optimizer: str) -> dict[str, Value]:
    """Of the schema with that optimizer; plugins and the optimizer by name, as in `read_settings`."""
    from gptkit.experiment.fields import fields_of
    from gptkit.runs.settings import short_name

    known = fields_of(optimizer or "muon").values()
    return flatten({short_name(field.key): field.default for field in known})


def _plugins(experiment: dict[str, Value], record: dict[str, Any]) -> tuple[Plugin, ...]:
    listed = record.get("plugins")
    sources = {}
    for origin in listed[:_MOST_PLUGINS] if isinstance(listed, list) else ():
        if isinstance(origin, dict):
            name, family = text(origin.get("name")), text(origin.get("family"))
            sources[family, name] = (
                f"{text(origin.get('distribution'))} {text(origin.get('version'))}".strip()
            )
    found = []
    for table, family in PLUGIN_TABLES.items():
        if table in experiment:
            name = str(experiment[table])
            options = {
                key.removeprefix(f"{table}."): value
                for key, value in experiment.items()
                if key.startswith(f"{table}.")
            }
            found.append(Plugin(table, name, options, sources.get((family, name), "")))
    return tuple(found)


def _table(record: dict[str, Any], key: str) -> dict[str, Value]:
    table = record.get(key)
    return flatten(table) if isinstance(table, dict) else {}


def _commands(run: Run, summary: RunSummary, saved: bool) -> tuple[tuple[str, str], ...]:
    words = [str(run.path)] if run.path.parent != DEFAULT_RUNS_FOLDER else [run.id]
    name = shlex.join(words)
    commands = []
    if saved:
        commands.append(("write text", f"gptkit generate {name}"))
        if summary.status not in ("finished", "running"):
            commands.append(("go on", f"gptkit resume {name}"))
        commands.append(("check its files", f"gptkit runs verify {name}"))
    if summary.status != "running":
        commands.append(("train it again, and compare", f"gptkit rerun {name}"))
    return tuple(commands)
