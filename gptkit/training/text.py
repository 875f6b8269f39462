"""From the [data] table of an experiment to a text, with the fallback where there is one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from gptkit.data.catalog import read_dataset, resolve_dataset
from gptkit.errors import DataError, GptkitError, NetworkError
from gptkit.events import Listener, Warned, Working
from gptkit.experiment import DataSettings, PluginTable
from gptkit.plugins import DataFolders, Dataset
from gptkit.plugins.options import ProgressCallback


@dataclass(frozen=True)
class LoadedText:
    """A text, and what it is: `used` differs from `requested` where the fallback took its place."""

    text: str
    requested: PluginTable
    used: PluginTable
    facts: dict[str, Any]

    @property
    def title(self) -> str:
        return title_of(self.used)


def title_of(table: PluginTable) -> str:
    """What a person calls a dataset: its name, or the text's path; of several the first, and how many."""
    path = table.options.get("path", table.type)
    paths = path if isinstance(path, list) and path else [path]
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])


def obtain_text(data: DataSettings, folders: DataFolders, listener: Listener) -> LoadedText:
    """The text to train on. Raises DataError or NetworkError where there is none and no fallback."""
    coming, reading = _watched(folders, listener)
    try:
        dataset, used = _bring(data.dataset, coming, "data.dataset")
    except (DataError, NetworkError) as error:
        if data.fallback is None:
            raise
        dataset, used = _bring(data.fallback, coming, "data.fallback")
        listener(Warned(f"{error}\nTraining on the fallback {used.type!r} instead, until the text is here."))
    return LoadedText(read_dataset(used.type, dataset, reading), data.dataset, used, dataset.facts())


def recorded_text(data: DataSettings, folders: DataFolders, listener: Listener) -> str:
    """The text of a run that goes on: the one it has, never a fallback."""
    coming, reading = _watched(folders, listener)
    dataset, used = _bring(data.dataset, coming, "data.dataset")
    return read_dataset(used.type, dataset, reading)


def telling(listener: Listener, what: str, *, if_longer_than: float = 0.0) -> ProgressCallback:
    """Progress of long work, told to a listener; from `if_longer_than` seconds on, counted from now."""
    begin = time.monotonic() + if_longer_than

    def tell(done: int, total: int) -> None:
        if not if_longer_than or time.monotonic() >= begin:
            listener(Working(what, done, total))

    return tell


def _watched(folders: DataFolders, listener: Listener) -> tuple[DataFolders, DataFolders]:
    """The folders while a text is brought here, and while it is read."""
    coming = replace(folders, progress=telling(listener, "downloading the text"))
    return coming, replace(folders, progress=telling(listener, "reading the text"))


def _bring(table: PluginTable, folders: DataFolders, field: str) -> tuple[Dataset, PluginTable]:
    """The dataset, here. A fallback may take its place where this raises DataError or NetworkError."""
    try:
        dataset, used = resolve_dataset(table, folders)
    except GptkitError as error:
        error.field = field
        raise
    if not dataset.is_here(folders):
        dataset.fetch(folders)
    return dataset, used
