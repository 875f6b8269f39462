"""The dataset `hf`: datasets of Hugging Face, from the hub or a local folder.

Input: a name on the hub or a folder, and the column with the text. Output: the rows of a split, joined. The
package `datasets` finds, downloads and caches them; it is imported on first use, which takes seconds. Code
that comes with a dataset is never run. The package's errors become errors of gptkit, its output is
suppressed. Knows nothing of tokens or runs.
"""

from __future__ import annotations

import contextlib
import inspect
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

from gptkit.data.readers import TextJoiner
from gptkit.data.search import runs_within
from gptkit.errors import DataError, DiskError, GptkitError, NetworkError, PluginError
from gptkit.files import DISK_FULL
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import PluginOptions, no_progress
from gptkit.words import nearest

_NAME_ON_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS = 500  # rows read at a time, which bounds the memory in addition to the text
_LIBRARIES = ("datasets", "huggingface_hub", "filelock", "fsspec", "httpx", "urllib3")
_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}
_PAGE = "huggingface.co/datasets"
_REMEDY = "Name the one with the text, beside path: field = "


class HuggingFaceOptions(PluginOptions):
    path: str = Field(
        min_length=1,
        max_length=4096,
        description="A name on the hub, such as 'roneneldan/TinyStories', or a folder: one written by "
        "save_to_disk, or one with .parquet, .jsonl, .csv or .txt files.",
    )
    name: str | None = Field(
        default=None, max_length=200, description="The configuration, if the dataset has several."
    )
    split: str = Field(
        default="train",
        min_length=1,
        max_length=200,
        description="The split, or a slice of it: 'train[:1%]'.",
    )
    field: str = Field(default="text", max_length=4096, description="The column with the text.")
    revision: str | None = Field(
        default=None,
        max_length=200,
        description="A branch, tag or commit on the hub; only a commit never changes.",
    )
    separator: str = Field(default="\n", max_length=4096, description="Text between two rows.")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Creates a folder with one small file in `folder`."""
        inner = folder / "example"
        inner.mkdir(exist_ok=True)
        rows = [{"text": f"Row {number} of a small dataset, which is made of rows."} for number in range(60)]
        (inner / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return cls(path=str(inner))


class HuggingFaceDataset(Dataset):
    """The rows of a split in order, joined with `separator`.

    `path` is a folder or file as given, then one in the data folders, otherwise a name on the hub.
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
        joiner = TextJoiner(self.options.separator)
        for texts in self._read(folders):
            for text in texts:
                joiner.add(text)
        return joiner.text()

    def pieces(self, folders: DataFolders) -> Iterator[str]:
        separator: str = self.options.separator
        for number, texts in enumerate(self._read(folders)):
            yield (separator if number else "") + separator.join(texts)

    def fingerprint(self, folders: DataFolders) -> str | None:
        """The commit on the hub, if its rows come from there."""
        if self._local(folders) is not None:
            return None
        rows = self._rows = self._load(folders) if self._rows is None else self._rows
        self._facts = _facts(rows)
        commit = _commit(rows)
        return json.dumps([commit, self.options.model_dump(mode="json")]) if commit else None

    def is_here(self, folders: DataFolders) -> bool:
        """Whether it is a local folder or file. The cache of the hub cannot be checked without the hub."""
        return self._rows is not None or self._local(folders) is not None

    def fetch(self, folders: DataFolders, *, repair: bool = False) -> None:
        """Loads the rows; the package verifies downloads and keeps them in its own cache."""
        self._rows = self._load(folders)

    def facts(self) -> dict[str, str | float]:
        """After `read`: the commit on the hub if there is one, otherwise the package's fingerprint."""
        return self._facts

    def _local(self, folders: DataFolders) -> Path | None:
        """The local folder or file of that path, looked up like those of the dataset `text`."""
        given = Path(os.path.expanduser(self.options.path))
        inside = not given.is_absolute() and ".." not in given.parts
        for candidate in [given, *(folder / given for folder in folders.search if inside)]:
            if os.path.exists(candidate):
                return candidate.absolute()
        return None

    def _load(self, folders: DataFolders) -> Any:
        """The rows as a datasets.Dataset, which the package maps from the disk."""
        options: HuggingFaceOptions = self.options
        local = self._local(folders)
        with _datasets_package(folders) as package, _package_errors(options.path):
            if local is None:
                _check_name(options.path)
                rows = _load_dataset(package, options, options.path)
                commit = _commit(rows)
                if _COMMIT.fullmatch(options.revision or "") and commit not in ("", options.revision):
                    raise DataError(
                        f"{options.path}: only revision {commit} is cached here, not {options.revision}, "
                        "and the hub cannot be reached."
                    )
                return rows
            if options.revision is not None:
                raise DataError(f"{local} is a local path, which has no revision. Leave revision out.")
            if any(os.path.isfile(local / name) for name in ("dataset_dict.json", "state.json")):
                return _load_saved(package, options, local)
            if os.path.isdir(local):
                _check_no_script(local)
                _check_no_run(local)
                return _load_dataset(package, options, str(local))
            reader = _READERS.get(local.suffix.lower())
            if reader is None:
                raise DataError(
                    f"{local} is not a dataset of Hugging Face. Use a folder written by save_to_disk, or a "
                    f'folder or file of {", ".join(_READERS)}; for a text: type = "text".'
                )
            return _load_dataset(package, options, reader, data_files={"train": str(local)})

    def _read(self, folders: DataFolders) -> Iterator[list[str]]:
        """The texts of the rows, some hundreds at a time. They stay loaded, to be read again."""
        options: HuggingFaceOptions = self.options
        rows = self._rows = self._load(folders) if self._rows is None else self._rows
        self._facts = _facts(rows)
        with _datasets_package(folders), _package_errors(options.path):
            _check_column(rows, options)
            column = rows.select_columns([options.field])  # so that no other column is read and decoded
            total, characters = len(rows), 0
        for start in range(0, total, _ROWS):
            with _datasets_package(folders), _package_errors(options.path):
                texts: list[str] = column[start : start + _ROWS][options.field]
                if None in texts:
                    row = start + [text is None for text in texts].index(True)
                    raise DataError(
                        f"{options.path}: row {row} (from 0) of the split {options.split} has no value in "
                        f"the column {options.field!r}.\nSave the dataset without such rows."
                    )
            characters += sum(map(len, texts))
            yield texts
            folders.progress(min(start + _ROWS, total), total)
        if not characters:
            raise DataError(f"{options.path}: the split {options.split} is empty; a dataset needs text.")


# The package datasets


@contextmanager
def _datasets_package(folders: DataFolders) -> Iterator[Any]:
    """The package `datasets` with its output suppressed. Raises PluginError if it cannot be imported."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import datasets
            import huggingface_hub.utils as hub
        except Exception as error:
            raise PluginError(f"the package datasets does not load: {_reason(error)}") from error
        keep_bars = folders.progress is not no_progress and sys.stderr.isatty()
        enabled = [bars for bars in (datasets, hub) if not bars.are_progress_bars_disabled()]
        silenced = [] if keep_bars else enabled
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


def _load_dataset(package: Any, options: HuggingFaceOptions, path: str, **more: Any) -> Any:
    if "trust_remote_code" in inspect.signature(package.load_dataset).parameters:
        more["trust_remote_code"] = False  # before version 4, which cannot run code at all
    return package.load_dataset(
        path, options.name, split=options.split, revision=options.revision, streaming=False, **more
    )


def _load_saved(package: Any, options: HuggingFaceOptions, folder: Path) -> Any:
    """The rows of a split, or of a slice of it, in a folder written by save_to_disk."""
    if options.name is not None:
        raise DataError(f"{folder} was saved without configurations. Leave name = {options.name!r} out.")
    saved = package.load_from_disk(str(folder))
    if isinstance(saved, package.DatasetDict):
        splits = dict(saved)
    else:  # a single split, which may have no name
        splits = {str(saved.split) if saved.split else "train": saved}
    lengths = {split: len(rows) for split, rows in splits.items()}
    slices = []
    for part in package.ReadInstruction.from_spec(options.split).to_absolute(lengths):
        end = lengths[part.splitname] if part.to is None else part.to
        slices.append(splits[part.splitname].select(range(part.from_ or 0, end)))
    return slices[0] if len(slices) == 1 else package.concatenate_datasets(slices)


def _commit(rows: Any) -> str:
    """The commit on the hub from which the rows were downloaded; "" if there is none."""
    for url in rows.info.download_checksums or {}:
        found = re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", url)
        if found:
            return found[1]
    return ""


def _facts(rows: Any) -> dict[str, str | float]:
    commit = _commit(rows)
    return {"revision": commit} if commit else {"fingerprint": str(rows._fingerprint)}


# Errors


def _check_name(path: str) -> None:
    """Refuses the names of the package's file readers ("csv"), which would read files of this folder."""
    from datasets import packaged_modules

    readers = getattr(packaged_modules, "_PACKAGED_DATASETS_MODULES", {})
    if not _NAME_ON_HUB.fullmatch(path) or path in readers or path.endswith(".py"):
        raise DataError(
            f"there is no folder {path!r}, and no dataset on the hub has such a name.\n"
            "Use a folder, or a name such as 'roneneldan/TinyStories'."
        )


def _check_no_script(folder: Path) -> None:
    script = folder / f"{folder.name}.py"
    if os.path.lexists(script):
        raise DataError(
            f"{folder} has a loading script, {script.name}, which gptkit does not run.\n"
            "Save the dataset without it: datasets.Dataset.save_to_disk, or as .parquet."
        )


def _check_no_run(folder: Path) -> None:
    """The package would read the metrics and samples of a run, which change while it trains."""
    run = next(runs_within(folder), None)
    if run is not None:
        raise DataError(
            f"{folder} has a run of gptkit in it, {run}, which is never a text.\n"
            "Name a folder that has the data alone."
        )


def _check_column(rows: Any, options: HuggingFaceOptions) -> None:
    features = rows.features
    strings = [name for name, kind in features.items() if _is_string(kind)]
    example = json.dumps(strings[0] if len(strings) == 1 else "…", ensure_ascii=False)
    if options.field not in features:
        close = nearest(options.field, list(features)[:200]) or "."
        raise DataError(
            f"{options.path} has no column {options.field!r}. Its columns: {_listed(list(features))}{close}\n"
            f"{_REMEDY}{example}"
        )
    if not _is_string(features[options.field]):
        kind = getattr(features[options.field], "dtype", type(features[options.field]).__name__)
        raise DataError(
            f"{options.path}: the column {options.field!r} has values of type {kind}, not strings. "
            f"Columns with strings: {_listed(strings)}.\n{_REMEDY}{example}"
        )


def _is_string(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and feature.dtype in ("string", "large_string", "string_view")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (" …" if len(names) > 20 else "") if names else "none"


@contextmanager
def _package_errors(path: str) -> Iterator[None]:
    """Turns the package's errors into errors of gptkit about the dataset `path`."""
    try:
        yield
    except (GptkitError, MemoryError):
        raise
    except Exception as error:
        raise _translated(error, path) from error


def _translated(error: Exception, path: str) -> GptkitError:
    if any("OfflineModeIsEnabled" in f"{type(one).__name__} {one}" for one in _chain(error)):
        return DataError(
            f"{path} is not here, and offline mode (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE) forbids "
            "downloading it.\nUnset that variable, or use a folder written by save_to_disk."
        )
    if type(error).__name__ in ("DatasetNotFoundError", "EmptyDatasetError", "DataFilesNotFoundError"):
        return DataError(
            f"{path}: {_reason(error)}\nUse a folder, or the name of a dataset on the hub; see {_PAGE}."
        )
    if any(_is_disk_full(one) for one in _chain(error)):
        return DiskError(f"disk full while the package datasets saves {path}: {_reason(error)}")
    if any(_is_network_error(one) for one in _chain(error)):
        return NetworkError(
            f"cannot download {path} from the hub: {_reason(error)}\n"
            "Try again later, or use a folder written by save_to_disk."
        )
    reason = _reason(error)
    for phrase, option in (("split", "split"), ("BuilderConfig", "name"), ("Config name", "name")):
        if phrase in reason:
            return DataError(f'{path} cannot be loaded: {reason}\nName one, beside path: {option} = "…"')
    return DataError(f"{path} cannot be loaded: {reason}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network_error(error: BaseException) -> bool:
    web = type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "urllib3", "aiohttp")
    hub = type(error).__name__ in ("HfHubHTTPError", "LocalEntryNotFoundError")
    return web or hub or isinstance(error, ConnectionError | TimeoutError)


def _is_disk_full(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    return full or "Not enough disk space" in str(error)


def _reason(error: BaseException) -> str:
    """The package's own message, or that of the cause where it only wraps one."""
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
