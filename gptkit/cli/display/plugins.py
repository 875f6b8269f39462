"""How `gptkit plugins` looks: tables on a terminal, plain lines when piped.

In: the rows and descriptions of gptkit.plugins.registry, the lines of gptkit.testing. Out: standard
output. Control characters in what a package says of itself are escaped.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptkit.cli.display.tables import show_table
from gptkit.plugins import registry
from gptkit.words import printable

if TYPE_CHECKING:
    from gptkit.plugins.registry import PluginDescription, PluginOption
    from gptkit.testing import CheckResult

_HEADER = ("family", "name", "package", "loads", "what it is")
_PLACES = {
    registry.TOKENIZERS: ("", "tokenizer"),
    registry.POSITIONS: ("[model]\n", "position"),
    registry.DATASETS: ("[data]\n", "dataset"),
}


def show_list(rows: Sequence[PluginDescription]) -> None:
    show_table(_HEADER, [_cells(row) for row in rows])


def _cells(row: PluginDescription) -> tuple[str, ...]:
    loads = "no" if row.problem else "yes"
    text = row.problem.replace("\n", " ") or row.summary
    package = f"{row.plugin.distribution} {row.plugin.version}"
    return tuple(
        printable(cell) or "-"
        for cell in (registry.SHORT[row.plugin.family], row.plugin.name, package, loads, text)
    )


def show_description(description: PluginDescription) -> None:
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
            [_option(option) for option in description.options],
        )
    else:
        print("It takes no options.")
    print(f"\nIn an experiment file:\n\n{_usage(description)}")


def _option(option: PluginOption) -> tuple[str, ...]:
    default = "(must be given)" if option.required else _toml(option.default)
    return tuple(printable(cell) or "-" for cell in (option.name, option.kind, default, option.description))


def _usage(description: PluginDescription) -> str:
    """The lines of an experiment file that select the plugin, with its options."""
    named = [
        f"{option.name} = {'…' if option.required else _toml(option.default)}"
        for option in description.options
        if option.required or option.default is not None
    ]
    if description.plugin.family == registry.TRACKERS:
        key = _key(description.plugin.name)
        lines = [f"[tracking.{key}]", *named] if named else ["[tracking]", f"{key} = true"]
        return "\n".join(map(printable, lines))
    table, key = _PLACES[description.plugin.family]
    name = json.dumps(description.plugin.name)
    value = f"{{ {', '.join([f'type = {name}', *named])} }}" if named else name
    return table + printable(f"{key} = {value}")


def _key(name: str) -> str:
    """A name as a TOML key."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml(value: Any) -> str:
    """A default as TOML; "" for None."""
    if value is None:
        return ""
    return json.dumps(value, default=str)  # JSON and TOML write the few types of options alike


def show_heading(family: str, name: str) -> None:
    print(printable(f"{registry.KINDS[family]} {name}"), flush=True)


def show_result(result: CheckResult) -> None:
    """One check of a plugin, in columns; how to fix a bad one in a line of its own."""
    found, separator, fix = printable(result.said.replace("\n", " ")).partition(" Fix: ")
    print(f"  {result.verdict:<8} {printable(result.check):<28} {found}".rstrip(), flush=True)
    if separator:
        print(f"{'':<11}Fix: {fix}", flush=True)


def show_new(package: Path, name: str) -> None:
    path = str(package) if package.is_absolute() else f"./{package}"  # else pip takes it for a name
    print(
        printable(f"{path} is written. To install it and check that it works:")
        + f"\n\n  pip install -e {shlex.quote(path + '[dev]')}"
        + f"\n  gptkit plugins check {name}"
        + f"\n  pytest {shlex.quote(path)}"
    )
