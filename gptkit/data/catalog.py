"""What `gptkit datasets` does, and how an experiment's dataset is found.

In: names, files and the folders in which texts may be. Out: frozen rows and descriptions to be shown, a
dataset by its name, a text put where it will be found. Prints nothing and knows nothing of models or runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptkit import files
from gptkit.errors import DataError, GptkitError, PluginError, UsageError
from gptkit.plugins import registry
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import ProgressCallback, no_progress
from gptkit.plugins.tokenizer import Splits
from gptkit.words import nearest

if TYPE_CHECKING:
    from gptkit.experiment import PluginTable

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HINTS = {
    "text": " Name the file itself, as in: gptkit datasets show my.txt",
    "hf": ' In an experiment file: dataset = { type = "hf", path = "…" }',
}
# Names that Windows keeps for devices, with any ending: a file of such a name could not be copied there.
DEVICE = re.compile(r"(?i)con|prn|aux|nul|com[0-9]|lpt[0-9]")


@dataclass(frozen=True)
class DatasetRow:
    """A line of `gptkit datasets list`."""

    name: str
    source: str
    summary: str  # where the plugin does not load: why
    size: int | None  # bytes, where known
    here: bool | None  # None: depends on options that must be given
    provenance: str  # the distribution and version it comes from, or "your text"


@dataclass(frozen=True)
class TokenCount:
    """What a tokenizer makes of a text, or `problem`: why it could not."""

    tokenizer: str
    vocab_size: int = 0
    train: int = 0
    val: int = 0
    problem: str = ""


@dataclass(frozen=True)
class DatasetDescription:
    """What `gptkit datasets show` shows."""

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
    name: str
    was_here: bool
    path: Path | None  # None: it is no single file
    size: int | None  # bytes


def data_folders(data_dir: Path | None, progress: ProgressCallback = no_progress) -> DataFolders:
    """Looks in --data-dir, $GPTKIT_DATA_DIR and ./data; downloads to --data-dir, or else to ./data."""
    default, variable = Path("data"), os.environ.get("GPTKIT_DATA_DIR", "")
    given = [data_dir] if data_dir is not None else []
    given += [Path(variable)] if variable else []
    search = tuple(dict.fromkeys([*given, default]))
    downloads = default if data_dir is None else data_dir
    return DataFolders(search, downloads, progress)


def list_datasets(folders: DataFolders) -> list[DatasetRow]:
    """The registered datasets by name, then the other texts in the folders."""
    from gptkit.data.readers import is_plain

    names = registry.names(registry.DATASETS)
    rows = [_registered_row(name, folders) for name in names]
    claimed, seen = set(_claimed_files()), set(names)
    for folder in folders.search:
        for path in _texts_in(folder):
            if path.name in claimed or path.name in seen:
                continue
            # A text called like another dataset is reached by its file name.
            stem = _stem(path.name)
            name = path.name if stem in seen else stem
            seen |= {stem, path.name}
            size = path.stat().st_size if is_plain(path) else None
            rows.append(DatasetRow(name, str(path), "a text of yours", size, True, "your text"))
    return rows


def _texts_in(folder: Path) -> list[Path]:
    """The texts right in a data folder; of several with one name first the one that it means."""
    from gptkit.data.datasets.text import FOUND, has_text_name

    try:
        names = os.listdir(folder)
    except OSError:  # most often: there is none
        return []
    texts = [name for name in names if has_text_name(name) and name.lower() != "readme.md"]
    texts.sort(key=lambda name: (_stem(name), FOUND.index(name[len(_stem(name)) :])))
    return [folder / name for name in texts if os.path.isfile(folder / name)]


def _stem(name: str) -> str:
    """The name of a text without its ending."""
    from gptkit.data.datasets.text import FOUND

    return next((name.removesuffix(ending) for ending in FOUND if name.endswith(ending)), name)


def _registered_row(name: str, folders: DataFolders) -> DatasetRow:
    """A plugin that fails, at whatever, gives a row that says so, and harms no other row."""
    origin = ""
    try:
        origin = _origin(name)
        cls = registry.load(registry.DATASETS, name)
        if any(field.is_required() for field in cls.Options.model_fields.values()):
            return DatasetRow(name, cls.source, cls.summary, None, None, origin)
        dataset = cls(cls.Options())
        return DatasetRow(
            name, cls.source, cls.summary, dataset.size(folders), dataset.is_here(folders), origin
        )
    except Exception as error:
        reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
        return DatasetRow(name, "", f"not usable: {_first_line(reason)}", None, False, origin)


def _origin(name: str) -> str:
    plugin = registry.find(registry.DATASETS, name)
    return f"{plugin.distribution} {plugin.version}"


def _claimed_files() -> dict[str, str]:
    """File name -> registered dataset, for those that are one file."""
    claimed = {}
    for name in registry.names(registry.DATASETS):
        file_name = getattr(_class_or_none(registry.DATASETS, name), "file_name", None)
        if file_name:
            claimed[str(file_name)] = name
    return claimed


def _class_or_none(family: str, name: str) -> Any:
    try:
        return registry.load(family, name)
    except PluginError:
        return None


def resolve_dataset(table: PluginTable, folders: DataFolders) -> tuple[Dataset, PluginTable]:
    """The dataset that an experiment names, and the table that says so with every option explicit.

    A registered name, or else a text: as given, then in each folder, there also without its ending; or else
    the file name of a registered dataset. Raises DataError where it is none, PluginError, UsageError.
    """
    from gptkit.experiment import PluginTable

    dataset, canonical = _resolve(table.type, table.options, folders)
    return dataset, PluginTable.model_validate(canonical)


def _resolve(name: str, options: dict[str, Any], folders: DataFolders) -> tuple[Dataset, dict[str, Any]]:
    from pydantic import ValidationError

    if name not in registry.names(registry.DATASETS):
        name, options = _unregistered(name, options, folders)
    cls = registry.load(registry.DATASETS, name)
    try:
        filled = cls.Options.model_validate(options)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in detail["loc"])
        missing = name if detail["type"] == "missing" else ""
        hint = _HINTS.get(missing, "")
        raise UsageError(f"dataset {name!r}: {key or 'options'}: {detail['msg']}.{hint}") from None
    return cls(filled), {"type": name, **filled.model_dump(mode="json", exclude_none=True)}


def _unregistered(name: str, options: dict[str, Any], folders: DataFolders) -> tuple[str, dict[str, Any]]:
    """What a name that no dataset has stands for, as a registered name with options."""
    from gptkit.data.datasets.text import find_texts, places_looked_at

    if not name:
        raise UsageError("the name of the dataset is empty. See what there is: gptkit datasets list")
    if find_texts(name, folders):
        if "path" in options:
            raise UsageError(f"data.dataset: {name!r} is a text itself, so it takes no path.")
        return "text", {"path": name, **options}
    claimed = _claimed_files()
    owner = claimed.get(name) or claimed.get(f"{name}.txt")
    if owner:
        return owner, options
    close = nearest(name, [row.name for row in list_datasets(folders)])
    raise DataError(
        f"there is no dataset or text file {name!r}{close or '.'} "
        f"Looked for {places_looked_at(name, folders)}.\n"
        f"Registered: {', '.join(registry.names(registry.DATASETS))}. "
        "To bring a text of your own: gptkit datasets add NAME FILE"
    )


def read_dataset(name: str, dataset: Dataset, folders: DataFolders) -> str:
    """The text of a dataset; what a plugin of someone else's may do wrong becomes a PluginError."""
    try:
        text = dataset.read(folders)
    except (GptkitError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(str(error))}"
        raise PluginError(f"dataset {name!r} failed: {reason}. Tell its author.") from error
    if not isinstance(text, str):
        raise PluginError(f"dataset {name!r} gave {type(text).__name__}, not text. Tell its author.")
    if not text:
        raise DataError(f"dataset {name!r} is empty.")
    return text


def describe_dataset(
    name: str, folders: DataFolders, val_fraction: float = 0.1, *, options: dict[str, Any] | None = None
) -> DatasetDescription:
    """All there is to know of a registered dataset or a text file. Reads it, which may download it."""
    from gptkit.data.corpus import measure_text, split_text

    dataset, table = _resolve(name, options or {}, folders)
    text = read_dataset(name, dataset, folders)
    train, val = split_text(text, val_fraction)
    size, digest = measure_text(text)
    return DatasetDescription(
        name=name,
        source=_found_at(dataset, folders) or dataset.source,
        summary=dataset.summary,
        provenance=_origin(table["type"]),
        characters=len(text),
        bytes=size,
        distinct_characters=len(set(text)),
        sha256=digest,
        val_fraction=val_fraction,
        train_characters=len(train),
        val_characters=len(val),
        tokens=tuple(_counts(train, val)),
        first_lines=tuple(text[:2000].split("\n")[:5]),
        facts=tuple(dataset.facts().items()),
    )


def _found_at(dataset: Dataset, folders: DataFolders) -> str:
    """The path of a text of one's own; of several files the first, and how many."""
    from gptkit.data.datasets.text import TextDataset

    paths = dataset.files(folders) if isinstance(dataset, TextDataset) else []
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}" if paths else ""


def _counts(train: str, val: str) -> Iterator[TokenCount]:
    """What each tokenizer makes of it that needs nothing to be given."""
    for name in registry.names(registry.TOKENIZERS):
        cls = _class_or_none(registry.TOKENIZERS, name)
        if cls is None or not any(field.is_required() for field in cls.Options.model_fields.values()):
            yield _count(name, train, val)


def _count(tokenizer: str, train: str, val: str) -> TokenCount:
    try:
        cls = registry.load(registry.TOKENIZERS, tokenizer)
        trained = cls.train(cls.Options(), Splits(train, val))
        unknown = trained.unknown_characters(val)
        if unknown:
            return TokenCount(tokenizer, problem=f"lacks {len(unknown)} characters of the val split")
        return TokenCount(tokenizer, trained.vocab_size, len(trained.encode(train)), len(trained.encode(val)))
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, GptkitError) else f"{type(error).__name__}: {error}"
        return TokenCount(tokenizer, problem=_first_line(reason))


def fetch_dataset(name: str, folders: DataFolders, repair: bool = False) -> FetchedDataset:
    """Brings a registered dataset here, or says why not: DataError, NetworkError, DiskError."""
    dataset, _ = _resolve(name, {}, folders)
    try:
        was_here = dataset.is_here(folders)
        before = _stamp(dataset, folders)
        dataset.fetch(folders, repair=repair)
        unchanged = was_here and before == _stamp(dataset, folders)
        return FetchedDataset(name, unchanged, _file_of(dataset, folders), dataset.size(folders))
    except (GptkitError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(str(error))}"
        raise PluginError(f"dataset {name!r} failed: {reason}. Tell its author.") from error


def _file_of(dataset: Dataset, folders: DataFolders) -> Path | None:
    file_name = getattr(dataset, "file_name", None)
    return folders.find(str(file_name)) if file_name else None


def _stamp(dataset: Dataset, folders: DataFolders) -> tuple[int, int] | None:
    """Tells whether the file was replaced."""
    path = _file_of(dataset, folders)
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path else None


def add_text(
    name: str, file: Path, folders: DataFolders, force: bool = False, *, field: str = "text"
) -> Path:
    """Copies a text to where `name` will be found, after reading it; the bytes stay as they are.

    `field` is which one of a .jsonl or .csv file is the text. Raises UsageError (the name, or a text that is
    there already), DataError (the file), DiskError.
    """
    from gptkit.data.datasets.text import FOUND
    from gptkit.data.readers import is_plain, read_bytes, read_files

    target, cls = _place_for(name, file, folders)
    if not os.path.isfile(file):
        raise DataError(f"there is no file {file}.\nGive the path of a text: gptkit datasets add {name} FILE")
    if cls is not None and not is_plain(file):
        raise UsageError(f"{name!r} is a plain text; {file} is not. Unpack it, or choose another name.")
    data = read_bytes(file)
    read_files([file], field=field, content=data)
    expected = getattr(cls, "sha256", None)
    if expected and files.sha256(data) != expected:
        raise DataError(
            f"{file} is not the text that {name!r} names: its SHA-256 is {files.sha256(data)},\n"
            f"expected {expected}.\nAdd it under another name, as in: gptkit datasets add my_text FILE"
        )
    if os.path.lexists(target) and not force:
        raise UsageError(f"{target} is there already. To replace it, add --force.")
    alike = [_stem(target.name) + ending for ending in FOUND] if cls is None else [target.name]
    for other in alike:
        if other != target.name and os.path.lexists(target.parent / other):
            raise UsageError(
                f"{target.parent / other} has that name already. Remove it, or choose another name."
            )
    for folder in takewhile(lambda folder: folder != folders.downloads, folders.search):
        for other in alike:
            if os.path.lexists(folder / other):
                raise UsageError(f"{folder / other} would be found first. Add it there: --data-dir {folder}")
    with files.disk_errors(f"saving {target}", needed=len(data)):
        files.make_folder(target.parent)
        files.replace_file(target, data)  # a rename, so a link at the target is replaced and not followed
    return target


def _place_for(name: str, file: Path, folders: DataFolders) -> tuple[Path, Any]:
    """Where a text of that name goes, and the registered dataset's class where it belongs to one."""
    from gptkit.data.datasets.text import kept_ending

    if not NAME.fullmatch(name) or DEVICE.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a text: use up to 64 letters, digits, '_' and '-', "
            "starting with a letter or digit, and no name that Windows keeps for a device."
        )
    claimed = _claimed_files()
    for registered in registry.names(registry.DATASETS):
        if registered.lower() == name.lower():
            cls = _class_or_none(registry.DATASETS, registered)
            file_name = getattr(cls, "file_name", None)
            if not file_name:
                raise UsageError(f"{registered!r} is a dataset of gptkit's; choose another name.")
            return folders.downloads / str(file_name), cls
    owner = claimed.get(f"{name}.txt")
    if owner:
        return folders.downloads / f"{name}.txt", _class_or_none(registry.DATASETS, owner)
    return folders.downloads / f"{name}{kept_ending(file)}", None


def _first_line(text: str) -> str:
    return (text.splitlines() or ["(no message)"])[0]
