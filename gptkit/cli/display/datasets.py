"""How `gptkit datasets` looks: tables on a terminal, plain lines when piped.

In: the rows and descriptions of gptkit.data.catalog. Out: standard output; progress goes to standard error.
Rich is imported only for a terminal. Control characters in texts and file names are escaped.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gptkit.cli.display.tables import show_table, size_text
from gptkit.cli.streams import log
from gptkit.words import printable

if TYPE_CHECKING:
    from gptkit.data.catalog import DatasetDescription, DatasetRow, FetchedDataset, TokenCount

LINE_WIDTH = 100  # characters of a text's first lines that are shown
HEADER = ("name", "here", "size", "from", "what it is")


def show_list(rows: Sequence[DatasetRow]) -> None:
    cells = [_row_cells(row) for row in rows]
    show_table(HEADER, cells, right=("size",))
    if sys.stdout.isatty():
        print(
            "\nTrain on one: gptkit train EXPERIMENT --dataset NAME. Add yours: gptkit datasets add NAME FILE"
        )


def _row_cells(row: DatasetRow) -> tuple[str, ...]:
    here = {True: "yes", False: "no", None: "-"}[row.here]
    summary = row.summary
    if row.provenance and not row.provenance.startswith("gptkit ") and row.provenance != "your text":
        summary = f"{summary} ({row.provenance})"
    return tuple(
        printable(cell) or "-" for cell in (row.name, here, size_text(row.size), row.source, summary)
    )


def show_description(description: DatasetDescription) -> None:
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
        shown = line if len(line) <= LINE_WIDTH else line[: LINE_WIDTH - 3] + "..."
        print(f"  {printable(shown)}".rstrip())


def _token_cells(count: TokenCount) -> tuple[str, ...]:
    if count.problem:
        return printable(count.tokenizer), printable(f"not usable: {count.problem}"), "", ""
    return printable(count.tokenizer), f"{count.vocab_size:,}", f"{count.train:,}", f"{count.val:,}"


def show_fetched(fetched: FetchedDataset) -> None:
    size = f" ({size_text(fetched.size)})" if fetched.size is not None else ""
    where = f", {printable(str(fetched.path))}{size}" if fetched.path else size
    print(f"{printable(fetched.name)}: {'is here' if fetched.was_here else 'downloaded and verified'}{where}")


def show_added(name: str, target: Path, field: str | None = None) -> None:
    """`field` is the field of the file that is the text, if it was named."""
    option = f" --set data.dataset.field={shlex.quote(field)}" if field else ""
    print(f"{printable(name)}: {printable(str(target))}")
    print(f"Train on it: gptkit train EXPERIMENT --dataset {printable(name + option)}")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
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
