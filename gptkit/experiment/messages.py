"""What is wrong with an experiment, in words: the field, its value, what would be right.

In: what pydantic found, or a problem found elsewhere, and the file's text where there is one. Out: a line for
each problem, and the message for a person, with the file's own line where the problem is in the file and the
words of the command line where it is there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gptkit.errors import ExperimentError
from gptkit.experiment.places import Entry, Path, find, in_line, mark
from gptkit.experiment.schema import OPTIMIZERS, Experiment, OptimizerSettings
from gptkit.words import closest, nearest

SHOWN = 20  # problems that a message shows; a file with more has one cause
MOST = 1000  # problems that are told apart
LONGEST = 120  # characters of a dotted key or of words that are shown

# What other scripts call a field
_ELSEWHERE = {
    "block_size": "model.context_length",
    "seq_len": "model.context_length",
    "sequence_length": "model.context_length",
    "max_seq_len": "model.context_length",
    "d_model": "model.n_embd",
    "hidden_size": "model.n_embd",
    "embedding_size": "model.n_embd",
    "num_heads": "model.n_head",
    "heads": "model.n_head",
    "num_layers": "model.n_layer",
    "layers": "model.n_layer",
    "max_iters": "training.max_steps",
    "iterations": "training.max_steps",
    "steps": "training.max_steps",
    "device": "training.backend",
    "dtype": "training.precision",
    "lr": "optimizer.learning_rate",
    "warmup_iters": "schedule.warmup_steps",
    "min_lr": "schedule.min_learning_rate",
    "lr_scheduler": "schedule.type",
}
_SECTIONS = ("data", "model", "training", "optimizer", "schedule", "evaluation", "checkpoints", "sampling")
_ALIASES = {"gpu": "cuda", "nvidia": "cuda", "adam": "adamw", "float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Problem:
    """One line about one field, and where the field is looked for."""

    text: str
    path: Path = ()
    of_key: bool = False  # the key itself is wrong, rather than its value
    instead: tuple[Path, ...] = ()  # other fields that it is about, where the first is not said anywhere


@dataclass(frozen=True)
class Source:
    """Where an experiment comes from: a name for messages, and what can be shown of it."""

    name: str = "the experiment"
    text: str | None = None  # the file's
    said: Mapping[str, str] = field(default_factory=dict)  # dotted key to the words of the command line

    def words(self, path: Path, *, inside: bool = False) -> str | None:
        """The words that set the field or a table around it; with `inside`, a field in it."""
        for length in range(len(path), 0, -1):
            if found := self.said.get(".".join(path[:length])):
                return found
        begin = ".".join(path) + "."
        within = (words for key, words in self.said.items() if key.startswith(begin))
        return next(within, None) if inside else None


def as_message(source: Source, problems: Sequence[Problem]) -> str:
    """All problems for a person; one of the command line says so instead of a line of the file."""
    shown = problems[:SHOWN]
    wanted = {path[:length] for one in shown for path in _paths(one) for length in range(1, len(path) + 1)}
    entries = find(source.text, wanted) if source.text is not None else {}
    blocks: list[tuple[int, str]] = []
    of_file = False
    for problem in shown:
        words, entry = _place(source, problem, entries)
        of_file |= not words
        if entry and source.text is not None:
            span = entry.key if problem.of_key or not entry.value else entry.value
            blocks.append((span[0], mark(source.text, span).show(problem.text)))
        else:  # after those of the file, which stand in its order
            blocks.append((sys.maxsize, f"{words}: {problem.text}" if words else problem.text))
    told = [text for _, text in sorted(blocks, key=lambda block: block[0])]
    if len(problems) == 1:
        if entry:
            return f"{source.name} has a problem:\n{told[0]}"
        return f"{source.name}: {told[0]}" if of_file else told[0]
    lines = [text if text.startswith("  ") else f"  {text}" for text in told]
    if len(problems) > len(shown):
        lines.append(f"  and {len(problems) - len(shown)} more")
    name = source.name if of_file else "the command line"
    return "\n".join([f"{name} has {len(problems)} problems:", *lines])


def as_error(source: Source, problems: Sequence[Problem]) -> ExperimentError:
    return ExperimentError(source.name, [one.text for one in problems], message=as_message(source, problems))


def _paths(problem: Problem) -> Iterable[Path]:
    return [path for path in (problem.path, *problem.instead) if path]


def _place(
    source: Source, problem: Problem, entries: Mapping[Path, Entry]
) -> tuple[str | None, Entry | None]:
    """The words of the command line, or the entry of the file, that a problem is about."""
    paths = list(_paths(problem))
    for path in paths:
        if words := source.words(path):
            return words, None
    for path in paths:
        if entry := entries.get(path):
            return None, entry
    for path in paths:
        if words := source.words(path, inside=True):
            return words, None
    for path in paths:
        for length in range(len(path) - 1, 0, -1):
            if entry := entries.get(path[:length]):
                return None, entry
    return None, None


def describe_all(
    error: ValidationError, *, prefix: str = "", model: type[BaseModel] = Experiment
) -> list[str]:
    """The problems that pydantic found, a line for each field: 'dotted.key = value: what would be right'."""
    return [problem.text for problem in find_problems(error, prefix=prefix, model=model)]


def find_problems(
    error: ValidationError, *, prefix: str = "", model: type[BaseModel] = Experiment
) -> list[Problem]:
    """The problems that pydantic found, one for each field, and no more than MOST of them.

    `prefix` is the table that `model` describes.
    """
    begin = tuple(prefix.split(".")) if prefix else ()
    found: dict[str, _Described] = {}
    for detail in error.errors(include_url=False):
        if len(found) == MOST:
            break
        path = [str(part) for part in detail["loc"] if not _is_union_member(part)]
        if detail["type"] == "extra_forbidden" and _is_union_member(detail["loc"][-1]):
            path.append(str(detail["loc"][-1]))  # an unknown key of such a name
        context = detail.get("ctx", {})
        fields = [(*begin, *path, name) for name in context.get("fields", ())]
        if detail["type"] == "union_tag_invalid":
            path.append("type")
        place = dotted((*begin, *path)) or "the file"
        place, message = _describe(detail, place)
        described = found.setdefault(place, _Described((*begin, *path), tuple(fields)))
        if message not in described.messages:
            described.messages.append(message)
        if detail["type"] == "extra_forbidden":
            near = _suggest(path, model, detail["loc"]) if len(found) <= SHOWN else ""
            described.of_key, described.remedy = True, near
        described.remedy = described.remedy or _remedy(detail)
    return [described.problem(place) for place, described in found.items()]


@dataclass
class _Described:
    path: Path
    instead: tuple[Path, ...]
    messages: list[str] = field(default_factory=list)
    remedy: str = ""
    of_key: bool = False

    def problem(self, place: str) -> Problem:
        first, *others = self.messages
        said = " or ".join([first, *(other.removeprefix("should be ") for other in others)])
        path, *instead = self.instead or (self.path,)
        separator = " " if self.instead else ": "
        return Problem(f"{place}{separator}{said}{self.remedy}", path, self.of_key, tuple(instead))


def dotted(path: Iterable[str]) -> str:
    """A path as a file writes it, short enough for a line and harmless to a terminal."""
    text = in_line(".".join(path))
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _is_union_member(part: int | str) -> bool:
    """Whether pydantic put the name of a union's member into the path; a file has no such key."""
    plain = {*OPTIMIZERS, "bool", "int", "float", "str"}
    return isinstance(part, str) and (part in plain or part.startswith(("literal[", "constrained-", "list[")))


def _describe(detail: ErrorDetails, place: str) -> tuple[str, str]:
    """The place, with the value where it is short, and what would be right there."""
    kind, value = detail["type"], detail["input"]
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should", "should").replace("String should", "should")
    if kind == "extra_forbidden":
        return place, "unknown key"
    if kind == "missing":
        return place, "is required"
    if kind == "union_tag_invalid":
        tag, expected = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        return f"{place} = {_short(tag)}", f"should be {expected.replace(', ', ' or ')}"
    if kind == "string_pattern_mismatch":
        message = "should be letters, digits, '_' and '-', starting with a letter or digit"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "should be a table"
    if kind == "fields":
        return f"{place}.{message.partition(' ')[0]}", message.partition(" ")[2]
    if kind == "value_error" or isinstance(value, dict | list | BaseModel):
        return place, message
    return f"{place} = {_short(value)}", message


def _remedy(detail: ErrorDetails) -> str:
    """What the value was meant to be, where that can be told."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("literal_error", "union_tag_invalid"):
        known = re.findall(r"'([^']+)'", str(context.get("expected") or context.get("expected_tags")))
        wanted = context.get("tag", value)
        if not isinstance(wanted, str):
            return ""
        alias = _ALIASES.get(wanted.lower())
        return f"; did you mean {alias!r}?" if alias in known else nearest(wanted, known)
    if kind in ("int_type", "float_type") and isinstance(value, str):
        number = re.fullmatch(r"\s*([+-]?\d{1,18}(\.\d{1,18})?(e[+-]?\d{1,3})?)\s*", value, re.IGNORECASE)
        return f"; write {number[1]}, without quotes" if number else ""
    if kind == "int_type" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"; write {int(value)}"
    if kind == "bool_type" and isinstance(value, str | int):
        words = {"yes": "true", "on": "true", "true": "true", "1": "true"}
        words |= {"no": "false", "off": "false", "false": "false", "0": "false"}
        word = words.get(str(value).lower())
        return f"; write {word}{', without quotes' if isinstance(value, str) else ''}" if word else ""
    if kind == "list_type" and isinstance(value, str):
        return f"; write [{_short(value)}]"
    return ""


def _short(value: Any) -> str:
    try:
        text = json.dumps(value) if isinstance(value, bool | str) else repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(path: Sequence[str], model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The nearest key of the same table, or the table that does have this key, under this name or another."""
    *tables, wrong = path
    fields = [name for name in _fields(model, tables, location) if name != wrong]
    if model is Experiment:
        for section in Experiment.model_fields:
            if [section] != tables and wrong in _fields(Experiment, [section], ()):
                return f"; it belongs in [{section}]"
        if tables and wrong in Experiment.model_fields and wrong not in _SECTIONS:
            return "; it belongs at the top of the file, before the first [table]"
    elsewhere = _ELSEWHERE.get(wrong.lower()) if model is Experiment else None
    if elsewhere:
        table, _, name = elsewhere.rpartition(".")
        return f"; it is called {name!r} here{'' if [table] == tables else f', in [{table}]'}"
    if near := nearest(wrong, fields):
        return near
    if tables == ["optimizer"]:
        having = [name for name, member in OPTIMIZERS.items() if wrong in member.model_fields]
        if having:
            return f"; only type {having[0]!r} has it"
    if model is Experiment and len(tables) <= 1:
        sections = Experiment.model_fields
        every = {name: section for section in sections for name in _fields(model, [section], ())}
        meant = closest(wrong, every)
        if meant and [every[meant]] != tables:
            return f"; did you mean {meant!r}, in [{every[meant]}]?"
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
