"""Tiny Shakespeare, from a data folder or downloaded.

Input: the data folders. Output: the text, verified against its SHA-256.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gptkit import files
from gptkit.data.download import download
from gptkit.data.readers import decode, read_bytes
from gptkit.errors import DataError
from gptkit.plugins.dataset import DataFolders, Dataset


class ShakespeareDataset(Dataset):
    """Tiny Shakespeare: a file in one of the folders, otherwise downloaded. Its hash is pinned."""

    summary = "Tiny Shakespeare, 40,000 lines of the plays"
    source = "github.com/karpathy/char-rnn"
    file_name: ClassVar[str] = "tiny_shakespeare.txt"
    url: ClassVar[str] = (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    )
    sha256: ClassVar[str] = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    length: ClassVar[int] = 1_115_394  # bytes

    def read(self, folders: DataFolders) -> str:
        path = folders.find(self.file_name)
        if path is None:
            path = self._download_to(folders.downloads / self.file_name, folders)
        return decode(self._verified(path), path)

    def is_here(self, folders: DataFolders) -> bool:
        return folders.find(self.file_name) is not None

    def size(self, folders: DataFolders) -> int | None:
        path = folders.find(self.file_name)
        return path.stat().st_size if path else self.length

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        """Downloads it where it is missing and, with `repair`, where it is damaged."""
        path = folders.find(self.file_name)
        if path is None:
            self._download_to(folders.downloads / self.file_name, folders)
            return
        try:
            self._verified(path)
        except DataError:
            if not repair:
                raise
            # In place, because a copy in a later folder would never be found
            self._download_to(path, folders)

    def _verified(self, path: Path) -> bytes:
        data = read_bytes(path)
        found = files.sha256(data)
        if found != self.sha256:
            raise DataError(
                f"{path} is damaged or another text: its SHA-256 is {found},\n"
                f"expected {self.sha256}.\n"
                "Replace it: gptkit datasets fetch shakespeare --repair"
            )
        return data

    def _download_to(self, target: Path, folders: DataFolders) -> Path:
        """Downloads the text to `target`; nothing unverified is written to the disk."""
        advice = (
            "Get the file some other way and run 'gptkit datasets add shakespeare FILE', "
            "or train on python-docs, which needs no network."
        )
        data = download(self.url, self.length, folders.progress, advice)
        found = files.sha256(data)
        if found != self.sha256:
            raise DataError(
                f"{self.url} is another text than expected: its SHA-256 is {found},\n"
                f"not {self.sha256}. Nothing was saved.\n{advice}"
            )
        with files.disk_errors(f"saving {target}", needed=len(data)):
            files.make_folder(target.parent)
            files.replace_file(target, data)
        return target
