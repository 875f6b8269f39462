"""Messages about an experiment that is not valid: the field, its value, what would be right.

Input: what pydantic found, or a `Problem` found elsewhere, and the `Source` of the experiment. Output:
problems, and the message that shows each at its line of the file or with its words of the command line.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gptkit.errors import GptkitError, Problem
from gptkit.experiment.fields import fields
from gptkit.experiment.schema import OPTIMIZERS, Experiment
from gptkit.experiment.source import Entry, Path, Source, dotted, in_line
from gptkit.words import closest, nearest, printable

SHOWN = 20  # problems that a message shows; more usually have a single cause
MOST = 1000  # problems that are collected

# The names of fields in other projects
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
_WORDS = {
    "Input should": "should",
    "String should": "should",
    "a valid integer": "an integer",
    "a valid boolean": "true or false",
    "a valid ": "a ",
}
_ALIASES = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "adam": "adamw",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}


def render(source: Source, problems: Sequence[Problem]) -> str:
    """All problems for a person, in the order of the file, then those of the command line."""
    shown = problems[:SHOWN]
    entries = source.entries([path for problem in shown for path in problem.paths])
    blocks: list[tuple[int, str]] = []
    in_file = False
    for problem in shown:
        origin, entry = _place(source, problem, entries)
        in_file |= not origin
        if entry:
            span = entry.key if problem.in_key or not entry.value else entry.value
            blocks.append((span[0], source.show(span, problem.message)))
        else:
            blocks.append((sys.maxsize, f"{dotted([origin])}: {problem}" if origin else problem.message))
    texts = [text for _, text in sorted(blocks, key=lambda block: block[0])]
    if len(problems) == 1:
        (text,) = texts
        if text.startswith("  line "):
            return f"{source.name} has a problem:\n{text}"
        return f"{source.name}: {text}" if in_file else text
    lines = [text if text.startswith("  line ") else f"  {text}" for text in texts]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    name = source.name if in_file else "the command line"
    return "\n".join([f"{name} has {len(problems)} problems:", *lines])


def add_place(error: GptkitError, source: Source) -> None:
    """Adds to an error about a field where that field is set: in the file or on the command line."""
    if error.field:
        path = tuple(error.field.split("."))
        origin, entry = _place(source, Problem("", (path,)), source.entries([path]))
        if entry:
            error.add_note(source.show(entry.value or entry.key, f"in {in_line(source.name)}"))
        elif origin:
            error.add_note(f"It is set by {dotted([origin])}.")


def _place(source: Source, problem: Problem, entries: Mapping[Path, Entry]) -> tuple[str, Entry | None]:
    """The words of the command line, or else the entry of the file, that a problem is about."""
    for path in problem.paths:
        if origin := source.origin(path):
            return origin, None
    for path in problem.paths:
        if path in entries:
            return "", entries[path]
    for path in problem.paths:
        if origin := source.origin_inside(path):
            return origin, None
    around = [path[:length] for path in problem.paths for length in range(len(path) - 1, 0, -1)]
    return "", next((entries[path] for path in around if path in entries), None)


def problems_of(
    error: ValidationError, *, table: str = "", options: type[BaseModel] | None = None
) -> list[Problem]:
    """What pydantic found, one problem for each field, and no more than MOST.

    `options` is the model of a plugin's options and `table` where they are; without it, the experiment's own.
    """
    begin = tuple(table.split(".")) if table else ()
    found: dict[str, _Messages] = {}
    for detail in error.errors(include_url=False):
        if len(found) == MOST:
            break
        path = _path(detail)
        place, message = _describe(detail, dotted((*begin, *path)) or "the file")
        here = found.setdefault(place, _Messages((*begin, *path)))
        if message not in here.messages:
            here.messages.append(message)
        if detail["type"] == "extra_forbidden":
            here.in_key = True
            if len(found) <= SHOWN:
                known = list(options.model_fields) if options else None
                here.remedy = _instead_of_key(path, detail["loc"], known)
        here.fields = detail.get("ctx", {}).get("fields", ())
        here.remedy = here.remedy or _instead_of_value(detail)
    return [messages.problem(place) for place, messages in found.items()]


@dataclass
class _Messages:
    """What pydantic found wrong with one field."""

    path: Path
    messages: list[str] = field(default_factory=list)
    remedy: str = ""
    in_key: bool = False
    fields: Sequence[str] = ()  # of the table at `path`, where the problem is between them

    def problem(self, place: str) -> Problem:
        first, *others = self.messages
        text = " or ".join([first, *(other.removeprefix("should be ") for other in others)])
        paths = tuple((*self.path, name) for name in self.fields) or (self.path,)
        separator = " " if self.fields else ": "
        return Problem(f"{place}{separator}{text}{self.remedy}", paths, self.in_key)


def _path(detail: ErrorDetails) -> list[str]:
    """The path as a file has it, without the names that pydantic gives to the members of a union."""
    members = {*OPTIMIZERS, "bool", "int", "float", "str"}
    path = [
        str(part)
        for part in detail["loc"]
        if not (
            isinstance(part, str)
            and (part in members or part.startswith(("literal[", "constrained-", "list[")))
        )
    ]
    last = str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden" and path[-1:] != [last]:  # an unknown key of such a name
        path.append(last)
    if detail["type"] == "union_tag_invalid":
        path.append("type")
    return path


def _describe(detail: ErrorDetails, place: str) -> tuple[str, str]:
    """The place, with the value if it is short, and what would be right there."""
    kind, value = detail["type"], detail["input"]
    message = re.sub(", unable to .*", "", detail["msg"].removeprefix("Value error, "))
    for pydantic, ours in _WORDS.items():
        message = message.replace(pydantic, ours)
    if kind == "extra_forbidden":
        return place, "unknown key"
    if kind == "missing":
        return place, "is required"
    if kind == "union_tag_invalid":
        tag, expected = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        return f"{place} = {_short(tag)}", f"should be {expected.replace(', ', ' or ')}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "should be a table"
    if kind == "fields":  # the message begins with the name of the first of them
        name, _, rest = message.partition(" ")
        return f"{place}.{name}", rest
    if kind == "value_error" or isinstance(value, dict | list | BaseModel):
        return place, message
    return f"{place} = {_short(value)}", message


def _short(value: Any) -> str:
    try:
        plain = isinstance(value, bool | str)
        text = printable(json.dumps(value, ensure_ascii=False)) if plain else repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _instead_of_value(detail: ErrorDetails) -> str:
    """What to write instead of a value, where that is clear."""
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
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("true", "false"):
        return f"; write {value.lower()}, without quotes"
    return ""


def _instead_of_key(path: Sequence[str], location: Sequence[int | str], options: list[str] | None) -> str:
    """The nearest key of the same table, or the table that has this key, under this name or another.

    `options` are those of the plugin whose table it is, None for the experiment's own tables.
    """
    *tables, wrong = path
    table = ".".join(tables)
    if options is not None:
        return nearest(wrong, options) or ("" if tables else _known(options))
    optimizer = next((member for member in OPTIMIZERS if member in location), "")
    here = [*Experiment.model_fields] if not table else []
    here += [each.name for each in fields() if each.table == table and each.optimizer in ("", optimizer)]
    everywhere = {each.name: each.table for each in fields() if each.table != table and each.name != "type"}
    if wrong in everywhere:
        there = everywhere[wrong]
        if there == "":
            return "; it belongs at the top of the file, before the first [table]"
        return f"; it belongs in [{there}]"
    if wrong.lower() in _ELSEWHERE:
        there, _, name = _ELSEWHERE[wrong.lower()].rpartition(".")
        return f"; it is called {name!r} here{'' if there == table else f', in [{there}]'}"
    if near := nearest(wrong, here):
        return near
    if table == "optimizer":
        having = [name for name, member in OPTIMIZERS.items() if wrong in member.model_fields]
        if having:
            return f"; only type {having[0]!r} has it"
    meant = closest(wrong, everywhere)
    if meant and everywhere[meant] and len(tables) <= 1:
        return f"; did you mean {meant!r}, in [{everywhere[meant]}]?"
    return _known(here)


def _known(names: Collection[str]) -> str:
    return f"; known here: {', '.join(sorted(set(names)))}" if names else "; it takes no options"
