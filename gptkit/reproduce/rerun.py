"""A run trained again from the start, as a new run beside it: does it come out the same?

In: a run. Out: a new run, and what differs between the two: tensors of the last checkpoint that both have,
recorded losses, tokenizer, environment. The first run stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptkit.data.corpus import measure_text
from gptkit.errors import CheckpointError, UsageError
from gptkit.events import RunStatus, Warned
from gptkit.experiment import Experiment
from gptkit.reproduce.diff import compare_losses, different_tensors
from gptkit.runs import Run, RunRecord, list_steps, lock_run, run_ids, tokenizer_hash
from gptkit.runs.checkpoint import Checkpoint, load_checkpoint
from gptkit.runs.environment import check_text, environment_differences, trackers_again
from gptkit.training.budget import MOST_STEPS
from gptkit.training.origin import backend_again
from gptkit.training.session import HERE, RunContext, TrainingResult
from gptkit.training.start import RunSetup, Source, corpus_of, new_run, source_of
from gptkit.training.text import obtain_text


@dataclass(frozen=True)
class Sameness:
    """A run and the same trained again. Identical where nothing is in `tensors` and `steps`."""

    step: int | None  # the last that both have a checkpoint of that verifies
    tensors: tuple[str, ...]  # of that step that differ, as "model: name" or "optimizer: name"
    compared: int  # losses that metrics.jsonl of the first has
    steps: tuple[int, ...]  # whose losses differ
    differences: tuple[str, ...]  # of the environment and the tokenizer, as "threads 2 -> 4"

    @property
    def identical(self) -> bool:
        return not self.tensors and not self.steps


@dataclass(frozen=True)
class Rerun:
    """`sameness` is None where a signal stopped it."""

    run: Run
    trained: TrainingResult
    sameness: Sameness | None


def rerun_run(run: Run, around: RunContext = HERE) -> Rerun:
    """Trains the run's experiment again, as far as the run came, and compares; the new run is beside it.

    Raises UsageError where it cannot come out the same, as the clock ended it; CheckpointError where there is
    nothing to compare with, or the run that it began from is not here; DataError, PluginError.
    """
    run.refuse_special_files()
    with lock_run(run):
        experiment, record = run.experiment(), run.read_record()
        _refuse_clock(run, experiment)
        reached = _reached(run, record)
        source = _source(run, experiment, record)
        obtained = obtain_text(experiment.data, around.folders, around.listener)
        check_text(record, run.id, measure_text(obtained.text)[1])
        corpus = corpus_of(experiment, obtained.text, source, around.listener)
        backend = backend_again(experiment, record, corpus.tokenizer.vocab_size)
        changed = environment_differences(record, experiment, backend)
        if record.tokenizer.sha256 != tokenizer_hash(corpus.tokenizer):
            changed += ("the tokenizer that the text gives",)
        evaluated = frozenset(row["step"] for row in run.metrics() if "val_loss" in row)
        trackers = trackers_again(experiment, record, lambda said: around.listener(Warned(said)))
        beginning = RunSetup(experiment, obtained, corpus, backend, source, trackers)
        beside = replace(around, runs_folder=run.path.parent)
        with new_run(beginning, beside, rerun_of=run.recorded_id) as session:
            final = max(experiment.training.max_steps, reached)
            trained = session.run_to(reached, final, evaluate_at=evaluated)
        if trained.status in (RunStatus.INTERRUPTED, RunStatus.TERMINATED):
            return Rerun(run, trained, None)
        return Rerun(run, trained, _compare(run, trained.run, reached, changed))


def _refuse_clock(run: Run, experiment: Experiment) -> None:
    minutes = experiment.training.minutes
    if minutes is not None:
        raise UsageError(
            f"run {run.id} trained for {minutes:g} minutes: how many steps that is depends on the moment, so "
            "it cannot come out the same.\nTo train it for as many steps as it made: "
            f"{run.train_again_command()} --steps N"
        )
    if experiment.seed == "random":
        raise CheckpointError(f"{run.experiment_file} does not say the seed, so it cannot come out the same.")


def _reached(run: Run, record: RunRecord) -> int:
    """The step that the run came to; of one that crashed, as far as its files tell."""
    ended = record.step is not None and not (record.status and record.status.is_active)
    known = (
        [record.step or 0]
        if ended
        else [*list_steps(run.checkpoints), *(row["step"] for row in run.metrics()[-1:])]
    )
    reached = max(known, default=0)
    if not 0 < reached <= MOST_STEPS:
        raise CheckpointError(
            f"run {run.id} made no step, so there is nothing to compare with.\n"
            f"To train it from the start: {run.train_again_command()}"
        )
    return reached


def _source(run: Run, experiment: Experiment, record: RunRecord) -> Source | None:
    """What the run began from, if from another run. Raises CheckpointError where that is not here."""
    if record.loaded_from is None:
        return None
    name, step = record.loaded_from.run, record.loaded_from.step
    if name not in run_ids(run.path.parent):
        raise CheckpointError(
            f"run {run.id} began from the weights of run {name}, which is not in {run.path.parent}; "
            "put it there to train this one again."
        )
    return source_of(Run(run.path.parent / str(name)), experiment, str(step))


def _compare(run: Run, again: Run, reached: int, changed: tuple[str, ...]) -> Sameness:
    compared, steps = compare_losses(run, again, 0, reached)
    step, pair = None, _last_pair(run, again)
    if pair:
        step = pair[0].step
    elif not compared:
        raise CheckpointError(
            f"run {run.id} has no checkpoint that {again.id} has too, and no losses: nothing can be compared."
        )
    return Sameness(step, different_tensors(*pair) if pair else (), compared, steps, changed)


def _last_pair(run: Run, again: Run) -> tuple[Checkpoint, Checkpoint] | None:
    """The newest checkpoint that both have and that verifies."""
    there = set(list_steps(again.checkpoints))
    for step in reversed(list_steps(run.checkpoints)):
        if step in there:
            try:
                was = load_checkpoint(run.checkpoints, step, run_id=run.recorded_id)
            except CheckpointError:
                continue
            return was, load_checkpoint(again.checkpoints, step, run_id=again.recorded_id)
    return None
