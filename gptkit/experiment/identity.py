"""The identity of a run: its resolved experiment as plain values, the hash of them, and what differs.

Input: an `Experiment`, or the values that a run recorded of one. Output: the same values for the same
settings, however a file writes them; their SHA-256; differences by dotted key, and whether one changes what a
step computes. Knows nothing of files or runs.

A later version may add fields: one that is left at the value with which older versions trained, in
`ADDED_LATER`, is not part of the identity, so that the hashes which they recorded stay valid.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptkit.experiment.overrides import QUESTIONS
from gptkit.experiment.schema import Experiment
from gptkit.files import sha256

ADDED_LATER: dict[str, Any] = {"distributed.strategy": "replicate", "distributed.timeout": 600.0}
"""Fields that were added after hashes were first recorded, by dotted key, each with the value that trains as
before. A field that may be left unset needs no entry."""

CHANGE_NO_WEIGHT = (
    "name",
    "data.dataset",  # where the text is: the text itself is compared by its hash
    "data.fallback",
    "tokenizer",  # how it was made: a run keeps it, and it is compared by its hash
    "init_from",  # as above: the weights of a checkpoint are what counts
    "training.log_interval",
    "evaluation",
    "checkpoints",
    "sampling",
    "distributed",
    "tracking",
)
"""Fields and tables that may change while a run is trained, and no later weight will be another. All others
change what a step computes."""

CHANGE_RECORDED_LOSSES = ("training.log_interval", "evaluation.eval_interval", "evaluation.eval_tokens")
"""Those of them that change which losses are recorded, and over which steps or tokens they are means."""

BACKEND = {
    "training.backend": "device",
    "training.precision": "precision",
    "training.threads": "threads",
    "training.compile": "compile",
}
"""Fields that choose the backend, which a run records as it was chosen: they count only by that choice."""

_ALIASES = (
    "model.position",
    "optimizer",
    "tokenizer",
    "data.dataset",
    "data.fallback",
    "data.val",
)  # tables with a type
_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True)
class Change:
    """A field of an experiment with another value than before; None: not set."""

    key: str  # dotted, as --set takes it
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {_shown(self.old)} -> {_shown(self.new)}"

    @property
    def override(self) -> str:
        """As --set takes it."""
        return f"{self.key}={self.new if isinstance(self.new, str) else json.dumps(self.new)}"


def values_of(experiment: Experiment) -> dict[str, Any]:
    """The identity as nested tables of JSON values, defaults explicit; without fields that are not set."""
    values = experiment.model_dump(mode="json", exclude_none=True)
    for key, as_before in ADDED_LATER.items():
        *tables, last = key.split(".")
        table: Any = values
        for name in tables:
            table = table.get(name, {})
        if last in table and _same(table[last], as_before):
            del table[last]
    return values


def hash_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of an identity: equal exactly where all values are."""
    return sha256(
        json.dumps(_without_empty(values), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    )


def experiment_hash(experiment: Experiment) -> str:
    """Equal for two experiments exactly where every field of them is, names and intervals included."""
    return hash_of(values_of(experiment))


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], stated: Container[str] | None = None
) -> tuple[Change, ...]:
    """What differs between two identities, in the order of the fields.

    A key that only `now` has, and that is not among the keys `stated` in its file, is a default that a later
    version of a plugin brings: no difference. Without `stated` every key counts.
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return tuple(
        Change(_short(key), old.get(key), new.get(key))
        for key in {**old, **new}
        if not _same(old.get(key), new.get(key)) and (key in old or stated is None or key in stated)
    )


def keys_of(tables: Mapping[str, Any]) -> frozenset[str]:
    """The dotted keys of the values in nested tables; `position = "rope"` is that of its type."""
    keys = {key for key, _ in _leaves(tables)}
    return frozenset(keys | {f"{key}.type" for key in keys if key in _ALIASES})


def with_values(values: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with other values for some keys; None: not set."""
    copy: dict[str, Any] = json.loads(json.dumps(values))
    for key, value in changed.items():
        *tables, last = (f"{key}.type" if key in _ALIASES else key).split(".")
        table: Any = copy
        for name in tables:
            table = table.setdefault(name, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict):
            table.pop(last, None)
            table |= {} if value is None else {last: value}
    return copy


def changes_weights(change: Change, now: Mapping[str, Any]) -> bool:
    """Whether steps compute something else since a change, in an experiment that now has these values."""
    if change.key == "training.max_steps" and now.get("schedule", {}).get("type") == "constant":
        return False  # it is only where the run ends
    return not _is_under(change.key, CHANGE_NO_WEIGHT)


def changes_recorded_losses(change: Change) -> bool:
    """Whether a change leaves the weights, but not which losses are recorded, alone."""
    return _is_under(change.key, CHANGE_RECORDED_LOSSES)


def is_set_by(change: Change, keys: Container[str]) -> bool:
    """Whether a change follows from setting these keys, as --set does."""
    names = change.key.split(".")
    above = [".".join(names[: count + 1]) for count in range(len(names))]
    if any(key in keys or f"{key}.type" in keys for key in above):
        return True
    question = QUESTIONS.get(change.key)  # that another of the fields answers
    return question is not None and any(QUESTIONS[key] == question and key in keys for key in QUESTIONS)


def _without_empty(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Without tables in which nothing is set, such as a later version may add."""
    inner = {
        key: _without_empty(value) if isinstance(value, Mapping) else value for key, value in tables.items()
    }
    return {key: value for key, value in inner.items() if value != {}}


def _is_under(key: str, tables: Container[str]) -> bool:
    names = key.split(".")
    return any(".".join(names[: count + 1]) in tables for count in range(len(names)))


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(key: str) -> str:
    """`model.position` for `model.position.type`."""
    table = key.removesuffix(".type")
    return table if table in _ALIASES else key


def _same(one: Any, other: Any) -> bool:
    """Unlike in Python, true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
