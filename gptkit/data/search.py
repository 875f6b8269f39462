"""The files that paths of texts mean: which are read, which are passed over, and why.

Input: paths as a user writes them (a file, a folder, a glob, a name in a data folder), and the data folders.
Output: `FoundTexts`, the files in the order of reading and what was passed over, or the reason why a path has
no text. Looks into a file only to see whether it is text at all. Knows nothing of documents, tokens or runs,
except which folder is one.
"""

from __future__ import annotations

import errno
import glob
import gzip
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from gptkit.data.readers import ENDINGS, KINDS, kind_of
from gptkit.plugins.dataset import DataFolders

FOUND = (*ENDINGS, ".gz")
"""Endings that may be omitted for a text in a data folder; the first that exists is used."""

# Files and folders of a run, by which it is recognized, whatever it is called (gptkit.runs.folder names them)
RUN_RECORD, RUN_EXPERIMENT, RUN_CHECKPOINTS, RUN_METRICS = (
    "run.json",
    "experiment.toml",
    "checkpoints",
    "metrics.jsonl",
)

_NAMED = 5  # names of files that are kept for each list; the rest is counted
_LONGEST = 80  # characters of a name in such a list
_LOOKED_AT = 4096  # bytes at the beginning of a file that decide whether it is text
_STREAM = re.compile(r"/dev/(stdin|fd/\d+)|/proc/[^/]+/fd/\d+")


class Reason(StrEnum):
    """Why something that a path covers is not read."""

    ENDING = "another ending"
    HIDDEN = "hidden"
    EMPTY = "empty"
    TWICE = "the same file again"
    LINKED_FOLDER = "linked folder"
    FOLDER = "folder"  # matched by a glob that does not look into it
    RUN = "run of gptkit"
    BINARY = "not text"
    SPECIAL = "no file"  # a pipe, a device, a broken link
    UNREADABLE = "not readable"  # a folder


@dataclass
class NameList:
    """Names in the order in which they were found: the first few, and how many there are."""

    names: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _NAMED:
            self.names.append(name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}")

    def __str__(self) -> str:
        more = self.count - len(self.names)
        return ", ".join(self.names) + (f" and {more} more" if more else "")


PassedOver = dict[Reason, NameList]


@dataclass(frozen=True)
class FoundTexts:
    """The files of one or several paths, each once, in the order of reading."""

    files: tuple[Path, ...] = ()
    passed_over: PassedOver = field(default_factory=dict)

    def read(self) -> str:
        """The names of the files for people; of many, the first few."""
        names = NameList()
        for path in self.files:
            names.add(str(path))
        return str(names)


def describe_passed_over(passed_over: PassedOver, *, without: Iterable[Reason] = ()) -> str:
    """For people: "another ending: 2 (a.pdf, b.html); linked folder: 1 (deep)"; "" for nothing."""
    parts = [
        f"{reason}: {passed_over[reason].count} ({passed_over[reason]})"
        for reason in Reason
        if reason in passed_over and reason not in without
    ]
    return "; ".join(parts)


def find_texts(path: str, folders: DataFolders) -> FoundTexts:
    """The files of the first candidate for `path` that has any; if none has, what is passed over in all."""
    search = _Search()
    for place in places(path, folders):
        found = _Search()
        found.look_at(place)
        if found.files:
            return found.result()
        search.passed_over |= found.passed_over
    return search.result()


def find_all_texts(paths: Sequence[str], folders: DataFolders) -> tuple[FoundTexts, list[str]]:
    """The files of all paths together, and the paths that have none."""
    search, missing = _Search(), []
    for path in paths:
        found = find_texts(path, folders)
        search.merge(found)
        if not found.files:
            missing.append(path)
    return search.result(), missing


def places(path: str, folders: DataFolders) -> list[Path]:
    """Candidates for `path`, in order: as given, then in each data folder, also with each ending."""
    given = _expanded(path)
    found = [given]
    if _is_relative(given):
        found += [folder / f"{path}{ending}" for folder in folders.search for ending in ("", *FOUND)]
    return list(dict.fromkeys(found))


def places_looked_at(path: str, folders: DataFolders) -> str:
    """The candidates for a message, which would be long if it named every ending."""
    given = _expanded(path)
    if not _is_relative(given):
        return str(given)
    endings, other = (
        (("",), "") if path.endswith(tuple(FOUND)) else (("", ".txt"), " (or .md, .jsonl, .csv, .gz)")
    )
    shown = [given, *(folder / f"{path}{ending}" for folder in folders.search for ending in endings)]
    return f"{', '.join(map(str, dict.fromkeys(shown)))}{other}"


def _expanded(path: str) -> Path:
    """~ is the user's home folder, as in a shell, which does not replace it in every place."""
    return Path(os.path.expanduser(path))


def _is_relative(path: Path) -> bool:
    """Whether a path is also looked up in the data folders, which it must not leave."""
    return not path.is_absolute() and ".." not in path.parts


def has_text_name(name: str) -> bool:
    """Whether a file found in a folder is a text: by its ending in any case, unless it is hidden.

    A name with .gz alone counts, one with an unknown ending before .gz, such as .tar.gz, does not.
    """
    return not name.startswith(".") and _has_text_ending(name)


def _has_text_ending(name: str) -> bool:
    name = name.lower()
    return name.endswith(ENDINGS) or (name.endswith(".gz") and name.count(".") == 1)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of gptkit, whatever it is called; also one that lost its run.json."""
    experiment, checkpoints = folder / RUN_EXPERIMENT, folder / RUN_CHECKPOINTS
    if os.path.isfile(folder / RUN_RECORD):
        return os.path.isfile(experiment) or os.path.isdir(checkpoints)
    return os.path.isfile(experiment) and os.path.isdir(checkpoints) and os.path.isfile(folder / RUN_METRICS)


def runs_within(folder: Path) -> Iterator[Path]:
    """The runs in a folder, at any depth; links are not followed."""
    for top, inner, _ in os.walk(folder):
        if is_run(Path(top)):
            inner.clear()
            yield Path(top)


class _Search:
    """Files as they are found, each once: by its identity on the disk, not by its path."""

    def __init__(self) -> None:
        self.files: dict[object, Path] = {}  # by identity
        self.passed_over: PassedOver = {}
        self._runs: dict[Path, Path | None] = {}  # the run that a folder is in, of those looked at

    def result(self) -> FoundTexts:
        return FoundTexts(tuple(self.files.values()), self.passed_over)

    def merge(self, other: FoundTexts) -> None:
        for path in other.files:
            self._add(path)
        for reason, names in other.passed_over.items():
            ours = self.passed_over.setdefault(reason, NameList())
            count = ours.count + names.count
            for name in names.names:
                ours.add(name)
            ours.count = count

    def look_at(self, place: Path) -> None:
        """Adds the texts of a file, folder or glob."""
        if _STREAM.fullmatch(str(place)):
            self._pass_over(Reason.SPECIAL, place)
        elif os.path.isfile(place):  # unlike Path.is_file, no error for an impossible name
            self._add(place)
        elif os.path.isdir(place):
            self._look_into(place)
        elif _is_special(place):
            self._pass_over(Reason.SPECIAL, place)
        else:
            self._match(str(place))

    def _add(self, path: Path) -> None:
        try:
            status = os.stat(path)
        except OSError:
            self._pass_over(Reason.SPECIAL, path)
            return
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        first = self.files.setdefault(identity, path)
        if first is not path:
            self._pass_over(Reason.TWICE, path, f" = {first}" if first != path else "")

    def _add_found(self, path: Path) -> None:
        """Adds a file that was not named itself, which may be empty: code has many such files."""
        with suppress(OSError):
            if not os.path.getsize(path):
                self._pass_over(Reason.EMPTY, path)
                return
        self._add(path)

    def _pass_over(self, reason: Reason, path: Path, more: str = "") -> None:
        self.passed_over.setdefault(reason, NameList()).add(f"{path}{more}")

    def _look_into(self, folder: Path) -> None:
        """The texts in a folder, at any depth."""
        texts: list[Path] = []

        def unreadable(error: OSError) -> None:
            self._pass_over(Reason.UNREADABLE, Path(error.filename or folder))

        for top, inner, names in os.walk(folder, onerror=unreadable):
            if is_run(Path(top)):
                self._pass_over(Reason.RUN, Path(top))
                inner.clear()
                continue
            inner[:] = [name for name in sorted(inner) if self._is_entered(Path(top, name))]
            texts += [Path(top, name) for name in sorted(names) if self._is_text(Path(top, name))]
        for path in _in_order(texts):
            self._add_found(path)

    def _is_entered(self, folder: Path) -> bool:
        if folder.name.startswith("."):
            self._pass_over(Reason.HIDDEN, folder)
        elif os.path.islink(folder):
            self._pass_over(Reason.LINKED_FOLDER, folder)
        else:
            return True
        return False

    def _is_text(self, path: Path) -> bool:
        if path.name.startswith("."):
            self._pass_over(Reason.HIDDEN, path)
        elif not _has_text_ending(path.name):
            self._pass_over(Reason.ENDING, path)
        elif not os.path.isfile(path):
            self._pass_over(Reason.SPECIAL, path)
        else:
            return True
        return False

    def _match(self, pattern: str) -> None:
        """The files that match a glob, whatever their endings."""
        if not glob.has_magic(pattern):
            return
        base = Path(*_before_magic(pattern))
        runs: dict[Path, None] = {}
        for path in _in_order(map(Path, glob.glob(pattern, recursive=True))):
            if run := self._run_around(path if os.path.isdir(path) else path.parent, base):
                runs.setdefault(run)
            elif os.path.isdir(path):
                if "**" not in pattern:
                    self._pass_over(Reason.FOLDER, path)
            elif not os.path.isfile(path):
                self._pass_over(Reason.SPECIAL, path)
            elif not _has_text_ending(path.name) and _is_binary(path):
                self._pass_over(Reason.BINARY, path)
            else:
                self._add_found(path)
        for run in runs:
            self._pass_over(Reason.RUN, run)

    def _run_around(self, folder: Path, base: Path) -> Path | None:
        """The run that a folder is or lies in, where that is `base` or below it."""
        if folder not in self._runs:
            outermost = folder in (base, folder.parent)
            outer = None if outermost else self._run_around(folder.parent, base)
            self._runs[folder] = outer or (folder if is_run(folder) else None)
        return self._runs[folder]


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.as_posix())


def _before_magic(pattern: str) -> Iterator[str]:
    """The parts of a glob before the first that has a wildcard."""
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            return
        yield part


def _is_special(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder: a pipe, a device, a broken link."""
    return os.path.lexists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def is_pipe(path: Path) -> bool:
    """Whether a path leads to a pipe, such as standard input after `|`."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _is_binary(path: Path) -> bool:
    """Whether a file begins, also where it is compressed, with bytes that no text has."""
    with suppress(OSError, EOFError, zlib.error):
        packed = kind_of(path)[1]
        with gzip.open(path) if packed else open(path, "rb") as file:
            return b"\0" in file.read(_LOOKED_AT)
    return False


# Why there is no text


def why_no_text(path: str, folders: DataFolders) -> str:
    """What is at `path` instead of a text, and what to do, for a message; "" if nothing is there at all."""
    if path == "-":
        return f"'-' would be standard input. {_READ_ONCE}"
    found = find_texts(path, folders)
    for place in places(path, folders):
        if problem := _what_is_at(place, found):
            return problem
    if found.passed_over:  # by a glob
        return f"{path} matches no text. Passed over: {describe_passed_over(found.passed_over)}."
    return ""


_READ_ONCE = (
    "It can be read only once, but a run reads its text again when it is resumed.\n"
    "Store it first, for --dataset NAME: COMMAND | gptkit datasets add NAME -"
)


def _what_is_at(place: Path, found: FoundTexts) -> str:
    try:
        mode = os.stat(place).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP):
            return f"{place} cannot be read: {error.strerror}."
        if os.path.islink(place):
            return f"{place} is a link to {os.readlink(place)}, which does not exist."
        return ""  # nothing, or a name that no file can have
    if stat.S_ISDIR(mode):
        return _why_no_texts_in(place, found)
    target = os.path.realpath(place)
    if stat.S_ISREG(mode):  # standard input, otherwise it would have been read
        return f"{place} is another file in every process. Name the file itself: {target}"
    if stat.S_ISFIFO(mode):
        return f"{place} is a pipe. {_READ_ONCE}"
    if stat.S_ISCHR(mode) and _STREAM.fullmatch(str(place)):
        return f"{place} is {target}. {_READ_ONCE}"
    return f"{place} is a device or socket, not a file."


def _why_no_texts_in(folder: Path, found: FoundTexts) -> str:
    if is_run(folder):
        samples = folder / "samples"
        return f"{folder} is a run of gptkit, which is never a text. Its samples are in {samples}."
    passed = describe_passed_over(found.passed_over)
    return f"{folder} is a folder without texts ({', '.join(KINDS)}, also with .gz appended)." + (
        f"\nPassed over: {passed}." if passed else ""
    )


# Copies


def find_copies(files: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of a file and an earlier one with the same content, byte for byte."""
    sizes: dict[int, list[Path]] = {}
    for path in files:
        with suppress(OSError):
            sizes.setdefault(os.path.getsize(path), []).append(path)
    copies = []
    for same_size in sizes.values():
        first: dict[bytes, Path] = {}
        for path in same_size if len(same_size) > 1 else ():
            with suppress(OSError), open(path, "rb") as file:
                original = first.setdefault(hashlib.file_digest(file, "sha256").digest(), path)
                if original is not path:
                    copies.append((path, original))
    return copies
