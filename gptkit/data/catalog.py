"""Datasets by name: listed, resolved, read, described, fetched and added.

Input: the name of a dataset or text, and the folders in which texts are searched. Output: dataset plugins and
their text; frozen rows and descriptions for display; a copy of a text where it is found by its name. Prints
nothing; knows nothing of models or runs. numpy and the experiment schema are imported on use, so that listing
is quick.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptkit import files
from gptkit.data.datasets.text import TextDataset, kept_ending
from gptkit.data.readers import is_plain, read_bytes, read_files
from gptkit.data.search import (
    FOUND,
    find_texts,
    has_text_name,
    is_pipe,
    places_looked_at,
    why_no_text,
)
from gptkit.errors import DataError, GptkitError, PluginError, UsageError
from gptkit.plugins import registry
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.plugins.tokenizer import Splits
from gptkit.words import nearest

if TYPE_CHECKING:
    from gptkit.data.source import Text
    from gptkit.experiment.schema import PluginTable

_MISSING_PATH = {
    "text": " Name the file itself, as in: gptkit datasets show my.txt",
    "hf": ' In an experiment file: dataset = { type = "hf", path = "…" }',
}


@dataclass(frozen=True)
class DatasetRow:
    """A line of `gptkit datasets list`."""

    name: str
    source: str
    summary: str  # for a plugin that does not load: why
    size: int | None  # bytes, if known
    here: bool | None  # None: depends on required options
    provenance: str  # distribution and version, or "your text"


@dataclass(frozen=True)
class TokenCount:
    """The tokens of a text with one tokenizer, or the `problem` that prevented counting them."""

    tokenizer: str
    vocab_size: int = 0
    train: int = 0
    val: int = 0
    problem: str = ""


@dataclass(frozen=True)
class DatasetDescription:
    """The content of `gptkit datasets show`."""

    name: str
    source: str
    summary: str
    provenance: str
    characters: int
    bytes: int  # as UTF-8
    distinct_characters: int
    sha256: str  # of the text as UTF-8
    val_fraction: float
    train_characters: int
    val_characters: int
    tokens: tuple[TokenCount, ...]
    first_lines: tuple[str, ...]
    facts: tuple[tuple[str, str | float], ...]


@dataclass(frozen=True)
class FetchedDataset:
    """The result of `gptkit datasets fetch`."""

    name: str
    was_here: bool
    path: Path | None  # None: not a single file
    size: int | None  # bytes


def data_folders(data_dir: Path | None, progress: ProgressCallback = no_progress) -> DataFolders:
    """Searches --data-dir, $GPTKIT_DATA_DIR and ./data; downloads to --data-dir, otherwise to ./data."""
    default, variable = Path("data"), os.environ.get("GPTKIT_DATA_DIR", "")
    search = [data_dir] if data_dir is not None else []
    search += [Path(os.path.expanduser(variable))] if variable else []
    downloads = default if data_dir is None else data_dir
    return DataFolders(tuple(dict.fromkeys([*search, default])), downloads, progress)


# List


def list_datasets(folders: DataFolders) -> list[DatasetRow]:
    """The registered datasets by name, then the other texts in the data folders."""
    names = registry.names(registry.DATASETS)
    rows = [_registered_row(name, folders) for name in names]
    hidden = {
        *_dataset_files(),
        *names,
    }  # names that mean a registered dataset, or a text in an earlier folder
    for folder in folders.search:
        for path in _texts_in(folder):
            if path.name in hidden:
                continue
            stem = _stem(path.name)
            name = path.name if stem in hidden else stem
            hidden |= {stem, path.name}
            size = path.stat().st_size if is_plain(path) else None
            rows.append(DatasetRow(name, str(path), "your text", size, True, "your text"))
    return rows


def _texts_in(folder: Path) -> list[Path]:
    """The texts directly in a data folder; of several with one stem, first the one that the stem means."""
    try:
        names = os.listdir(folder)
    except OSError:  # mostly: the folder does not exist
        return []
    texts = [name for name in names if has_text_name(name) and name.lower() != "readme.md"]
    order = ("", *FOUND)  # "": an ending in capitals, which only the whole name finds
    texts.sort(key=lambda name: (_stem(name), order.index(name[len(_stem(name)) :])))
    return [folder / name for name in texts if os.path.isfile(folder / name)]


def _stem(name: str) -> str:
    """The name of a text without its ending."""
    return next((name.removesuffix(ending) for ending in FOUND if name.endswith(ending)), name)


def _registered_row(name: str, folders: DataFolders) -> DatasetRow:
    """A plugin that fails, in whatever way, gets a row with the reason."""
    provenance = ""
    try:
        provenance = _provenance(name)
        cls = registry.load(registry.DATASETS, name)
        if _has_required_options(cls):
            return DatasetRow(name, cls.source, cls.summary, None, None, provenance)
        dataset = cls(cls.Options())
        size, here = dataset.size(folders), dataset.is_here(folders)
        return DatasetRow(name, cls.source, cls.summary, size, here, provenance)
    except Exception as error:
        return DatasetRow(name, "", f"not usable: {_reason(error)}", None, False, provenance)


def _provenance(name: str) -> str:
    plugin = registry.find(registry.DATASETS, name)
    return f"{plugin.distribution} {plugin.version}"


def _has_required_options(cls: Any) -> bool:
    return any(field.is_required() for field in cls.Options.model_fields.values())


def _dataset_files() -> dict[str, str]:
    """File name -> registered dataset, for datasets that are a single file."""
    found = {}
    for name in registry.names(registry.DATASETS):
        file_name = getattr(_class_or_none(registry.DATASETS, name), "file_name", None)
        if file_name:
            found[str(file_name)] = name
    return found


def _class_or_none(family: str, name: str) -> Any:
    try:
        return registry.load(family, name)
    except PluginError:
        return None


# Resolve and read


def resolve_dataset(table: PluginTable, folders: DataFolders) -> tuple[Dataset, PluginTable]:
    """The dataset that an experiment names, and the same table with every option explicit.

    The name is that of a registered dataset; otherwise of a text, as given and then in each data folder,
    where its ending may be omitted; otherwise the file name of a registered dataset. Raises DataError for an
    unknown name, PluginError, UsageError.
    """
    from gptkit.experiment.schema import PluginTable

    dataset, canonical = _resolve(table.type, table.options, folders)
    return dataset, PluginTable.model_validate(canonical)


def _resolve(name: str, options: dict[str, Any], folders: DataFolders) -> tuple[Dataset, dict[str, Any]]:
    from pydantic import ValidationError

    if name not in registry.names(registry.DATASETS):
        name, options = _unregistered(name, options, folders)
    cls = registry.load(registry.DATASETS, name)
    try:
        complete = cls.Options.model_validate(options)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        hint = _MISSING_PATH.get(name, "") if detail["type"] == "missing" else ""
        raise UsageError(f"dataset {name!r}: {key or 'options'}: {detail['msg']}.{hint}") from None
    return cls(complete), {"type": name, **complete.model_dump(mode="json", exclude_none=True)}


def _unregistered(name: str, options: dict[str, Any], folders: DataFolders) -> tuple[str, dict[str, Any]]:
    """The registered dataset, with options, that another name stands for."""
    if not name:
        raise UsageError("the name of the dataset is empty. List them: gptkit datasets list")
    if find_texts(name, folders).files:
        if "path" in options:
            raise UsageError(f"data.dataset: {name!r} is a text itself, so it takes no path.")
        return "text", {"path": name, **options}
    dataset_files = _dataset_files()
    owner = dataset_files.get(name) or dataset_files.get(f"{name}.txt")
    if owner:
        return owner, options
    if problem := why_no_text(name, folders):
        raise DataError(problem)
    close = nearest(name, [row.name for row in list_datasets(folders)])
    raise DataError(
        f"there is no dataset or text file {name!r}{close or '.'} "
        f"Looked for {places_looked_at(name, folders)}.\n"
        f"Registered: {', '.join(registry.names(registry.DATASETS))}. "
        "To add your own text: gptkit datasets add NAME FILE"
    )


def read_dataset(name: str, dataset: Dataset, folders: DataFolders) -> str:
    """The text of a dataset. Raises PluginError for a plugin that fails or returns something else."""
    with _plugin_errors(name):
        text: object = dataset.read(folders)
    if not isinstance(text, str):
        raise PluginError(
            f"dataset {name!r} returned {type(text).__name__}, not text. Report it to its author."
        )
    if not text:
        raise DataError(f"dataset {name!r} is empty.")
    return text


def open_text(name: str, dataset: Dataset, folders: DataFolders, title: str) -> Text:
    """The text of a dataset: in memory, or a large one that is read in pieces each time it is needed.

    A large text is read once now, to measure it, unless the dataset's fingerprint is that of a text that was
    read before. Raises as `read_dataset` does.
    """
    from gptkit.data import cache
    from gptkit.data.source import LARGE, Measuring, StreamedText, Text

    if type(dataset).pieces is Dataset.pieces:
        return Text(read_dataset(name, dataset, folders), title)
    quiet = replace(folders, progress=no_progress)  # when it is read again, what is done then is reported

    def again() -> Iterator[str]:
        return _pieces_of(name, dataset, quiet)

    with _plugin_errors(name):
        found = dataset.fingerprint(folders)
    fingerprint = json.dumps([name, found]) if found is not None else None
    if fingerprint is not None and (known := cache.known_measures(fingerprint)) is not None:
        return StreamedText(again, known, title)
    pieces, beginning, characters = _pieces_of(name, dataset, folders), list[str](), 0
    for piece in pieces:
        beginning.append(piece)
        characters += len(piece)
        if characters >= LARGE:
            break
    else:
        if not characters:
            raise DataError(f"dataset {name!r} is empty.")
        return Text("".join(beginning), title)
    measuring = Measuring()
    while beginning:
        measuring.add(beginning.pop(0))
    for piece in pieces:
        measuring.add(piece)
    measures = measuring.measures()
    with _plugin_errors(name):
        if fingerprint is not None and dataset.fingerprint(folders) == found:  # not changed meanwhile
            cache.remember_measures(fingerprint, measures)
    return StreamedText(again, measures, title)


def _pieces_of(name: str, dataset: Dataset, folders: DataFolders) -> Iterator[str]:
    with _plugin_errors(name):
        for piece in dataset.pieces(folders):
            if not isinstance(piece, str):
                raise PluginError(
                    f"dataset {name!r} returned a piece of {type(piece).__name__}, not text. "
                    "Report it to its author."
                )
            yield piece


@contextmanager
def _plugin_errors(name: str) -> Iterator[None]:
    """Turns unexpected exceptions of a dataset plugin into a PluginError."""
    try:
        yield
    except (GptkitError, MemoryError):
        raise
    except Exception as error:
        raise PluginError(f"dataset {name!r} failed: {_reason(error)}. Report it to its author.") from error


def _reason(error: Exception) -> str:
    """The first line of an error, with its type if it is not one of gptkit's."""
    text = str(error) if isinstance(error, GptkitError) else f"{type(error).__name__}: {error}"
    return (text.splitlines() or ["(no message)"])[0]


# Describe


def describe_dataset(
    name: str, folders: DataFolders, val_fraction: float = 0.1, *, options: dict[str, Any] | None = None
) -> DatasetDescription:
    """Describes a registered dataset or a text file. Reads it, which may download it."""
    from gptkit.data.source import measure_text, split_text

    dataset, table = _resolve(name, options or {}, folders)
    text = read_dataset(name, dataset, folders)
    train, val = split_text(text, val_fraction)
    size, digest = measure_text(text)
    return DatasetDescription(
        name=name,
        source=_text_paths(dataset, folders) or dataset.source,
        summary=dataset.summary,
        provenance=_provenance(table["type"]),
        characters=len(text),
        bytes=size,
        distinct_characters=len(set(text)),
        sha256=digest,
        val_fraction=val_fraction,
        train_characters=len(train),
        val_characters=len(val),
        tokens=tuple(_token_counts(train, val)),
        first_lines=tuple(text[:2000].split("\n")[:5]),
        facts=tuple(dataset.facts().items()),
    )


def _text_paths(dataset: Dataset, folders: DataFolders) -> str:
    """The path of the user's own text; of several files the first, and their number."""
    paths = dataset.find(folders).files if isinstance(dataset, TextDataset) else ()
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}" if paths else ""


def _token_counts(train: str, val: str) -> Iterator[TokenCount]:
    """The tokens of a text with every tokenizer that has no required options."""
    for name in registry.names(registry.TOKENIZERS):
        try:
            cls = registry.load(registry.TOKENIZERS, name)
            if _has_required_options(cls):
                continue
            tokenizer = cls.train(cls.Options(), Splits(train, val))
            unknown = tokenizer.unknown_characters(val)
            if unknown:
                yield TokenCount(name, problem=f"lacks {len(unknown)} characters of the val split")
                continue
            counts = len(tokenizer.encode(train)), len(tokenizer.encode(val))
        except MemoryError:
            raise
        except Exception as error:
            yield TokenCount(name, problem=_reason(error))
            continue
        yield TokenCount(name, tokenizer.vocab_size, *counts)


# Fetch and add


def fetch_dataset(name: str, folders: DataFolders, repair: bool = False) -> FetchedDataset:
    """Fetches a dataset unless it is here. Raises DataError, NetworkError, DiskError, PluginError."""
    dataset, _ = _resolve(name, {}, folders)
    with _plugin_errors(name):
        was_here, before = dataset.is_here(folders), _file_identity(dataset, folders)
        dataset.fetch(folders, repair=repair)
        unchanged = was_here and before == _file_identity(dataset, folders)
        return FetchedDataset(name, unchanged, _file_of(dataset, folders), dataset.size(folders))


def _file_of(dataset: Dataset, folders: DataFolders) -> Path | None:
    file_name = getattr(dataset, "file_name", None)
    return folders.find(str(file_name)) if file_name else None


def _file_identity(dataset: Dataset, folders: DataFolders) -> tuple[int, int] | None:
    """Changes when the file of a dataset is replaced."""
    path = _file_of(dataset, folders)
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path else None


def add_text(
    name: str, file: Path, folders: DataFolders, force: bool = False, *, field: str = "text"
) -> Path:
    """Copies a text, unchanged, to where `name` will be found, and returns the path of the copy.

    The text is read first, once, so that it may come from a pipe; `field` is the field with the text in a
    .jsonl or .csv file. Raises UsageError (the name, or an existing text), DataError (the file), DiskError,
    OutOfMemoryError.
    """
    target, cls = _target_for(name, file, folders)
    if not os.path.isfile(file) and not is_pipe(file):
        problem = f"{file} is not a file." if os.path.lexists(file) else f"there is no file {file}."
        raise DataError(f"{problem}\nName the path of a text: gptkit datasets add {name} FILE")
    if cls is not None and not is_plain(file):
        raise UsageError(f"{name!r} is a plain text; {file} is not. Unpack it, or choose another name.")
    data = read_bytes(file)
    read_files([file], field=field, content=data)
    expected = getattr(cls, "sha256", None)
    if expected and files.sha256(data) != expected:
        raise DataError(
            f"{file} is not the text of {name!r}: its SHA-256 is {files.sha256(data)},\n"
            f"expected {expected}.\nAdd it under another name, as in: gptkit datasets add my_text FILE"
        )
    if os.path.lexists(target) and not force:
        raise UsageError(f"{target} exists already. To replace it, add --force.")
    same_name = [target.name] if cls is not None else [_stem(target.name) + ending for ending in FOUND]
    for other in same_name:
        if other != target.name and os.path.lexists(target.parent / other):
            raise UsageError(
                f"{target.parent / other} has that name already. Remove it, or choose another name."
            )
    for folder in takewhile(lambda folder: folder != folders.downloads, folders.search):
        for other in same_name:
            if os.path.lexists(folder / other):
                raise UsageError(f"{folder / other} would be found first. Add it there: --data-dir {folder}")
    with files.disk_errors(f"saving {target}", needed=len(data)):
        files.make_folder(target.parent)
        files.replace_file(target, data)  # renames, so a link at the target is replaced, not followed
    return target


def _target_for(name: str, file: Path, folders: DataFolders) -> tuple[Path, Any]:
    """Where a text of that name is stored, and the class of the registered dataset that it belongs to."""
    name = unicodedata.normalize("NFC", name)
    if problem := files.name_problem(name):
        raise UsageError(f"{name!r} cannot be the name of a text: it {problem}.")
    for registered in registry.names(registry.DATASETS):
        if registered.lower() == name.lower():
            cls = _class_or_none(registry.DATASETS, registered)
            file_name = getattr(cls, "file_name", None)
            if not file_name:
                raise UsageError(f"{registered!r} is a registered dataset; choose another name.")
            return folders.downloads / str(file_name), cls
    owner = _dataset_files().get(f"{name}.txt")
    if owner:
        return folders.downloads / f"{name}.txt", _class_or_none(registry.DATASETS, owner)
    return folders.downloads / f"{name}{kept_ending(file)}", None
