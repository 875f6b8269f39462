"""Experiment files: read, overridden, checked, written.

Input: a TOML file or a dict, and overrides. Output: an `Experiment` with every option of its plugins
explicit, or one error with all problems. Loads the plugins that the experiment names, to check their options;
whether their data is available is checked when training begins.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from gptkit.errors import ExperimentError, PluginError, Problem, UsageError
from gptkit.experiment.fields import ExperimentField, fields
from gptkit.experiment.messages import problems_of, render
from gptkit.experiment.overrides import ALTERNATIVES, QUESTIONS, Override, keys
from gptkit.experiment.schema import MAX_NAME, Experiment, ModelSettings, Name, SamplingSettings
from gptkit.experiment.source import Source, dotted, in_line, show_line
from gptkit.files import MAX_DEPTH, parse_toml
from gptkit.plugins import registry
from gptkit.words import closest

MAX_BYTES = 1_000_000  # a larger file is not an experiment

# The fields that weights depend on: of the model all but these, and the tokenizer
_MAY_DIFFER = ("dropout", "attention_dropout", "init")
_WEIGHTS_DEPEND_ON = (
    *(f"model.{name}" for name in ModelSettings.model_fields if name not in _MAY_DIFFER),
    "tokenizer",
)

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ESCAPE = (
    "between double quotes a backslash begins an escape; put a path between single quotes, or write / in it"
)

Overrides = Sequence[Override | tuple[str, Any]]  # pairs are (dotted key, value)


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment, and its source for messages about it later."""

    experiment: Experiment
    source: Source


def load_experiment(path: Path | str, overrides: Overrides = ()) -> Experiment:
    """The experiment of a TOML file. Its name is the file's, unless it sets one.

    A dataset of a name that no plugin has is the user's own text, looked for when training begins.
    Raises UsageError if there is no such file, ExperimentError, PluginError.
    """
    return read_experiment(path, overrides).experiment


def read_experiment(path: Path | str, overrides: Overrides = ()) -> LoadedExperiment:
    """As `load_experiment`, with the source."""
    path = Path(path)
    text, data = read_toml(path)
    with suppress(ValidationError):  # a file may have a name that a run may not
        data.setdefault("name", _NAME.validate_python(path.stem))
    source = Source(str(path), text, _overrides(overrides))
    return LoadedExperiment(_resolve(data, source), source)


def load_recorded(path: Path, overrides: Overrides = ()) -> Experiment:
    """The experiment that a run recorded: every plugin that it names must be installed.

    Raises UsageError, ExperimentError, PluginError with the plugins that are missing.
    """
    text, data = read_toml(path)
    return _resolve(data, Source(str(path), text, _overrides(overrides)), recorded=True)


def recorded_experiment(values: Mapping[str, Any], name: str) -> Experiment:
    """The same from the tables that run.json and checkpoints have; `name` is for messages."""
    return _resolve(values, Source(name, None), recorded=True)


def experiment_from_dict(
    data: Mapping[str, Any], overrides: Overrides = (), *, name: str = "the experiment"
) -> Experiment:
    """The experiment of a nested dict with the keys of a file; `name` is for messages.

    Raises ExperimentError, PluginError.
    """
    return _resolve(data, Source(name, None, _overrides(overrides)))


def override_sampling(settings: SamplingSettings, overrides: Overrides) -> SamplingSettings:
    """Other sampling settings; the keys are those of their table. Raises ExperimentError."""
    given = _overrides(overrides)
    try:
        return SamplingSettings.model_validate(
            settings.model_dump() | {override.key: override.value for override in given}
        )
    except ValidationError as error:
        problems = problems_of(error, options=SamplingSettings)
        raise ExperimentError(render(Source("the sampling", None, given), problems), problems) from error


def run_to_load(path: Path, overrides: Sequence[Override]) -> Override | None:
    """The run whose weights an experiment starts with, as the setting that names it; None: random weights."""
    for override in overrides:
        if override.key == "init_from.run":
            return override if isinstance(override.value, str) else None
    value = _at(read_toml(path)[1], "init_from.run")
    return Override("init_from.run", value, "init_from") if isinstance(value, str) else None


def settings_of_weights(weights_of: Experiment, origin: str, overrides: Overrides = ()) -> list[Override]:
    """The settings that the weights of an experiment depend on, as overrides of another experiment.

    Those that `overrides` set are left out, as they were asked for. `origin` is for messages.
    """
    asked = {key for each in _overrides(overrides) for key in keys(each.key, each.value)}
    tables = weights_of.model_dump()
    return [
        Override(key, _at(tables, key), origin)
        for key in _WEIGHTS_DEPEND_ON
        if not asked & {key, f"{key}.type"}
    ]


def other_settings_of_weights(weights_of: Experiment, experiment: Experiment) -> dict[str, tuple[str, str]]:
    """Where the experiment differs in what those weights depend on: by key both values, as TOML.

    The context may be another, unless the weights have a vector for each position.
    """
    theirs, ours = weights_of.model_dump(), experiment.model_dump()
    found: dict[str, tuple[Any, Any]] = {}
    for key in _WEIGHTS_DEPEND_ON:
        if key == "model.context_length" and weights_of.model.position.type != "learned":
            continue  # those of a plugin are compared by their shapes when they are loaded
        there, here = _at(theirs, key), _at(ours, key)
        if isinstance(there, dict) and there["type"] == here["type"]:  # only options of the plugin may differ
            found |= {f"{key}.{name}": (there.get(name), here.get(name)) for name in {**there, **here}}
        else:
            found[key] = there, here
    return {key: (_in_toml(there), _in_toml(here)) for key, (there, here) in found.items() if there != here}


def differences_from_file(path: Path | str, overrides: Sequence[Override]) -> list[str]:
    """Where overrides set another value than the file does, as "model.n_head = 4 (the file has 2)"."""
    _, data = read_toml(Path(path))
    found = []
    for override in overrides:
        here, value = _at(data, override.key), override.value
        if isinstance(value, dict):  # a plugin: the file may have its name alone, or only some options
            table = {"type": here} if isinstance(here, str) else here
            agree = isinstance(table, dict) and table.items() <= value.items()
        else:
            agree = here == value
        if here is not None and not agree:
            found.append(f"{override.key} = {_in_toml(value)} (the file has {_in_toml(here)})")
    return found


def _at(tables: Any, key: str) -> Any:
    """The value of a dotted key, or None."""
    for name in key.split("."):
        tables = tables.get(name) if isinstance(tables, Mapping) else None
    return tables


def _in_toml(value: Any) -> str:
    """A value in one line; a plugin without options by its name."""
    if isinstance(value, dict) and value.keys() != {"type"}:
        return f"{{ {', '.join(f'{key} = {_in_toml(inner)}' for key, inner in value.items())} }}"
    return json.dumps(value["type"] if isinstance(value, dict) else value, ensure_ascii=False, default=str)


def to_toml(experiment: Experiment) -> str:
    """The file of this experiment, every field explicit."""
    return tomli_w.dumps(experiment.model_dump(exclude_none=True))


def _overrides(overrides: Overrides) -> tuple[Override, ...]:
    return tuple(each if isinstance(each, Override) else Override(*each) for each in overrides)


# Reading


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """The text with \\n ends, and its tables. Bounded in size, depth and time.

    Raises UsageError if there is no such file, ExperimentError if it is not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no experiment file {path}{_beside(path)}") from None
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            raise UsageError(f"{path} is a folder, not an experiment file{_beside(path)}") from None
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {path}: {reason}{_beside(path)}") from None
    if len(data) > MAX_BYTES:
        raise _whole_file(path, "larger than 1 MB, so not an experiment file")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        advice = "it is UTF-16: save it as UTF-8" if data.startswith(_UTF16) else "save it as UTF-8"
        raise _whole_file(path, f"not UTF-8 at byte {error.start}, so not TOML; {advice}") from None
    try:
        return text, parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, text, str(error)) from None
    except RecursionError:
        raise _whole_file(path, "not usable TOML: nested too deeply") from None
    except ValueError:
        raise _whole_file(path, "not usable TOML: a number in it has thousands of digits") from None


def _beside(path: Path) -> str:
    """The nearest name, and the experiment files beside the path or in experiments/."""
    for folder in (path, path.parent, Path("experiments")):
        try:
            found = [
                str(file)
                for file in sorted(folder.glob("*.toml"))
                if file.name != "pyproject.toml" and file != path
            ]
        except (OSError, ValueError):  # not a name that a file can have
            found = []
        if found:
            stems = {Path(file).stem: file for file in found}
            meant = stems.get(closest(path.stem, stems) or "")
            guess = f"; did you mean {in_line(meant)}?" if meant and path not in (folder, Path()) else "."
            return f"{guess} There are: {in_line(', '.join(found[:12]))}"
    return ". Give the path of a TOML file, or copy one from gptkit's folder experiments/."


def _whole_file(name: Path | str, problem: str) -> ExperimentError:
    return ExperimentError(f"{name}: {problem}", [Problem(problem)])


def _not_toml(path: Path, text: str, error: str) -> ExperimentError:
    """tomllib's message at its place in the file, with a remedy for the most common mistakes."""
    if other := _other_format(path, text):
        return _whole_file(path, f"not valid TOML: {other}")
    at = _AT.search(error)
    reason = error[: at.start()] if at else error
    position = len(text.rstrip())  # for "end of document"
    if at and at[1]:
        lines = text.split("\n", int(at[1]) - 1)
        position = min(sum(len(line) + 1 for line in lines[:-1]) + int(at[2]) - 1, len(text))
    rest = text[position : position + 80].partition("\n")[0]
    problem = f"not valid TOML: {reason}{_remedy(reason, rest)}"
    line = show_line(text, (position, position + 1), problem)
    return ExperimentError(f"{path} has a problem:\n{line}", [Problem(problem)])


def _other_format(path: Path, text: str) -> str:
    suffix = path.suffix.lower()
    if suffix in (".py", ".ipynb", ".pyc"):
        return "this is a Python file; an experiment is a TOML file, such as experiments/shakespeare.toml"
    if suffix in (".yaml", ".yml") or text.lstrip().startswith("{"):
        kind = "YAML" if suffix in (".yaml", ".yml") else "JSON"
        return f"this looks like {kind}; in TOML a table is a line [model], and a field a line n_head = 4"
    if suffix in (".txt", ".jsonl", ".csv", ".gz", ".md"):
        return f"it looks like a text; train on it with: gptkit train EXPERIMENT --dataset {path}"
    return ""


def _remedy(reason: str, rest: str) -> str:
    """What to write instead, where that is clear; `rest` is the line from the place of the mistake."""
    word = re.match(r"[A-Za-z_][\w./:-]*", rest)
    if reason.startswith("Invalid value") and word:
        if word[0].lower() in ("true", "false"):
            return f"; write {word[0].lower()}"
        if word[0] in ("None", "null"):
            return "; leave the line out"
        return f'; write "{word[0]}", in quotes'
    if reason.startswith("Invalid value") and rest[:1] in ("“", "”", "‘", "’", "„", "«", "`"):
        return "; write straight quotes: \" or '"
    if reason.startswith(("Unescaped '\\'", "Invalid hex value", "Escaped character")):
        return f"; {_ESCAPE}"
    if reason.startswith("Cannot "):  # overwrite a value, declare a table twice
        return "; it is in the file twice, keep one of them"
    return ""


# Resolving


def _resolve(data: Mapping[str, Any], source: Source, *, recorded: bool = False) -> Experiment:
    """The experiment of these tables and the source's overrides, plugin options explicit."""
    if any(override.key == "init_from.run" for override in source.overrides):
        data = {key: value for key, value in data.items() if key != "init_from"}  # of another run
    draft = _Draft(data, source)
    for override in source.overrides:
        draft.set(override)
    for field in fields():
        if field.family:
            named_now = any(override.key == field.key for override in source.overrides)
            draft.fill_plugin(field, texts=field.family == registry.DATASETS and (named_now or not recorded))
    if not recorded:
        draft.fill_trackers()
    return draft.finish(plain=recorded)


class _Draft:
    """The tables of an experiment on the way to an `Experiment`, with the problems found so far."""

    def __init__(self, data: Mapping[str, Any], source: Source) -> None:
        self._source = source
        self._problems: list[Problem] = []
        self._missing: list[tuple[Problem, PluginError]] = []
        self._tables = self._copy(data, MAX_DEPTH)

    def _copy(self, data: Mapping[str, Any], depth: int) -> dict[str, Any]:
        if not depth:
            raise _whole_file(self._source.name, "tables are nested too deeply")
        return {
            key: self._copy(value, depth - 1) if isinstance(value, Mapping) else value
            for key, value in data.items()
        }

    def set(self, override: Override) -> None:
        """Sets one field."""
        *tables, last = path = tuple(override.key.split("."))
        if len(tables) >= MAX_DEPTH:
            self._add(f"{dotted(path[:9])}...: tables are nested too deeply", path)
            return
        table = self._tables
        for depth, name in enumerate(tables):
            inner = table.setdefault(name, {})
            if isinstance(inner, str):  # `position = "rope"` becomes a table when an option of it is set
                inner = table[name] = {"type": inner}
            if inner is True and tables[:depth] == ["tracking"]:  # and `tensorboard = true`
                inner = table[name] = {}
            if not isinstance(inner, dict):
                self._add(f"{dotted(path)}: {dotted(tables[: depth + 1])} is not a table", path)
                return
            table = inner
        for other in ALTERNATIVES.get(QUESTIONS.get(override.key, ""), ()):
            if other != "training.max_steps":  # which epochs and minutes precede where both are set
                table.pop(other.rpartition(".")[2], None)
        table[last] = override.value

    def fill_plugin(self, field: ExperimentField, *, texts: bool) -> None:
        """Makes the options of the plugin that a field names explicit.

        With `texts`, a name that no plugin has is the user's own text: its options stay as they are.
        """
        *tables, last = field.key.split(".")
        table: Any = self._tables
        for part in tables:
            table = table.setdefault(part, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            return  # the schema will report it
        choice = table.get(last, field.default)
        if isinstance(choice, str):
            choice = {"type": choice}
        if not isinstance(choice, dict):
            return  # as above, or it is not set
        if field.default and field.family != registry.DATASETS:
            choice = {"type": field.default, **choice}  # an option alone is of the default plugin
        name = choice.get("type")
        if not isinstance(name, str) or len(name) > MAX_NAME:
            return
        options = {key: value for key, value in choice.items() if key != "type"}
        try:
            if texts and name not in registry.names(field.family):
                self._check_text(name, options, field.key)
            else:
                options = self._options(field.family, name, options, field.key)
        except PluginError as error:
            self._missing.append((Problem(str(error), ((*tables, last, "type"),)), error))
        table[last] = {"type": name, **options}

    def fill_trackers(self) -> None:
        """Makes the options of the trackers explicit."""
        trackers = self._tables.get("tracking")
        if not isinstance(trackers, dict):
            return  # the schema will report it
        for name, choice in list(trackers.items()):
            if choice is False:
                del trackers[name]
            elif choice is True or isinstance(choice, dict):
                options = {} if choice is True else choice
                try:
                    trackers[name] = self._options(registry.TRACKERS, name, options, f"tracking.{name}")
                except PluginError as error:
                    problem = Problem(str(error), (("tracking", name),), in_key=True)
                    self._missing.append((problem, error))

    def _options(self, family: str, name: str, options: dict[str, Any], table: str) -> dict[str, Any]:
        """All options of a plugin, or the given ones if there are problems with them. Raises PluginError."""
        try:
            model = registry.load(family, name).Options
        except PluginError as error:
            raise PluginError(str(error), [(family, name)]) from error
        try:
            filled: dict[str, Any] = model.model_validate(options).model_dump(mode="json", exclude_none=True)
            return filled
        except ValidationError as error:
            self._problems += problems_of(error, table=table, options=model)
            return options
        except Exception as error:  # in the plugin's code
            reason = f"{type(error).__name__}: {error}"
            raise PluginError(f"{table}: the options of {name!r} failed: {reason}") from error

    def _check_text(self, name: str, options: dict[str, Any], table: str) -> None:
        """Checks the name of a text and its options, which are those of the dataset `text`."""
        if any(sign in name for sign in "\a\b\t\n\f\r"):
            message = f"{table} = {ascii(name)[:60]}: a name has no such characters; {_ESCAPE}"
            self._add(message, (*table.split("."), "type"))
        elif options:
            model = registry.load(registry.DATASETS, "text").Options
            if "path" in options:
                self._add(
                    f"{table}.path: the type of the table, {name!r}, is a path already",
                    (*table.split("."), "path"),
                )
            try:
                model.model_validate(options | {"path": "its name"})
            except ValidationError as error:
                why = f"; no dataset {name!r} is installed, so it is taken for a text"
                for problem in problems_of(error, table=table, options=model):
                    self._problems.append(replace(problem, message=problem.message + why))

    def finish(self, *, plain: bool) -> Experiment:
        """The experiment. Raises one error for all problems; `plain`: a missing plugin without its line."""
        try:
            experiment = Experiment.model_validate(self._tables)
        except ValidationError as error:
            self._problems += problems_of(error)
        missing = [problem for problem, _ in self._missing]
        if self._problems:
            problems = self._problems + missing
            raise ExperimentError(render(self._source, problems), problems)
        if missing:
            plugins = [plugin for _, error in self._missing for plugin in error.plugins]
            placed = self._source.text or any(override.origin for override in self._source.overrides)
            text = "\n".join(map(str, missing)) if plain or not placed else render(self._source, missing)
            raise PluginError(text, plugins) from self._missing[0][1]
        return experiment

    def _add(self, message: str, path: tuple[str, ...]) -> None:
        self._problems.append(Problem(message, (path,)))
