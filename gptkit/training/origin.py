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

from gptkit.backend import Backend, choose_backend, fingerprint
from gptkit.data.corpus import Corpus, build_corpus, measure_text
from gptkit.events import Listener, RunStatus
from gptkit.experiment import Experiment, PluginTable
from gptkit.plugins import DataFolders, Tokenizer
from gptkit.runs import Run, RunRecord, tokenizer_hash
from gptkit.runs.environment import check_text, environment_differences, plugin_origins, recorded_backend
from gptkit.runs.record import (
    DatasetRecord,
    Environment,
    Hyperparameters,
    LoadedFrom,
    Process,
    TokenizerRecord,
)
from gptkit.tracking import ChosenTracker
from gptkit.training.setup import training_flops
from gptkit.training.text import LoadedText, recorded_text, telling


@dataclass(frozen=True)
class ResumedRun:
    """A run that trains again, with all that it needs; nothing in its folder was changed yet."""

    run: Run
    experiment: Experiment
    record: RunRecord
    corpus: Corpus
    backend: Backend
    differences: tuple[str, ...]  # from where it was trained before; none: it will come out the same

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer


def take_up(run: Run, folders: DataFolders, listener: Listener) -> ResumedRun:
    """The caller holds the lock. Raises DataError where the text is not the run's any more, CheckpointError
    where a file of the run is damaged, PluginError."""
    experiment = run.experiment()
    tokenizer = run.tokenizer(experiment)
    record = run.read_record()
    text = recorded_text(experiment.data, folders, listener)
    check_text(record, run.id, measure_text(text)[1])
    corpus = build_corpus(
        text,
        tokenizer,
        tokenizing=telling(listener, "tokenizing the text"),
        val_fraction=experiment.data.val_fraction,
        context_length=experiment.model.context_length,
    )
    backend = backend_again(experiment, record, tokenizer.vocab_size)
    different = environment_differences(record, experiment, backend)
    return ResumedRun(run, experiment, record, corpus, backend, different)


def backend_again(experiment: Experiment, record: RunRecord, vocab_size: int) -> Backend:
    """The backend that the run was trained with, where this machine has it; else a new choice."""
    chosen = choose_backend(experiment.training, training_flops(experiment, vocab_size))
    return recorded_backend(record, chosen)


def new_record(
    run: Run,
    experiment: Experiment,
    obtained: LoadedText,
    corpus: Corpus,
    backend: Backend,
    command: Sequence[str],
    loaded_from: LoadedFrom | None,
    trackers: Sequence[ChosenTracker] = (),
) -> RunRecord:
    """run.json as it is before the first step."""
    model, optimizer = experiment.model, experiment.optimizer
    record = RunRecord(
        format=1,
        id=run.id,
        name=experiment.name,
        status=RunStatus.STARTING,
        started=datetime.now().astimezone().isoformat(timespec="microseconds"),
        command=shlex.join(command),
        process=Process.current(),
        target_step=target_step(experiment),
        dataset=DatasetRecord(
            title=obtained.title,
            requested=_table(obtained.requested),
            used=_table(obtained.used),
            characters=corpus.characters,
            sha256=corpus.text_sha256,
            facts=obtained.facts,
        ),
        tokenizer=TokenizerRecord(
            type=experiment.tokenizer.type,
            vocab_size=corpus.tokenizer.vocab_size,
            sha256=tokenizer_hash(corpus.tokenizer),
            train_tokens=len(corpus.train),
            val_tokens=len(corpus.val),
        ),
        hyperparameters=Hyperparameters(
            context_length=model.context_length,
            n_embd=model.n_embd,
            n_head=model.n_head,
            n_layer=model.n_layer,
            dropout=model.dropout,
            position=model.position.type,
            batch_size=experiment.training.batch_size,
            optimizer=optimizer.type,
            learning_rate=optimizer.learning_rate,
        ),
        plugins=plugin_origins(experiment, trackers),
        environment=Environment.model_validate(fingerprint(backend)),
    )
    if loaded_from:
        record.loaded_from = loaded_from
    return record


def target_step(experiment: Experiment) -> int | None:
    """The step that the run is to reach, as recorded; None where the clock decides."""
    return experiment.training.max_steps if experiment.training.minutes is None else None


def _table(table: PluginTable) -> dict[str, Any]:
    return {"type": table.type, **table.options}
