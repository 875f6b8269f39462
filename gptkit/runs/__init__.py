"""A run is a folder: created and found (`store`), read, locked, and recorded while it trains (`run`).

Its files: names (`folder`), run.json (`record`), metrics.jsonl (`metrics`), checkpoints (`checkpoint`). Many
runs: listed (`summary`), compared (`compare`), removed (`cleanup`). What a result depends on: `environment`.
"""

from gptkit.runs.folder import (
    CHECKPOINTS,
    DEFAULT_RUNS_FOLDER,
    EVALUATIONS,
    EXPERIMENT,
    LOCK,
    METRICS,
    RECORD,
    REPORT,
    SAMPLES,
    TOKENIZER,
    list_steps,
    step_folder,
)
from gptkit.runs.metrics import Curve, Curves, Metrics
from gptkit.runs.record import Evaluations, Process, RunRecord
from gptkit.runs.run import LoadedModel, Recorder, Run, Sample, is_locked, lock_run, tokenizer_hash
from gptkit.runs.store import create_run, find_run, run_ids
from gptkit.runs.summary import RunDetails, RunSummary

__all__ = [
    "CHECKPOINTS",
    "DEFAULT_RUNS_FOLDER",
    "EVALUATIONS",
    "EXPERIMENT",
    "LOCK",
    "METRICS",
    "RECORD",
    "REPORT",
    "SAMPLES",
    "TOKENIZER",
    "Curve",
    "Curves",
    "Evaluations",
    "LoadedModel",
    "Metrics",
    "Process",
    "Recorder",
    "Run",
    "RunDetails",
    "RunRecord",
    "RunSummary",
    "Sample",
    "create_run",
    "find_run",
    "is_locked",
    "list_steps",
    "lock_run",
    "run_ids",
    "step_folder",
    "tokenizer_hash",
]
