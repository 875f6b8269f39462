"""gptkit from Python: `train`, `open_run`, and what a run gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptkit import events, testing
from gptkit.data.catalog import data_folders
from gptkit.errors import PluginError
from gptkit.experiment import Experiment, experiment_from_dict, load_experiment
from gptkit.generation import encode_prompt, generate
from gptkit.model import GPT
from gptkit.plugins import PluginOptions, Tokenizer, registry
from gptkit.plugins.registry import families_of
from gptkit.runs import DEFAULT_RUNS_FOLDER, find_run
from gptkit.runs import Run as _RunFolder
from gptkit.runs.load import read_model, run_experiment
from gptkit.testing import CheckResult
from gptkit.training.session import RunContext
from gptkit.training.start import train_run
from gptkit.training.writing import sampling_of


class Run:
    """A recorded run: its folder, and all that can be read from it."""

    def __init__(self, folder: _RunFolder) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        return self._folder.path

    @property
    def id(self) -> str:
        return self._folder.id

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def experiment(self) -> Experiment:
        """The experiment as it was resolved: every field explicit."""
        return run_experiment(self._folder)

    def record(self) -> dict[str, Any]:
        """run.json: status, times, losses, hashes, plugins, environment."""
        return self._folder.record()

    def metrics(self) -> list[dict[str, Any]]:
        """One dict for each recorded step, in order: step, train_loss, val_loss (where evaluated), …"""
        return self._folder.metrics()

    def load(self, checkpoint: str | int = "best") -> tuple[GPT, Tokenizer]:
        """The model, in fp32 on the CPU and in eval mode, and its tokenizer.

        `checkpoint` is "best", "last" or a step. Raises CheckpointError where it does not verify.
        """
        model, tokenizer, _ = read_model(self._folder, str(checkpoint))
        return model, tokenizer

    def generate(
        self, prompt: str | None = None, *, seed: int = 0, checkpoint: str | int = "best", **sampling: Any
    ) -> str:
        """The prompt and what the model writes after it.

        `sampling` takes the fields of the [sampling] table: max_new_tokens, temperature, top_k, top_p,
        min_p, stop. What is not given is as the experiment has it. Raises ExperimentError for one that
        cannot be, UsageError for a prompt with characters that the model has never seen.
        """
        settings = sampling_of(self._folder, list(sampling.items()))
        model, tokenizer = self.load(checkpoint)
        text, ids = encode_prompt(tokenizer, settings.prompt if prompt is None else prompt)
        return text + "".join(piece for _, piece in generate(model, tokenizer, ids, settings, seed=seed))


def open_run(run: str | Path, *, runs_folder: Path | str = DEFAULT_RUNS_FOLDER) -> Run:
    """The run that a folder, an id, a unique beginning of an id, or "latest" means. Raises UsageError."""
    return Run(find_run(str(run), Path(runs_folder)))


def train(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    runs_folder: Path | str = DEFAULT_RUNS_FOLDER,
    data_dir: Path | str | None = None,
    listener: events.Listener = events.ignore,
) -> Run:
    """Trains a new run to the end of its schedule and returns it.

    `experiment` is an Experiment, a dict with the keys of an experiment file, or the path of one. The
    listener is called with each event (gptkit.events) as it happens. Raises a GptkitError of the kind that
    fits.
    """
    if isinstance(experiment, str | Path):
        experiment = load_experiment(experiment)
    elif isinstance(experiment, Mapping):
        experiment = experiment_from_dict(experiment)
    around = RunContext(
        runs_folder=Path(runs_folder),
        folders=data_folders(Path(data_dir) if data_dir is not None else None),
        listener=listener,
    )
    return Run(train_run(experiment, around).run)


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
                f"{plugin!r} is no Tokenizer, PositionalEncoding, Dataset or Tracker of gptkit.plugins."
            )
    return [result for family, cls in found for result in testing.check_plugin(family, cls, options)]
