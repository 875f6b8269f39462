"""An experiment is a file: what it may say (`schema`), and how it is read and written (`loading`)."""

from gptkit.experiment.loading import experiment_from_dict, load_experiment, parse_override, to_toml
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
    "PluginTable",
    "SamplingSettings",
    "ScheduleSettings",
    "TrainingSettings",
    "experiment_from_dict",
    "load_experiment",
    "parse_override",
    "to_toml",
]
