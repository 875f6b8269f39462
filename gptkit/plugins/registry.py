"""Names to plugins, through entry points.

A family is an entry-point group. Looking up names imports nothing; only the plugin that is named is loaded,
so one that is broken harms nobody who does not use it. A name that two distributions claim is an error that
names both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gptkit.errors import PluginError, nearest
from gptkit.plugins.options import API_VERSION

TOKENIZERS = "gptkit.tokenizers"
POSITIONS = "gptkit.positions"
DATASETS = "gptkit.datasets"

_KIND = {TOKENIZERS: "tokenizer", POSITIONS: "positional encoding", DATASETS: "dataset"}


@dataclass(frozen=True)
class Provenance:
    """Where a plugin comes from."""

    family: str
    name: str
    distribution: str
    version: str


@dataclass(frozen=True)
class LoadedPlugin:
    cls: Any
    provenance: Provenance


@cache
def _claims(family: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Every name of a family with the entry points that claim it (one distribution counted once)."""
    claims: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=family):
        claims.setdefault(point.name, {})[(_distribution(point), point.value)] = point
    return {name: tuple(points.values()) for name, points in sorted(claims.items())}


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def names(family: str) -> list[str]:
    """The names of a family, sorted."""
    return list(_claims(family))


def provenance(family: str, name: str) -> Provenance:
    """Where the plugin of that name comes from, without loading it. Raises PluginError."""
    point = _point(family, name)
    return Provenance(family, name, _distribution(point), point.dist.version if point.dist else "unknown")


def load(family: str, name: str) -> LoadedPlugin:
    """The plugin class of that name. Raises PluginError: none, two, broken, or of another API version."""
    point = _point(family, name)
    kind, where = _KIND[family], f"{point.value}, from {_distribution(point)}"
    try:
        cls = point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{kind} {name!r} ({where}) does not load: {type(error).__name__}: {_first_line(error)}"
        ) from error
    wanted = getattr(cls, "api_version", None)
    if wanted != API_VERSION:
        raise PluginError(
            f"{kind} {name!r} ({where}) was written for plugin API {wanted}; this gptkit has {API_VERSION}. "
            f"Install a version of {_distribution(point)} that matches."
        )
    return LoadedPlugin(cls, provenance(family, name))


def _point(family: str, name: str) -> EntryPoint:
    claims = _claims(family)
    if not claims:
        raise PluginError("gptkit is not installed here, so it has no plugins; run 'pip install -e .' first.")
    if name not in claims:
        raise PluginError(
            f"no {_KIND[family]} is called {name!r}{nearest(name, claims) or '.'} "
            f"Installed: {', '.join(claims)}. Another one comes with the package that brings it."
        )
    points = claims[name]
    if len(points) > 1:
        both = " and ".join(sorted(_distribution(point) for point in points))
        raise PluginError(f"{_KIND[family]} {name!r} is claimed by {both}; uninstall one of them.")
    return points[0]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["(no message)"])[0]
