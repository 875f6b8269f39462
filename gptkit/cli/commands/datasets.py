"""`gptkit datasets`: list, show, fetch and add texts, and the cache of large ones. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptkit.cli import completion
from gptkit.cli.command import command, group

datasets_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where texts are stored and looked for first. Default: looked for in $GPTKIT_DATA_DIR and "
        "data/, stored in data/.",
    ),
]

Field = Annotated[
    str | None,
    typer.Option(
        "--field",
        metavar="FIELD",
        help="The field of a .jsonl file, or column of a .csv file, that is the text; default: text.",
    ),
]


@group(datasets_app, short_help="Texts to train on: list, show, fetch, add, cache.")
def datasets(context: typer.Context, data_dir: DataDir = None) -> None:
    """Examples:

      gptkit datasets

      gptkit datasets show shakespeare

      gptkit datasets add my_text novel.txt

    Lists the registered datasets and the texts in the data folders: the name, whether it is here, its size,
    where it is from. Piped, it is plain lines.
    """
    context.obj = data_dir
    if context.invoked_subcommand is None:
        _list(data_dir)


@command(datasets_app, "list", short_help="All datasets, and whether they are here.")
def list_command(context: typer.Context, data_dir: DataDir = None) -> None:
    """Example:  gptkit datasets list

    Lists the registered datasets and the texts in the data folders. Piped, it is plain lines, as in:
    gptkit datasets list | grep yes
    """
    _list(data_dir or context.obj)


def _list(data_dir: Path | None) -> None:
    from gptkit.cli.display import tables
    from gptkit.data import catalog

    tables.show_datasets(catalog.list_datasets(catalog.data_folders(data_dir)))


@command(datasets_app, "show", short_help="Characters, tokens, hash and first lines of a dataset.")
def show_command(
    context: typer.Context,
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
) -> None:
    """Example:  gptkit datasets show shakespeare

    Shows characters, tokens per tokenizer, hash, splits and the first lines. NAME may also be a text:
    gptkit datasets show corpus.jsonl --field body
    """
    from gptkit.cli.display import tables
    from gptkit.data import catalog

    options = {} if field is None else {"field": field}
    with tables.download_progress(f"downloading {name}") as progress:
        folders = catalog.data_folders(data_dir or context.obj, progress)
        description = catalog.describe_dataset(name, folders, options=options)
    tables.show_dataset(description)


@command(datasets_app, "fetch", short_help="Download and verify a dataset.")
def fetch_command(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A dataset that can be downloaded.", autocompletion=completion.datasets
        ),
    ],
    repair: Annotated[bool, typer.Option("--repair", help="Replace a file that is damaged.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Example:  gptkit datasets fetch shakespeare

    Downloads a dataset into the data folder, unless it is there, and verifies its hash.
    """
    from gptkit.cli.display import tables
    from gptkit.data import catalog

    with tables.download_progress(f"downloading {name}") as progress:
        folders = catalog.data_folders(data_dir or context.obj, progress)
        fetched = catalog.fetch_dataset(name, folders, repair=repair)
    tables.show_fetched(fetched)


@command(datasets_app, "add", short_help="Copy your own text into the data folder.")
def add_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '_' and '-'.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Text, .jsonl or .csv, in UTF-8; also .gz; - reads standard input."
        ),
    ],
    field: Field = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing text of that name.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Example:  gptkit datasets add novel ~/Documents/novel.txt

    Checks a text and copies it into the data folder, where it is found by its name. Then train on it:
    gptkit train experiments/shakespeare.toml --dataset novel
    """
    from gptkit.cli.display import tables
    from gptkit.data import catalog

    data_dir = data_dir or context.obj
    file = Path("/dev/stdin") if str(file) == "-" else file
    folders = catalog.data_folders(data_dir)
    target = catalog.add_text(name, file, folders, force=force, field=field or "text")
    tables.show_added(name, target, field, data_dir)


@command(datasets_app, "cache", short_help="The tokens of large texts that are kept: list, clear.")
def cache_command(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A text: only what is kept of it. Default: all.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is listed.")] = False,
) -> None:
    """Examples:

      gptkit datasets cache

      gptkit datasets cache --clear

      gptkit datasets cache novel --clear

    A text of 8 million characters or more is tokenized once; its tokens are kept in your cache folder for all
    runs. Beyond 50 GB, or the GB of $GPTKIT_CACHE_GB, the files that were not used for longest are removed.
    """
    from gptkit.cli.display import tables
    from gptkit.data import cache

    rows = cache.list_cache(name)
    if clear:
        tables.show_cleared(cache.clear_cache(name), cache.cache_folder())
    else:
        tables.show_cache(rows, cache.cache_size(), cache.cache_limit(), cache.cache_folder())
