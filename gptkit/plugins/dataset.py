"""The contract of a dataset: a name to a text."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gptkit.plugins.options import API_VERSION, PluginOptions, ProgressCallback, no_progress


@dataclass(frozen=True)
class DataFolders:
    """Where texts are looked for, in order, and where a download goes.

    `progress` is to be called with bytes done and in all (0 where unknown) while something is downloaded, or
    with rows while many are read.
    """

    search: tuple[Path, ...] = (Path("data"),)
    downloads: Path = Path("data")
    progress: ProgressCallback = field(default=no_progress, compare=False)

    def find(self, name: str) -> Path | None:
        """The first file of that name."""
        for folder in self.search:
            if os.path.isfile(folder / name):  # unlike Path.is_file, no error for a name that cannot be
                return folder / name
        return None


class Dataset(ABC):
    """A text by name.

    Attributes:
        summary: one line for listings.
        source: where it comes from, for listings.
        Options: the options of its table in an experiment file.
        api_version: the version of this surface that it was written for.
        needs: modules that it imports only when it is used. Where one is missing, gptkit refuses the plugin
            and says which extra of its package brings it.
    """

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def read(self, folders: DataFolders) -> str:
        """The whole text. The same options give the same text, always.

        Raises `DataError`, or any error of its own, when there is none to be had.
        """

    def is_here(self, folders: DataFolders) -> bool:
        """Whether `read` will work without `fetch`."""
        return True

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:  # noqa: B027  (optional)
        """Brings the text here, into `folders.downloads`, replacing a damaged one where `repair` is set.

        The default has nothing to bring.
        """

    def size(self, folders: DataFolders) -> int | None:
        """Bytes of the text, nearly, where that is known without reading it; for listings."""
        return None

    def facts(self) -> dict[str, str | float]:
        """What else a person or a program may want to know about it, such as its entropy rate."""
        return {}
