"""What plugins there are, and what there is to know of each.

In: nothing, or a name. Out: frozen rows and descriptions to be shown. To say whether a plugin loads it has to
be loaded; one that does not gives a row that says why, and harms no other. Prints nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptkit.errors import PluginError, nearest
from gptkit.plugins import registry

FAMILIES = {word: family for family, word in registry.SHORT.items()}
"""Entry-point groups by the word that a command line has for each: tokenizer, position, dataset, tracker."""


@dataclass(frozen=True)
class PluginRow:
    """A line of `gptkit plugins`."""

    family: str  # the entry-point group
    name: str
    distribution: str
    version: str
    summary: str = ""
    problem: str = ""  # why it cannot be used; empty where it can


@dataclass(frozen=True)
class OptionRow:
    """One option of a plugin."""

    name: str
    kind: str  # "integer, 256 to 1000000"
    default: Any
    required: bool
    description: str


@dataclass(frozen=True)
class PluginDescription:
    """What `gptkit plugins show` shows."""

    row: PluginRow
    place: str  # module:class
    api_version: int
    about: str  # the class's docstring
    options: tuple[OptionRow, ...]


def list_plugins() -> list[PluginRow]:
    """All that is installed, by family and name. A name claimed twice has a row for each claim."""
    return [
        row
        for family in registry.KINDS
        for name in registry.installed_names(family)
        for row in _rows(family, name)
    ]


def _rows(family: str, name: str) -> Iterator[PluginRow]:
    claims = registry.claimants(family, name)
    for claim in claims:
        row = PluginRow(family, name, claim.distribution, claim.version)
        if not registry.is_allowed(claim.distribution):
            yield _with(row, problem=f"not allowed: {registry.ALLOWED} does not list it")
            continue
        try:
            summary = str(registry.load(family, name).cls.summary)
            yield _with(row, summary=(summary.splitlines() or [""])[0])
        except PluginError as error:
            yield _with(row, problem=str(error))


def _with(row: PluginRow, *, summary: str = "", problem: str = "") -> PluginRow:
    return PluginRow(row.family, row.name, row.distribution, row.version, summary, problem)


def families_of(name: str, family: str | None = None) -> list[str]:
    """The families that have a plugin of that name, or the one given. Raises PluginError where none has."""
    found = [group for group in registry.KINDS if name in registry.installed_names(group)]
    if family:
        return [family]  # whoever loads it will say what is wrong
    if not found:
        known = sorted({known for group in registry.KINDS for known in registry.names(group)})
        raise PluginError(
            f"no plugin is called {name!r}{nearest(name, known) or '.'} Installed: {', '.join(known)}."
        )
    return found


def describe_plugin(family: str, name: str) -> PluginDescription:
    """All there is to know of one. Raises PluginError where it does not load."""
    loaded = registry.load(family, name)
    cls, origin = loaded.cls, loaded.provenance
    row = PluginRow(family, name, origin.distribution, origin.version, str(cls.summary))
    return PluginDescription(
        row=row,
        place=f"{cls.__module__}:{cls.__qualname__}",
        api_version=cls.api_version,
        about=inspect.cleandoc(cls.__doc__ or ""),
        options=tuple(options_of(cls)),
    )


def options_of(cls: Any) -> Iterator[OptionRow]:
    """The options of a plugin's class, in order."""
    schema = cls.Options.model_json_schema()
    for name, field in cls.Options.model_fields.items():
        yield OptionRow(
            name=name,
            kind=_kind(schema["properties"].get(name, {}), schema.get("$defs", {})),
            default=None if field.is_required() else field.get_default(call_default_factory=True),
            required=field.is_required(),
            description=field.description or "",
        )


def _kind(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema of a value in words: 'integer, 1 to 9', 'string or null', '"a" or "b"'."""
    if "$ref" in schema:
        return _kind(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions)
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        kinds = [_kind(part, definitions) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(kinds)
    words = str(schema.get("type", "any"))
    if words == "array":
        return f"list of {_kind(schema.get('items', {}), definitions)}"
    bounds = [
        f"{sign}{schema[key]:,}"
        for key, sign in (
            ("minimum", ">= "),
            ("exclusiveMinimum", "> "),
            ("maximum", "<= "),
            ("exclusiveMaximum", "< "),
        )
        if key in schema
    ]
    return ", ".join([words, *bounds])
