"""What a run depends on beside its experiment: recorded when it starts, held against what is here later.

In: an experiment, its text and tokenizer, what computes. Out: run.json as it is before the first step; and
for a run that is taken up again the same backend, and whatever is not as it was.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gptkit.backend import MAX_THREADS, Backend, choose_backend, choose_device, fingerprint, no_compiler
from gptkit.data.corpus import Corpus, build_corpus, measure_text
from gptkit.errors import DataError, UsageError
from gptkit.events import Listener
from gptkit.experiment import Experiment, PluginTable
from gptkit.native import build_key
from gptkit.plugins import DataFolders, Tokenizer
from gptkit.runs import Run, this_process
from gptkit.runs.environment import all_plugins, changed_plugins, tracker_plugins
from gptkit.runs.load import run_experiment, run_tokenizer, tokenizer_hash
from gptkit.tracking import ChosenTracker
from gptkit.training.setup import training_flops
from gptkit.training.text import LoadedText, recorded_text, telling


@dataclass(frozen=True)
class ResumedRun:
    """A run that trains again, with all that it needs; nothing in its folder was changed yet."""

    run: Run
    experiment: Experiment
    record: dict[str, Any]
    corpus: Corpus
    backend: Backend
    differences: tuple[str, ...]  # from where it was trained before; none: it will come out the same

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer


def take_up(run: Run, folders: DataFolders, listener: Listener) -> ResumedRun:
    """The caller holds the lock. Raises DataError where the text is not the run's any more, CheckpointError
    where a file of the run is damaged, PluginError."""
    experiment = run_experiment(run)
    tokenizer = run_tokenizer(run, experiment)
    record = run.record()
    text = recorded_text(experiment.data, folders, listener)
    check_text(run, record, measure_text(text)[1])
    corpus = build_corpus(
        text,
        tokenizer,
        tokenizing=telling(listener, "tokenizing the text"),
        val_fraction=experiment.data.val_fraction,
        context_length=experiment.model.context_length,
    )
    backend = recorded_backend(experiment, record, tokenizer.vocab_size)
    return ResumedRun(run, experiment, record, corpus, backend, differences(experiment, record, backend))


def new_record(
    run: Run,
    experiment: Experiment,
    obtained: LoadedText,
    corpus: Corpus,
    backend: Backend,
    command: Sequence[str],
    loaded_from: dict[str, Any] | None,
    trackers: Sequence[ChosenTracker] = (),
) -> dict[str, Any]:
    """run.json as it is before the first step."""
    model, optimizer = experiment.model, experiment.optimizer
    record: dict[str, Any] = {
        "format": 1,
        "id": run.id,
        "name": experiment.name,
        "status": "starting",
        "started": datetime.now().astimezone().isoformat(timespec="microseconds"),
        "command": shlex.join(command),
        "process": this_process(),
        "target_step": target_step(experiment),
        "dataset": {
            "title": obtained.title,
            "requested": _table(obtained.requested),
            "used": _table(obtained.used),
            "characters": corpus.characters,
            "sha256": corpus.text_sha256,
            "facts": obtained.facts,
        },
        "tokenizer": {
            "type": experiment.tokenizer.type,
            "vocab_size": corpus.tokenizer.vocab_size,
            "sha256": tokenizer_hash(corpus.tokenizer),
            "train_tokens": len(corpus.train),
            "val_tokens": len(corpus.val),
        },
        "hyperparameters": {
            "context_length": model.context_length,
            "n_embd": model.n_embd,
            "n_head": model.n_head,
            "n_layer": model.n_layer,
            "dropout": model.dropout,
            "position": model.position.type,
            "batch_size": experiment.training.batch_size,
            "optimizer": optimizer.type,
            "learning_rate": optimizer.learning_rate,
        },
        "plugins": [plugin.to_json() for plugin in (*all_plugins(experiment), *tracker_plugins(trackers))],
        "environment": fingerprint(backend),
    }
    if loaded_from:
        record["loaded_from"] = loaded_from
    return record


def target_step(experiment: Experiment) -> int | None:
    """The step that the run is to reach, as recorded; None where the clock decides."""
    return experiment.training.max_steps if experiment.training.minutes is None else None


def _table(table: PluginTable) -> dict[str, Any]:
    return {"type": table.type, **table.options}


def check_text(run: Run, record: dict[str, Any], sha256: str) -> None:
    """Raises DataError where the text is not the run's any more."""
    dataset = record.get("dataset")
    recorded = dataset.get("sha256") if isinstance(dataset, dict) else "none recorded"
    if recorded != sha256:
        raise DataError(
            f"the text of run {run.id} has changed: it had SHA-256 {recorded}, now {sha256}.\n"
            "Put the old text back ('gptkit datasets fetch NAME --repair' for one that is downloaded), "
            "or train a new run."
        )


def recorded_backend(experiment: Experiment, record: dict[str, Any], vocab_size: int) -> Backend:
    """How the run computed so far, as far as this machine can; else what it would choose now."""
    was = record.get("environment", {})
    chosen = choose_backend(experiment.training, training_flops(experiment, vocab_size))
    try:
        recorded = Backend(
            str(was["device"]),
            str(was["precision"]),
            int(was["threads"]),
            bool(was["compile"]) and not no_compiler(str(was["device"])),
            build_key() if was["native"] else "",
        )
        here = recorded.device == choose_device(recorded.device)
        if here and recorded.precision in ("fp32", "bf16") and 1 <= recorded.threads <= MAX_THREADS:
            return recorded
    except (KeyError, TypeError, ValueError, UsageError):
        pass
    return chosen


def differences(experiment: Experiment, record: dict[str, Any], backend: Backend) -> tuple[str, ...]:
    """What differs from where the run was trained before, each as 'threads 2 -> 4'; nothing: exact."""
    was, now = record.get("environment"), fingerprint(backend)
    if not isinstance(was, dict):
        return ("environment not recorded",)
    changed = [f"{key} {was.get(key)} -> {value}" for key, value in now.items() if was.get(key) != value]
    return (*changed, *_plugin_differences(experiment, record))


def _plugin_differences(experiment: Experiment, record: dict[str, Any]) -> list[str]:
    """Plugins that come from elsewhere now, or in another version."""
    changes = changed_plugins(record, all_plugins(experiment))
    if changes is None:
        return ["plugins not recorded"]
    return [f"{changed.plugin.name} of {changed.before} -> {changed.now}" for changed in changes]
