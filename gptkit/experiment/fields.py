"""The dotted keys that an experiment may set, and the words that a key may be set to.

In: nothing, or a key. Out: names, for a shell that completes them. Loads no plugin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gptkit.experiment.messages import OPTIMIZERS
from gptkit.experiment.schema import Experiment, PluginTable
from gptkit.plugins import registry


def keys() -> list[str]:
    """Every key, dotted; of a plugin its name alone, as its options are its own."""
    return list(dict.fromkeys(key for key, _ in _fields()))


def choices(key: str) -> list[str]:
    """The words that a key may be set to; where it is a number, its default."""
    for dotted, family in _PLUGINS.items():
        if key in (dotted, f"{dotted}.type"):
            return registry.names(family)
    if key == "optimizer":
        return list(OPTIMIZERS)
    fields = [field for name, field in _fields() if name == key]
    words = [word for field in fields for word in _words(field.annotation)]
    return list(dict.fromkeys(words)) or [
        repr(field.default) for field in fields if _is_number(field.default)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


_PLUGINS = {
    "tokenizer": registry.TOKENIZERS,
    "model.position": registry.POSITIONS,
    "data.dataset": registry.DATASETS,
    "data.fallback": registry.DATASETS,
}


def _fields(model: type[BaseModel] = Experiment, begin: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        key, annotation = f"{begin}{name}", field.annotation
        inner = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if inner and annotation is not PluginTable:
            yield from _fields(annotation, f"{key}.")  # type: ignore[arg-type]
        elif key == "optimizer":
            for member in OPTIMIZERS.values():
                yield from _fields(member, "optimizer.")
        else:
            yield key, field


def _words(annotation: Any) -> Iterator[str]:
    """Those of a Literal, wherever it stands in a union; of a truth, both."""
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from (word for word in get_args(annotation) if isinstance(word, str))
    else:
        for part in get_args(annotation):
            yield from _words(part)
