"""gptkit from Python: `train`, `open_run`, `check_plugin`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptkit import events, testing
from gptkit.data.catalog import data_folders
from gptkit.errors import PluginError
from gptkit.experiment.load import experiment_from_dict, load_experiment
from gptkit.experiment.schema import Experiment
from gptkit.plugins import PluginOptions, registry
from gptkit.plugins.registry import families_of
from gptkit.runs import DEFAULT_RUNS_FOLDER, Run, find_run
from gptkit.testing import CheckResult
from gptkit.training.context import RunContext
from gptkit.training.session import train_run


def open_run(run: str | Path, *, runs_folder: Path | str = DEFAULT_RUNS_FOLDER) -> Run:
    """The run of a folder, an id, a unique beginning of an id, or "latest". Raises UsageError."""
    return find_run(str(run), Path(runs_folder))


def train(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    runs_folder: Path | str = DEFAULT_RUNS_FOLDER,
    data_dir: Path | str | None = None,
    listener: events.Listener = events.ignore,
) -> Run:
    """Trains a new run to the end of its schedule and returns it.

    `experiment` is an Experiment, a dict with the keys of an experiment file, or the path of one. The
    listener is called with each event (gptkit.events) as it happens. Raises a subclass of
    GptkitError.
    """
    if isinstance(experiment, str | Path):
        experiment = load_experiment(experiment)
    elif isinstance(experiment, Mapping):
        experiment = experiment_from_dict(experiment)
    context = RunContext(
        runs_folder=Path(runs_folder),
        folders=data_folders(Path(data_dir) if data_dir is not None else None),
        listener=listener,
    )
    return train_run(experiment, context).run


def check_plugin(plugin: type | str, options: PluginOptions | None = None) -> list[CheckResult]:
    """The results of `gptkit plugins check` for a plugin: a class, or the name of one that is installed.

    A result has `check`, `verdict` ("ok", "bad", "skipped" or "note") and `said`. Without `options` the
    plugin is checked with `Options.example(folder)`. Raises PluginError for a name that no plugin has, or a
    class of no family. For tests of your own package subclass a contract of `gptkit.testing`.
    """
    if isinstance(plugin, str):
        found = [(family, registry.load(family, plugin)) for family in families_of(plugin)]
    else:
        found = [(family, plugin) for family in registry.KINDS if registry.is_of(family, plugin)]
        if not found:
            raise PluginError(
                f"{plugin!r} is not a Tokenizer, PositionalEncoding, Dataset or Tracker of gptkit.plugins."
            )
    return [result for family, cls in found for result in testing.check_plugin(family, cls, options)]
