"""The settings of a run, each held against its default.

In: a run's experiment file. Out: a line for each setting. Defaults and what a field is for come from the
schema, those of a plugin's options from the plugin where it loads; where they are not known, a setting
counts as none that differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from gptkit.errors import GptkitError, PluginError
from gptkit.experiment import Experiment, PluginTable
from gptkit.experiment.load import PLUGIN_KEYS
from gptkit.experiment.reading import read_toml
from gptkit.experiment.schema import OPTIMIZERS
from gptkit.plugins import registry
from gptkit.runs import Run

MAX_SETTINGS, MAX_VALUE = 400, 300  # how many are shown, and characters of each; a schema has about 60
_OWN = ("name", "seed")  # every run has its own: that they are not the default says nothing


@dataclass(frozen=True)
class Setting:
    key: str  # dotted
    value: str
    default: str | None  # None: not known, or there is none
    differs: bool
    about: str  # what the field is for


@dataclass(frozen=True)
class Known:
    """What is known of a field."""

    about: str
    has_default: bool = False
    default: Any = None


def read_settings(run: Run) -> tuple[list[Setting], str]:
    """The settings in the order of the file, and a word on what cannot be shown or compared, or ""."""
    if run.experiment_file.is_symlink():
        return [], f"{run.experiment_file.name} is a symbolic link, which is not followed."
    try:
        _, tables = read_toml(run.experiment_file)
    except GptkitError as error:
        return [], str(error)
    flat = flatten(tables)
    known, notes = _known(tables)
    if len(flat) > MAX_SETTINGS:
        notes.append(f"{len(flat) - MAX_SETTINGS} more settings are left out.")
    settings = [_setting(key, value, known.get(key)) for key, value in list(flat.items())[:MAX_SETTINGS]]
    return settings, " ".join(notes)


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys. They are as deep as `read_toml` lets them be."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def toml_text(value: Any) -> str:
    """A value as an experiment file has it, cut off where it is long."""
    if value is None:
        return "not set"
    if isinstance(value, bool | str | list | dict):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"


def _setting(key: str, value: Any, known: Known | None) -> Setting:
    if known is None or not known.has_default or key in _OWN:
        return Setting(key, toml_text(value), None, False, known.about if known else "")
    same = value == known.default and isinstance(value, bool) == isinstance(known.default, bool)
    return Setting(key, toml_text(value), toml_text(known.default), not same, known.about)


def _known(tables: Mapping[str, Any]) -> tuple[dict[str, Known], list[str]]:
    """Of each dotted key what the schema and the plugins say; and a word on the plugins that say nothing."""
    known = _of_model(Experiment, "")
    optimizer = tables.get("optimizer")
    kind = optimizer.get("type") if isinstance(optimizer, Mapping) else None
    known |= _of_model(OPTIMIZERS.get(str(kind), OPTIMIZERS["muon"]), "optimizer.")
    known["optimizer.type"] = Known("How a gradient becomes an update.", True, "muon")
    notes = []
    for keys, family in PLUGIN_KEYS:
        table: Any = tables
        for key in keys:
            table = table.get(key) if isinstance(table, Mapping) else None
        name = table.get("type") if isinstance(table, Mapping) else None
        if isinstance(name, str):
            try:
                known |= _of_model(registry.load(family, name).Options, f"{'.'.join(keys)}.")
            except PluginError:
                notes.append(f"The {registry.KINDS[family]} {name[:100]!r} is not here to give its defaults.")
            except Exception:  # of a stranger's code
                notes.append(f"The {registry.KINDS[family]} {name[:100]!r} does not give its defaults.")
    return known, notes


def _of_model(model: type[BaseModel], prefix: str) -> dict[str, Known]:
    """Of a table of the schema, with the tables in it, by dotted key."""
    known: dict[str, Known] = {}
    for name, field in model.model_fields.items():
        key, about = f"{prefix}{name}", field.description or ""
        if field.is_required():
            known[key] = Known(about)
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            known |= _of_model(type(default), f"{key}.")
            for inner, value in flatten(default.model_dump(mode="json"), f"{key}.").items():
                said = known[inner].about if inner in known else ""
                chosen = isinstance(default, PluginTable) and inner == f"{key}.type"
                known[inner] = Known(about if chosen else said, True, value)
        else:
            known[key] = Known(about, True, default)
    return known
