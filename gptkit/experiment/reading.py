"""A TOML file read: what it says, or why it is none, with the line and what to write instead.

In: a path. Out: the file's text and its tables. Bounded: in size, in depth, in time. Knows nothing of the
schema.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from gptkit.errors import ExperimentError, UsageError
from gptkit.experiment.places import Entry, Span, entries, in_line, mark
from gptkit.files import parse_toml
from gptkit.words import closest

MAX_BYTES = 1_000_000  # an experiment file larger than this is something else
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

ESCAPE = (
    "between double quotes a backslash begins an escape; put a path between single quotes, or write / in it"
)


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """The text with \\n ends, and what it says. Raises UsageError: no such file; ExperimentError: no TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"there is no experiment file {path}{_beside(path)}") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not an experiment file{_beside(path)}") from None
    except (OSError, ValueError) as error:
        if os.path.isdir(path):  # Windows
            raise UsageError(f"{path} is a folder, not an experiment file{_beside(path)}") from None
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {path}: {reason}{_beside(path)}") from None
    if len(data) > MAX_BYTES:
        raise ExperimentError(str(path), ["larger than 1 MB, so not an experiment file"])
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        advice = "it is UTF-16: save it as UTF-8" if data.startswith(_UTF16) else "save it as UTF-8"
        problem = f"not UTF-8 at byte {error.start}, so not TOML; {advice}"
        raise ExperimentError(str(path), [problem]) from None
    try:
        return text, parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(path, text, str(error)) from None
    except RecursionError:
        raise ExperimentError(str(path), ["not usable TOML: nested too deeply"]) from None
    except ValueError:
        raise ExperimentError(
            str(path), ["not usable TOML: a number in it has thousands of digits"]
        ) from None


def _beside(path: Path) -> str:
    """What there is instead: the nearest name, and the files beside it or in experiments/."""
    for folder in (path, path.parent, Path("experiments")):
        try:
            found = [
                str(file)
                for file in sorted(folder.glob("*.toml"))
                if file.name != "pyproject.toml" and file != path
            ]
        except (OSError, ValueError):  # a name that cannot be
            found = []
        if found:
            stems = {Path(file).stem: file for file in found}
            meant = stems.get(closest(path.stem, stems) or "")
            guess = f"; did you mean {in_line(meant)}?" if meant and path not in (folder, Path()) else "."
            return f"{guess} There are: {in_line(', '.join(found[:12]))}"
    return ". Give the path of a TOML file, or copy one from gptkit's folder experiments/."


def _no_toml(path: Path, text: str, said: str) -> ExperimentError:
    """What tomllib said, at its place, with what to write instead."""
    at = _AT.search(said)
    reason = said[: at.start()] if at else said
    if other := _another_format(path, text):
        return ExperimentError(str(path), [f"not valid TOML: {other}"])
    position = _offset(text, at)
    span, remedy = (position, position + 1), _remedy(text, position, reason)
    if reason.startswith(("Cannot overwrite", "Cannot declare", "Duplicate inline", "Cannot mutate")):
        span, again = _twice(text, position)
        remedy = again or remedy
    ending = f"; {remedy}" if remedy else ""
    message = f"{path} has a problem:\n{mark(text, span).show(f'not valid TOML: {reason}{ending}')}"
    return ExperimentError(str(path), [f"not valid TOML: {said}{ending}"], message=message)


def _offset(text: str, at: re.Match[str] | None) -> int:
    """Where in the text tomllib stopped; the end of what is written, where it says no place."""
    if at is None or at[1] is None:
        return len(text.rstrip())
    begin = 0
    for _ in range(int(at[1]) - 1):
        begin = text.find("\n", begin) + 1
    return min(begin + int(at[2]) - 1, len(text))


def _another_format(path: Path, text: str) -> str:
    first = text.lstrip()[:1]
    if path.suffix.lower() in (".py", ".ipynb", ".pyc"):
        return "this is a Python file; an experiment is a TOML file, such as experiments/shakespeare.toml"
    if first == "{":
        return "this looks like JSON; in TOML a table is a line [model], and a field a line n_head = 4"
    if path.suffix.lower() in (".yaml", ".yml"):
        return "this is a YAML file; in TOML a table is a line [model], and a field a line n_head = 4"
    if path.suffix.lower() in (".txt", ".jsonl", ".csv", ".gz", ".md"):
        return f"it looks like a text; train on it with: gptkit train EXPERIMENT --dataset {path}"
    return ""


def _remedy(text: str, position: int, reason: str) -> str:
    """What to write instead, where that can be told."""
    line = text[text.rfind("\n", 0, position) + 1 : position]
    rest = text[position : position + 80].partition("\n")[0]
    for beginning, remedy in _REMEDIES.items():
        if reason.startswith(beginning):
            return remedy
    if reason.startswith("Invalid value"):
        return _of_value(rest)
    if reason.startswith("Expected '='"):
        return "write '=' instead of ':'" if rest.startswith(":") else "write KEY = VALUE"
    if reason.startswith("Expected newline"):
        return _of_ending(line, rest)
    if reason.startswith("Invalid initial character") and not rest and "{" in line:
        return "a table between { and } stands in one line"
    return ""


def _of_ending(line: str, rest: str) -> str:
    """What was meant by `rest`, where the line should have ended."""
    if rest.startswith(","):
        return "a line ends without a comma"
    if line.count("'") >= 2 and re.match(r"\w", rest):
        return "a text with ' in it stands between double quotes"
    if re.search(r"=\s*[+-]?\d*$", line) and re.match(r"[\d.]", rest):
        return "a number begins with no 0 and ends with no point: 1, 0.5, 2.0"
    return "one key = value to a line"


_REMEDIES = {
    "Unescaped '\\'": ESCAPE,
    "Invalid hex value": ESCAPE,
    "Escaped character is not": ESCAPE,
    "Illegal character '\\n'": "the text has no closing quote",
    "Found invalid character '\\n'": "the text has no closing quote",
    "Invalid statement": "a line is [table] or key = value",
    "Unterminated string": "the text has no closing quote",
    "Unclosed array": "a list ends with ]",
    "Expected ']": "a table's name ends with ]",
}


def _of_value(rest: str) -> str:
    """What was meant by a value that is none."""
    word = re.match(r"[A-Za-z_~/][\w./\\:-]*", rest)
    if not rest.strip() or rest.startswith("#"):
        return "write a value after ="
    if word and word[0].lower() in ("true", "false"):
        return f"write {word[0].lower()}"
    if word and word[0] in ("None", "null"):
        return "leave the line out"
    if word:
        return f'write "{word[0]}", in quotes' if "\\" not in word[0] else f"write '{word[0]}', in quotes"
    if re.match(r"\.\d", rest):
        return f"write 0{rest.split(maxsplit=1)[0]}"
    if rest[0] in "“”‘’«»„`":
        return "quotes are the straight ones: \" or '"
    return ""


def _twice(text: str, position: int) -> tuple[Span, str]:
    """The key that was set before, and where that was."""
    last: Entry | None = None
    for entry in entries(text):
        if entry.key[0] > position:
            break
        last = entry if last is None or entry.key[0] >= last.key[0] else last
    if last is None:
        return (position, position + 1), ""
    above = {last.path[:length] for length in range(1, len(last.path) + 1)}
    for entry in entries(text):
        if entry.key[0] >= last.key[0]:
            break
        if entry.path == last.path or (entry.path in above and entry.value):
            name, number = in_line(".".join(entry.path))[:80], text.count("\n", 0, entry.key[0]) + 1
            return last.key, f"{name!r} stands on line {number} already; keep one of them"
    return last.key, ""
