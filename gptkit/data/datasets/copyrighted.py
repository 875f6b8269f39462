"""Datasets whose text the user has to supply, because it is under copyright.

Input: the data folders. Output: the text of a file there, or a DataError that explains how to add one.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gptkit.data.readers import read_text
from gptkit.errors import DataError
from gptkit.plugins.dataset import DataFolders, Dataset


class _CopyrightedDataset(Dataset):
    source = "your own copy"
    name: ClassVar[str]
    file_name: ClassVar[str]

    def read(self, folders: DataFolders) -> str:
        return read_text(self._path(folders))

    def is_here(self, folders: DataFolders) -> bool:
        return folders.find(self.file_name) is not None

    def size(self, folders: DataFolders) -> int | None:
        path = folders.find(self.file_name)
        return path.stat().st_size if path else None

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        self._path(folders)

    def _path(self, folders: DataFolders) -> Path:
        path = folders.find(self.file_name)
        if path is None:
            candidates = ", ".join(str(folder / self.file_name) for folder in folders.search)
            raise DataError(
                f"{self.name} is not here: it is under copyright, so gptkit cannot ship it.\n"
                f"With a text file of your own: gptkit datasets add {self.name} FILE\n"
                f"(looked for {candidates})"
            )
        return path


class HarryPotterDataset(_CopyrightedDataset):
    summary = "the Harry Potter books, from your own file"
    name = "harry_potter"
    file_name = "harry_potter.txt"


class AvatarScriptDataset(_CopyrightedDataset):
    summary = "the Avatar script, from your own file"
    name = "avatar_script"
    file_name = "avatar_script.txt"
