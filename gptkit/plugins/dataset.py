"""The base class of datasets, and the folders that a dataset may use."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gptkit.plugins.options import API_VERSION, PluginOptions, ProgressCallback, no_progress


@dataclass(frozen=True)
class DataFolders:
    """The folders of texts on this machine.

    Attributes:
        search: where to look for a text, in order.
        downloads: where to write a download.
        progress: call it during a download with the bytes so far and in all (0 where the total is unknown),
            or with rows while many are read.
    """

    search: tuple[Path, ...] = (Path("data"),)
    downloads: Path = Path("data")
    progress: ProgressCallback = field(default=no_progress, compare=False)

    def find(self, name: str) -> Path | None:
        """The first file of that name in the search folders, or None."""
        for folder in self.search:
            if os.path.isfile(folder / name):  # unlike Path.is_file, no error for a name with a NUL
                return folder / name
        return None


class Dataset(ABC):
    """A named text.

    The class is made with its options for each use, and must stay cheap to make: text is read in `read`.
    Override `is_here` and `fetch` where the text is downloaded first.

        class Squares(Dataset):
            class Options(PluginOptions):
                count: int = Field(default=1000, ge=1, description="Number of lines.")

            summary = "lines such as 12*12=144"
            source = "computed"

            def read(self, folders: DataFolders) -> str:
                return "".join(f"{n}*{n}={n * n}\\n" for n in range(self.options.count))

    Attributes:
        summary: one line for listings.
        source: where the text comes from, for listings.
        Options: the options of its table in an experiment file.
        api_version: the version of the plugin API that it was written for.
        needs: modules that it imports only when it is used. Where one is missing, gptkit refuses the plugin
            and names the extra of its package that brings it.
    """

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        """A class that overrides `read` alone does not inherit the pieces of its base."""
        super().__init_subclass__(**keywords)
        if "read" in cls.__dict__:
            for name in {"pieces", "fingerprint"} - cls.__dict__.keys():
                setattr(cls, name, getattr(Dataset, name))

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def read(self, folders: DataFolders) -> str:
        """The whole text. The same options must give the same text on every machine and in every process.

        Raises `DataError`, or any error of its own, where the text cannot be read.
        """

    def pieces(self, folders: DataFolders) -> Iterator[str]:
        """The text of `read` in pieces of any length, such as a megabyte; it is asked for several times.

        Override it where the text may be larger than memory. The default yields the whole text.
        """
        yield self.read(folders)

    def fingerprint(self, folders: DataFolders) -> str | None:
        """A string that changes whenever the text does, found without reading it, or None: there is none.

        Such as the sizes and times of the files, or a revision. With it, a large text whose ids are in the
        cache is not read again.
        """
        return None

    def is_here(self, folders: DataFolders) -> bool:
        """Whether `read` will work without `fetch`. Must not download anything."""
        return True

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:  # noqa: B027  (optional)
        """Downloads the text into `folders.downloads`; with `repair`, replaces a damaged one.

        The default does nothing, as there is nothing to download.
        """

    def size(self, folders: DataFolders) -> int | None:
        """Bytes of the text as UTF-8, within 1 %, for listings; None if reading it would be needed."""
        return None

    def facts(self) -> dict[str, str | float]:
        """More about the text for people and programs, such as its entropy rate; recorded in run.json."""
        return {}
