"""Experiment files: read, overridden, checked, written back.

In: a TOML file or a dict, and overrides as (dotted key, value). Out: an `Experiment` with every plugin option
explicit, or one `ExperimentError` with all the problems. Loads the plugins that the file names, to check
their options; whether their data is here is not asked.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from gptkit.errors import ExperimentError, GptkitError, PluginError, UsageError
from gptkit.experiment.messages import Problem, Source, as_error, as_message, dotted, find_problems
from gptkit.experiment.reading import ESCAPE, read_toml
from gptkit.experiment.schema import MAX_NAME, Experiment, Name, PluginTable
from gptkit.files import MAX_DEPTH
from gptkit.plugins import registry
from gptkit.words import nearest

Override = tuple[str, Any]

_NAME: TypeAdapter[str] = TypeAdapter(Name)

_LENGTHS = ("training.max_steps", "training.epochs", "training.minutes")

PLUGIN_KEYS = (
    (("tokenizer",), registry.TOKENIZERS),
    (("model", "position"), registry.POSITIONS),
    (("data", "dataset"), registry.DATASETS),
    (("data", "fallback"), registry.DATASETS),
)


class FlagKey(str):
    """The dotted key of an override, with the words of the command line that it stands for."""

    words: str

    def __new__(cls, key: str, words: str) -> FlagKey:
        made = super().__new__(cls, key)
        made.words = dotted([words])
        return made


def load_experiment(
    path: Path | str, overrides: Sequence[Override] = (), *, texts: bool = True
) -> Experiment:
    """The experiment of a TOML file. Its name is the file's, unless it has one.

    A dataset that nobody has registered is a text of one's own; without `texts`, as in what a run recorded,
    its plugin is missing.
    Raises UsageError where there is no such file, ExperimentError, PluginError.
    """
    path = Path(path)
    text, data = read_toml(path)
    with suppress(ValidationError):  # a file may be called what a run may not
        data.setdefault("name", _NAME.validate_python(path.stem))
    return _build(data, overrides, Source(str(path), text, said_of(key for key, _ in overrides)), texts=texts)


@contextmanager
def in_its_place(path: Path | str, overrides: Sequence[Override] = ()) -> Iterator[None]:
    """Has an error that is about a field show where the field is set: the line of the file, or the flag."""
    try:
        yield
    except GptkitError as error:
        if error.field:
            said = error.problems if isinstance(error, ExperimentError) else [str(error)]
            problems = [Problem(problem, tuple(error.field.split("."))) for problem in said]
            with suppress(UsageError):  # the file has been changed since it was read, or is gone
                source = Source(str(path), read_toml(Path(path))[0], said_of(key for key, _ in overrides))
                error.args = (as_message(source, problems),)
        raise


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
    return _build(data, overrides, Source(source, said=said_of(key for key, _ in overrides)), texts=texts)


def said_of(keys: Iterable[str]) -> dict[str, str]:
    """The words of the command line, by the dotted key that they set."""
    return {str(key): key.words for key in keys if isinstance(key, FlagKey)}


def _build(
    data: Mapping[str, Any], overrides: Sequence[Override], source: Source, *, texts: bool
) -> Experiment:
    raw = _copy_tables(data, source)
    problems = [problem for key, value in overrides if (problem := _override(raw, key, value))]
    missing: list[tuple[Problem, PluginError]] = []
    for keys, family in PLUGIN_KEYS:
        try:
            problems += _fill_plugin_options(raw, keys, family, texts=texts)
        except PluginError as error:
            missing.append((Problem(str(error), (*keys, "type")), error))
    if texts:
        problems += _fill_tracker_options(raw, missing)
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        problems += find_problems(error)
    if problems:
        raise as_error(source, problems + [problem for problem, _ in missing])
    if missing:
        plugins = [plugin for _, error in missing for plugin in error.plugins]
        lines = "\n".join(str(error) for _, error in missing)
        own = texts and (source.text is not None or source.said)  # what a run recorded is nobody's to mend
        message = as_message(source, [problem for problem, _ in missing]) if own else lines
        raise PluginError(message, plugins) from missing[0][1]
    return experiment


def parse_override(text: str) -> Override:
    """`model.n_layer=6` as (key, value). The value is TOML; a bare word counts as a string."""
    key, separator, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not separator or not key:
        raise UsageError(f"--set {text!r}: expected KEY=VALUE, as in --set training.max_steps=200")
    said = FlagKey(key, f"--set {key}={value}")
    try:
        return said, tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError, ValueError):
        return said, value


def to_toml(experiment: Experiment) -> str:
    """The file that gives this experiment again, every field explicit."""
    return tomli_w.dumps(experiment.model_dump(exclude_none=True))


def _copy_tables(data: Mapping[str, Any], source: Source, depth: int = MAX_DEPTH) -> dict[str, Any]:
    if not depth:
        raise as_error(source, [Problem("tables are nested too deeply")])
    return {
        key: _copy_tables(value, source, depth - 1) if isinstance(value, Mapping) else value
        for key, value in data.items()
    }


def _override(raw: dict[str, Any], key: str, value: Any) -> Problem | None:
    """Sets one field in place; the problem with it, if there is one."""
    *tables, last = path = tuple(key.split("."))
    if len(tables) >= MAX_DEPTH:
        return Problem(f"{dotted(path[:9])}...: tables are nested too deeply", path)
    table = raw
    for depth, name in enumerate(tables):
        inner = table.setdefault(name, {})
        if isinstance(inner, str):  # `position = "rope"` becomes a table when an option of it is set
            inner = table[name] = {"type": inner}
        if inner is True and tables[:depth] == ["tracking"]:  # and `tensorboard = true`
            inner = table[name] = {}
        if not isinstance(inner, dict):
            return Problem(f"{dotted(path)}: {dotted(tables[: depth + 1])} is not a table", path)
        table = inner
    if key in _LENGTHS:  # the last word on how long it trains
        for other in ("epochs", "minutes"):
            table.pop(other, None)
    table[last] = value
    return None


def _fill_plugin_options(
    raw: dict[str, Any], keys: tuple[str, ...], family: str, *, texts: bool
) -> list[Problem]:
    """Makes the options of the plugin at `keys` explicit in place; the problems with them.

    With `texts` a dataset may be a text of one's own.
    """
    table: Any = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return []  # the schema will say so
    last, place = keys[-1], ".".join(keys)
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
    if len(name) > MAX_NAME:
        return []  # as above
    if texts and family == registry.DATASETS and any(sign in name for sign in "\a\b\t\n\f\r"):
        said = f"{place} = {ascii(name)[:60]}: a name has no such characters; {ESCAPE}"
        return [Problem(said, (*keys, "type"))]
    if texts and family == registry.DATASETS and name not in registry.names(family):
        table[last] = choice  # a text of one's own; the workflow looks for it
        return _check_text_options(choice, place) if len(choice) > 1 else []
    options = {key: value for key, value in choice.items() if key != "type"}
    filled, problems = _explicit(family, name, options, place)
    if not problems:
        table[last] = {"type": name, **filled}
    return problems


def _fill_tracker_options(raw: dict[str, Any], missing: list[tuple[Problem, PluginError]]) -> list[Problem]:
    """Makes the options of the trackers explicit in place; the problems with them. Adds to `missing`."""
    trackers, problems = raw.get("tracking"), list[Problem]()
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
                missing.append((Problem(str(error), ("tracking", name), of_key=True), error))
    return problems


def _explicit(
    family: str, name: str, options: dict[str, Any], place: str
) -> tuple[dict[str, Any], list[Problem]]:
    """All options of a plugin, defaults too; or the problems with those given. Raises PluginError."""
    plugin = _load(family, name)
    try:
        filled = plugin.Options.model_validate(options)
        return filled.model_dump(mode="json", exclude_none=True), []
    except ValidationError as error:
        return {}, find_problems(error, prefix=place, model=plugin.Options)
    except Exception as error:  # of a stranger's code
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"{place}: the options of {name!r} failed: {reason}") from error


def _check_text_options(choice: dict[str, Any], place: str) -> list[Problem]:
    """The problems with options beside a name that no dataset has: they are those of the dataset `text`."""
    model = registry.load(registry.DATASETS, "text").Options
    known = [key for key in model.model_fields if key != "path"]
    unknown = [key for key in choice if key not in ("type", *known)]
    if unknown:
        text = (
            f"{place}: no dataset {choice['type']!r} is installed, so it is taken for a text, "
            f"which has no option {unknown[0]!r}{nearest(unknown[0], known)}; known here: {', '.join(known)}"
        )
        return [Problem(text, (*place.split("."), unknown[0]), of_key=True)]
    try:
        model.model_validate({"path": "its name", **{key: choice[key] for key in known if key in choice}})
    except ValidationError as error:
        return find_problems(error, prefix=place, model=model)
    return []


def _load(family: str, name: str) -> Any:
    try:
        return registry.load(family, name)
    except PluginError as error:
        raise PluginError(str(error), [(family, name)]) from error


def _default_plugin(keys: tuple[str, ...]) -> str | None:
    value: Any = Experiment()
    for key in keys:
        value = getattr(value, key)
    return value.type if isinstance(value, PluginTable) else None
