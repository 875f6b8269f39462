"""`gptkit plugins`: list, show, check and create plugins. Imports no torch until a plugin is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptkit.cli import completion, options
from gptkit.cli.command import command, group
from gptkit.errors import PluginError, UsageError

plugins_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)

_FAMILIES = "tokenizer|position|dataset|tracker"
_complete_family = completion.choice(*_FAMILIES.split("|"))
_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A plugin's name, as an experiment file has it.",
        autocompletion=completion.plugins,
    ),
]
_Family = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar=_FAMILIES,
        help="For a name that more than one family has.",
        autocompletion=_complete_family,
    ),
]


@group(plugins_app, short_help="Plugins: list, show, check, create.")
def plugins(context: typer.Context) -> None:
    """Examples:

      gptkit plugins

      gptkit plugins show rope

      gptkit plugins check rope

      gptkit plugins new tokenizer words

    Lists the installed tokenizers, positional encodings, datasets and trackers: the name, its package, and
    a summary, or why it cannot be used. Piped, it is plain lines.
    """
    if context.invoked_subcommand is None:
        _list()


@command(plugins_app, "list", short_help="All installed plugins, and whether they load.")
def list_command() -> None:
    """Example:

      gptkit plugins list

    Lists the installed tokenizers, positional encodings, datasets and trackers.
    """
    _list()


def _list() -> None:
    from gptkit.cli.display import tables
    from gptkit.plugins.registry import list_plugins

    tables.show_plugins(list_plugins())


@command(plugins_app, "show", short_help="A plugin, its options, and how to use it.")
def show_command(name: _Name, family: _Family = None) -> None:
    """Example:

      gptkit plugins show rope

    Shows what a plugin is, its package, its options with their defaults, and how to use it in an experiment
    file.
    """
    from gptkit.cli.display import tables
    from gptkit.plugins.registry import describe_plugin

    for number, kind in enumerate(_families(name, family)):
        if number:
            print()
        tables.show_plugin(describe_plugin(kind, name))


@command(plugins_app, "check", short_help="Check that a plugin keeps its contract.")
def check_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Plugins; default: all that are installed.",
            autocompletion=completion.plugins,
        ),
    ] = None,
    family: _Family = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the plugin. Repeatable."),
    ] = None,
    data_dir: options.DataDir = None,
) -> None:
    """Examples:

      gptkit plugins check rope

      gptkit plugins check text --set path=novel.txt

    Checks what gptkit relies on, with a line for each check: for example, that a tokenizer decodes what it
    encoded, or that later tokens do not affect earlier ones. Downloads nothing. Exits with 3 if a check
    fails.
    """
    from gptkit.cli.display import tables
    from gptkit.data.catalog import data_folders
    from gptkit.plugins import registry
    from gptkit.plugins.registry import list_plugins
    from gptkit.testing import Verdict, check_plugin

    if names:
        wanted = [(kind, name) for name in names for kind in _families(name, family)]
    else:
        wanted = list(dict.fromkeys((row.plugin.family, row.plugin.name) for row in list_plugins()))
    bad = []
    for kind, name in wanted:
        cls = registry.load(kind, name)
        given = _options(cls, set_, name)
        tables.show_check_heading(kind, name)
        for result in check_plugin(kind, cls, given, data_folders(data_dir)):
            tables.show_check_result(result)
            bad += [name] if result.verdict is Verdict.BAD else []
    if bad:
        many = ", ".join(dict.fromkeys(bad))
        raise PluginError(f"{len(bad)} of the checks above {'are' if len(bad) > 1 else 'is'} bad: {many}.")


@command(plugins_app, "new", short_help="Create a package with a working plugin.")
def new_command(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY", help=f"The kind of plugin: {_FAMILIES}.", autocompletion=_complete_family
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Lower-case letters, digits, '-' and '_'."),
    ],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where to create the package's folder.")
    ] = Path(),
) -> None:
    """Example:

      gptkit plugins new tokenizer my_tokenizer && pip install ./gptkit-my-tokenizer

    Creates an installable package, gptkit-NAME, with a small working plugin: pyproject.toml, the code, its
    tests and a README.
    """
    from gptkit.cli.display import tables
    from gptkit.plugins.scaffold import new_package

    group = _group(family)
    assert group is not None
    tables.show_new_plugin(new_package(group, name, folder), name)


def _group(family: str | None) -> str | None:
    """The entry-point group of --family. Raises UsageError for an unknown family."""
    from gptkit.plugins.registry import FAMILIES
    from gptkit.words import nearest

    if family is not None and family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UsageError(
            f"{family!r} is not a family of plugins{nearest(family, FAMILIES) or '.'} There are: {known}."
        )
    return FAMILIES[family] if family else None


def _families(name: str, family: str | None) -> list[str]:
    """The families to look for a name in: the one that --family names, or all that have it."""
    from gptkit.plugins.registry import families_of

    group = _group(family)
    return [group] if group else families_of(name)


def _options(cls: Any, given: list[str] | None, name: str) -> Any:
    """The plugin's options as set by --set; None without any."""
    from pydantic import ValidationError

    from gptkit.experiment.messages import problems_of
    from gptkit.experiment.overrides import parse_overrides

    if not given:
        return None
    try:
        overrides = parse_overrides(given, {})
        return cls.Options.model_validate({override.key: override.value for override in overrides})
    except ValidationError as error:
        problems = problems_of(error, table=name, options=cls.Options)
        raise UsageError("\n".join(map(str, problems))) from None
