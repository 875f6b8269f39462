"""A run is a folder: made, found and locked (`folder`), recorded (`recording`), listed (`summaries`)."""

from gptkit.runs.folder import (
    CHECKPOINTS,
    DEFAULT_RUNS_FOLDER,
    EXPERIMENT,
    LOCK,
    METRICS,
    RECORD,
    SAMPLES,
    TOKENIZER,
    RunFolder,
    create_run,
    drop_torn_line,
    find_run,
    is_locked,
    lock_run,
    metric_row,
    refuse_links,
    run_ids,
    this_process,
)
from gptkit.runs.recording import Recorder
from gptkit.runs.summaries import RunSummary, summarise_runs

__all__ = [
    "CHECKPOINTS",
    "DEFAULT_RUNS_FOLDER",
    "EXPERIMENT",
    "LOCK",
    "METRICS",
    "RECORD",
    "SAMPLES",
    "TOKENIZER",
    "Recorder",
    "RunFolder",
    "RunSummary",
    "create_run",
    "drop_torn_line",
    "find_run",
    "is_locked",
    "lock_run",
    "metric_row",
    "refuse_links",
    "run_ids",
    "summarise_runs",
    "this_process",
]
