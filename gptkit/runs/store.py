"""The runs of a folder: created, found, listed, selected by conditions, sorted.

Input: a runs folder; an id or path; conditions such as `data.dataset=shakespeare` or `best<1.5`. Output:
runs, or a summary of each. Values are compared as the files have them: no plugin is loaded and no experiment
checked, so that a thousand runs are listed in a second.
"""

from __future__ import annotations

import operator
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from math import isnan
from pathlib import Path, PurePath
from typing import Any

from gptkit.errors import CheckpointError, DiskError, UsageError
from gptkit.files import disk, disk_errors, make_folder, replace_file
from gptkit.runs.folder import DEFAULT_RUNS_FOLDER, EXPERIMENT, TEMPORARY, TRASH
from gptkit.runs.record import RunRecord, timestamp
from gptkit.runs.run import Run
from gptkit.runs.summary import RunSummary, Value, flatten, plain_value, read_settings, summarize
from gptkit.words import closest, nearest, printable

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
_MAX_KEYS = 10_000  # remembered, to suggest one of them


def create_run(runs_folder: Path, *, stem: str, experiment_toml: str) -> Run:
    """Creates the folder `<stem>-<local time>` with its experiment file. Raises DiskError."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    with disk_errors(f"creating a run folder in {runs_folder}"):
        if runs_folder.exists() and not runs_folder.is_dir():
            raise DiskError(f"{runs_folder} is a file; pass a folder with --runs-dir.")
        make_folder(runs_folder)
        for attempt in range(1000):  # two runs started within a second
            path = runs_folder / (f"{stem}-{stamp}" + (f"-{attempt + 1}" if attempt else ""))
            try:
                disk.make_new_folder(path)
            except FileExistsError:
                continue
            run = Run(path)
            try:
                disk.make_folder(run.checkpoints)
                replace_file(run.experiment_file, experiment_toml.encode())
                disk.fsync_folder(runs_folder)
            except BaseException:
                disk.remove_folder(path)
                raise
            return run
    raise DiskError(f"cannot find a free name for the run in {runs_folder}.")


def find_run(wanted: str, runs_folder: Path = DEFAULT_RUNS_FOLDER) -> Run:
    """The run that `wanted` means: a folder, an id, a unique beginning of an id, or 'latest'.

    A name matches whether its letters are composed with their marks or not. Raises UsageError if there is
    no such run, or more than one.
    """
    if "\0" in wanted or not wanted:
        raise UsageError(f"{wanted!r} names no run.")
    path = Path(os.path.expanduser(wanted))  # no shell replaces the ~ of --load=~/runs/one
    if os.path.islink(path):  # unlike Path's, no error for a name that cannot be
        raise UsageError(f"{wanted} is a symbolic link; pass the run's folder itself.")
    if os.path.isfile(path / EXPERIMENT):
        return Run(path if path.name not in ("", "..") else Path(os.path.abspath(path)))
    ids = run_ids(runs_folder)
    if wanted == "latest":
        if not ids:
            raise UsageError(f"there are no runs in {runs_folder}; 'gptkit train EXPERIMENT' makes one.")
        return Run(runs_folder / max(ids, key=lambda name: (_started_at(runs_folder / name), name)))
    matches = _matching(wanted, ids)
    if len(matches) == 1:
        return Run(runs_folder / matches[0])
    if not matches and path.name != wanted and not wanted.isascii():
        with suppress(OSError):
            if same := _same_name(path.name, run_ids(path.parent)):
                return Run(path.parent / same[0])
    if matches:
        shown = ", ".join(map(printable, matches[:8]))
        raise UsageError(
            f"{wanted!r} is the beginning of {len(matches)} runs: {shown}. Type more of the id, or 'latest'."
        )
    if os.path.isdir(path):
        raise UsageError(f"{wanted} is not a run folder: it has no {EXPERIMENT}.")
    shown = wanted if len(wanted) <= 200 else wanted[:200] + "…"
    beginnings = {name[: len(wanted)]: name for name in ids}
    near = nearest(wanted, ids) or nearest(beginnings.get(closest(wanted, beginnings) or "", ""), ids)
    raise UsageError(f"no run {shown!r} in {runs_folder}{near or '.'} See 'gptkit runs'.")


def run_ids(runs_folder: Path) -> list[str]:
    """The ids of all runs in a folder, sorted by name: of the folders, not links, with an experiment file."""
    return [name for name, is_run in _folders(runs_folder) if is_run]


def other_folders(runs_folder: Path) -> list[str]:
    """The names of the folders beside the runs that are none, and of links to folders; no hidden ones."""
    return [name for name, is_run in _folders(runs_folder) if not is_run and not name.startswith(".")]


def _folders(runs_folder: Path) -> list[tuple[str, bool]]:
    """Each folder but gptkit's own temporary ones, by name, and whether it is a run."""
    if not os.path.isdir(runs_folder):
        return []
    return sorted(
        (entry.name, not entry.is_symlink() and os.path.isfile(entry / EXPERIMENT))
        for entry in runs_folder.iterdir()
        if not entry.name.startswith((TEMPORARY, TRASH)) and os.path.isdir(entry)
    )


def _matching(wanted: str, ids: Sequence[str]) -> list[str]:
    """The ids of that name, or else those that begin so."""
    if same := _same_name(wanted, ids):
        return same
    beginning = _composed(wanted)
    return [name for name in ids if _composed(name).startswith(beginning)]


def _same_name(wanted: str, ids: Sequence[str]) -> list[str]:
    same = [name for name in ids if name == wanted]
    return same or [name for name in ids if _composed(name) == _composed(wanted)]


def _composed(name: str) -> str:
    """Letters composed with their marks: in some systems' file names, and when typed there, they are not."""
    return unicodedata.normalize("NFC", name)


def _started_at(path: Path) -> float:
    return timestamp(Run(path).read_record_or_empty().started)


def _by_age(run: RunSummary) -> tuple[float, str]:
    return timestamp(run.started), run.id


@dataclass(frozen=True)
class Condition:
    """One `--where`: a key, one of = != < > <= >=, and the value that it is compared with."""

    key: str
    sign: str
    wanted: str

    def holds(self, values: Sequence[Value]) -> bool:
        """Whether it holds for one of the values; for no values, only `!=` does. Raises UsageError."""
        if self.sign in ("=", "!="):
            return any(map(self._equals, values)) == (self.sign == "=")
        return any(map(self._in_order, values))

    def _equals(self, value: Value) -> bool:
        wanted = self.wanted
        if isinstance(value, bool):
            return wanted.lower() == str(value).lower()
        if isinstance(value, int | float) and (number := _number(wanted)) is not None:
            return value == number
        text, wanted = _composed(str(value)), _composed(wanted)
        return fnmatchcase(text, wanted) if set(wanted) & set("*?[") else text == wanted

    def _in_order(self, value: Value) -> bool:
        if isinstance(value, str):
            return _ORDER[self.sign](value, self.wanted)
        number = _number(self.wanted)
        if number is None:
            raise UsageError(f"--where {self}: {self.key} is a number, but {self.wanted!r} is not.")
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
    """A run that fulfils the conditions, with the values of the keys that have no column."""

    run: RunSummary
    more: dict[str, Value | None] = field(default_factory=dict)


def select_runs(
    runs_folder: Path, where: Iterable[str] = (), sort: str = "", reverse: bool = False
) -> list[Selected]:
    """The runs for which every condition holds, by the key `sort` (those without it last), or oldest first.

    Raises UsageError for a malformed condition, and for a key that no run has.
    """
    conditions = [parse_condition(text) for text in where]
    sort = SHORT.get(sort, sort)
    keys = dict.fromkeys([condition.key for condition in conditions] + [sort] * bool(sort))
    unknown = {key for key in keys if key not in COLUMNS}
    more = [key for key in keys if key in unknown]
    known: set[str] = set()
    kept: list[tuple[Selected, Value | None]] = []
    for name in run_ids(runs_folder):
        run = _Fields(Run(runs_folder / name))
        if unknown:
            unknown -= {key for key in unknown if run.values(key)}
            if unknown and len(known) < _MAX_KEYS:
                known.update(run.keys())
        if all(condition.holds(run.values(condition.key)) for condition in conditions):
            found = Selected(run.summary, {key: _first(run.values(key)) for key in more})
            kept.append((found, _first(run.values(sort)) if sort else None))
    _refuse_unknown(unknown, known)
    kept.sort(key=lambda pair: _by_age(pair[0].run), reverse=reverse and not sort)
    if sort:
        kept.sort(key=lambda pair: _rank(pair[1]), reverse=reverse)
        kept.sort(key=lambda pair: pair[1] is None)
    return [selected for selected, _ in kept]


class _Fields:
    """The values of one run by key; its experiment is read only for a key that is not a column."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._record: RunRecord | None = None
        with suppress(CheckpointError):
            self._record = run.read_record()
        self.summary = summarize(run, self._record)

    @cached_property
    def _settings(self) -> dict[str, Value]:
        return read_settings(self._run)

    @cached_property
    def _facts(self) -> dict[str, Value]:
        return flatten(self._record.to_dict()) if self._record else {}

    def values(self, key: str) -> list[Value]:
        """`data.dataset` of a text file has its path and its name too."""
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
    """Raises UsageError for a key that is neither in a run nor a field of an experiment."""
    if not unknown:
        return
    from gptkit.experiment.fields import fields as experiment_fields

    schema = list(dict.fromkeys(key for one in experiment_fields() for key in (one.table, one.key) if key))
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
