"""`gptkit datasets`: see, show, fetch and add texts.

In: the command line. Out: one call of gptkit.data.catalog for each command, its result shown by
render_datasets. What goes wrong is raised, for the command line's one handler. Imports no torch, and the
catalogue only when a command runs, so that --help is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion
from gptkit.cli.display import datasets as render
from gptkit.cli.help import command, paragraphs
from gptkit.cli.options import Debug

datasets_app = typer.Typer(
    help=paragraphs("""Examples:

    gptkit datasets list

    gptkit datasets show shakespeare

    gptkit datasets add my_text novel.txt

    Texts to train on: see, show, fetch and add them.
    """),
    short_help="Texts to train on: list, show, fetch, add.",
    no_args_is_help=True,
)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where texts are looked for first and put. Otherwise they are looked for in "
        "$GPTKIT_DATA_DIR and data/, and put into data/.",
    ),
]

Field = Annotated[
    str | None,
    typer.Option(
        "--field",
        metavar="FIELD",
        help="Which field of a .jsonl file, or column of a .csv file, is the text; otherwise: text.",
    ),
]


@command(datasets_app, "list", short_help="What there is, and whether it is here.")
def list_command(data_dir: DataDir = None, debug: Debug = False) -> None:
    """Example:  gptkit datasets list

    Lists the registered datasets and the texts in the data folders.
    Piped, it is plain lines: gptkit datasets list | grep yes
    """
    from gptkit.data import catalog as catalogue

    render.show_list(catalogue.list_datasets(catalogue.data_folders(data_dir)))


@command(datasets_app, "show", short_help="Characters, tokens, hash and first lines of one.")
def show_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A dataset, or a text: a file, folder or glob.",
            autocompletion=completion.datasets,
        ),
    ],
    field: Field = None,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Example:  gptkit datasets show shakespeare

    Shows characters, tokens per tokenizer, hash, splits and the first lines.
    A text will do as well: gptkit datasets show corpus.jsonl --field body
    """
    from gptkit.data import catalog as catalogue

    options = {} if field is None else {"field": field}
    with render.progress(f"downloading {name}") as progress:
        folders = catalogue.data_folders(data_dir, progress)
        description = catalogue.describe_dataset(name, folders, options=options)
    render.show_description(description)


@command(datasets_app, "fetch", short_help="Download one, verified.")
def fetch_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A dataset that can be downloaded.", autocompletion=completion.datasets
        ),
    ],
    repair: Annotated[bool, typer.Option("--repair", help="Replace a file that is damaged.")] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Example:  gptkit datasets fetch shakespeare

    Downloads a dataset into the data folder, unless it is there, and verifies it.
    """
    from gptkit.data import catalog as catalogue

    with render.progress(f"downloading {name}") as progress:
        fetched = catalogue.fetch_dataset(name, catalogue.data_folders(data_dir, progress), repair=repair)
    render.show_fetched(fetched)


@command(datasets_app, "add", short_help="Copy a text of yours to where it is found by name.")
def add_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '_' and '-'.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Text, .jsonl or .csv, in UTF-8; also .gz.")],
    field: Field = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a text of that name.")] = False,
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Example:  gptkit datasets add my_text ~/Documents/novel.txt

    Copies a text into the data folder after reading it, with its ending. Then train on it:
    gptkit train experiments/shakespeare.toml --dataset my_text
    """
    from gptkit.data import catalog as catalogue

    folders = catalogue.data_folders(data_dir)
    target = catalogue.add_text(name, file, folders, force=force, field=field or "text")
    render.show_added(name, target, field)
