"""Tables: benchmarks, datasets and plugins, and the parts that every table is made of.

Input: the values that `gptkit.bench`, `gptkit.data.catalog`, `gptkit.plugins.registry` and `gptkit.testing`
return. Output: standard output, as tables on a terminal and as plain lines when piped; the progress of a
download on standard error. Control characters in texts, file names and the descriptions that packages bring
are escaped. Rich is imported only for a terminal.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptkit.cli.streams import log
from gptkit.plugins import registry
from gptkit.words import printable

if TYPE_CHECKING:
    from gptkit.bench.measure import BaselineRate, Benchmark, OperationTable, Rate
    from gptkit.data.cache import CachedTokens
    from gptkit.data.catalog import DatasetDescription, DatasetRow, FetchedDataset, TokenCount
    from gptkit.plugins.registry import PluginDescription, PluginOption
    from gptkit.testing import CheckResult
    from gptkit.training.evaluation import TextLoss

_LINE_WIDTH = 100  # characters of a text's first lines that are shown
_USED_IN = {  # the table of an experiment file and the key that selects a plugin
    registry.TOKENIZERS: ("", "tokenizer"),
    registry.POSITIONS: ("[model]\n", "position"),
    registry.DATASETS: ("[data]\n", "dataset"),
}


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """A table on a terminal, plain lines of full width when piped. `right` names right-aligned columns."""
    if sys.stdout.isatty():
        _rich_table(header, rows, right)
    else:
        _plain_table([header, *rows])


def _plain_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        padded = (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())


def _width(text: str) -> int:
    """Columns of a terminal: marks take none, Chinese, Japanese and Korean letters two."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: not parsed as markup
    Console().print(table)


def duration(seconds: float) -> str:
    """Seconds for people: 52.3 s, 4:07, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size_text(size: int | None) -> str:
    """Bytes for people, in powers of ten: 1.1 MB."""
    if size is None:
        return "-"
    if size < 1000:
        return f"{size} B"
    for unit, scale in (("kB", 1e3), ("MB", 1e6)):
        if size < 999.95 * scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e9:.1f} GB"


# gptkit bench


def show_benchmark(result: Benchmark, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result)))
        return
    peaks = " and ".join(
        f"{flops / 1e9:,.0f} GFLOP/s in {precision}" for precision, flops in result.peaks.items()
    )
    print(f"{result.experiment}: {result.shape}; {result.parameters:,} parameters")
    print(f"{result.device}, {result.threads} threads; matrix products reach {peaks}")
    rows = [
        _rate_cells("training", result.training, result.rival_training),
        _rate_cells("sampling, one stream", result.generation, result.rival_generation),
        _rate_cells(
            f"sampling, {result.streams} streams", result.generation_streams, result.rival_generation_streams
        ),
    ]
    header: tuple[str, ...] = ("", "tokens/s", "precision", "GFLOP/s", "of the peak")
    if result.rival:
        header = (*header, result.rival, "its precision", "ratio")
    show_table(header, [row[: len(header)] for row in rows], right=[name for name in header if name])
    print(f"the whole experiment takes about {duration(result.experiment_seconds)} of training")


def show_operations(table: OperationTable, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_operations_json(table)))
        return
    print(f"{table.experiment}: {table.precision} on the {table.device}, forward and backward, one thread")
    rows = []
    for one in table.operations:
        cells = (one.operation, one.shape)
        for candidate in one.candidates:
            used = candidate.name == one.chosen
            why = one.reason if used else ", ".join(candidate.unsupported)
            milliseconds = "" if candidate.seconds is None else f"{candidate.seconds * 1e3:.3f}"
            rows.append((*cells, candidate.name, milliseconds, "yes" if used else "", why))
            cells = ("", "")
        if not one.candidates:
            rows.append((*cells, one.chosen, "", "yes", one.reason))
    show_table(("operation", "shape", "implementation", "ms", "used", "why"), rows, right=["ms"])


def _operations_json(table: OperationTable) -> dict[str, Any]:
    found = asdict(table)
    for one in found["operations"]:
        for candidate in one["candidates"]:
            seconds = candidate.pop("seconds")
            candidate["milliseconds"] = None if seconds is None else seconds * 1e3
    return found


# gptkit evaluate


def show_text_loss(found: TextLoss, *, as_json: bool) -> None:
    values = {**asdict(found), "perplexity": found.perplexity}
    if as_json:
        print(json.dumps(values))
        return
    bits = "-" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}"
    facts = {
        "text": f"{printable(found.text)}: {found.tokens:,} tokens, {found.bytes:,} bytes",
        "checkpoint": f"step {found.step}",
        "windows": f"every {found.stride} tokens",
        "loss": f"{found.loss:.4f} nats per token",
        "perplexity": f"{found.perplexity:.4g}",
        "bits/byte": bits,
    }
    for name, value in facts.items():
        print(f"{name:<12}{value}")


def _rate_cells(what: str, ours: Rate, theirs: BaselineRate | None) -> tuple[str, ...]:
    cells: tuple[str, ...] = (
        what,
        f"{ours.tokens:,.0f}",
        ours.precision,
        f"{ours.flops / 1e9:,.1f}",
        f"{ours.utilisation:.1%}",
    )
    if theirs is None:
        return cells
    return (*cells, f"{theirs.tokens:,.0f}", theirs.precision, f"{ours.tokens / theirs.tokens:.2f}x")


# gptkit datasets


def show_datasets(rows: Sequence[DatasetRow]) -> None:
    cells = [_dataset_cells(row) for row in rows]
    show_table(("name", "here", "size", "from", "what it is"), cells, right=("size",))
    if sys.stdout.isatty():
        print(
            "\nTrain on one: gptkit train EXPERIMENT --dataset NAME. Add yours: gptkit datasets add NAME FILE"
        )


def _dataset_cells(row: DatasetRow) -> tuple[str, ...]:
    here = {True: "yes", False: "no", None: "-"}[row.here]
    summary = row.summary
    if row.provenance and not row.provenance.startswith("gptkit ") and row.provenance != "your text":
        summary = f"{summary} ({row.provenance})"
    return tuple(
        printable(cell) or "-" for cell in (row.name, here, size_text(row.size), row.source, summary)
    )


def show_cache(rows: Sequence[CachedTokens], size: int, limit: float, folder: Path | None) -> None:
    cells = [
        (
            printable(row.text),
            row.split or "-",
            printable(row.tokenizer) or "-",
            f"{row.tokens:,}",
            size_text(row.size),
            datetime.fromtimestamp(row.last_used).strftime("%Y-%m-%d %H:%M"),
        )
        for row in rows
    ]
    if cells:
        header = ("text", "split", "tokenizer", "tokens", "size", "last used")
        show_table(header, cells, right=("tokens", "size"))
    print(f"{size_text(size)} of at most {limit / 1e9:g} GB in {printable(str(folder))}")


def show_cleared(size: int, folder: Path | None) -> None:
    print(f"removed {size_text(size)} from {printable(str(folder))}")


def show_dataset(description: DatasetDescription) -> None:
    train, val = description.train_characters, description.val_characters
    facts = [
        ("dataset", f"{description.name}: {description.summary}"),
        ("from", f"{description.source} ({description.provenance})"),
        ("characters", f"{description.characters:,}, of which {description.distinct_characters:,} distinct"),
        ("bytes", f"{description.bytes:,} as UTF-8"),
        ("sha256", description.sha256),
        ("splits", f"train {train:,} and val {val:,} characters (val_fraction {description.val_fraction})"),
        *(
            (key, f"{value:.6f}" if isinstance(value, float) else str(value))
            for key, value in description.facts
        ),
    ]
    for key, value in facts:
        print(f"{key:<17} {printable(value)}")
    print()
    header = ("tokenizer", "vocabulary", "train tokens", "val tokens")
    cells = [_token_cells(count) for count in description.tokens]
    show_table(header, cells, right=header[1:])
    print("\nIt begins:")
    for line in description.first_lines:
        shown = line if len(line) <= _LINE_WIDTH else line[: _LINE_WIDTH - 3] + "..."
        print(f"  {printable(shown)}".rstrip())


def _token_cells(count: TokenCount) -> tuple[str, ...]:
    if count.problem:
        return printable(count.tokenizer), printable(f"not usable: {count.problem}"), "", ""
    return printable(count.tokenizer), f"{count.vocab_size:,}", f"{count.train:,}", f"{count.val:,}"


def show_fetched(fetched: FetchedDataset) -> None:
    size = f" ({size_text(fetched.size)})" if fetched.size is not None else ""
    where = f", {printable(str(fetched.path))}{size}" if fetched.path else size
    print(f"{printable(fetched.name)}: {'is here' if fetched.was_here else 'downloaded and verified'}{where}")


def show_added(name: str, target: Path, field: str | None = None, data_dir: Path | None = None) -> None:
    """`field` is the field of the file that is the text, `data_dir` the data folder, if they were named."""
    words = ["--dataset", name]
    words += ["--set", f"data.dataset.field={field}"] if field else []
    words += ["--data-dir", str(data_dir)] if data_dir is not None else []
    print(f"{printable(name)}: {printable(str(target))}")
    print(f"Train on it: gptkit train EXPERIMENT {printable(shlex.join(words))}")


@contextmanager
def download_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A callback for (bytes done, bytes in all) that shows a bar on a terminal, otherwise one line."""
    if not sys.stderr.isatty():
        yield _one_line(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total or None, visible=True)


def _one_line(what: str) -> Callable[[int, int], None]:
    shown = False

    def call(done: int, total: int) -> None:
        nonlocal shown
        if not shown:
            shown = True
            log(f"{printable(what)} ({size_text(total)})" if total else printable(what))

    return call


# gptkit plugins


def show_plugins(rows: Sequence[PluginDescription]) -> None:
    show_table(("family", "name", "package", "loads", "what it is"), [_plugin_cells(row) for row in rows])


def _plugin_cells(row: PluginDescription) -> tuple[str, ...]:
    loads = "no" if row.problem else "yes"
    text = row.problem.replace("\n", " ") or row.summary
    package = f"{row.plugin.distribution} {row.plugin.version}"
    return tuple(
        printable(cell) or "-"
        for cell in (registry.SHORT[row.plugin.family], row.plugin.name, package, loads, text)
    )


def show_plugin(description: PluginDescription) -> None:
    plugin = description.plugin
    print(printable(f"{registry.KINDS[plugin.family]} {plugin.name}: {description.summary}"))
    print(
        printable(
            f"from {plugin.distribution} {plugin.version}, {description.place}, "
            f"plugin API {description.cls.api_version}"
        )
    )
    if description.about:
        print("\n" + "\n".join(printable(line) for line in description.about.splitlines()))
    print()
    if description.options:
        show_table(
            ("option", "what it takes", "default", "what it is"),
            [_option_cells(option) for option in description.options],
        )
    else:
        print("It takes no options.")
    print(f"\nIn an experiment file:\n\n{_plugin_usage(description)}")


def _option_cells(option: PluginOption) -> tuple[str, ...]:
    default = "(must be given)" if option.required else _toml_value(option.default)
    return tuple(printable(cell) or "-" for cell in (option.name, option.kind, default, option.description))


def _plugin_usage(description: PluginDescription) -> str:
    """The lines of an experiment file that select the plugin, with its options."""
    named = [
        f"{option.name} = {'…' if option.required else _toml_value(option.default)}"
        for option in description.options
        if option.required or option.default is not None
    ]
    if description.plugin.family == registry.TRACKERS:
        key = _toml_key(description.plugin.name)
        lines = [f"[tracking.{key}]", *named] if named else ["[tracking]", f"{key} = true"]
        return "\n".join(map(printable, lines))
    table, key = _USED_IN[description.plugin.family]
    name = json.dumps(description.plugin.name)
    value = f"{{ {', '.join([f'type = {name}', *named])} }}" if named else name
    return table + printable(f"{key} = {value}")


def _toml_key(name: str) -> str:
    """A name as a TOML key."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml_value(value: Any) -> str:
    """A default as TOML; "" for None."""
    if value is None:
        return ""
    return json.dumps(value, default=str)  # JSON and TOML write the few types of options alike


def show_check_heading(family: str, name: str) -> None:
    print(printable(f"{registry.KINDS[family]} {name}"), flush=True)


def show_check_result(result: CheckResult) -> None:
    """One check of a plugin, in columns; how to fix a bad one in a line of its own."""
    found, separator, fix = printable(result.said.replace("\n", " ")).partition(" Fix: ")
    print(f"  {result.verdict:<8} {printable(result.check):<28} {found}".rstrip(), flush=True)
    if separator:
        print(f"{'':<11}Fix: {fix}", flush=True)


def show_new_plugin(package: Path, name: str) -> None:
    path = str(package) if package.is_absolute() else f"./{package}"  # else it is a package name for pip
    print(
        printable(f"{path} is written. To install it and check that it works:")
        + f"\n\n  pip install -e {shlex.quote(path + '[dev]')}"
        + f"\n  gptkit plugins check {name}"
        + f"\n  pytest {shlex.quote(path)}"
    )
