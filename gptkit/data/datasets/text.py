"""The dataset `text`: the user's own files, folders and globs.

Input: paths as a user writes them, and the data folders. Output: the text of the files that
gptkit.data.search finds and gptkit.data.readers reads, and which files those are. Knows nothing of tokens or
runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from gptkit.data.readers import file_pieces, fingerprint_of, is_plain, kind_of, read_files
from gptkit.data.search import (
    FoundTexts,
    NameList,
    Reason,
    describe_passed_over,
    find_all_texts,
    find_copies,
    find_texts,
    places_looked_at,
    why_no_text,
)
from gptkit.errors import DataError
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import PluginOptions

_Path = Annotated[str, Field(min_length=1, max_length=4096)]


class TextOptions(PluginOptions):
    path: _Path | Annotated[list[_Path], Field(min_length=1, max_length=10_000)] = Field(
        description="A file, a folder, a glob, or a list of them. Files: .txt, .md, .jsonl, .csv, also with "
        ".gz appended; any other is plain text. A folder: all such files in it, at any depth, but no "
        "hidden files, linked folders and runs of gptkit."
    )
    field: str = Field(
        default="text",
        max_length=4096,
        description="Which field of a .jsonl record, or column of a .csv file, is the text.",
    )
    separator: str = Field(
        default="\n", max_length=4096, description="Text between two documents: files or records."
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Writes a small file into `folder`."""
        path = folder / "example.txt"
        path.write_text("A small text of one's own.\nIt has a few lines, and that will do.\n" * 40)
        return cls(path=str(path))


class TextDataset(Dataset):
    """The user's own texts: files, folders and globs.

    Files are read in the order of the list, those of a folder or glob in the order of their paths, each once,
    also where a file has several paths. Documents are joined with `separator`.
    """

    summary = "your files: .txt, .md, .jsonl, .csv, .gz; folders, globs"
    source = "your own files"
    Options = TextOptions

    def __init__(self, options: TextOptions) -> None:
        super().__init__(options)
        self._found = FoundTexts()  # by the last `read`
        self._copies = NameList()

    def read(self, folders: DataFolders) -> str:
        options: TextOptions = self.options
        self._look(folders)
        return read_files(self._found.files, field=options.field, separator=options.separator)

    def pieces(self, folders: DataFolders) -> Iterator[str]:
        options: TextOptions = self.options
        self._look(folders)
        return file_pieces(
            self._found.files, field=options.field, separator=options.separator, progress=folders.progress
        )

    def fingerprint(self, folders: DataFolders) -> str | None:
        """Paths, sizes and times of the files; none while one of them was changed within two seconds."""
        self._look(folders)
        found = fingerprint_of(self._found.files)
        return found and json.dumps([self.options.model_dump(mode="json"), found])

    def _look(self, folders: DataFolders) -> None:
        """Finds the files, unless it has. Raises DataError."""
        found = self.find(folders)
        if found.files != self._found.files:
            self._copies = NameList()
            for copy, original in find_copies(found.files):
                self._copies.add(f"{copy} = {original}")
        self._found = found

    def is_here(self, folders: DataFolders) -> bool:
        return all(find_texts(path, folders).files for path in self._paths())

    def size(self, folders: DataFolders) -> int | None:
        """Bytes, if all files are plain text; the size of others is not known without reading them."""
        if not self.is_here(folders):
            return None
        files = self.find(folders).files
        return sum(file.stat().st_size for file in files) if all(map(is_plain, files)) else None

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        self.find(folders)

    def find(self, folders: DataFolders) -> FoundTexts:
        """The files, in the order of reading, and what is passed over.

        Raises DataError for a path without any file.
        """
        found, missing = find_all_texts(self._paths(), folders)
        for path in missing:
            raise DataError(
                why_no_text(path, folders)
                or f"there is no text file, folder of texts or glob {path!r}.\n"
                f"Looked for {places_looked_at(path, folders)}."
            )
        return found

    def facts(self) -> dict[str, str | float]:
        """After `read`, of several files or of one beside which something was passed over: which they are."""
        found = self._found
        if len(found.files) < 2 and not found.passed_over:
            return {}
        facts: dict[str, str | float] = {"files": len(found.files), "read": found.read()}
        if found.passed_over:
            facts["passed_over"] = describe_passed_over(found.passed_over)
        if self._copies.count:
            facts["same_content"] = str(self._copies)
        return facts

    def notice(self) -> str:
        """After `read`, what a user may not expect of the files, for a warning; "" for nothing."""
        found = self._found
        lines = []
        if passed := describe_passed_over(found.passed_over, without=[Reason.HIDDEN]):
            lines.append(f"the text has files: {len(found.files)} ({found.read()}). Passed over: {passed}.")
        if self._copies.count:
            lines.append(
                f"files with the same content are all read: {self._copies}. "
                "Text to train on may be in the val split as well."
            )
        return "\n".join(lines)

    def _paths(self) -> Sequence[str]:
        path = self.options.path
        return [path] if isinstance(path, str) else path


def kept_ending(path: Path) -> str:
    """The ending of a copy of the file that is read in the same way: one of ENDINGS."""
    kind, packed = kind_of(path)
    return f"{kind}.gz" if packed else kind
