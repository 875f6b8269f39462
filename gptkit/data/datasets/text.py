"""The dataset `text`: the user's own files, folders and globs, and how they are found.

Input: paths as a user writes them, and the data folders. Output: the files, and their text, which
gptkit.data.readers reads. Knows nothing of tokens or runs.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from gptkit.data.readers import ENDINGS, is_plain, kind_of, read_files
from gptkit.errors import DataError
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import PluginOptions

FOUND = (*ENDINGS, ".gz")
"""Endings that may be omitted for a text in a data folder; the first that exists is used."""

_Path = Annotated[str, Field(min_length=1, max_length=4096)]


class TextOptions(PluginOptions):
    path: _Path | Annotated[list[_Path], Field(min_length=1, max_length=10_000)] = Field(
        description="A file, a folder, a glob, or a list of them. Files: .txt, .md, .jsonl, .csv, also with "
        ".gz appended; any other is plain text. A folder: all such files in it, at any depth."
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

    Files are read in the order of the list, those of a folder or glob in the order of their paths, each once.
    Documents are joined with `separator`.
    """

    summary = "your files: .txt, .md, .jsonl, .csv, .gz; folders, globs"
    source = "your own files"
    Options = TextOptions

    def read(self, folders: DataFolders) -> str:
        options: TextOptions = self.options
        return read_files(self.files(folders), field=options.field, separator=options.separator)

    def is_here(self, folders: DataFolders) -> bool:
        return all(find_texts(path, folders) for path in self._paths())

    def size(self, folders: DataFolders) -> int | None:
        """Bytes, if all files are plain text; the size of others is not known without reading them."""
        if not self.is_here(folders):
            return None
        files = self.files(folders)
        return sum(file.stat().st_size for file in files) if all(map(is_plain, files)) else None

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        self.files(folders)

    def files(self, folders: DataFolders) -> Sequence[Path]:
        """The files, in the order of reading. Raises DataError for a path without any."""
        found: dict[Path, None] = {}
        for path in self._paths():
            texts = find_texts(path, folders)
            if not texts:
                raise DataError(
                    f"there is no text file, folder of texts or glob {path!r}.\n"
                    f"Looked for {places_looked_at(path, folders)}."
                )
            found.update(dict.fromkeys(texts))
        return list(found)

    def _paths(self) -> Sequence[str]:
        path = self.options.path
        return [path] if isinstance(path, str) else path


def places(path: str, folders: DataFolders) -> list[Path]:
    """Candidates for `path`, in order: as given, then in each data folder, also with each ending."""
    given = Path(path)
    found = [given]
    if _is_relative(given):
        found += [folder / f"{path}{ending}" for folder in folders.search for ending in ("", *FOUND)]
    return list(dict.fromkeys(found))


def places_looked_at(path: str, folders: DataFolders) -> str:
    """The candidates for a message, which would be long if it named every ending."""
    given = Path(path)
    if not _is_relative(given):
        return path
    endings, other = (
        (("",), "") if path.endswith(tuple(FOUND)) else (("", ".txt"), " (or .md, .jsonl, .csv, .gz)")
    )
    shown = [given, *(folder / f"{path}{ending}" for folder in folders.search for ending in endings)]
    return f"{', '.join(map(str, dict.fromkeys(shown)))}{other}"


def _is_relative(path: Path) -> bool:
    """Whether a path is also looked up in the data folders, which it must not leave."""
    return not path.is_absolute() and ".." not in path.parts


def find_texts(path: str, folders: DataFolders) -> list[Path]:
    """The files of the first candidate for `path` that has any; empty if none has."""
    for place in places(path, folders):
        if os.path.isfile(place):  # unlike Path.is_file, no error for an impossible name
            return [place]
        if os.path.isdir(place):
            found = list(_texts_within(place))
        else:
            found = [Path(name) for name in glob.glob(str(place), recursive=True) if os.path.isfile(name)]
        if found:
            return sorted(found, key=lambda file: file.as_posix())
    return []


def _texts_within(folder: Path) -> Iterator[Path]:
    """The texts in a folder, at any depth, without hidden files and folders."""
    for top, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if has_text_name(name) and os.path.isfile(os.path.join(top, name)):
                yield Path(top, name)


def has_text_name(name: str) -> bool:
    """Whether a file found in a folder is a text: by its ending, unless it is hidden.

    A name with .gz alone counts, one with an unknown ending before .gz, such as .tar.gz, does not.
    """
    if name.startswith("."):
        return False
    return name.endswith(ENDINGS) or (name.endswith(".gz") and name.count(".") == 1)


def kept_ending(path: Path) -> str:
    """The ending of a copy of the file that is read in the same way: one of ENDINGS."""
    kind, packed = kind_of(path)
    return f"{kind}.gz" if packed else kind
