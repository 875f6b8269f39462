"""Datasets of Hugging Face: the dataset `hf`.

In: a name on the hub, or a folder on this machine, and the column that holds the text. Out: the rows of a
split, joined. The package `datasets` finds, downloads and keeps them, and is imported when one is used, for
that takes seconds. Nothing that comes with a dataset is run. What the package raises becomes an error that
says what to do; what it prints is held back. Knows nothing of tokens, experiments or runs.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from gptkit.errors import DataError, DiskError, GptkitError, NetworkError, PluginError
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import PluginOptions, no_progress
from gptkit.words import nearest

_NAME_ON_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS = 500  # read at a time: bounds the memory on top of the text
_LIBRARIES = ("datasets", "huggingface_hub", "filelock", "fsspec", "httpx", "urllib3")
_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
_HOW = "Say which one holds the text, beside path: field = "


class HuggingFaceOptions(PluginOptions):
    path: str = Field(
        min_length=1,
        max_length=4096,
        description="A name on the hub, as in 'roneneldan/TinyStories'; or a folder: one that save_to_disk "
        "wrote, or with .parquet, .jsonl, .csv or .txt files.",
    )
    name: str | None = Field(
        default=None, max_length=200, description="The configuration, where it has some."
    )
    split: str = Field(
        default="train", min_length=1, max_length=200, description="Which part; 'train[:1%]' works too."
    )
    field: str = Field(default="text", max_length=4096, description="The column that holds the text.")
    revision: str | None = Field(
        default=None,
        max_length=200,
        description="A branch, tag or commit on the hub; a commit stays the same.",
    )
    separator: str = Field(default="\n", max_length=4096, description="What stands between two rows.")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """A folder in `folder`, with one small file."""
        inner = folder / "example"
        inner.mkdir(exist_ok=True)
        rows = [{"text": f"Row {number} of a small dataset, which is made of rows."} for number in range(60)]
        (inner / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return cls(path=str(inner))


class HuggingFaceDataset(Dataset):
    """The rows of a split, joined with `separator`, in their order.

    A folder is looked for as given and then in the data folders; what is none is a name on the hub.
    """

    summary = "a dataset of Hugging Face, by name or folder"
    source = "huggingface.co, or your own folder"
    needs = ("datasets",)
    Options = HuggingFaceOptions

    def __init__(self, options: HuggingFaceOptions) -> None:
        super().__init__(options)
        self._rows: Any = None  # datasets.Dataset, once loaded
        self._facts: dict[str, str | float] = {}

    def read(self, folders: DataFolders) -> str:
        rows = self._load(folders) if self._rows is None else self._rows
        self._rows = None
        self._facts = _facts(rows)
        with _library(folders), _telling(self.options.path):
            return self._join(rows, folders)

    def is_here(self, folders: DataFolders) -> bool:
        """Whether it is a folder here. What of the hub is cached cannot be told without asking the hub."""
        return self._rows is not None or self._local(folders) is not None

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        """Has the library load it, which keeps what it downloads in its own cache and verifies it."""
        self._rows = self._load(folders)

    def facts(self) -> dict[str, str | float]:
        """Once it was read: the commit on the hub, where there is one, or else the library's fingerprint."""
        return self._facts

    def _local(self, folders: DataFolders) -> Path | None:
        """The folder or file of that path, looked up as the dataset `text` does."""
        given = Path(self.options.path)
        inside = not given.is_absolute() and ".." not in given.parts
        for place in [given, *(folder / given for folder in folders.search if inside)]:
            if os.path.exists(place):
                return place.absolute()
        return None

    def _load(self, folders: DataFolders) -> Any:
        """The rows, of which the library keeps all but a few on the disk."""
        options: HuggingFaceOptions = self.options
        local = self._local(folders)
        with _library(folders) as library, _telling(options.path):
            if local is None:
                _check_name(options.path, library)
                rows = _load_dataset(library, options, options.path)
                commit = _commit(rows)
                if _COMMIT.fullmatch(options.revision or "") and commit not in ("", options.revision):
                    raise DataError(
                        f"{options.path}: only revision {commit} is cached here, not {options.revision}, "
                        "and the hub cannot be reached."
                    )
                return rows
            if options.revision is not None:
                raise DataError(f"{local} is on this machine, where it has no revision. Leave revision out.")
            if _is_saved(local):
                return _load_saved(library, options, local)
            if os.path.isdir(local):
                _check_no_script(local)
                return _load_dataset(library, options, str(local))
            reader = _READERS.get(local.suffix.lower())
            if reader is None:
                raise DataError(
                    f"{local} is no dataset of Hugging Face. Give a folder that save_to_disk wrote, or a "
                    f'folder or file of {", ".join(_READERS)}; for a text: type = "text".'
                )
            return _load_dataset(library, options, reader, data_files={"train": str(local)})

    def _join(self, rows: Any, folders: DataFolders) -> str:
        options: HuggingFaceOptions = self.options
        _check_column(rows, options)
        column = rows.select_columns([options.field])  # so that nothing else is read and decoded
        joined, total = io.StringIO(newline="\n"), len(rows)
        for start in range(0, total, _ROWS):
            texts = column[start : start + _ROWS][options.field]
            if None in texts:
                row = start + texts.index(None)
                raise DataError(
                    f"{options.path}: row {row} (from 0) of the split {options.split} has nothing in the "
                    f"column {options.field!r}.\nSave the dataset without such rows."
                )
            if start:
                joined.write(options.separator)
            joined.write(options.separator.join(texts))
            folders.progress(min(start + _ROWS, total), total)
        if not joined.tell() or (total and joined.tell() == (total - 1) * len(options.separator)):
            raise DataError(f"{options.path}: the split {options.split} is empty; a dataset needs text.")
        return joined.getvalue()


# The library


@contextmanager
def _library(folders: DataFolders) -> Iterator[Any]:
    """The package `datasets`, kept from writing to the terminal. Raises PluginError where it is broken."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import datasets
            import huggingface_hub.utils as hub
        except Exception as error:
            raise PluginError(f"the package datasets does not load: {_reason(error)}") from error
        watched = folders.progress is not no_progress and sys.stderr.isatty()
        shown = [bars for bars in (datasets, hub) if not bars.are_progress_bars_disabled()]
        silenced = [] if watched else shown
        loggers = [logging.getLogger(name) for name in _LIBRARIES]
        levels = [logger.level for logger in loggers]
        for bars in silenced:
            bars.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield datasets
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for bars in silenced:
                bars.enable_progress_bars()


def _load_dataset(library: Any, options: HuggingFaceOptions, path: str, **more: Any) -> Any:
    import inspect

    if "trust_remote_code" in inspect.signature(library.load_dataset).parameters:
        more["trust_remote_code"] = False  # before version 4, which has no way to run code at all
    return library.load_dataset(
        path, options.name, split=options.split, revision=options.revision, streaming=False, **more
    )


def _is_saved(folder: Path) -> bool:
    """Whether save_to_disk wrote it."""
    return os.path.isfile(folder / "dataset_dict.json") or os.path.isfile(folder / "state.json")


def _load_saved(library: Any, options: HuggingFaceOptions, folder: Path) -> Any:
    """The rows of a split, or a slice of it, of what save_to_disk wrote."""
    if options.name is not None:
        raise DataError(f"{folder} was saved without configurations. Leave name = {options.name!r} out.")
    saved = library.load_from_disk(str(folder))
    if isinstance(saved, library.DatasetDict):
        splits = dict(saved)
    else:  # the rows of one split, which may not say of which
        splits = {str(saved.split) if saved.split else "train": saved}
    lengths = {split: len(rows) for split, rows in splits.items()}
    wanted = library.ReadInstruction.from_spec(options.split).to_absolute(lengths)
    parts = [splits[part.splitname].select(range(part.from_ or 0, _end(part, lengths))) for part in wanted]
    return parts[0] if len(parts) == 1 else library.concatenate_datasets(parts)


def _end(part: Any, lengths: dict[str, int]) -> int:
    return int(lengths[part.splitname] if part.to is None else part.to)


def _commit(rows: Any) -> str:
    """The commit on the hub from which the rows were downloaded; empty where there is none."""
    for url in rows.info.download_checksums or {}:
        found = re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", url)
        if found:
            return found[1]
    return ""


def _facts(rows: Any) -> dict[str, str | float]:
    commit = _commit(rows)
    return {"revision": commit} if commit else {"fingerprint": str(rows._fingerprint)}


# What may be wrong


def _check_name(path: str, library: Any) -> None:
    """A name is one on the hub: not a reader of the library's, which would take what lies about here."""
    from datasets import packaged_modules

    readers = getattr(packaged_modules, "_PACKAGED_DATASETS_MODULES", {})
    if not _NAME_ON_HUB.fullmatch(path) or path in readers or path.endswith(".py"):
        raise DataError(
            f"there is no folder {path!r}, and no dataset on the hub has such a name.\n"
            "Give a folder, or a name as in 'roneneldan/TinyStories'."
        )


def _check_no_script(folder: Path) -> None:
    script = folder / f"{folder.name}.py"
    if os.path.lexists(script):
        raise DataError(
            f"{folder} has a loading script, {script.name}, which gptkit does not run.\n"
            "Save the dataset without it: datasets.Dataset.save_to_disk, or as .parquet."
        )


def _check_column(rows: Any, options: HuggingFaceOptions) -> None:
    features = rows.features
    strings = [name for name, kind in features.items() if _is_string(kind)]
    said = json.dumps(strings[0] if len(strings) == 1 else "…", ensure_ascii=False)
    if options.field not in features:
        close = nearest(options.field, list(features)[:200]) or "."
        raise DataError(
            f"{options.path} has no column {options.field!r}. Its columns: {_listed(list(features))}{close}\n"
            f"{_HOW}{said}"
        )
    if not _is_string(features[options.field]):
        kind = getattr(features[options.field], "dtype", type(features[options.field]).__name__)
        raise DataError(
            f"{options.path}: the column {options.field!r} holds {kind}, not strings. "
            f"Columns with strings: {_listed(strings)}.\n{_HOW}{said}"
        )


def _is_string(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and feature.dtype in ("string", "large_string", "string_view")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (" …" if len(names) > 20 else "") if names else "none"


@contextmanager
def _telling(path: str) -> Iterator[None]:
    """Turns what the library raises into an error that says what is wrong with the dataset `path`."""
    try:
        yield
    except (GptkitError, MemoryError):
        raise
    except Exception as error:
        raise _told(error, path) from error


def _told(error: Exception, path: str) -> GptkitError:
    if any("OfflineModeIsEnabled" in f"{type(one).__name__} {one}" for one in _chain(error)):
        return DataError(
            f"{path} is not here, and offline mode (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE) forbids to "
            "download it.\nUnset that variable, or give a folder that save_to_disk wrote."
        )
    if type(error).__name__ in ("DatasetNotFoundError", "EmptyDatasetError", "DataFilesNotFoundError"):
        return DataError(
            f"{path}: {_reason(error)}\nGive a folder here, or its name on the hub; see {_PAGE}."
        )
    if any(_is_of_disk(one) for one in _chain(error)):
        return DiskError(f"disk full while the package datasets keeps {path}: {_reason(error)}")
    if any(_is_of_network(one) for one in _chain(error)):
        return NetworkError(
            f"cannot download {path} from the hub: {_reason(error)}\n"
            "Try again later, or give a folder that save_to_disk wrote."
        )
    reason = _reason(error)
    for said, option in (("split", "split"), ("BuilderConfig", "name"), ("Config name", "name")):
        if said in reason:
            return DataError(f'{path} cannot be loaded: {reason}\nSay which one, beside path: {option} = "…"')
    return DataError(f"{path} cannot be loaded: {reason}")


_PAGE = "huggingface.co/datasets"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_network(error: BaseException) -> bool:
    web = type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "urllib3", "aiohttp")
    hub = type(error).__name__ in ("HfHubHTTPError", "LocalEntryNotFoundError")
    return web or hub or isinstance(error, ConnectionError | TimeoutError)


def _is_of_disk(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return full or "Not enough disk space" in str(error)


def _reason(error: BaseException) -> str:
    """What the library says, in a line or two; of an error that says nothing, the one that led to it."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
