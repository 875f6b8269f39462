"""From an experiment, or from a run, to everything that its training needs.

Input: a checked experiment, or a run's folder. Output: a `NewRun` or a `ResumedRun` (text, tokenizer,
backend, trackers), and a `Trainer` once there is a model. Writes nothing. Knows nothing of the training loop.
"""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

import torch

from gptkit.backend import Backend, choose_backend, fingerprint
from gptkit.data.corpus import Corpus, build_corpus
from gptkit.data.sampler import BatchSampler, EvaluationRule
from gptkit.data.source import Text
from gptkit.errors import (
    CheckpointError,
    ExperimentError,
    UsageError,
)
from gptkit.events import RunStatus
from gptkit.experiment.identity import BACKEND, Change, changes_weights, values_of
from gptkit.experiment.load import other_settings_of_weights
from gptkit.experiment.overrides import Override
from gptkit.experiment.schema import (
    Experiment,
    InitFromSettings,
    PluginTable,
    SamplingSettings,
)
from gptkit.measurements import with_fastest
from gptkit.model import GPT
from gptkit.model.build import build_model_for, build_new_model, freeze, load_weights, require_finite
from gptkit.plugins import Tokenizer
from gptkit.plugins.tokenizer import Ids
from gptkit.runs import Process, Run, RunRecord, find_run, tokenizer_hash
from gptkit.runs.checkpoint import Checkpoint
from gptkit.runs.environment import (
    check_tokens,
    environment_differences,
    experiment_changes,
    new_trackers,
    plugin_origins,
    record_experiment,
    recorded_backend,
    refuse_changes,
)
from gptkit.runs.record import DatasetRecord, Environment, Hyperparameters, LoadedFrom, TokenizerRecord
from gptkit.tracking import ChosenTracker
from gptkit.training.budget import TrainingBudget, TrainingProgress
from gptkit.training.context import RunContext
from gptkit.training.cost import check_memory, training_flops
from gptkit.training.distributed import ONE_PROCESS, Processes, rank_batches, require_device
from gptkit.training.optim import Optimizer, flatten_parameters
from gptkit.training.parameters import FlatParameters
from gptkit.training.text import LoadedText, dataset_title, load_text, recorded_text, tokenize, wrong_stream
from gptkit.training.trainer import Trainer
from gptkit.words import quote_characters

_STREAMED = 300  # ids of the val split that are decoded one by one before training


@dataclass(frozen=True)
class WeightSource:
    """A checkpoint of another run, whose weights and tokenizer a new run starts with."""

    run: Run
    experiment: Experiment
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    name: str  # by which it is found again: its id, or its folder where that is not among the new run's


@dataclass(frozen=True)
class RunSetup:
    """What a run trains with. In the experiment every "auto" and "random" is resolved."""

    experiment: Experiment
    corpus: Corpus
    backend: Backend
    trackers: Sequence[ChosenTracker]

    @property
    def vocab_size(self) -> int:
        return self.corpus.tokenizer.vocab_size

    @property
    def seed(self) -> int:
        return int(self.experiment.seed)

    def initial_model(self) -> GPT:
        """With the experiment's frozen parts.

        Raises OutOfMemoryError before memory is allocated that the machine does not have, ExperimentError for
        the name of a part that it does not have.
        """
        check_memory(self.experiment, self.vocab_size)
        model = build_new_model(self.experiment, self.vocab_size, self.seed)
        freeze(model, self.experiment.training.freeze)
        return model

    def build_trainer(
        self,
        model: GPT,
        checkpoint: Checkpoint | None = None,
        budget: TrainingBudget | None = None,
        processes: Processes = ONE_PROCESS,
    ) -> Trainer:
        """As the function `build_trainer`, on the train split."""
        ids, seed = self.corpus.train, self.seed
        return build_trainer(self.experiment, self.backend, model, ids, seed, checkpoint, budget, processes)


@dataclass(frozen=True)
class NewRun(RunSetup):
    """What a run starts with; it has no folder yet."""

    text: LoadedText
    source: WeightSource | None  # None: initial weights
    evaluation: EvaluationRule = EvaluationRule.EVERY_TOKEN

    def build_model(self) -> GPT:
        """Raises OutOfMemoryError."""
        model = self.initial_model()
        if self.source:
            source = self.source
            load_weights(model, source.checkpoint.model, _whose(source.run, source.checkpoint))
        return model


@dataclass(frozen=True)
class ResumedRun(RunSetup):
    """What an existing run continues with; nothing in its folder has changed yet."""

    run: Run
    record: RunRecord
    differences: tuple[str, ...]  # from the environment that it was trained in; empty: exact
    changes: tuple[Change, ...] = ()  # of the experiment since it was recorded

    @property
    def inexact(self) -> tuple[str, ...]:
        """Why the run will not have the weights that it would have had if undisturbed; empty: exact."""
        now = values_of(self.experiment)
        changed = tuple(
            str(change)
            for change in self.changes
            if changes_weights(change, now) and change.key not in BACKEND  # which `differences` has
        )
        clock = ("the schedule follows the clock",) if self.experiment.training.minutes is not None else ()
        return (*changed, *self.differences, *clock)

    def build_model(self, checkpoint: Checkpoint | None) -> GPT:
        """The model that `build_trainer` continues from a checkpoint; None: the initial model.

        Raises CheckpointError if the checkpoint is not of this model, OutOfMemoryError.
        """
        if checkpoint is None:
            return self.initial_model()
        whose = _whose(self.run, checkpoint)
        model = build_model_for(self.experiment, self.vocab_size, checkpoint.model, whose)
        freeze(model, self.experiment.training.freeze)
        return model


def _whose(run: Run, checkpoint: Checkpoint) -> str:
    return f"run {run.id}, step {checkpoint.step},"


def prepare_new(experiment: Experiment, context: RunContext) -> NewRun:
    """Reads and tokenizes the text, and resolves the experiment. Raises a subclass of GptkitError."""
    rank_batches(experiment.training, context.processes.count)  # refuses before the text is read
    source = _source_of(experiment, context)
    trackers = new_trackers(experiment)
    text = load_text(experiment.data, context)
    corpus = tokenize(experiment, text, source.tokenizer if source else None, context)
    experiment = _resolve(experiment, text, corpus, source)
    if wrong := wrong_stream(corpus.tokenizer, corpus.val[:_STREAMED].tolist()):
        name = experiment.tokenizer.type
        context.warn(
            f"tokenizer {name!r}: {wrong}\nSamples, and what 'gptkit generate' writes, will lack text. "
            f"To see what to change: gptkit plugins check {name}"
        )
    vocab_size = corpus.tokenizer.vocab_size
    backend = _choose_backend(experiment, vocab_size, context.processes)
    backend = with_fastest(backend, experiment, vocab_size)
    return NewRun(experiment, corpus, backend, trackers, text, source)


def prepare_resumed(run: Run, context: RunContext, overrides: Sequence[Override] = ()) -> ResumedRun:
    """Reads a run and its text; the caller holds the lock. Its trackers are left out.

    `overrides` are fields to continue with other values of. Raises DataError if the text has changed,
    CheckpointError if a file of the run is damaged, or its experiment is not the recorded one, PluginError,
    ExperimentError.
    """
    experiment = run.experiment(overrides)
    record = run.read_record()
    set_keys = {override.key for override in overrides}
    changes = experiment_changes(run.experiment_file, record, experiment, set_keys)
    refuse_changes(run.experiment_file, changes, experiment, set_keys)
    if set_keys:
        _refuse_other_weights(run, experiment)
    tokenizer = run.tokenizer(experiment)
    text = recorded_text(run, experiment, record, context)
    if any(key.startswith(("data.dataset", "data.val.")) for key in set_keys):
        data = experiment.data.model_copy(update={"dataset": text.used, "val": text.val_used})
        experiment = experiment.model_copy(update={"data": data})
    corpus = build_corpus(
        text.text,
        tokenizer,
        tokenizing=context.progress("tokenizing the text"),
        warn=context.warn,
        val_fraction=experiment.data.val_fraction,
        val_text=text.val,
        context_length=experiment.model.context_length,
    )
    check_tokens(record, corpus.ids_sha256)
    if corpus.lost is not None:  # which 0.1.0 did not record
        record_lost_text(record, corpus)
    if set_keys:
        experiment = _with_steps_and_seed(experiment, corpus)
        changes = experiment_changes(run.experiment_file, record, experiment, set_keys)
    set_now = {change.key for change in changes}
    backend = backend_again(experiment, record, tokenizer.vocab_size, set_now, context.processes)
    rank_batches(experiment.training, context.processes.count)
    differences = environment_differences(record, experiment, backend)
    return ResumedRun(experiment, corpus, backend, (), run, record, differences, changes)


def _refuse_other_weights(run: Run, experiment: Experiment) -> None:
    """Raises UsageError if the run's weights do not fit an experiment of which fields were set."""
    others = other_settings_of_weights(run.experiment(), experiment)
    if others:
        differences = "; ".join(f"{key} is {there}, not {here}" for key, (there, here) in others.items())
        raise UsageError(
            f"--set cannot change what the run's weights depend on: {differences}.\n"
            "Train a new run with it: gptkit train EXPERIMENT --set …",
            field=next(iter(others)),
        )


# The experiment


def _resolve(
    experiment: Experiment, text: LoadedText, corpus: Corpus, source: WeightSource | None
) -> Experiment:
    """The experiment as it is recorded: steps for epochs, a number for a random seed, the dataset in use."""
    experiment = _with_steps_and_seed(experiment, corpus)
    init_from = experiment.init_from
    if source:
        step, sha256 = source.checkpoint.step, source.checkpoint.weights_sha256
        init_from = InitFromSettings(run=source.name, checkpoint=step, sha256=sha256)
    prompt = _resolve_prompt(experiment.sampling, text.text, corpus)
    return experiment.model_copy(
        update={
            "data": experiment.data.model_copy(
                update={"dataset": text.used, "fallback": None, "val": text.val_used}
            ),
            "tokenizer": source.experiment.tokenizer if source else experiment.tokenizer,
            "init_from": init_from,
            "sampling": experiment.sampling.model_copy(update={"prompt": prompt}),
        }
    )


def _with_steps_and_seed(experiment: Experiment, corpus: Corpus) -> Experiment:
    training, seed = experiment.training, experiment.seed
    if training.epochs is not None:
        steps = ceil(training.epochs * len(corpus.train) / experiment.tokens_per_step)
        training = training.model_copy(update={"max_steps": max(1, steps), "epochs": None})
    if seed == "random":
        seed = random.SystemRandom().randrange(2**31)
    return experiment.model_copy(update={"training": training, "seed": seed})


def _resolve_prompt(sampling: SamplingSettings, text: Text, corpus: Corpus) -> str:
    """A prompt that has tokens: that of the experiment, or the beginning of the text instead of the default.

    Raises ExperimentError for one that was chosen and has none, or has characters that are not in the text.
    """
    tokenizer, prompt = corpus.tokenizer, sampling.prompt
    unknown = tokenizer.unknown_characters(prompt)
    if not unknown and len(tokenizer.encode(prompt)):
        return prompt
    if "prompt" in sampling.model_fields_set:
        if unknown:
            problem = f"has characters that are not in the text: {quote_characters(unknown)}; leave them out"
        else:
            problem = f"= {prompt!r:.60} has no tokens with this tokenizer; use text that has some"
        raise ExperimentError(f"sampling.prompt {problem}", field="sampling.prompt")
    if tokenizer.lossless and len(tokenizer.encode(text.read(0, 1))):
        return text.read(0, 1)
    first = corpus.train[:1].tolist()
    token = tokenizer.decode(first)
    if not tokenizer.unknown_characters(token) and tokenizer.encode(token).tolist() == first:
        return token
    beginning = text.read(0, min(2**20, text.characters))
    lengths = (2**power for power in range(21))  # the shortest beginning that has tokens, roughly
    return next((beginning[:n] for n in lengths if len(tokenizer.encode(beginning[:n]))), prompt)


def target_step(experiment: Experiment) -> int | None:
    """The last step of the schedule, as recorded; None if the clock decides."""
    return experiment.training.max_steps if experiment.training.minutes is None else None


# Weights of another run


def _source_of(experiment: Experiment, context: RunContext) -> WeightSource | None:
    """The checkpoint that the experiment starts from; None: initial weights. Raises UsageError."""
    init = experiment.init_from
    if init.run is None:
        return None
    try:
        run = find_run(init.run, context.runs_folder)
    except UsageError as error:
        error.field = "init_from.run"
        raise
    which = "best" if init.checkpoint is None else str(init.checkpoint)
    return weight_source(run, experiment, which, context.runs_folder, init.sha256)


def weight_source(
    run: Run, experiment: Experiment, which: str, runs_folder: Path, sha256: str | None = None
) -> WeightSource:
    """A checkpoint of `run` to start from; `sha256`: of its weights, if known.

    Raises UsageError if it does not fit the experiment, CheckpointError if it has other weights.
    """
    theirs = run.experiment()
    if others := other_settings_of_weights(theirs, experiment):
        differences = "; ".join(
            f"{key} is {there} there, {here} here" for key, (there, here) in others.items()
        )
        raise UsageError(
            f"the weights of {run.id} do not fit: {differences}.\n"
            "Leave these settings out: --load takes those of the run.",
            field=next(iter(others)),
        )
    checkpoint = run.checkpoint(which)
    if sha256 is not None and checkpoint.weights_sha256 != sha256:
        raise CheckpointError(
            f"step {checkpoint.step} of run {run.id} does not have the weights that init_from.sha256 names.\n"
            f"To start from those that it has now: --load {shlex.quote(str(run.path))}"
        )
    beside = os.path.abspath(run.path.parent) == os.path.abspath(runs_folder)
    name = run.id if beside else os.path.abspath(run.path)
    return WeightSource(run, theirs, run.tokenizer(theirs), checkpoint, name)


# Backend


def backend_again(
    experiment: Experiment,
    record: RunRecord,
    vocab_size: int,
    set_now: Container[str] = (),
    processes: Processes = ONE_PROCESS,
) -> Backend:
    """The backend that the run was trained with, where this machine has it; otherwise a new choice.

    Fields of the experiment that are `set_now` count as they are.
    """
    chosen = _choose_backend(experiment, vocab_size, processes)
    return recorded_backend(record, chosen, set_now)


def _choose_backend(experiment: Experiment, vocab_size: int, processes: Processes) -> Backend:
    flops = training_flops(experiment, vocab_size)
    backend = choose_backend(experiment.training, flops, processes=processes.count, here=processes.here)
    require_device(backend.device, processes)
    return backend


# Trainer


def build_trainer(
    experiment: Experiment,
    backend: Backend,
    model: GPT,
    ids: Ids,
    seed: int,
    checkpoint: Checkpoint | None = None,
    budget: TrainingBudget | None = None,
    processes: Processes = ONE_PROCESS,
) -> Trainer:
    """A trainer of `model`, moved to the backend's device, on the ids of a split.

    It takes over the model's parameters. With a checkpoint it continues from there; raises CheckpointError
    where that is not of this model. Without a budget it trains as long as the experiment has it.
    """
    model.to(backend.device)
    parameters = flatten_parameters(model, backend.dtype, experiment.optimizer)
    optimizer = Optimizer(parameters, experiment.optimizer)
    progress = TrainingProgress()
    if checkpoint:
        progress = restore_checkpoint(checkpoint, parameters, optimizer)
    sampler = BatchSampler(
        ids,
        context_length=experiment.model.context_length,
        batch_size=rank_batches(experiment.training, processes.count).batch_size,
        seed=seed,
    )
    budget = budget or TrainingBudget.of(experiment.training)
    return Trainer(experiment, model, parameters, optimizer, sampler, seed, progress, budget, processes)


def restore_checkpoint(
    checkpoint: Checkpoint, parameters: FlatParameters, optimizer: Optimizer
) -> TrainingProgress:
    """Loads weights and optimizer state; returns the progress. Raises CheckpointError if they do not fit."""
    progress = read_progress(checkpoint)
    require_finite(checkpoint.optimizer, f"the optimizer's values of step {checkpoint.step}")
    try:
        parameters.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"step {checkpoint.step} does not fit the run: {error}") from error
    return progress


def read_progress(checkpoint: Checkpoint) -> TrainingProgress:
    """Raises CheckpointError if the checkpoint has none, or that of another step."""
    try:
        progress = TrainingProgress.from_json(checkpoint.state.get("progress"))
        if progress.step != checkpoint.step:
            raise ValueError(f"its progress is that of step {progress.step}")
    except ValueError as error:
        raise CheckpointError(f"step {checkpoint.step} does not fit the run: {error}") from error
    return progress


# run.json


def new_record(run: Run, setup: NewRun, context: RunContext, rerun_of: str | None = None) -> RunRecord:
    """run.json before the first step."""
    experiment, corpus, text = setup.experiment, setup.corpus, setup.text
    model = experiment.model
    record = RunRecord(
        format=1,
        id=run.id,
        name=experiment.name,
        status=RunStatus.STARTING,
        started=datetime.now().astimezone().isoformat(timespec="microseconds"),
        command=shlex.join(context.command),
        process=Process.current(),
        target_step=target_step(experiment),
        dataset=DatasetRecord(
            title=dataset_title(text.used),
            requested=_as_table(text.requested),
            used=_as_table(text.used),
            characters=corpus.characters,
            sha256=corpus.text_sha256,
            folders=[os.path.abspath(folder) for folder in (Path(), *context.folders.search)],
            facts=text.facts,
            val=_as_table(text.val_used) if text.val_used is not None else {},
            val_sha256=corpus.val_sha256,
        ),
        tokenizer=TokenizerRecord(
            type=experiment.tokenizer.type,
            vocab_size=corpus.tokenizer.vocab_size,
            sha256=tokenizer_hash(corpus.tokenizer),
            ids_sha256=corpus.ids_sha256,
            train_tokens=len(corpus.train),
            val_tokens=len(corpus.val),
        ),
        evaluation=str(setup.evaluation),
        hyperparameters=Hyperparameters(
            context_length=model.context_length,
            n_embd=model.n_embd,
            n_head=model.n_head,
            n_layer=model.n_layer,
            dropout=model.dropout,
            position=model.position.type,
            batch_size=experiment.training.batch_size,
            optimizer=experiment.optimizer.type,
            learning_rate=experiment.optimizer.learning_rate,
        ),
        plugins=plugin_origins(experiment, setup.trackers),
        environment=Environment.model_validate(fingerprint(setup.backend)),
    )
    record_lost_text(record, corpus)
    record_experiment(record, experiment)
    if setup.source:
        source = setup.source.checkpoint
        record.loaded_from = LoadedFrom(
            run=setup.source.run.id, step=source.step, sha256=source.weights_sha256
        )
    if rerun_of is not None:
        record.rerun_of = rerun_of
    return record


def record_lost_text(record: RunRecord, corpus: Corpus) -> None:
    """Records what the tokenizer does not return of the val split."""
    lost = corpus.lost
    record.tokenizer.lossless = lost is None
    if lost is not None:
        record.tokenizer.lost, record.tokenizer.example = lost.fraction, lost.example


def evaluation_rule(record: RunRecord) -> EvaluationRule:
    """The rule that a run's recorded val losses follow."""
    try:
        return EvaluationRule(record.evaluation or EvaluationRule.WHOLE_WINDOWS)
    except ValueError:  # of a later version, or damaged
        return EvaluationRule.EVERY_TOKEN


def _as_table(table: PluginTable) -> dict[str, Any]:
    return {"type": table.type, **table.options}
