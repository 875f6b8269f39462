"""Experiment files: read, overridden, checked, written back.

In: a TOML file or a dict, and overrides as (dotted key, value). Out: an `Experiment` with every plugin option
explicit, or one `ExperimentError` with all the problems. Loads the plugins that the file names, to check
their options; whether their data is here is not asked.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from gptkit.errors import ExperimentError, PluginError, UsageError, nearest
from gptkit.experiment.schema import (
    AdamWSettings,
    Experiment,
    MuonSettings,
    Name,
    OptimizerSettings,
    PluginTable,
)
from gptkit.files import MAX_DEPTH, parse_toml
from gptkit.plugins import registry

MAX_BYTES = 1_000_000  # an experiment file larger than this is something else
Override = tuple[str, Any]

_NAME: TypeAdapter[str] = TypeAdapter(Name)
OPTIMIZERS: dict[str, type[BaseModel]] = {"adamw": AdamWSettings, "muon": MuonSettings}

_LENGTHS = ("training.max_steps", "training.epochs", "training.minutes")

PLUGIN_KEYS = (
    (("tokenizer",), registry.TOKENIZERS),
    (("model", "position"), registry.POSITIONS),
    (("data", "dataset"), registry.DATASETS),
    (("data", "fallback"), registry.DATASETS),
)


def load_experiment(
    path: Path | str, overrides: Sequence[Override] = (), *, texts: bool = True
) -> Experiment:
    """The experiment of a TOML file. Its name is the file's, unless it has one.

    A dataset that nobody has registered is a text of one's own; without `texts`, as in what a run recorded,
    its plugin is missing. Trackers are looked up with `texts` only: a run can do without those that it had.
    Raises UsageError where there is no such file, ExperimentError, PluginError.
    """
    path = Path(path)
    data = read_tables(path)
    with suppress(ValidationError):  # a file may be called what a run may not
        data.setdefault("name", _NAME.validate_python(path.stem))
    return experiment_from_dict(data, overrides, source=str(path), texts=texts)


def experiment_from_dict(
    data: Mapping[str, Any],
    overrides: Sequence[Override] = (),
    *,
    source: str = "the experiment",
    texts: bool = True,
) -> Experiment:
    """The experiment of a nested dict, keys as in a file, `texts` as there.

    Raises ExperimentError, PluginError.
    """
    raw = _copy_tables(data, source)
    problems = [problem for key, value in overrides if (problem := _override(raw, key, value))]
    missing: list[PluginError] = []
    for keys, family in PLUGIN_KEYS:
        try:
            problems += _fill_plugin_options(raw, keys, family, texts=texts)
        except PluginError as error:
            missing.append(error)
    if texts:
        problems += _fill_tracker_options(raw, missing)
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        problems += describe_all(error)
    if problems:
        raise ExperimentError(source, problems + [str(error) for error in missing])
    if missing:
        plugins = [plugin for error in missing for plugin in error.plugins]
        raise PluginError("\n".join(str(error) for error in missing), plugins) from missing[0]
    return experiment


def parse_override(text: str) -> Override:
    """`model.n_layer=6` as (key, value). The value is TOML; a bare word counts as a string."""
    key, separator, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not separator or not key:
        raise UsageError(f"--set {text!r}: expected KEY=VALUE, as in --set training.max_steps=200")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError, ValueError):
        return key, value


def to_toml(experiment: Experiment) -> str:
    """The file that gives this experiment again, every field explicit."""
    return tomli_w.dumps(experiment.model_dump(exclude_none=True))


def read_tables(path: Path) -> dict[str, Any]:
    """What a TOML file says, not held against the schema. Raises UsageError, ExperimentError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ExperimentError(str(path), ["larger than 1 MB, so not an experiment file"])
        return parse_toml(data.decode())
    except FileNotFoundError:
        raise UsageError(f"there is no experiment file {path}. {_experiments_beside(path)}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not an experiment file. {_experiments_beside(path)}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ExperimentError(str(path), [f"not UTF-8 at byte {error.start}, so not TOML"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(str(path), [f"not valid TOML: {error}"]) from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ExperimentError(str(path), [f"not usable TOML: {reason}"]) from None


def _experiments_beside(path: Path) -> str:
    """What there is instead: the files beside it, and those in experiments/."""
    for folder in (path, path.parent, Path("experiments")):
        found = [str(file) for file in sorted(folder.glob("*.toml")) if file.name != "pyproject.toml"]
        if found:
            return f"There are: {', '.join(found[:12])}"
    return "Give the path of a TOML file."


def _copy_tables(data: Mapping[str, Any], source: str, depth: int = MAX_DEPTH) -> dict[str, Any]:
    if not depth:
        raise ExperimentError(source, ["tables are nested too deeply"])
    return {
        key: _copy_tables(value, source, depth - 1) if isinstance(value, Mapping) else value
        for key, value in data.items()
    }


def _override(raw: dict[str, Any], dotted: str, value: Any) -> str | None:
    """Sets one field in place; the problem with it, if there is one."""
    *tables, last = dotted.split(".")
    if len(tables) >= MAX_DEPTH:
        return f"{dotted[:60]}...: tables are nested too deeply"
    table = raw
    for depth, name in enumerate(tables):
        inner = table.setdefault(name, {})
        if isinstance(inner, str):  # `position = "rope"` becomes a table when an option of it is set
            inner = table[name] = {"type": inner}
        if inner is True and tables[:depth] == ["tracking"]:  # and `tensorboard = true`
            inner = table[name] = {}
        if not isinstance(inner, dict):
            return f"{dotted}: {'.'.join(tables[: depth + 1])} is not a table"
        table = inner
    if dotted in _LENGTHS:  # the last word on how long it trains
        for other in ("epochs", "minutes"):
            table.pop(other, None)
    table[last] = value
    return None


def _fill_plugin_options(
    raw: dict[str, Any], keys: tuple[str, ...], family: str, *, texts: bool
) -> list[str]:
    """Makes the options of the plugin at `keys` explicit in place; the problems with them.

    With `texts` a dataset may be a text of one's own.
    """
    table: Any = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return []  # the schema will say so
    last, dotted = keys[-1], ".".join(keys)
    default = _default_plugin(keys)
    choice = table.get(last, default)
    if choice is None:
        return []
    if isinstance(choice, str):
        choice = {"type": choice}
    if isinstance(choice, dict) and default and family != registry.DATASETS:
        choice = table[last] = {"type": default, **choice}  # an option alone is of the default plugin
    if not isinstance(choice, dict) or not isinstance(choice.get("type"), str):
        return []
    name = choice["type"]
    if texts and family == registry.DATASETS and name not in registry.names(family):
        table[last] = choice  # a text of one's own; the workflow looks for it
        return _check_text_options(choice, dotted) if len(choice) > 1 else []
    options = {key: value for key, value in choice.items() if key != "type"}
    filled, problems = _explicit(family, name, options, dotted)
    if not problems:
        table[last] = {"type": name, **filled}
    return problems


def _fill_tracker_options(raw: dict[str, Any], missing: list[PluginError]) -> list[str]:
    """Makes the options of the trackers explicit in place; the problems with them. Adds to `missing`."""
    trackers, problems = raw.get("tracking"), []
    if not isinstance(trackers, dict):
        return []  # the schema will say so
    for name, choice in list(trackers.items()):
        if choice is False:
            del trackers[name]
        elif choice is True or isinstance(choice, dict):  # else the schema will say so
            options = {} if choice is True else choice
            try:
                trackers[name], wrong = _explicit(registry.TRACKERS, name, options, f"tracking.{name}")
                problems += wrong
            except PluginError as error:
                missing.append(error)
    return problems


def _explicit(
    family: str, name: str, options: dict[str, Any], dotted: str
) -> tuple[dict[str, Any], list[str]]:
    """All options of a plugin, defaults too; or the problems with those given. Raises PluginError."""
    plugin = _load(family, name)
    try:
        filled = plugin.Options.model_validate(options)
        return filled.model_dump(mode="json", exclude_none=True), []
    except ValidationError as error:
        return {}, describe_all(error, prefix=dotted, model=plugin.Options)
    except Exception as error:  # of a stranger's code
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"{dotted}: the options of {name!r} failed: {reason}") from error


def _check_text_options(choice: dict[str, Any], dotted: str) -> list[str]:
    """The problems with options beside a name that no dataset has: they are those of the dataset `text`."""
    model = registry.load(registry.DATASETS, "text").cls.Options
    known = [key for key in model.model_fields if key != "path"]
    unknown = [key for key in choice if key not in ("type", *known)]
    if unknown:
        return [
            f"{dotted}: no dataset {choice['type']!r} is installed, so it is taken for a text, "
            f"which has no option {unknown[0]!r}{nearest(unknown[0], known)}; known here: {', '.join(known)}"
        ]
    try:
        model.model_validate({"path": "its name", **{key: choice[key] for key in known if key in choice}})
    except ValidationError as error:
        return describe_all(error, prefix=dotted, model=model)
    return []


def _load(family: str, name: str) -> Any:
    try:
        return registry.load(family, name).cls
    except PluginError as error:
        raise PluginError(str(error), [(family, name)]) from error


def _default_plugin(keys: tuple[str, ...]) -> str | None:
    value: Any = Experiment()
    for key in keys:
        value = getattr(value, key)
    return value.type if isinstance(value, PluginTable) else None


def describe_all(
    error: ValidationError, *, prefix: str = "", model: type[BaseModel] = Experiment
) -> list[str]:
    """The problems that pydantic found, a line for each field: 'dotted.key = value: what would be right'."""
    lines: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"] if not _is_union_member(part)]
        if detail["type"] == "extra_forbidden" and _is_union_member(detail["loc"][-1]):
            path.append(str(detail["loc"][-1]))  # an unknown key of such a name
        place = ".".join([prefix, *path] if prefix else path) or "the file"
        place, message = _describe(detail, place, path, model)
        messages = lines.setdefault(place, [])
        if message not in messages:
            messages.append(message)
    return [f"{place}: {' or '.join(messages)}" for place, messages in lines.items()]


def _is_union_member(part: int | str) -> bool:
    """Whether pydantic put the name of a union's member into the path; a file has no such key."""
    plain = {*OPTIMIZERS, "bool", "int", "float", "str"}
    return isinstance(part, str) and (part in plain or part.startswith(("literal[", "constrained-", "list[")))


def _describe(detail: ErrorDetails, place: str, path: list[str], model: type[BaseModel]) -> tuple[str, str]:
    """The place, with the value where it is short, and what would be right there."""
    kind, value = detail["type"], detail["input"]
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "should").replace("String should", "should")
    if kind == "extra_forbidden":
        return place, f"unknown key{_suggest(path, model, detail['loc'])}"
    if kind == "missing":
        return place, "is required"
    if kind == "union_tag_invalid":
        tag, expected = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        return f"{place}.type = {tag!r}", f"should be {expected.replace(', ', ' or ')}"
    if kind == "string_pattern_mismatch":
        message = "should be letters, digits, '_' and '-', starting with a letter or digit"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "should be a table"
    if kind == "value_error" or isinstance(value, dict | list | BaseModel):
        return place, message
    return f"{place} = {_short(value)}", message


def _short(value: Any) -> str:
    try:
        text = json.dumps(value) if isinstance(value, bool | str) else repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(path: Sequence[str], model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The nearest key of the same table, or the table that does have this key."""
    *tables, wrong = path
    fields = [field for field in _fields(model, tables, location) if field != wrong]
    near = nearest(wrong, fields)
    if near:
        return near
    if model is Experiment:
        for section in Experiment.model_fields:
            if [section] != tables and wrong in _fields(Experiment, [section], ()):
                return f"; it belongs in [{section}]"
    return f"; known here: {', '.join(sorted(fields))}" if fields else "; it takes no options"


def _fields(model: type[BaseModel], tables: Sequence[str], location: tuple[int | str, ...]) -> list[str]:
    """The keys of a table of the schema; of a union those of the member in `location`, or of all."""
    models: list[type[BaseModel]] = [model]
    for name in tables:
        inner: list[type[BaseModel]] = []
        for candidate in models:
            field = candidate.model_fields.get(name)
            annotation = field.annotation if field else None
            if annotation == OptimizerSettings:
                chosen = [member for tag, member in OPTIMIZERS.items() if tag in location]
                inner += chosen or OPTIMIZERS.values()
            elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
                inner.append(annotation)
        models = inner
    return list(dict.fromkeys(key for candidate in models for key in candidate.model_fields))
