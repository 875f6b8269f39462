"""An experiment is a file: what it may say (`schema`), and how it is read and written (`loading`).

`reading` has the TOML of it, `problems` what is said of a bad one, `places` the lines that are shown then.
"""

from gptkit.experiment.load import (
    FlagKey,
    experiment_from_dict,
    in_its_place,
    load_experiment,
    parse_override,
    said_of,
    to_toml,
)
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
    "FlagKey",
    "ModelSettings",
    "MuonSettings",
    "OptimizerSettings",
    "PluginTable",
    "SamplingSettings",
    "ScheduleSettings",
    "TrainingSettings",
    "experiment_from_dict",
    "in_its_place",
    "load_experiment",
    "parse_override",
    "said_of",
    "to_toml",
]
