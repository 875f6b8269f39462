"""The contract of a dataset: the same text always, and a true description of it.

Input: a dataset class and its options. Output: a result per check. Where the text is not here, the checks
that read it are skipped: a check downloads nothing. Imports no torch.
"""

from __future__ import annotations

import json
import math
import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from gptkit.data.catalog import data_folders
from gptkit.data.source import measure_text, split_text
from gptkit.plugins import DataFolders
from gptkit.plugins.registry import DATASETS
from gptkit.testing.contract import (
    ContractError,
    PluginContract,
    Verdict,
    calling,
    check,
    quote,
    require,
)
from gptkit.words import first_difference

_TOLERANCE = 0.01  # relative error of size(), which is for listings
_MARKS = 16  # bytes by which it may be wrong in any case: a byte-order mark, line ends at the end
_CONTEXT = 64  # tokens: the default context_length


class DatasetContract(PluginContract):
    """The checks of a dataset.

    Attributes:
        plugin: the dataset class. Set it.
        options: options to check it with; by default those of `plugin.Options.example`.
        folders: where it looks for its text; by default as for the command, GPTKIT_DATA_DIR or data/.
    """

    family = DATASETS

    dataset: ClassVar[Any]  # set by test_made
    here: ClassVar[bool]  # set by test_is_here
    text: ClassVar[str]  # set by test_text
    changes: ClassVar[list[str]]  # set by test_text: what read() left in the working directory

    @classmethod
    def setup_class(cls) -> None:
        super().setup_class()
        cls.text, cls.changes = "", []

    @classmethod
    def fingerprint(cls) -> str:
        return _digest(cls.plugin(cls.example).read(cls.in_folders()))

    @classmethod
    def in_folders(cls) -> DataFolders:
        return cls.folders or data_folders(None)

    @check("options")
    def test_made(self) -> None:
        """`plugin(options)` makes a dataset.

        Fix: let `__init__` accept the options as its one argument, or leave it as it is in Dataset.
        """
        type(self).dataset = self.plugin(self.example)
        self.report("with its options")

    @check("made")
    def test_is_here(self) -> None:
        """`is_here(folders)` returns True where `read` works without `fetch`, else False.

        Fix: return a bool, never raise, and download nothing.
        """
        here = self.dataset.is_here(self.in_folders())
        require(isinstance(here, bool), f"is_here() returns {quote(here)}, neither True nor False")
        type(self).here = here
        self.report("yes" if here else "no")

    @check("made")
    def test_facts(self) -> None:
        """`facts()` returns a dict of strings and finite numbers, which a run records as JSON.

        Fix: return a flat dict whose keys are strings.
        """
        facts = self.dataset.facts()
        require(isinstance(facts, dict), f"facts() returns a {type(facts).__name__}, not a dict")
        for key, value in facts.items():
            require(isinstance(key, str), f"facts() has the key {quote(key)}, not a string")
            right = isinstance(value, str | int | float) and (isinstance(value, str) or math.isfinite(value))
            require(right, f"facts() has {key} = {quote(value)}, neither a string nor a finite number")
        with calling("facts() as JSON"):
            json.dumps(facts, allow_nan=False)
        self.report(", ".join(f"{key} = {quote(value)}" for key, value in facts.items()) or "none")

    @check("is here")
    def test_text(self) -> None:
        """`read(folders)` returns a text that is not empty.

        Fix: return a str; raise gptkit.plugins.DataError if there is no text.
        """
        if not self.here:
            raise SkipTest(f"not here: gptkit datasets fetch {self._name()}")
        folders, place = self.in_folders(), Path.cwd()
        before = self._files_here(folders)
        with calling("read()"):
            text = self.dataset.read(folders)
        if Path.cwd() != place:
            os.chdir(place)
            self.changes.append("another working directory")
        self.changes.extend(sorted(self._files_here(folders) - before))
        require(isinstance(text, str), f"read() returns a {type(text).__name__}, not a string")
        require(text, "read() returns an empty text")
        type(self).text = text
        self.report(quote(text))

    def _name(self) -> str:
        """The name that it is registered under."""
        address = f"{self.plugin.__module__}:{self.plugin.__qualname__}"
        found = [point.name for point in entry_points(group=self.family) if point.value == address]
        return found[0] if found else "NAME"

    def _files_here(self, folders: DataFolders) -> set[str]:
        """Names in the working directory, except of folders that may be written to."""
        allowed = {folders.downloads.absolute(), self.folder.absolute()}
        here = {entry.absolute() for entry in Path.cwd().iterdir()} if Path.cwd() not in allowed else set()
        excepted = {path for path in here for one in allowed if path == one or path in one.parents}
        return {path.name for path in here - excepted} - {"__pycache__", ".pytest_cache"}

    @check("text")
    def test_whole_characters(self) -> None:
        """The text has no lone surrogate, so that it can be written as UTF-8.

        Fix: decode files as UTF-8, with `errors="strict"`.
        """
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            wrong = quote(self.text[max(0, error.start - 8) : error.start + 8])
            raise ContractError(f"read() returns a lone surrogate at {error.start:,}: {wrong}") from None
        self.report(f"{len(set(self.text)):,} different ones, all whole")

    @check("text")
    def test_files(self) -> None:
        """`read` writes nothing into the working directory and does not change it.

        Fix: write to `folders.downloads`, in `fetch`.
        """
        changes = ", ".join(map(quote, self.changes[:3]))
        require(not self.changes, f"read() leaves behind {changes}")
        self.report("nothing is left in the working directory")

    @check("text")
    def test_same_twice(self) -> None:
        """A second object with the same options reads the same text: a resumed run depends on it.

        Fix: draw random numbers only from a generator seeded by an option; sort the files of a folder.
        """
        with calling("read() of a second object"):
            again = self.plugin(self.example).read(self.in_folders())
        if again != self.text:
            require(isinstance(again, str), f"a second object reads {quote(again)}")
            at = first_difference(self.text, again)
            parts = [quote(text[max(0, at - 8) : at + 8]) for text in (self.text, again)]
            raise ContractError(f"a second object reads {parts[1]} instead of {parts[0]} at character {at:,}")
        self.report("a second object reads the same")

    @check("same twice")
    def test_pieces(self) -> None:
        """`pieces` yields the text of `read`, each time that it is called.

        Fix: join the pieces as `read` does, or leave `pieces` to the base class.
        """
        for number in ("first", "second"):
            with calling(f"pieces(), the {number} time"):
                pieces = list(self.dataset.pieces(self.in_folders()))
            for piece in pieces:
                require(isinstance(piece, str), f"pieces() yields a {type(piece).__name__}, not a string")
            joined = "".join(pieces)
            if joined != self.text:
                at = first_difference(self.text, joined)
                parts = [quote(text[max(0, at - 8) : at + 8]) for text in (self.text, joined)]
                raise ContractError(
                    f"pieces() yields {parts[1]} instead of {parts[0]} at character {at:,}, the {number} time"
                )
        self.report("they make the text that read() returns")

    @check("same twice", "whole characters", "options in a file")
    def test_same_elsewhere(self) -> None:
        """Another process, whose PYTHONHASHSEED differs, reads the same text.

        Fix: sort every set before its order matters, and seed every random number by an option.
        """
        same = self.subprocess_fingerprint() == _digest(self.text)
        require(same, "a process with another PYTHONHASHSEED reads another text")
        self.report("the same with another PYTHONHASHSEED")

    @check("made")
    def test_size(self) -> None:
        """`size(folders)` returns the bytes of the text as UTF-8, within 1 %, or None if it is unknown.

        Fix: return an int, or None.
        """
        size = self.dataset.size(self.in_folders())
        right = size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0)
        require(right, f"size() returns {quote(size)}, neither None nor a number of bytes")
        if size is not None and self.text:
            real = len(self.text.encode("utf-8", "surrogatepass"))
            near = abs(size - real) <= max(_MARKS, _TOLERANCE * real)
            require(near, f"size() returns {size:,} bytes, but the text has {real:,}")
        self.report("unknown" if size is None else f"{size:,} bytes")

    @check("whole characters")
    def test_hash(self) -> None:
        """The SHA-256 of the text, which a run records."""
        size, digest = measure_text(self.text)
        self.report(f"{len(self.text):,} characters, {size:,} bytes, SHA-256 {digest}", Verdict.NOTE)

    @check("whole characters")
    def test_split(self) -> None:
        """The sizes of the train and val splits, with the default val_fraction of 0.1."""
        train, val = split_text(self.text, 0.1)
        found = f"{len(train):,} characters to train on, {len(val):,} to evaluate on"
        short = f": too few for a context of {_CONTEXT} characters" if len(val) <= _CONTEXT else ""
        self.report(found + short, Verdict.NOTE)


def _digest(text: str) -> str:
    """SHA-256 of the text as UTF-8. Raises DataError for a lone surrogate."""
    return measure_text(text)[1]
