"""gptkit: train small GPTs from experiment files, and keep every run.

The public Python API, for notebooks and scripts; `gptkit --help` is the command.

    import gptkit
    run = gptkit.train("experiments/shakespeare_quick.toml")   # a path, a dict or an Experiment
    run = gptkit.open_run("runs/…")                            # or "latest", or a prefix of an id
    model, tokenizer = run.load()
    print(run.metrics()[-1], run.generate("ROMEO:", max_new_tokens=200))

Importing gptkit imports no torch; the first use of one of these does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes a while to import, in which Ctrl-C would show a traceback

if TYPE_CHECKING:
    from gptkit.api import check_plugin, open_run, train
    from gptkit.experiment.load import load_experiment
    from gptkit.experiment.schema import Experiment
    from gptkit.runs import Run

__all__ = ["Experiment", "Run", "__version__", "check_plugin", "load_experiment", "open_run", "train"]


def __getattr__(name: str) -> object:
    if name == "Run":
        from gptkit.runs import Run

        return Run
    if name in ("check_plugin", "open_run", "train"):
        from gptkit import api

        return getattr(api, name)
    if name == "Experiment":
        from gptkit.experiment.schema import Experiment

        return Experiment
    if name == "load_experiment":
        from gptkit.experiment.load import load_experiment

        return load_experiment
    if name == "__version__":
        from importlib.metadata import version

        return version("gptkit")
    raise AttributeError(f"module 'gptkit' has no attribute {name!r}")
