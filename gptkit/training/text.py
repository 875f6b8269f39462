"""The text of a run and its tokens: found, downloaded, read, tokenized.

Input: the [data] and [tokenizer] tables of an experiment, or what a run recorded of its texts. Output: a
`LoadedText`, a `Corpus`. Writes nothing but downloads and the cache of tokens. Knows nothing of models.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptkit.data.catalog import open_text, resolve_dataset
from gptkit.data.corpus import Corpus, build_corpus
from gptkit.data.datasets.text import TextDataset
from gptkit.data.source import Text
from gptkit.errors import DataError, GptkitError, NetworkError
from gptkit.experiment.schema import DataSettings, Experiment, PluginTable
from gptkit.plugins import DataFolders, Dataset, Tokenizer, registry
from gptkit.runs import Run, RunRecord
from gptkit.runs.environment import check_text
from gptkit.training.context import RunContext
from gptkit.words import first_difference


@dataclass(frozen=True)
class LoadedText:
    """A text and its dataset; `used` differs from `requested` where it is the fallback."""

    text: Text
    requested: PluginTable
    used: PluginTable
    facts: dict[str, Any]
    val: Text | None = None  # the val split, where it is a text of its own
    val_used: PluginTable | None = None


def load_text(data: DataSettings, context: RunContext) -> LoadedText:
    """The text to train on. Raises DataError or NetworkError if there is none and no fallback."""
    try:
        dataset, used = _fetch(data.dataset, context.folders, "data.dataset", context)
    except (DataError, NetworkError) as error:
        if data.fallback is None:
            raise
        dataset, used = _fetch(data.fallback, context.folders, "data.fallback", context)
        context.warn(f"{error}\nTraining on the fallback {used.type!r} instead, until the text is here.")
        if data.val is not None:
            context.warn("data.val is of the other text, so the end of the fallback is used for validation.")
            data = data.model_copy(update={"val": None})
    loaded = _load(data.dataset, used, dataset, context)
    if data.val is None:
        return loaded
    val_dataset, val_used = _fetch(data.val, context.folders, "data.val", context)
    val = _load(data.val, val_used, val_dataset, context)
    return replace(loaded, val=val.text, val_used=val_used)


def _load(requested: PluginTable, used: PluginTable, dataset: Dataset, context: RunContext) -> LoadedText:
    text = _read(used, dataset, context)
    if isinstance(dataset, TextDataset) and (notice := dataset.notice()):
        context.warn(notice)
    return LoadedText(text, requested, used, dataset.facts())


def recorded_text(run: Run, experiment: Experiment, record: RunRecord, context: RunContext) -> LoadedText:
    """The texts of a run, never a fallback: from where they are found now, or were found when it began.

    Raises DataError where one is nowhere, or is no longer that of the run; NetworkError.
    """
    data, dataset = experiment.data, record.dataset
    found = _recorded(run, data.dataset, dataset.sha256, record, context)
    check_text(record, run.id, found.text.sha256, found.facts)
    if data.val is None:
        return found
    val = _recorded(run, data.val, dataset.val_sha256, record, context, field="data.val")
    check_text(record, run.id, val.text.sha256, val.facts, val=True)
    return replace(found, val=val.text, val_used=val.used)


def _recorded(
    run: Run,
    table: PluginTable,
    sha256: str | None,
    record: RunRecord,
    context: RunContext,
    *,
    field: str = "data.dataset",
) -> LoadedText:
    """The text of a table with that hash or, if it is nowhere, the one that is found first."""
    folders = context.folders
    places = [(table, folders)]
    if all(os.path.isabs(folder) and "\0" not in folder for folder in record.dataset.folders):
        trained_in, *searched = map(Path, record.dataset.folders or [os.curdir])
        places.append((_seen_from(trained_in, table), replace(folders, search=tuple(searched))))
    found: LoadedText | None = None
    for place, where in places:
        with suppress(DataError):
            dataset, used = resolve_dataset(place, where)
            if dataset.is_here(where):
                text = _read(used, dataset, replace(context, folders=where))
                loaded = LoadedText(text, table, used, dataset.facts())
                if text.sha256 == sha256:
                    return loaded
                found = found or loaded
    if found is None:
        try:
            dataset, used = _fetch(table, folders, field, context)
        except DataError as error:
            raise DataError(f"{error}{_where_trained(run, table, record, field)}") from error
        found = LoadedText(_read(used, dataset, context), table, used, dataset.facts())
    return found


def _seen_from(folder: Path, table: PluginTable) -> PluginTable:
    """The same texts, whose relative paths are of that folder."""
    options = table.options
    if table.type not in ("text", "tokens"):
        return table
    for name in ("path", "tokenizer"):
        if (path := options.get(name)) is not None:
            several = isinstance(path, list)
            options[name] = [str(folder / one) for one in path] if several else str(folder / str(path))
    return PluginTable.model_validate({"type": table.type, **options})


def _where_trained(run: Run, table: PluginTable, record: RunRecord, field: str) -> str:
    """The end of a message: how to name the text of a run that is not where it was."""
    if table.type != "text":
        return ""
    command = shlex.join(["gptkit", "resume", str(run.path), "--set", f"{field}.path=FILE"])
    where = f"The run was trained in {record.dataset.folders[0]}. " if record.dataset.folders else ""
    return f"\n{where}If the text is elsewhere now: {command}"


def _fetch(
    table: PluginTable, folders: DataFolders, field: str, context: RunContext
) -> tuple[Dataset, PluginTable]:
    """The dataset, downloaded if need be. Raises DataError or NetworkError."""
    folders = replace(folders, progress=context.progress("downloading the text"))
    try:
        dataset, used = resolve_dataset(table, folders)
    except GptkitError as error:
        error.field = field
        raise
    if not dataset.is_here(folders):
        dataset.fetch(folders)
    return dataset, used


def _read(table: PluginTable, dataset: Dataset, context: RunContext) -> Text:
    folders = replace(context.folders, progress=context.progress("reading the text"))
    return open_text(table.type, dataset, folders, dataset_title(table))


def dataset_title(table: PluginTable) -> str:
    """The name of a dataset, or the path of its text; of several paths the first, and their number."""
    path = table.options.get("path", table.type)
    paths = path if isinstance(path, list) and path else [path]
    return f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else str(paths[0])


def tokenize(experiment: Experiment, text: LoadedText, own: Tokenizer | None, context: RunContext) -> Corpus:
    """The text tokenized with the tokenizer `own`, or with a new one that is trained on it."""
    tokenizer: Any = own
    options = None
    if own is None:
        tokenizer = registry.load(registry.TOKENIZERS, experiment.tokenizer.type)
        options = tokenizer.Options.model_validate(experiment.tokenizer.options)
    return build_corpus(
        text.text,
        tokenizer,
        options=options,
        progress=context.progress("training the tokenizer"),
        tokenizing=context.progress("tokenizing the text"),
        warn=context.warn,
        val_fraction=experiment.data.val_fraction,
        val_text=text.val,
        context_length=experiment.model.context_length,
    )


def wrong_stream(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """How the text of ids that come one by one differs from that of all at once; "" if it does not."""
    try:
        stream = tokenizer.stream_decoder()
        streamed = "".join([*map(stream.push, ids), stream.finish()])
    except Exception as error:
        return f"its stream decoder fails: {type(error).__name__}: {error}."
    whole = tokenizer.decode(ids)
    if streamed == whole:
        return ""
    at = max(0, first_difference(streamed, whole) - 8)
    here, there = streamed[at : at + 24], whole[at : at + 24]
    return f"one by one, its ids decode to {here!r} where all at once they decode to {there!r}."
