"""A run's settings as its files say them, flat by dotted key; nothing is checked and no plugin loaded.

In: experiment.toml and run.json, which a stranger may have written. Out: few, short, plain values: what is
damaged, too deep, too long or no number that can be shown is left out or cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from gptkit.files import MAX_DEPTH, parse_toml
from gptkit.runs.run import Run

Value = str | int | float | bool
Settings = Mapping[str, Value]

_MAX_EXPERIMENT, _MAX_KEYS, _MAX_TEXT = 1_000_000, 2_000, 1_000  # bytes, keys, characters

# Tables that name a plugin by their type, and the plugin's family; what else is in them is its options
PLUGIN_TABLES = {
    "tokenizer": "gptkit.tokenizers",
    "data.dataset": "gptkit.datasets",
    "model.position": "gptkit.positions",
}


def read_settings(run: Run) -> dict[str, Value]:
    """The resolved experiment as `model.n_embd` -> 128; `model.position` is its type, its options beside it.

    Empty where the file cannot be read.
    """
    path = run.experiment_file
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_EXPERIMENT:
            return {}
        table = parse_toml(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    flat = flatten(table)
    return {short_name(key): value for key, value in flat.items()}


def short_name(key: str) -> str:
    """`model.position` for `model.position.type`, as an experiment file may have it."""
    table = key.removesuffix(".type")
    return table if table in PLUGIN_TABLES or table == "optimizer" else key


def flatten(table: Mapping[str, Any]) -> dict[str, Value]:
    """Values of nested tables by dotted key, at most 2,000 of them; a list is its values in words."""
    flat: dict[str, Value] = {}
    for key, value in _leaves(table, "", MAX_DEPTH):
        if len(flat) == _MAX_KEYS:
            break
        plain = plain_value(value)
        if plain is not None and len(key) <= _MAX_TEXT:
            flat[key] = plain
    return flat


def _leaves(table: Mapping[str, Any], beginning: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            if depth:
                yield from _leaves(value, f"{beginning}{key}.", depth - 1)
        else:
            yield beginning + key, value


def plain_value(value: object) -> Value | None:
    """The value where it is one that can be shown: not nan, no number of a thousand digits."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, list):
        words = [plain_value(item) for item in value[:100] if not isinstance(item, list)]
        return ", ".join(str(word) for word in words if word is not None)[:_MAX_TEXT]
    return None
