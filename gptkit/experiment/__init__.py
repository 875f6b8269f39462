"""An experiment: its schema, and how it is read from a TOML file, overridden, checked and written.

`schema` has the fields, `fields` describes them, `overrides` has the flags and --set, `load` reads and
writes, `source` finds a field in the file or on the command line, `messages` says what is wrong. The names
below are imported when they are first used: pydantic takes long to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptkit.experiment.load import experiment_from_dict, load_experiment, to_toml
    from gptkit.experiment.overrides import Override, parse_override
    from gptkit.experiment.schema import (
        AdamWSettings,
        CheckpointSettings,
        DataSettings,
        EvaluationSettings,
        Experiment,
        ModelSettings,
        MuonSettings,
        OptimizerSettings,
        PluginTable,
        SamplingSettings,
        ScheduleSettings,
        TrainingSettings,
    )

__all__ = [
    "AdamWSettings",
    "CheckpointSettings",
    "DataSettings",
    "EvaluationSettings",
    "Experiment",
    "ModelSettings",
    "MuonSettings",
    "OptimizerSettings",
    "Override",
    "PluginTable",
    "SamplingSettings",
    "ScheduleSettings",
    "TrainingSettings",
    "experiment_from_dict",
    "load_experiment",
    "parse_override",
    "to_toml",
]


def __getattr__(name: str) -> object:
    if name in ("Override", "parse_override"):
        from gptkit.experiment import overrides

        return getattr(overrides, name)
    if name in ("experiment_from_dict", "load_experiment", "to_toml"):
        from gptkit.experiment import load

        return getattr(load, name)
    if name in __all__:
        from gptkit.experiment import schema

        return getattr(schema, name)
    raise AttributeError(f"module 'gptkit.experiment' has no attribute {name!r}")
