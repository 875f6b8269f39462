"""Which packages a run had its plugins from: what to install where they are gone, what is not the same now.

In: a run's record, which may be a stranger's, and its experiment. Out: words for a person. A package is named
only where its name and version have the shape that packages have, as they end up in a terminal, and in a
command that a person may paste.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptkit.errors import PluginError
from gptkit.experiment import Experiment
from gptkit.plugins import registry
from gptkit.tracking import ChosenTracker, choose_tracker

OWN = "gptkit"  # the distribution of the plugins that come along

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")  # PEP 508
# PEP 440, as strict as packages build it; without an epoch, whose '!' means something to a shell
_VERSION = re.compile(
    r"[0-9]{1,20}(?:\.[0-9]{1,20}){0,9}(?:(?:a|b|rc)[0-9]{1,20})?(?:\.post[0-9]{1,20})?(?:\.dev[0-9]{1,20})?"
    r"(?:\+[a-z0-9]{1,40}(?:\.[a-z0-9]{1,40}){0,9})?"
)

Recorded = dict[tuple[str, str], tuple[str, str]]  # (family, name) -> (distribution, version)


@dataclass(frozen=True)
class Changed:
    """A plugin that is here, and that the run had from elsewhere, or in another version."""

    plugin: registry.Plugin
    before: str  # "gptkit-t5-bias 1.0", or words where it has no name or none to be shown

    @property
    def now(self) -> str:
        return f"{self.plugin.distribution} {self.plugin.version}"


def model_plugins(experiment: Experiment) -> list[registry.Plugin]:
    """Where the plugins come from that a model cannot do without. Raises PluginError."""
    return [
        registry.find(registry.TOKENIZERS, experiment.tokenizer.type),
        registry.find(registry.POSITIONS, experiment.model.position.type),
    ]


def all_plugins(experiment: Experiment) -> list[registry.Plugin]:
    """Where every plugin of an experiment comes from. Raises PluginError."""
    dataset = registry.find(registry.DATASETS, experiment.data.dataset.type)
    return [*model_plugins(experiment), dataset]


def new_trackers(experiment: Experiment) -> list[ChosenTracker]:
    """The trackers of a run that begins. Raises PluginError for one that cannot be had."""
    return [choose_tracker(name, value) for name, value in experiment.tracking.items() if value is not False]


def trackers_again(
    experiment: Experiment, record: dict[str, Any], warn: Callable[[str], None]
) -> list[ChosenTracker]:
    """Those of a run that goes on. It can do without one that cannot be had any more: `warn` is told."""
    found = []
    for name, value in experiment.tracking.items():
        try:
            found += [choose_tracker(name, value)] if value is not False else []
        except PluginError as error:
            remedy = what_to_install(record, [(registry.TRACKERS, name)])
            warn(f"{error}\nThe run goes on without it. {remedy}".rstrip())
    return found


def tracker_plugins(trackers: Sequence[ChosenTracker]) -> list[registry.Plugin]:
    """Where trackers come from: recorded to say what to install, and no part of what makes a run exact."""
    return [registry.find(registry.TRACKERS, tracker.name) for tracker in trackers]


def recorded_plugins(record: dict[str, Any]) -> Recorded | None:
    """Where a run had its plugins from, as it stands there; None where it does not say."""
    try:
        return {
            (str(plugin["family"]), str(plugin["name"])): (
                str(plugin["distribution"]),
                str(plugin["version"]),
            )
            for plugin in record["plugins"]
        }
    except (KeyError, TypeError):
        return None


def changed_plugins(record: dict[str, Any], plugins: Sequence[registry.Plugin]) -> list[Changed] | None:
    """Those of `plugins` that the run had otherwise; None where it does not say what it had.

    gptkit's own plugins are of gptkit's version, which is compared elsewhere.
    """
    recorded = recorded_plugins(record)
    if recorded is None:
        return None
    changed = []
    for plugin in plugins:
        before = recorded.get((plugin.family, plugin.name))
        both_builtin = before is not None and before[0] == plugin.distribution == OWN
        if before != (plugin.distribution, plugin.version) and not both_builtin:
            shown = " ".join(before) if before and _can_be_shown(*before) else "an unknown package"
            changed.append(Changed(plugin, shown if before else "an unrecorded package"))
    return changed


def what_to_install(record: dict[str, Any], plugins: Sequence[tuple[str, str]]) -> str:
    """The packages that brought `plugins`, (family, name) each, and the command for them; or nothing."""
    recorded = recorded_plugins(record) or {}
    known = [recorded[key] for key in plugins if key in recorded]
    packages = dict(package for package in known if _can_be_shown(*package))  # each once, in order
    if not packages:
        return ""
    *first, last = (f"{distribution} {version}" for distribution, version in packages.items())
    names = f"{', '.join(first)} and {last}" if first else last
    command = " ".join(f"{distribution}=={version}" for distribution, version in packages.items())
    return f"The run had {'it' if len(plugins) == 1 else 'them'} from {names}: pip install {command}"


def _can_be_shown(distribution: str, version: str) -> bool:
    return bool(_NAME.fullmatch(distribution) and _VERSION.fullmatch(version))
