"""Names to plugins, through entry points.

A family is an entry-point group. Looking up names imports nothing; only the plugin that is named is loaded,
so one that is broken harms nobody who does not use it. A name that two distributions claim is an error that
names both. GPTKIT_PLUGINS, where it is set, lists the distributions whose plugins are there at all, beside
gptkit's own.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from gptkit.errors import PluginError, nearest
from gptkit.plugins.options import API_VERSION

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
SHORT = KINDS | {POSITIONS: "position"}  # for the command line
BASES = {
    TOKENIZERS: "Tokenizer",
    POSITIONS: "PositionalEncoding",
    DATASETS: "Dataset",
    TRACKERS: "Tracker",
}  # of gptkit.plugins
ALLOWED = "GPTKIT_PLUGINS"

_OWN = "gptkit"


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


@dataclass(frozen=True)
class Claim:
    """An entry point: a name that a distribution claims for a class of its own."""

    point: EntryPoint
    distribution: str
    version: str


_loaded: dict[str, Provenance] = {}  # by the top package that a plugin's class is in


@cache
def _installed(family: str) -> dict[str, tuple[Claim, ...]]:
    """Every name of a family with those who claim it (one distribution counted once)."""
    claims: dict[str, dict[tuple[str, str], Claim]] = {}
    known: dict[int, tuple[str, str]] = {}  # by distribution: to ask for its name reads a file
    for point in entry_points(group=family):
        if id(point.dist) not in known:
            known[id(point.dist)] = (point.dist.name, point.dist.version) if point.dist else ("unknown",) * 2
        claim = Claim(point, *known[id(point.dist)])
        claims.setdefault(point.name, {})[(claim.distribution, point.value)] = claim
    return {name: tuple(found.values()) for name, found in sorted(claims.items())}


def forget() -> None:
    """Looks anew at what is installed when asked next."""
    _installed.cache_clear()


def _claims(family: str) -> dict[str, tuple[Claim, ...]]:
    """Those of `_installed` that are allowed here."""
    allowed = {
        name: tuple(claim for claim in claims if is_allowed(claim.distribution))
        for name, claims in _installed(family).items()
    }
    return {name: claims for name, claims in allowed.items() if claims}


def is_allowed(distribution: str) -> bool:
    """Whether GPTKIT_PLUGINS lets plugins of a distribution in: unset all, else those it lists."""
    said = os.environ.get(ALLOWED)
    if said is None or _canonical(distribution) == _OWN:
        return True
    return _canonical(distribution) in {_canonical(word) for word in re.split(r"[,\s]+", said)}


def _canonical(distribution: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def names(family: str) -> list[str]:
    """The names of a family, sorted."""
    return list(_claims(family))


def claimants(family: str, name: str) -> list[Claim]:
    """Those who claim a name, allowed or not."""
    return sorted(_installed(family).get(name, ()), key=lambda claim: claim.distribution)


def installed_names(family: str) -> list[str]:
    """All names of a family, also those that GPTKIT_PLUGINS shuts out."""
    return list(_installed(family))


def provenance(family: str, name: str) -> Provenance:
    """Where the plugin of that name comes from, without loading it. Raises PluginError."""
    claim = _claim(family, name)
    return Provenance(family, name, claim.distribution, claim.version)


def load(family: str, name: str) -> LoadedPlugin:
    """The plugin class of that name. Raises PluginError: none, two, broken, or of another API version."""
    claim = _claim(family, name)
    point, distribution = claim.point, claim.distribution
    kind, where = KINDS[family], f"{point.value}, from {distribution}"
    try:
        with redirect_stdout(sys.stderr):  # what a module prints when imported is no part of our output
            cls = point.load()
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        raise PluginError(
            f"{kind} {name!r} ({where}) does not load: {type(error).__name__}: {_first_line(error)}"
            f"{_what_to_install(claim, missing)}"
        ) from error
    wanted = getattr(cls, "api_version", API_VERSION)
    if wanted != API_VERSION:
        raise PluginError(
            f"{kind} {name!r} ({where}) was written for plugin API {wanted}; this gptkit has {API_VERSION}. "
            f"Install a version of {distribution} that matches."
        )
    if not is_of(family, cls):
        raise PluginError(
            f"{kind} {name!r} ({where}) is no subclass of gptkit.plugins.{BASES[family]}. Tell its author."
        )
    for module in cls.needs:
        if find_spec(module.partition(".")[0]) is None:
            raise PluginError(
                f"{kind} {name!r} needs the package {module}, which is not installed"
                f"{_what_to_install(claim, module) or '.'}"
            )
    found = Provenance(family, name, distribution, claim.version)
    _loaded[cls.__module__.partition(".")[0]] = found
    return LoadedPlugin(cls, found)


def is_of(family: str, cls: Any) -> bool:
    """Whether it is a class of that family."""
    from gptkit import plugins

    return isinstance(cls, type) and issubclass(cls, getattr(plugins, BASES[family]))


def _what_to_install(claim: Claim, module: str | None) -> str:
    """The extra of a plugin's distribution that brings a module that is missing, as an end of a sentence."""
    dist = claim.point.dist
    brings: dict[str, set[str]] = {}  # extra -> the packages that it brings
    for requirement in (dist.requires or []) if dist else []:
        wanted = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*["']([\w.-]+)""", requirement)
        if wanted and extra:
            brings.setdefault(extra[1], set()).add(_canonical(wanted[0]))
    fitting = [extra for extra, packages in brings.items() if module and _canonical(module) in packages]
    if not fitting:
        return ""
    smallest = min(fitting, key=lambda extra: (len(brings[extra]), extra))  # not one for developers
    return f": pip install '{claim.distribution}[{smallest}]'"


def _claim(family: str, name: str) -> Claim:
    claims = _claims(family)
    if not claims:
        raise PluginError("gptkit is not installed here, so it has no plugins; run 'pip install -e .' first.")
    if name not in claims:
        raise PluginError(_unknown(family, name, claims))
    found = claims[name]
    if len(found) > 1:
        both = " and ".join(sorted(claim.distribution for claim in found))
        raise PluginError(f"{KINDS[family]} {name!r} is claimed by {both}; uninstall one of them.")
    return found[0]


def _unknown(family: str, name: str, known: Iterable[str]) -> str:
    shut_out = [claim.distribution for claim in claimants(family, name)]
    if shut_out:
        return (
            f"{KINDS[family]} {name!r} comes from {' and '.join(shut_out)}, which {ALLOWED} does not allow "
            f"here. Add {shut_out[0]} to that list of distributions, or unset it."
        )
    return (
        f"no {KINDS[family]} is called {name!r}{nearest(name, known) or '.'} "
        f"Installed: {', '.join(known)}. Another one comes with the package that brings it."
    )


def culprit(error: BaseException) -> Provenance | None:
    """The plugin of another distribution whose code an error came through, if there is one."""
    traceback = error.__traceback__
    found = None
    while traceback:
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        found = _loaded.get(package, found) if package != _OWN else found
        traceback = traceback.tb_next
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["(no message)"])[0]
