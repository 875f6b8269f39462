"""The fields of an experiment, from its schema: the only code that traverses it.

Returns a frozen description for each dotted key. Flags, completion, the JSON schema, the differences between
runs, the report and the tables of the documentation all take what they need from here. `json_schema` adds the
options of the installed plugins and loads them for it; nothing else here loads a plugin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from gptkit.errors import PluginError
from gptkit.experiment.overrides import FLAGS, Flag
from gptkit.experiment.schema import Experiment
from gptkit.plugins import registry

DRAFT = "https://json-schema.org/draft/2020-12/schema"  # pydantic's
_FLAGS = {flag.key: flag for flag in FLAGS}


@dataclass(frozen=True)
class ExperimentField:
    """A field that an experiment file may set."""

    key: str  # dotted
    type: str  # in words: "integer, >= 1", '"layernorm" or "rmsnorm"'
    default: Any  # as a file has it, a plugin by its name; None: not set
    description: str
    required: bool = False
    choices: tuple[str, ...] = ()  # the words that it may be set to
    unit: str = ""  # of a number: "steps", "tokens", ...
    family: str = ""  # of a field that names a plugin: its group of entry points
    optimizer: str = ""  # the only optimizer that has this field, with this default
    flag: Flag | None = None

    @property
    def table(self) -> str:
        """The table that contains it; "" at the top of the file."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Its key in that table."""
        return self.key.rpartition(".")[2]

    @property
    def default_toml(self) -> str:
        """The default as a file has it; "" where the field is not set."""
        return "" if self.default is None else json.dumps(self.default, ensure_ascii=False)


@cache
def fields() -> tuple[ExperimentField, ...]:
    """Every field of an experiment in the order of the schema.

    A field that both optimizers have is there for each of them, as its default differs.
    """
    return tuple(_walk(Experiment.model_json_schema(), "", ""))


def fields_of(optimizer: str) -> dict[str, ExperimentField]:
    """The fields of an experiment with that optimizer, by key."""
    return {field.key: field for field in fields() if field.optimizer in ("", optimizer)}


def option_fields(options: type[BaseModel], table: str) -> tuple[ExperimentField, ...]:
    """The options of a plugin, as fields of the table that names it; a broken plugin may raise anything."""
    return tuple(_walk(options.model_json_schema(), f"{table}.", ""))


def choices(key: str) -> list[str]:
    """The words that a field may be set to; for a number, its default."""
    found = [field for field in fields() if field.key == key.removesuffix(".type") and field.family]
    if found:
        return registry.names(found[0].family)
    found = [field for field in fields() if field.key in (key, f"{key}.type")]
    words = [word for field in found for word in field.choices]
    return list(dict.fromkeys(words)) or [
        field.default_toml for field in found if isinstance(field.default, int | float)
    ]


def _walk(schema: dict[str, Any], prefix: str, optimizer: str) -> Iterator[ExperimentField]:
    """The fields of a table of a JSON schema and of the tables in it."""
    definitions = schema.get("$defs", {})
    required = schema.get("required", ())
    for name, described in schema.get("properties", {}).items():
        key = f"{prefix}{name}"
        if "discriminator" in described and "default" in described:
            members = described["discriminator"]["mapping"]
            yield ExperimentField(
                key=f"{key}.type",
                type=" or ".join(f'"{member}"' for member in members),
                default=described["default"]["type"],
                description=described["description"],
                choices=tuple(members),
            )
            for member, reference in members.items():
                table = _definition(reference, definitions)
                options = {other: each for other, each in table["properties"].items() if other != "type"}
                yield from _walk({"$defs": definitions, "properties": options}, f"{key}.", member)
            continue
        table = _definition(described.get("$ref", ""), definitions)
        if "properties" in table and "plugin" not in described:
            yield from _walk({"$defs": definitions, **table}, f"{key}.", optimizer)
        else:
            yield _field(key, described, definitions, optimizer, required=name in required)


def _definition(reference: str, definitions: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = definitions.get(reference.rpartition("/")[2], {})
    return found


def _field(
    key: str, described: dict[str, Any], definitions: dict[str, Any], optimizer: str, *, required: bool
) -> ExperimentField:
    family, default = described.get("plugin", ""), described.get("default")
    parts = [described, *described.get("anyOf", ())]
    return ExperimentField(
        key=key,
        type="a plugin's name, or a table" if family else registry.type_in_words(described, definitions),
        default=default["type"] if family and default else default,
        description=" ".join(described.get("description", "").split()),
        required=required,
        choices=tuple(_choices(parts)),
        unit=next((part["unit"] for part in parts if "unit" in part), ""),
        family=family,
        optimizer=optimizer,
        flag=_FLAGS.get(key),
    )


def _choices(parts: list[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        yield from part.get("enum", [part["const"]] if "const" in part else [])
        if part.get("type") == "boolean":
            yield from ("true", "false")


def json_schema() -> dict[str, Any]:
    """The JSON schema of experiment files, for editors and programs.

    Where an experiment names a plugin, the schema has the names of the installed ones, each with its own
    options, for which they are all loaded; of one that does not load it has the name alone.
    """
    schema = Experiment.model_json_schema()
    definitions = schema["$defs"]
    definitions.pop("PluginTable", None)
    families = {field.key: field.family for field in fields() if field.family}
    for key, family in families.items():
        table = schema
        *tables, last = key.split(".")
        for name in tables:
            table = _definition(table["properties"][name]["$ref"], definitions)
        described = table["properties"][last]
        table["properties"][last] = {
            "$ref": f"#/$defs/{family}",
            **{word: described[word] for word in ("description", "default") if word in described},
        }
    for family in families.values():
        definitions[family] = _plugins(family, definitions)
    schema["properties"]["tracking"] |= _trackers(definitions)
    schema["properties"]["optimizer"] = _optimizer(schema["properties"]["optimizer"], definitions)
    return {"$schema": DRAFT, **schema, "title": "A gptkit experiment"}


def _optimizer(described: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A name alone, or a table; a table without a type is the default optimizer's."""
    tables = described.pop("oneOf")
    names = described.pop("discriminator")["mapping"]
    for name, reference in names.items():
        if name != described["default"]["type"]:
            _definition(reference, definitions)["required"] = ["type"]
    return described | {"anyOf": [{"enum": list(names)}, *tables]}


def _plugins(family: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A name alone, or a table with a name and the options of that plugin.

    A table without a type is the default plugin's, except for datasets.
    """
    known = registry.names(family)
    default = {registry.TOKENIZERS: Experiment().tokenizer, registry.POSITIONS: Experiment().model.position}
    # A dataset may also be a text file, by its path
    alone: dict[str, Any] = {"type": "string"} if family == registry.DATASETS else {"enum": known}
    tables = []
    for name in known:
        table = _options(family, name, definitions)
        needed = [] if family in default and name == default[family].type else ["type"]
        table["properties"] = {"type": {"const": name}} | table["properties"]
        tables.append(table | {"required": [*needed, *table["required"]]})
    return {"anyOf": [alone, *tables]}


def _trackers(definitions: dict[str, Any]) -> dict[str, Any]:
    """A key for each installed tracker: false, its options, or true if none of them is required."""
    properties: dict[str, Any] = {}
    for name in registry.names(registry.TRACKERS):
        table = _options(registry.TRACKERS, name, definitions)
        alone: dict[str, Any] = {"const": False} if table["required"] else {"type": "boolean"}
        properties[name] = {"anyOf": [alone, table]}
    return {"properties": properties, "additionalProperties": False}


def _options(family: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A table of a plugin's options; if the plugin does not load, of any options."""
    try:
        cls = registry.load(family, name)
        options = cls.Options.model_json_schema(ref_template=f"#/$defs/{family}.{name}.{{model}}")
    except (PluginError, ValueError, TypeError):  # the last two: options that have no JSON schema
        return {"type": "object", "properties": {}, "required": []}
    definitions |= {f"{family}.{name}.{key}": value for key, value in options.pop("$defs", {}).items()}
    return {
        "type": "object",
        "description": str(cls.summary),
        "properties": options.get("properties", {}),
        "required": options.get("required", []),
        "additionalProperties": False,
    }
