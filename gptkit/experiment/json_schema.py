"""The JSON schema of experiment files, for editors and for programs.

In: nothing. Out: the schema of `Experiment` with the installed plugins in it: where an experiment names one,
the names there are, each with its own options. It loads them all, to ask for these; one that does not load
stands there by its name alone.
"""

from __future__ import annotations

from typing import Any

from gptkit.errors import PluginError
from gptkit.experiment.load import PLUGIN_KEYS
from gptkit.experiment.schema import Experiment
from gptkit.plugins import registry

DEFAULTS = {
    registry.TOKENIZERS: Experiment().tokenizer.type,
    registry.POSITIONS: Experiment().model.position.type,
}
DRAFT = "https://json-schema.org/draft/2020-12/schema"  # pydantic's


def json_schema() -> dict[str, Any]:
    """The schema, as JSON values."""
    schema = Experiment.model_json_schema()
    definitions = schema["$defs"]
    definitions.pop("PluginTable", None)
    for keys, family in PLUGIN_KEYS:
        table = schema
        for key in keys[:-1]:
            table = definitions[table["properties"][key]["$ref"].rpartition("/")[2]]
        described = table["properties"][keys[-1]]
        table["properties"][keys[-1]] = {
            "$ref": f"#/$defs/{family}",
            **{key: described[key] for key in ("description", "default") if key in described},
        }
    for family in dict(PLUGIN_KEYS).values():
        definitions[family] = _choices(family, definitions)
    schema["properties"]["tracking"] |= _trackers(definitions)
    schema["properties"]["optimizer"] = _optimizer(schema["properties"]["optimizer"], definitions)
    return {"$schema": DRAFT, **schema, "title": "A gptkit experiment"}


def _optimizer(described: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A name alone, or a table; one without a type is the default's."""
    tables = described.pop("oneOf")
    names = described.pop("discriminator")["mapping"]
    for name, place in names.items():
        if name != described["default"]["type"]:
            definitions[place.rpartition("/")[2]]["required"] = ["type"]
    return described | {"anyOf": [{"enum": list(names)}, *tables]}


def _choices(family: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A name alone, or a table with a name and the options of that plugin."""
    known = registry.names(family)
    # A dataset may also be a text file, by its path
    alone: dict[str, Any] = {"type": "string"} if family == registry.DATASETS else {"enum": known}
    return {"anyOf": [alone, *(_table(family, name, definitions) for name in known)]}


def _trackers(definitions: dict[str, Any]) -> dict[str, Any]:
    """A key for each that is installed: false, its options, or true where none of them has to be given."""
    properties: dict[str, Any] = {}
    for name in registry.names(registry.TRACKERS):
        table = _options(registry.TRACKERS, name, definitions)
        alone: dict[str, Any] = {"const": False} if table.get("required") else {"type": "boolean"}
        properties[name] = {"anyOf": [alone, table]}
    return {"properties": properties, "additionalProperties": False}


def _table(family: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A table without a type is one of the default plugin, except of datasets."""
    table = _options(family, name, definitions)
    needed = [] if name == DEFAULTS.get(family) else ["type"]
    return table | {
        "properties": {"type": {"const": name}} | table["properties"],
        "required": [*needed, *table["required"]],
    }


def _options(family: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A table of a plugin's options; of any, where the plugin does not load."""
    try:
        cls = registry.load(family, name)
        options = cls.Options.model_json_schema(ref_template=f"#/$defs/{family}.{name}.{{model}}")
    except (PluginError, ValueError, TypeError):  # the last two: of a stranger's schema
        return {"type": "object", "properties": {}, "required": []}
    definitions |= {f"{family}.{name}.{key}": value for key, value in options.pop("$defs", {}).items()}
    return {
        "type": "object",
        "description": str(cls.summary),
        "properties": options.get("properties", {}),
        "required": options.get("required", []),
        "additionalProperties": False,
    }
