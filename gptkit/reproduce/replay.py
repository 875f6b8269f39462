"""Trains steps of a run again and compares the result bit for bit.

Input: a run. Output: a `Comparison`. `replay_run` trains the steps after the checkpoint before the last, in a
temporary folder that is removed whatever happens; `rerun_run` trains the whole run, as a new run beside it.
The run itself stays as it is.
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gptkit import events
from gptkit.backend import computing
from gptkit.data.corpus import Corpus
from gptkit.errors import CheckpointError, DataError, UsageError
from gptkit.experiment.identity import (
    Change,
    changes_recorded_losses,
    changes_weights,
    values_of,
    with_values,
)
from gptkit.experiment.load import recorded_experiment
from gptkit.experiment.schema import Experiment
from gptkit.files import disk, disk_errors
from gptkit.reproduce.diff import Comparison, compare_runs
from gptkit.runs import EXPERIMENT, TOKENIZER, Run, RunRecord, list_steps, lock_run, run_ids, tokenizer_hash
from gptkit.runs.checkpoint import Checkpoint, load_checkpoint
from gptkit.runs.environment import (
    check_tokens,
    environment_differences,
    experiment_at,
    experiment_changes,
    list_changes,
    refuse_changes,
    refuse_foreign_checkpoint,
    trackers_again,
)
from gptkit.runs.folder import verification_prefix
from gptkit.runs.record import plain_tables
from gptkit.training.budget import MOST_STEPS, TrainingBudget
from gptkit.training.context import RunContext
from gptkit.training.cost import out_of_memory
from gptkit.training.session import Session, TrainingResult, train_new
from gptkit.training.setup import (
    NewRun,
    ResumedRun,
    WeightSource,
    backend_again,
    evaluation_rule,
    prepare_resumed,
    read_progress,
    weight_source,
)
from gptkit.training.text import LoadedText, recorded_text, tokenize
from gptkit.training.trainer import StepPlan


@dataclass(frozen=True)
class Rerun:
    """A run, the new run that repeats it, and how they compare; None if a signal stopped the new one."""

    run: Run
    trained: TrainingResult
    comparison: Comparison | None


def replay_run(run: Run, context: RunContext) -> Comparison:
    """Trains again from the checkpoint before the last, or from the initial weights if there is only one.

    Raises CheckpointError if no checkpoint verifies, or the initial weights were those of another run;
    DataError, PluginError; StoppedError if a signal asked to stop.
    """
    run.refuse_special_files()
    run.require_training()
    with lock_run(run):
        setup = prepare_resumed(run, context)
        before, last = _newest_two(setup, context)
        run.check_tokenizer(last, setup.corpus.tokenizer)
        read_progress(last)
        setup = _as_trained(setup, before, last)
        if before is None and setup.record.loaded_from:
            raise CheckpointError(
                f"run {run.id} has one checkpoint that verifies, of step {last.step}, and began from the "
                "weights of another run: there is nothing to train it again from."
            )
        start = before.step if before else 0
        context.listener(events.ReplayStarted(start, last.step))
        with _temporary_run(run) as again:
            _train_again(setup, before, last.step, again, context)
            differences = _all_differences(setup.record, setup.differences, start, last.step)
            return compare_runs(run, again, start, last.step, differences)


def rerun_run(run: Run, context: RunContext) -> Rerun:
    """Trains the run's experiment again, to the step that the run reached, as a new run beside it.

    Raises UsageError for a time-budgeted run, which is not reproducible; CheckpointError if there is nothing
    to compare with, or the run that it began from is missing; DataError, PluginError.
    """
    run.refuse_special_files()
    run.require_training()
    with lock_run(run):
        experiment, record = run.experiment(), run.read_record()
        changes = experiment_changes(run.experiment_file, record, experiment)
        refuse_changes(run.experiment_file, changes, experiment)
        _require_reproducible(run, experiment, record)
        experiment = _with_recorded_losses(experiment, changes)
        reached = _reached_step(run, record)
        setup, differences = _prepare_again(run, experiment, record, context)
        plan = StepPlan(reached, max(experiment.training.max_steps, reached), _evaluated_steps(run))
        beside = replace(context, runs_folder=run.path.parent)
        trained = train_new(setup, beside, plan, rerun_of=run.recorded_id)
        if trained.stopped_by_signal:
            return Rerun(run, trained, None)
        differences = _all_differences(record, differences, 0, reached)
        losses = not any(resumed.changes for resumed in record.resumed)
        return Rerun(run, trained, compare_runs(run, trained.run, 0, reached, differences, losses=losses))


# The last steps, in a temporary folder


def _newest_two(setup: ResumedRun, context: RunContext) -> tuple[Checkpoint | None, Checkpoint]:
    """The two newest checkpoints that verify, older first; the older is None if there is only one."""
    run = setup.run
    run.require_checkpoint(setup.experiment, locked=True)
    found: list[Checkpoint] = []
    for step in reversed(list_steps(run.checkpoints)):
        try:
            found.append(load_checkpoint(run.checkpoints, step, run_id=run.recorded_id))
        except CheckpointError as error:
            context.warn(f"{error}\nIt is left out; 'gptkit resume' sets it aside.")
        if len(found) == 2:
            return found[1], found[0]
    if not found:
        raise CheckpointError(f"no checkpoint of run {run.id} verifies, so there is nothing to compare with.")
    return None, found[0]


def _as_trained(setup: ResumedRun, before: Checkpoint | None, last: Checkpoint) -> ResumedRun:
    """With the experiment that `last` was trained with. Raises CheckpointError where that is not one only."""
    run, record = setup.run, setup.record
    for checkpoint in (before, last):
        if checkpoint:
            refuse_foreign_checkpoint(run.id, record, checkpoint)
    values = plain_tables(last.state.get("experiment"))
    if values is None:  # of a version that did not record it
        return setup
    start = before.step if before else 0
    for resumed in record.resumed:
        if resumed.changes and resumed.step is not None and start < resumed.step < last.step:
            raise CheckpointError(
                f"run {run.id} went on with another experiment after step {resumed.step}, of which there is "
                f"no checkpoint: steps {start + 1} to {last.step} cannot be trained again."
            )
    name = f"state.json of step {last.step}"
    return replace(setup, experiment=recorded_experiment(values, name))


def _all_differences(record: RunRecord, now: Sequence[str], start: int, end: int) -> tuple[str, ...]:
    """Differences between here and where steps `start` + 1 to `end` were trained, in one session or several.

    `now` are those between here and where the run began.
    """
    sessions: list[tuple[int, Sequence[str]]] = [(0, ())]
    sessions += [(resumed.step or 0, resumed.differences) for resumed in record.resumed]
    found: dict[str, None] = {}
    for (begin, theirs), (until, _) in pairwise([*sessions, (MOST_STEPS, ())]):
        if begin < end and until > start:
            found |= dict.fromkeys(word for word in now if word not in theirs)
            found |= dict.fromkeys(f"{word} from step {begin + 1}" for word in theirs if word not in now)
    return tuple(found)


@contextmanager
def _temporary_run(run: Run) -> Iterator[Run]:
    """An empty run folder on the same disk, removed at the end, as are those that a kill has left."""
    runs, prefix = run.path.absolute().parent, verification_prefix(run.id)
    for left in runs.glob(f"{prefix}*"):
        if not left.is_symlink():
            disk.remove_folder(left)
    path = runs / f"{prefix}{secrets.token_hex(4)}"
    try:
        with disk_errors(f"creating a temporary folder in {runs}"):
            disk.make_new_folder(path)
        yield Run(path)
    finally:
        disk.remove_folder(path)


def _train_again(
    setup: ResumedRun, before: Checkpoint | None, end: int, again: Run, context: RunContext
) -> None:
    """Trains from `before`, or the initial weights, to step `end` in the folder `again`."""
    run, experiment = setup.run, _only_training(setup.experiment, end)
    setup = replace(setup, experiment=experiment)
    record = setup.record.model_copy(update={"id": setup.record.id or run.id})
    again.write_record(record)

    def listen(event: events.Event) -> None:
        """Events carry the run's own id and folder; where the copy is kept and how it ended is left out."""
        if isinstance(event, events.RunStarted):
            context.listener(replace(event, run_id=run.id, folder=run.path))
        elif not isinstance(event, events.RunFinished | events.CheckpointSaved):
            context.listener(event)

    quiet = replace(context, listener=listen, writes_report=False)
    budget = TrainingBudget.of(experiment.training, _recorded_estimates(run))
    with computing(setup.backend), out_of_memory(experiment):
        trainer = setup.build_trainer(setup.build_model(before), before, budget)
        session = Session(again, record, setup, trainer, quiet)
        trained = session.train(StepPlan(end, None, _evaluated_steps(run)))
    if trained.progress.step < end:
        trained.raise_if_stopped(f"; run {run.id} is as it was")


def _only_training(experiment: Experiment, end: int) -> Experiment:
    """The experiment without samples and intermediate checkpoints, and without an early end."""
    return experiment.model_copy(
        update={
            "checkpoints": experiment.checkpoints.model_copy(
                update={"save": True, "checkpoint_interval": end, "keep_last": 1, "keep_every": 0}
            ),
            "sampling": experiment.sampling.model_copy(update={"sample_interval": 0}),
            "evaluation": experiment.evaluation.model_copy(update={"stop_after_bad_evals": 0}),
        }
    )


def _recorded_estimates(run: Run) -> dict[int, int]:
    """The expected steps of a time-budgeted run, by the step at which they were logged."""
    found: dict[int, int] = {}
    for row in run.metrics_log.stream():
        expected: Any = row.get("expected_steps")
        if isinstance(expected, int) and 0 < expected <= MOST_STEPS:
            found[row["step"]] = expected
    return found


# The whole run, as a new one


def _require_reproducible(run: Run, experiment: Experiment, record: RunRecord) -> None:
    for resumed in record.resumed:
        now = experiment_at(record, resumed.step or 0)
        changes = [Change(one.field or "", one.old, one.new) for one in resumed.changes]
        if found := [change for change in changes if changes_weights(change, now)]:
            raise UsageError(
                f"run {run.id} went on with {list_changes(found)} after step {resumed.step}, so it cannot be "
                "trained again as one.\nIts last steps can: "
                f"{shlex.join(['gptkit', 'resume', str(run.path), '--verify'])}"
            )
    minutes = experiment.training.minutes
    if minutes is not None:
        raise UsageError(
            f"run {run.id} trained for {minutes:g} minutes: how many steps that is depends on the moment, so "
            "it is not reproducible.\nTo train it for as many steps as it made: "
            f"{run.train_again_command()} --steps N"
        )
    if experiment.seed == "random":
        raise CheckpointError(f"{run.experiment_file} has no seed, so the run is not reproducible.")


def _with_recorded_losses(experiment: Experiment, changes: Sequence[Change]) -> Experiment:
    """The experiment, edited where no weight depends on it, recording losses as the run did."""
    edited = {change.key: change.old for change in changes if changes_recorded_losses(change)}
    if not edited:
        return experiment
    return recorded_experiment(with_values(values_of(experiment), edited), "run.json")


def _reached_step(run: Run, record: RunRecord) -> int:
    """The step that the run reached; for one that crashed, the last that its files have."""
    reached = record.step
    if reached is None or (record.status and record.status.is_active):
        reached = max([0, *list_steps(run.checkpoints), *(row["step"] for row in run.metrics_log.stream())])
    if not 0 < reached <= MOST_STEPS:
        raise CheckpointError(
            f"run {run.id} made no step, so there is nothing to compare with.\n"
            f"To train it from the start: {run.train_again_command()}"
        )
    return reached


def _prepare_again(
    run: Run, experiment: Experiment, record: RunRecord, context: RunContext
) -> tuple[NewRun, tuple[str, ...]]:
    """What the run started with, as it is now, and what differs."""
    source = _recorded_source(run, experiment, record)
    text = recorded_text(run, experiment, record, context)
    corpus, same = _tokenize_again(run, experiment, record, text, context)
    check_tokens(record, corpus.ids_sha256)
    backend = backend_again(experiment, record, corpus.tokenizer.vocab_size)
    differences = environment_differences(record, experiment, backend)
    if not same:
        differences += ("the tokenizer trained on the text, of which the run's own was used",)
    trackers = trackers_again(experiment, record, context.warn)
    return NewRun(experiment, corpus, backend, trackers, text, source, evaluation_rule(record)), differences


def _tokenize_again(
    run: Run, experiment: Experiment, record: RunRecord, text: LoadedText, context: RunContext
) -> tuple[Corpus, bool]:
    """The text with the run's own tokenizer, and whether one that is trained again is the same.

    The run's own is taken where the file of one that is only read, as of `hf`, is no longer there.
    """
    own, same = run.tokenizer(experiment), True
    if tokenizer_hash(own) != record.tokenizer.sha256:
        raise CheckpointError(
            f"{run.path / TOKENIZER} is not the tokenizer that run.json recorded; put the run's own back."
        )
    if record.loaded_from is None:
        with suppress(DataError):
            corpus = tokenize(experiment, text, None, context)
            if same := tokenizer_hash(corpus.tokenizer) == tokenizer_hash(own):
                return corpus, True
    return tokenize(experiment, text, own, context), same


def _recorded_source(run: Run, experiment: Experiment, record: RunRecord) -> WeightSource | None:
    """The checkpoint of another run that the run began from. Raises CheckpointError if it is missing."""
    loaded = record.loaded_from
    if loaded is None:
        return None
    runs = run.path.parent
    path = runs / str(loaded.run)
    if loaded.run not in run_ids(runs):
        path = Path(experiment.init_from.run or "")
        if not (path.is_absolute() and os.path.isfile(path / EXPERIMENT)):
            raise CheckpointError(
                f"run {run.id} began from the weights of run {loaded.run}, which is not in {runs}; "
                "put it there to train this one again."
            )
    return weight_source(Run(path), experiment, str(loaded.step), runs, loaded.sha256)


def _evaluated_steps(run: Run) -> frozenset[int]:
    return frozenset(row["step"] for row in run.metrics_log.stream() if "val_loss" in row)
