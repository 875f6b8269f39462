"""The summary of a run, for a line of a table; its details; its settings and facts by dotted key.

Input: a run, whose files may be damaged. Output: frozen values with short texts and plain numbers, which know
nothing of how they are shown; what cannot be read is left out. Loads no plugin and no torch, so that a
thousand runs are listed in a second.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from gptkit.errors import CheckpointError
from gptkit.events import RunStatus
from gptkit.files import MAX_DEPTH, parse_toml
from gptkit.plugins import registry
from gptkit.runs.folder import DEFAULT_RUNS_FOLDER, SavedStep, saved_steps, size_of
from gptkit.runs.metrics import Curves
from gptkit.runs.record import RunRecord
from gptkit.runs.run import Run, is_locked

if TYPE_CHECKING:
    from gptkit.experiment.fields import ExperimentField

Value = str | int | float | bool
Settings = Mapping[str, Value]

_MAX_EXPERIMENT, _MAX_KEYS, _MAX_TEXT, _MAX_CELL = 1_000_000, 2_000, 1_000, 400  # bytes, keys, characters

PLUGIN_TABLES = {
    "tokenizer": registry.TOKENIZERS,
    "data.dataset": registry.DATASETS,
    "model.position": registry.POSITIONS,
}
"""Tables that name a plugin by their type, and the plugin's family; their other keys are its options."""

_SHORT_NAMES = {
    "context_length": "c",
    "n_embd": "e",
    "n_head": "h",
    "n_layer": "b",
    "batch_size": "B",
    "learning_rate": "lr",
    "dropout": "drop",
    "position": "",
    "optimizer": "",
}


@dataclass(frozen=True)
class RunSummary:
    """A run in one line of a table; what is not recorded is empty."""

    id: str
    status: RunStatus
    dataset: str
    hyperparameters: str
    step: int
    target_step: int
    best_val_loss: float | None
    best_bits_per_byte: float | None  # comparable across tokenizers
    started: str
    ended: str = ""
    best_step: int | None = None
    tokens: int | None = None  # trained on
    seconds: float | None = None  # of training
    parameters: int | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole training."""
        measured = self.tokens and self.seconds and self.seconds >= 0.001
        return self.tokens / self.seconds if measured else None  # type: ignore[operator]


@dataclass(frozen=True)
class PluginDetails:
    """A plugin of the run, with every option that it was configured with."""

    kind: str  # "tokenizer", "model.position", "data.dataset"
    name: str
    options: dict[str, Value]
    source: str  # "gptkit 0.1.0"; "" where not recorded


@dataclass(frozen=True)
class RunDetails:
    """A run in full. What is not recorded is None, or empty."""

    summary: RunSummary
    folder: str
    bytes: int  # of all its files
    reason: str  # why it finished before its last step
    minutes: float | None  # the time budget
    train_loss: float | None  # the last one logged, nats per token
    val_loss: float | None
    val_bits_per_byte: float | None
    tokens_per_second: float | None
    settings: dict[str, Value]  # those that differ from the defaults; options of plugins are in `plugins`
    experiment: dict[str, Value]  # all of them, as resolved
    plugins: tuple[PluginDetails, ...]
    dataset: dict[str, Value]  # of run.json
    tokenizer: dict[str, Value]
    environment: dict[str, Value]
    loaded_from: dict[str, Value]
    command: str
    checkpoints: tuple[SavedStep, ...]
    commands: tuple[tuple[str, str], ...]  # commands to use next: the purpose, and the command


def summarize(run: Run, record: RunRecord | None = None, curves: Curves | None = None) -> RunSummary:
    """One run; `record`, and `curves` with that of the val loss, save reading them again."""
    try:
        record = record or run.read_record()
    except CheckpointError:
        return RunSummary(run.id, RunStatus.UNREADABLE, "", "", 0, 0, None, None, "")
    status = record.status or RunStatus.UNKNOWN
    step, best, bits = record.step or 0, record.best_val_loss, record.best_bits_per_byte
    if status.is_active:
        status = RunStatus.RUNNING if is_locked(run) else RunStatus.CRASHED
        step, best, bits = _reached(run, curves)
    return RunSummary(
        id=run.id,
        status=status,
        dataset=_cell(record.dataset.title),
        hyperparameters=_hyperparameters(record),
        step=step,
        target_step=record.target_step or 0,
        best_val_loss=best,
        best_bits_per_byte=None if record.tokenizer.lossless is False else bits,
        started=_cell(record.started),
        ended=_cell(record.ended),
        best_step=record.best_step,
        tokens=record.tokens,
        seconds=record.seconds,
        parameters=record.parameters,
    )


def describe_run(run: Run) -> RunDetails:
    """Never raises for the contents of a file."""
    record = run.read_record_or_empty()
    summary = summarize(run)
    experiment, facts = read_settings(run), flatten(record.to_dict())
    losses: dict[str, float] = {}
    with suppress(OSError):
        losses = run.metrics_log.last_values(("train_loss", "val_loss", "bits_per_byte"))
    minutes = experiment.get("training.minutes")
    checkpoints = tuple(saved_steps(run.checkpoints))
    return RunDetails(
        summary=summary,
        folder=str(run.path),
        bytes=size_of(run.path),
        reason=_cell(record.reason),
        minutes=minutes if isinstance(minutes, int | float) else None,
        train_loss=losses.get("train_loss"),
        val_loss=losses.get("val_loss"),
        val_bits_per_byte=None if record.tokenizer.lossless is False else losses.get("bits_per_byte"),
        tokens_per_second=summary.tokens_per_second,
        settings=_differing(experiment),
        experiment=experiment,
        plugins=_plugins(experiment, record),
        dataset=_under(facts, "dataset"),
        tokenizer=_under(facts, "tokenizer"),
        environment=_under(facts, "environment"),
        loaded_from=_under(facts, "loaded_from"),
        command=_cell(record.command),
        checkpoints=checkpoints,
        commands=_commands(run, summary, bool(checkpoints)),
    )


def read_settings(run: Run) -> dict[str, Value]:
    """The resolved experiment as `model.n_embd` -> 128; `model.position` is its type, its options beside it.

    Empty if the file cannot be read.
    """
    path = run.experiment_file
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_EXPERIMENT:
            return {}
        table = parse_toml(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return {_short_key(key): value for key, value in flatten(table).items()}


def fields_by_key(settings: Settings) -> dict[str, ExperimentField]:
    """The fields of an experiment with the optimizer of these settings, by the keys of `read_settings`."""
    from gptkit.experiment.fields import fields_of

    return {
        _short_key(key): field for key, field in fields_of(str(settings.get("optimizer", "muon"))).items()
    }


def flatten(table: Mapping[str, Any]) -> dict[str, Value]:
    """Values of nested tables by dotted key, at most 2,000; a list is one text of its values."""
    flat: dict[str, Value] = {}
    for key, value in _leaves(table, "", MAX_DEPTH):
        if len(flat) == _MAX_KEYS:
            break
        plain = plain_value(value)
        if plain is not None and len(key) <= _MAX_TEXT:
            flat[key] = plain
    return flat


def plain_value(value: object) -> Value | None:
    """A short text or a number that can be shown and compared; None for all else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, str):
        return str(value)[:_MAX_TEXT]
    if isinstance(value, list):
        words = [plain_value(item) for item in value[:100] if not isinstance(item, list)]
        return ", ".join(str(word) for word in words if word is not None)[:_MAX_TEXT]
    return None


def _leaves(table: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            if depth:
                yield from _leaves(value, f"{prefix}{key}.", depth - 1)
        else:
            yield prefix + key, value


def _short_key(key: str) -> str:
    """`model.position` for `model.position.type`, as an experiment file may have it."""
    table = key.removesuffix(".type")
    return table if table in PLUGIN_TABLES or table == "optimizer" else key


def _under(flat: Settings, table: str) -> dict[str, Value]:
    return {
        key.removeprefix(f"{table}."): value for key, value in flat.items() if key.startswith(f"{table}.")
    }


def _reached(run: Run, curves: Curves | None) -> tuple[int, float | None, float | None]:
    """The last step, best val loss and its bits per byte, which run.json has only when a run has ended."""
    if curves is not None:
        val = curves["val_loss"]
        return curves.last_step, *(
            (val.values[val.best], val.bits_per_byte[val.best]) if val else (None, None)
        )
    with suppress(OSError):
        best, bits = run.metrics_log.best() or (None, None)
        return run.metrics_log.last_step(), best, bits
    return 0, None, None


def _cell(text: str | None) -> str:
    return (text or "")[:_MAX_CELL]


def _hyperparameters(record: RunRecord) -> str:
    values = ((sign, getattr(record.hyperparameters, name)) for name, sign in _SHORT_NAMES.items())
    return " ".join(_cell(f"{sign}{value}") for sign, value in values if value is not None)


def _differing(experiment: Settings) -> dict[str, Value]:
    """Settings that are not the schema's defaults, without a plugin's own options and the run's name."""
    defaults = {key: plain_value(field.default) for key, field in fields_by_key(experiment).items()}
    options = tuple(f"{table}." for table in PLUGIN_TABLES)
    return {
        key: value
        for key, value in experiment.items()
        if not key.startswith(options) and key != "name" and defaults.get(key) != value
    }


def _plugins(experiment: Settings, record: RunRecord) -> tuple[PluginDetails, ...]:
    origins = {(origin.family, origin.name): origin for origin in record.plugins or ()}
    found = []
    for table, family in PLUGIN_TABLES.items():
        if table in experiment:
            name = str(experiment[table])
            origin = origins.get((family, name))
            source = f"{_cell(origin.distribution)} {_cell(origin.version)}".strip() if origin else ""
            found.append(PluginDetails(table, name, _under(experiment, table), source))
    return tuple(found)


def _commands(run: Run, summary: RunSummary, saved: bool) -> tuple[tuple[str, str], ...]:
    is_word = run.path.parent == DEFAULT_RUNS_FOLDER and run.id != "latest" and not run.id.startswith("-")
    name = shlex.quote(run.id if is_word else str(run.path))
    commands = []
    if saved:
        commands.append(("write text", f"gptkit generate {name}"))
        if summary.status not in (RunStatus.FINISHED, RunStatus.RUNNING):
            commands.append(("go on", f"gptkit resume {name}"))
        commands.append(("check its files", f"gptkit runs verify {name}"))
    if summary.status is not RunStatus.RUNNING:
        commands.append(("train it again, and compare", f"gptkit rerun {name}"))
    return tuple(commands)
