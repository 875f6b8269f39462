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

from gptkit.errors import GptkitError, PluginError
from gptkit.experiment.fields import ExperimentField, fields_of, option_fields
from gptkit.experiment.load import read_toml
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


def _setting(key: str, value: Any, known: ExperimentField | None) -> Setting:
    if known is None or known.required or key in _OWN:
        return Setting(key, toml_text(value), None, False, known.description if known else "")
    same = value == known.default and isinstance(value, bool) == isinstance(known.default, bool)
    return Setting(key, toml_text(value), toml_text(known.default), not same, known.description)


def _known(tables: Mapping[str, Any]) -> tuple[dict[str, ExperimentField], list[str]]:
    """The description of each key, and notes on plugins whose options have none."""
    known: dict[str, ExperimentField] = {}
    notes = []
    for field in fields_of(_name_at(tables, "optimizer") or "").values():
        known[f"{field.key}.type" if field.family else field.key] = field
        name = _name_at(tables, field.key) if field.family else None
        if name is not None:
            kind = registry.KINDS[field.family]
            try:
                options = option_fields(registry.load(field.family, name).Options, field.key)
                known |= {option.key: option for option in options}
            except PluginError:
                notes.append(f"The {kind} {name[:100]!r} is not installed, so its defaults are not known.")
            except Exception:  # in the plugin's code
                notes.append(f"The {kind} {name[:100]!r} fails to describe its options.")
    return known, notes


def _name_at(tables: Mapping[str, Any], key: str) -> str | None:
    """The `type` of the table at a dotted key."""
    table: Any = tables
    for name in (*key.split("."), "type"):
        table = table.get(name) if isinstance(table, Mapping) else None
    return table if isinstance(table, str) else None
