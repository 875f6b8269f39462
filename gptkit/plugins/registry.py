"""Plugins by name, through entry points: which are installed, the class of one, and what it is.

Input: a family, which is an entry-point group, and a name. Output: a `Plugin` (a name that a distribution
registers), its class, or a description of it. Looking names up imports nothing: only the plugin that is named
is loaded, so that a broken one affects only those who use it. A name that two distributions register is an
error that names both. GPTKIT_PLUGINS, where it is set, lists the distributions whose plugins may be used
in addition to gptkit's own. Knows nothing of experiments.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from typing import Any

from packaging.utils import canonicalize_name

from gptkit.errors import GptkitWarning, PluginError
from gptkit.plugins.options import API_VERSION
from gptkit.words import nearest

TOKENIZERS = "gptkit.tokenizers"
POSITIONS = "gptkit.positions"
DATASETS = "gptkit.datasets"
TRACKERS = "gptkit.trackers"

KINDS = {
    TOKENIZERS: "tokenizer",
    POSITIONS: "positional encoding",
    DATASETS: "dataset",
    TRACKERS: "tracker",
}
"""What a plugin of each family is called in a message."""

SHORT = KINDS | {POSITIONS: "position"}
FAMILIES = {word: family for family, word in SHORT.items()}
"""Families by the word that the command line has for each: tokenizer, position, dataset, tracker."""

BASES = {
    TOKENIZERS: "Tokenizer",
    POSITIONS: "PositionalEncoding",
    DATASETS: "Dataset",
    TRACKERS: "Tracker",
}
"""The class of `gptkit.plugins` that a plugin of each family subclasses."""

ALLOWED = "GPTKIT_PLUGINS"
NO_LIMIT = 2**31 - 1  # a bound as large as this only keeps absurd numbers out; it is not shown
OWN = "gptkit"  # the distribution of the built-in plugins


@dataclass(frozen=True)
class Plugin:
    """A name that an installed distribution registers for a class of its own."""

    family: str
    name: str
    distribution: str
    version: str
    entry_point: EntryPoint = field(repr=False, compare=False)

    def to_json(self) -> dict[str, str]:
        """The entry for it in `plugins` of run.json."""
        return {
            "family": self.family,
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
        }


@dataclass(frozen=True)
class PluginOption:
    """One option of a plugin, as `gptkit plugins show` lists it."""

    name: str
    kind: str  # "integer, >= 256"
    default: Any
    required: bool
    description: str


@dataclass(frozen=True)
class PluginDescription:
    """An installed plugin with the description by its class, or the reason why it cannot be used."""

    plugin: Plugin
    cls: Any = None  # None if there is a problem
    problem: str = ""

    @property
    def summary(self) -> str:
        """One line, empty if there is a problem."""
        return (str(self.cls.summary).splitlines() or [""])[0] if self.cls else ""

    @property
    def place(self) -> str:
        """module:class"""
        return f"{self.cls.__module__}:{self.cls.__qualname__}"

    @property
    def about(self) -> str:
        """The docstring of the class."""
        return inspect.cleandoc(self.cls.__doc__ or "")

    @property
    def options(self) -> list[PluginOption]:
        return list(options_of(self.cls))


# Names


@cache
def installed(family: str) -> dict[str, tuple[Plugin, ...]]:
    """Every registered name of a family, sorted, with all plugins of that name, allowed or not.

    A distribution that is found twice on sys.path counts once.
    """
    found: dict[str, dict[tuple[str, str], Plugin]] = {}
    sources: dict[int, tuple[str, str]] = {}  # name and version by distribution: each look-up reads a file
    for point in entry_points(group=family):
        if id(point.dist) not in sources:
            unknown = ("unknown", "unknown")
            sources[id(point.dist)] = (point.dist.name, point.dist.version) if point.dist else unknown
        plugin = Plugin(family, point.name, *sources[id(point.dist)], point)
        found.setdefault(point.name, {})[(plugin.distribution, point.value)] = plugin
    return {
        name: tuple(sorted(plugins.values(), key=lambda plugin: plugin.distribution))
        for name, plugins in sorted(found.items())
    }


def is_allowed(distribution_name: str) -> bool:
    """Whether GPTKIT_PLUGINS allows the plugins of a distribution; where it is not set, all are allowed."""
    value = os.environ.get(ALLOWED)
    return value is None or canonicalize_name(distribution_name) in _listed(value) | {OWN}


@cache
def _listed(value: str) -> frozenset[str]:
    """The distributions that GPTKIT_PLUGINS lists; warns, once, of those that are not installed."""
    words = [word for word in re.split(r"[,\s]+", value) if word]
    for word in words:
        try:
            distribution(word)
        except (PackageNotFoundError, ValueError):
            message = f"{ALLOWED} lists {word!r}, but no distribution of that name is installed."
            warnings.warn(message, GptkitWarning, stacklevel=2)
    return frozenset(canonicalize_name(word) for word in words)


def _allowed(family: str) -> dict[str, tuple[Plugin, ...]]:
    allowed = {
        name: tuple(plugin for plugin in plugins if is_allowed(plugin.distribution))
        for name, plugins in installed(family).items()
    }
    return {name: plugins for name, plugins in allowed.items() if plugins}


def names(family: str) -> list[str]:
    """The names of a family that may be used, sorted."""
    return list(_allowed(family))


def find(family: str, name: str) -> Plugin:
    """The plugin of that name, without loading it. Raises PluginError: none, not allowed, or two."""
    known = _allowed(family)
    if not known:
        raise PluginError("gptkit is not installed here, so it has no plugins; run 'pip install -e .' first.")
    if name not in known:
        raise PluginError(_unknown(family, name, known))
    plugins = known[name]
    if len(plugins) > 1:
        both = " and ".join(plugin.distribution for plugin in plugins)
        raise PluginError(f"{KINDS[family]} {name!r} is claimed by {both}; uninstall one of them.")
    return plugins[0]


def _unknown(family: str, name: str, known: Iterable[str]) -> str:
    if refused := installed(family).get(name):
        packages = [plugin.distribution for plugin in refused]
        return (
            f"{KINDS[family]} {name!r} comes from {' and '.join(packages)}, which {ALLOWED} does not allow "
            f"here. Add {packages[0]} to that list of distributions, or unset it."
        )
    return (
        f"no {KINDS[family]} is called {name!r}{nearest(name, known) or '.'} "
        f"Installed: {', '.join(known)}. To use another one, install its package."
    )


def families_of(name: str) -> list[str]:
    """The families that have a plugin of that name. Raises PluginError if none has."""
    found = [family for family in KINDS if name in installed(family)]
    if not found:
        known = sorted({known for family in KINDS for known in names(family)})
        raise PluginError(
            f"no plugin is called {name!r}{nearest(name, known) or '.'} Installed: {', '.join(known)}."
        )
    return found


# Classes


def load(family: str, name: str) -> Any:
    """The class of the plugin of that name.

    Raises PluginError if there is none or more than one, where it fails when imported, was written for
    another version of the plugin API, is not of that family, or needs a package that is not installed.
    """
    plugin = find(family, name)
    what = f"{KINDS[family]} {name!r}"
    source = f"{plugin.entry_point.value}, from {plugin.distribution}"
    try:
        with stdout_to_stderr():
            cls = plugin.entry_point.load()
    except (Exception, SystemExit) as error:
        if plugin.distribution == "gptkit":
            raise  # the cause is a package that gptkit needs, such as torch
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        reason = (str(error).splitlines() or ["(no message)"])[0]
        raise PluginError(
            f"{what} ({source}) does not load: {type(error).__name__}: {reason}"
            f"{_what_to_install(plugin, missing)}"
        ) from error
    wanted = getattr(cls, "api_version", API_VERSION)
    if wanted != API_VERSION:
        raise PluginError(
            f"{what} ({source}) was written for plugin API {wanted}; this gptkit has {API_VERSION}. "
            f"Install a version of {plugin.distribution} that matches."
        )
    if not is_of(family, cls):
        raise PluginError(
            f"{what} ({source}) is not a subclass of gptkit.plugins.{BASES[family]}. Report it to its author."
        )
    for module in cls.needs:
        if find_spec(module.partition(".")[0]) is None:
            raise PluginError(
                f"{what} needs the package {module}, which is not installed"
                f"{_what_to_install(plugin, module) or '.'}"
            )
    return cls


def is_of(family: str, cls: Any) -> bool:
    """Whether `cls` is a class of that family."""
    from gptkit import plugins

    return isinstance(cls, type) and issubclass(cls, getattr(plugins, BASES[family]))


def stdout_to_stderr() -> redirect_stdout[Any]:
    """Around code of a plugin that may print: standard output belongs to the command (a run's path, JSON).

    It holds for the whole process, also for other threads, as Python has no narrower redirection; gptkit
    itself prints nothing while a plugin is imported or called.
    """
    return redirect_stdout(sys.stderr)


def _what_to_install(plugin: Plugin, module: str | None) -> str:
    """The end of a message: the extra of the plugin's distribution that brings a missing module."""
    from packaging.requirements import InvalidRequirement, Requirement  # 10 ms, for a message

    dist = plugin.entry_point.dist
    if dist is None or module is None:
        return ""
    brings: dict[str, set[str]] = {extra: set() for extra in dist.metadata.get_all("Provides-Extra") or []}
    for text in dist.requires or []:
        with suppress(InvalidRequirement):
            requirement = Requirement(text)
            marker = requirement.marker
            for extra in brings if marker and not marker.evaluate({"extra": ""}) else ():
                if marker and marker.evaluate({"extra": extra}):
                    brings[extra].add(canonicalize_name(requirement.name))
    fitting = [extra for extra, packages in brings.items() if canonicalize_name(module) in packages]
    if not fitting:
        return ""
    smallest = min(fitting, key=lambda extra: (len(brings[extra]), extra))  # not the one for developers
    return f": pip install '{plugin.distribution}[{smallest}]'"


def plugin_in(module: str) -> Plugin | None:
    """The plugin of another distribution that a module belongs to, if any.

    Where a package has several plugins, the one whose class is in the module, or else the first.
    """
    package = module.partition(".")[0]
    if package == OWN:
        return None
    found = [plugin for plugin in _everything() if _package(plugin) == package]
    same = [plugin for plugin in found if plugin.entry_point.module == module]
    return next(iter([*same, *found]), None)


def _everything() -> Iterator[Plugin]:
    for family in KINDS:
        for plugins in installed(family).values():
            yield from plugins


def _package(plugin: Plugin) -> str:
    """The top-level package of its class; empty if the entry point is malformed."""
    match = plugin.entry_point.pattern.match(plugin.entry_point.value)
    return match["module"].partition(".")[0] if match else ""


# Descriptions


def list_plugins() -> list[PluginDescription]:
    """All that are installed, by family and name; each is loaded. A name claimed twice appears twice."""
    return [_listing(plugin) for plugin in _everything()]


def _listing(plugin: Plugin) -> PluginDescription:
    if not is_allowed(plugin.distribution):
        return PluginDescription(plugin, problem=f"not allowed: {ALLOWED} does not list it")
    try:
        return PluginDescription(plugin, load(plugin.family, plugin.name))
    except PluginError as error:
        return PluginDescription(plugin, problem=str(error))


def describe_plugin(family: str, name: str) -> PluginDescription:
    """Everything about one plugin. Raises PluginError if it does not load."""
    return PluginDescription(find(family, name), load(family, name))


def options_of(cls: Any) -> Iterator[PluginOption]:
    """The options of a plugin's class, in order."""
    schema = cls.Options.model_json_schema()
    for name, option in cls.Options.model_fields.items():
        yield PluginOption(
            name=name,
            kind=type_in_words(schema["properties"].get(name, {}), schema.get("$defs", {})),
            default=None if option.is_required() else option.get_default(call_default_factory=True),
            required=option.is_required(),
            description=option.description or "",
        )


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def type_in_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words: 'integer, >= 1, <= 9', 'list of strings', '"a" or "b"'."""
    if "$ref" in schema:
        return type_in_words(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions)
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        kinds = [type_in_words(part, definitions) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(kinds)
    kind = str(schema.get("type", "any"))
    if kind == "array":
        items = type_in_words(schema.get("items", {}), definitions)
        return f"list of {items}s" if items.isalpha() else f"list of {items}"
    bounds = [
        f"{sign} {schema[key]:,}"
        for key, sign in _BOUNDS.items()
        if key in schema and abs(schema[key]) < NO_LIMIT
    ]
    return ", ".join([kind, *bounds])
