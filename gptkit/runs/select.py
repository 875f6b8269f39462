"""Which runs, and in which order: conditions on columns, on experiment fields and on what run.json says.

In: `data.dataset=shakespeare`, `best<1.5`, a key to sort by. Out: the runs of a folder that fit, in a line
each. Values are read as the files have them; no plugin is loaded and no experiment checked, so a thousand
runs take about a second.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import cached_property
from math import isnan
from pathlib import Path, PurePath
from typing import Any

from gptkit.errors import UsageError
from gptkit.runs.run import Run, run_ids
from gptkit.runs.settings import Value, flatten, plain_value, read_settings
from gptkit.runs.summaries import RunSummary, by_age, record_of, summarise
from gptkit.words import nearest

COLUMNS = tuple(column.name for column in fields(RunSummary))
SHORT = {
    "best": "best_val_loss",
    "bits": "best_bits_per_byte",
    "bits/byte": "best_bits_per_byte",
    "steps": "step",
    "when": "started",
}

_CONDITION = re.compile(r"\s*([^\s=<>!]+)\s*(<=|>=|!=|==|=|<|>)(.*)", re.DOTALL)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_MOST_KEYS = 10_000  # remembered, to suggest one of them


@dataclass(frozen=True)
class Condition:
    """One `--where`: a key, one of = != < > <= >=, and what it is held against."""

    key: str
    sign: str
    wanted: str

    def holds(self, values: Sequence[Value]) -> bool:
        """Whether one of the values fits; none at all fits only `!=`. Raises UsageError for `best<high`."""
        if self.sign in ("=", "!="):
            return any(map(self._equals, values)) == (self.sign == "=")
        return any(map(self._in_order, values))

    def _equals(self, value: Value) -> bool:
        wanted = self.wanted
        if isinstance(value, bool):
            return wanted.lower() == str(value).lower()
        if isinstance(value, int | float) and (number := _number(wanted)) is not None:
            return value == number
        return fnmatchcase(str(value), wanted) if set(wanted) & set("*?[") else str(value) == wanted

    def _in_order(self, value: Value) -> bool:
        if isinstance(value, str):
            return _ORDER[self.sign](value, self.wanted)
        number = _number(self.wanted)
        if number is None:
            raise UsageError(f"--where {self}: {self.key} is a number, and {self.wanted!r} is none.")
        return _ORDER[self.sign](value, number)

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{self.wanted}"


def parse_condition(text: str) -> Condition:
    """Raises UsageError."""
    match = _CONDITION.fullmatch(text)
    if not match:
        raise UsageError(
            f"--where {text!r}: expected KEY=VALUE, or another of != < > <= >=, as in --where 'best<1.5'."
        )
    key, sign, wanted = match.groups()
    return Condition(SHORT.get(key, key), "=" if sign == "==" else sign, wanted.strip())


@dataclass(frozen=True)
class Selected:
    """A run that fits, with the values that were asked about and are in no column."""

    run: RunSummary
    more: dict[str, Value | None] = field(default_factory=dict)


def select_runs(
    runs_folder: Path, where: Iterable[str] = (), sort: str = "", reverse: bool = False
) -> list[Selected]:
    """The runs for which every condition holds, by `sort` (those without it last), or the oldest first.

    Raises UsageError for a condition that cannot be read, and for a key that nothing has.
    """
    conditions = [parse_condition(text) for text in where]
    sort = SHORT.get(sort, sort)
    asked = dict.fromkeys([condition.key for condition in conditions] + [sort] * bool(sort))
    unknown = {key for key in asked if key not in COLUMNS}
    more = [key for key in asked if key in unknown]
    known: set[str] = set()
    kept: list[tuple[Selected, Value | None]] = []
    for name in run_ids(runs_folder):
        run = _Fields(Run(runs_folder / name))
        if unknown:
            unknown -= {key for key in unknown if run.values(key)}
            if unknown and len(known) < _MOST_KEYS:
                known.update(run.keys())
        if all(condition.holds(run.values(condition.key)) for condition in conditions):
            found = Selected(run.summary, {key: _first(run.values(key)) for key in more})
            kept.append((found, _first(run.values(sort)) if sort else None))
    _refuse_unknown(unknown, known)
    kept.sort(key=lambda pair: by_age(pair[0].run), reverse=reverse and not sort)
    if sort:
        kept.sort(key=lambda pair: _rank(pair[1]), reverse=reverse)
        kept.sort(key=lambda pair: pair[1] is None)
    return [selected for selected, _ in kept]


class _Fields:
    """What can be asked of one run; its experiment is read only when it is."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._record = record_of(run)
        self.summary = summarise(run, self._record) if self._record is not None else summarise(run)

    @cached_property
    def _settings(self) -> dict[str, Value]:
        return read_settings(self._run)

    @cached_property
    def _facts(self) -> dict[str, Value]:
        return flatten(self._record or {})

    def values(self, key: str) -> list[Value]:
        """Of a text of one's own, `data.dataset` is its path and its name too."""
        if key in COLUMNS:
            value = plain_value(getattr(self.summary, key))
            return [] if value is None or value == "" else [value]
        settings = self._settings
        if key == "data.dataset" and key in settings:
            return [settings[key], *_names_of_text(str(settings.get("data.dataset.path", "")))]
        for flat in (settings, self._facts):
            for name in (key, key.removesuffix(".type"), f"{key}.type"):
                if name in flat:
                    return [flat[name]]
        return []

    def keys(self) -> Iterator[str]:
        yield from self._settings
        yield from self._facts


def _names_of_text(path: str) -> list[Value]:
    pure = PurePath(path)
    return [path, pure.name, pure.stem] if path else []


def _refuse_unknown(unknown: set[str], known: set[str]) -> None:
    """A field of the schema that no run has is known all the same."""
    if not unknown:
        return
    from gptkit.experiment.fields import fields

    schema = list(dict.fromkeys(key for field in fields() for key in (field.table, field.key) if key))
    known = {*COLUMNS, *SHORT, *known, *schema}
    for key in sorted(unknown - known):
        ends = [name for name in (*schema, *sorted(known)) if name.endswith(f".{key}")]
        hint = f"; did you mean {ends[0]!r}?" if ends else nearest(key, known)
        raise UsageError(
            f"no run has a field {key!r}{hint or '.'}\n"
            "Known are the columns (best, step, started, status, …), the fields of an experiment "
            "(model.n_embd) and those of run.json."
        )


def _rank(value: Value | None) -> tuple[bool, Any]:
    """Numbers before texts, each in their own order."""
    if isinstance(value, str):
        return True, value
    return False, value or 0


def _first(values: Sequence[Value]) -> Value | None:
    return values[0] if values else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return None if isnan(value) else value
