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
        help="Where more than one family has that name.",
        autocompletion=_complete_family,
    ),
]


@group(plugins_app, short_help="What is installed; show, check or begin one.")
def plugins(context: typer.Context) -> None:
    """Examples:

      gptkit plugins

      gptkit plugins show rope

      gptkit plugins check my_tokenizer

      gptkit plugins new tokenizer my_tokenizer

    Lists the tokenizers, positional encodings, datasets and trackers that are installed: the name, the
    package that it comes from, and what it is, or why it cannot be used. Piped, it is plain lines.
    """
    if context.invoked_subcommand is None:
        _list()


@command(plugins_app, "list", short_help="What is installed, and whether it loads.")
def list_command() -> None:
    """Example:

      gptkit plugins list

    Lists the tokenizers, positional encodings, datasets and trackers that are installed.
    """
    _list()


def _list() -> None:
    from gptkit.cli.display import plugins as display
    from gptkit.plugins.registry import list_plugins

    display.show_list(list_plugins())


@command(plugins_app, "show", short_help="What one is, and its options.")
def show_command(name: _Name, family: _Family = None) -> None:
    """Example:

      gptkit plugins show rope

    Shows what a plugin is, where it comes from, its options with their defaults, and how an experiment file
    names it.
    """
    from gptkit.cli.display import plugins as display
    from gptkit.plugins.registry import describe_plugin

    for number, kind in enumerate(_families(name, family)):
        if number:
            print()
        display.show_description(describe_plugin(kind, name))


@command(plugins_app, "check", short_help="Does it keep what gptkit relies on?")
def check_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Which; without one, all that are installed.",
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

    Tries what gptkit relies on, a line for each thing: that text comes back from a tokenizer, say, or that
    the future has no effect on the past. Downloads nothing. Exits with 3 where something is bad.
    """
    from gptkit.cli.display import plugins as display
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
        display.show_heading(kind, name)
        cls = registry.load(kind, name)
        given = _options(cls, set_, name)
        for result in check_plugin(kind, cls, given, data_folders(data_dir)):
            display.show_result(result)
            bad += [name] if result.verdict is Verdict.BAD else []
    if bad:
        many = ", ".join(dict.fromkeys(bad))
        raise PluginError(f"{len(bad)} of the checks above {'are' if len(bad) > 1 else 'is'} bad: {many}.")


@command(plugins_app, "new", short_help="A package with a plugin that works, to begin from.")
def new_command(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY", help=f"What it is to be: {_FAMILIES}.", autocompletion=_complete_family
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Lower-case letters, digits, '-' and '_'; as files will name it."
        ),
    ],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="FOLDER", help="Where the package's folder is made.")
    ] = Path(),
) -> None:
    """Example:

      gptkit plugins new tokenizer my_tokenizer && pip install ./gptkit-my-tokenizer

    Writes an installable package, gptkit-NAME, with a small plugin that works: pyproject.toml, the code, its
    tests and a README.
    """
    from gptkit.cli.display import plugins as display
    from gptkit.plugins.scaffold import new_package

    group = _group(family)
    assert group is not None
    display.show_new(new_package(group, name, folder), name)


def _group(family: str | None) -> str | None:
    """The entry-point group of a word. Raises UsageError for another word."""
    from gptkit.plugins.registry import FAMILIES
    from gptkit.words import nearest

    if family is not None and family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UsageError(
            f"{family!r} is no family of plugins{nearest(family, FAMILIES) or '.'} There are: {known}."
        )
    return FAMILIES[family] if family else None


def _families(name: str, family: str | None) -> list[str]:
    """The families to look for a name in: the one that --family names, or all that have it."""
    from gptkit.plugins.registry import families_of

    group = _group(family)
    return [group] if group else families_of(name)


def _options(cls: Any, given: list[str] | None, name: str) -> Any:
    """The plugin's options as --set gives them; None: as it is checked without."""
    from pydantic import ValidationError

    from gptkit.experiment import parse_override
    from gptkit.experiment.messages import problems_of

    if not given:
        return None
    try:
        overrides = map(parse_override, given)
        return cls.Options.model_validate({override.key: override.value for override in overrides})
    except ValidationError as error:
        problems = problems_of(error, table=name, options=cls.Options)
        raise UsageError("\n".join(map(str, problems))) from None
