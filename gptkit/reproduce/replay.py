"""The promise on the user's own machine: the last stretch of a run trained again, and compared bit for bit.

In: a run. Out: what differs between the stretch as it was recorded and as it comes out now. It is trained in
a folder beside the run, which is removed whatever happens; nothing in the run changes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from gptkit import events
from gptkit.backend import computing
from gptkit.errors import CheckpointError, RunInterruptedError, RunTerminatedError
from gptkit.experiment import Experiment
from gptkit.files import disk, disk_errors
from gptkit.model.build import build_model_for, build_new_model
from gptkit.reproduce.diff import compare_losses, different_tensors
from gptkit.runs import Run, list_steps, lock_run
from gptkit.runs.checkpoint import Checkpoint, load_checkpoint
from gptkit.runs.folder import verification_prefix
from gptkit.training.budget import MOST_STEPS, TrainingBudget
from gptkit.training.origin import ResumedRun, take_up
from gptkit.training.session import HERE, RunContext, Session, progress_of
from gptkit.training.setup import check_memory, out_of_memory

_STOPPED = {"interrupted": RunInterruptedError, "terminated": RunTerminatedError}


@dataclass(frozen=True)
class Replay:
    """A stretch trained again. It came out identical where nothing is in `tensors` and `steps`."""

    start: int  # the checkpoint that it was trained from; 0: the initial weights
    end: int
    tensors: tuple[str, ...]  # of the checkpoint of `end` that differ, as "model: name" or "optimizer: name"
    compared: int  # losses that metrics.jsonl has of these steps
    steps: tuple[int, ...]  # whose losses differ
    differences: tuple[str, ...]  # of the environment, as in ResumeChecked

    @property
    def identical(self) -> bool:
        return not self.tensors and not self.steps


def replay_run(run: Run, around: RunContext = HERE) -> Replay:
    """Trains again from the checkpoint before the last, or from the initial weights where there is one alone.

    Raises CheckpointError where no checkpoint verifies, or the initial weights were another run's; DataError,
    PluginError; StoppedError where a signal asked to stop.
    """
    run.refuse_special_files()
    with lock_run(run):
        taken = take_up(run, around.folders, around.listener)
        before, last = _stretch(taken, around.listener)
        run.check_tokenizer(last, taken.tokenizer)
        if before is None and taken.record.loaded_from:
            raise CheckpointError(
                f"run {run.id} has one checkpoint that verifies, of step {last.step}, and began from the "
                "weights of another run: there is nothing to train it again from."
            )
        try:
            progress_of(last)
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"step {last.step} of {run.id} does not fit the run: {error}") from error
        start = before.step if before else 0
        around.listener(events.ReplayStarted(start, last.step))
        with _place_beside(run) as place:
            again = _train_again(taken, before, last, place, around)
            compared, steps = compare_losses(run, place, start, last.step)
        return Replay(start, last.step, different_tensors(last, again), compared, steps, taken.differences)


def _stretch(taken: ResumedRun, listener: events.Listener) -> tuple[Checkpoint | None, Checkpoint]:
    """The two newest checkpoints that verify; the first of them is None where there is but one."""
    run = taken.run
    run.require_checkpoint(taken.experiment)
    found: list[Checkpoint] = []
    for step in reversed(list_steps(run.checkpoints)):
        try:
            found.append(load_checkpoint(run.checkpoints, step, run_id=run.recorded_id))
        except CheckpointError as error:
            listener(events.Warned(f"{error}\nIt is left out; 'gptkit resume' sets it aside."))
        if len(found) == 2:
            return found[1], found[0]
    if not found:
        raise CheckpointError(f"no checkpoint of run {run.id} verifies, so there is nothing to compare with.")
    return None, found[0]


@contextmanager
def _place_beside(run: Run) -> Iterator[Run]:
    """An empty run folder on the same disk, under a name that no run has; what a kill has left is removed."""
    runs = run.path.absolute().parent
    name = verification_prefix(run.id)
    for left in runs.glob(f"{name}*"):
        if not left.is_symlink():
            disk.remove_folder(left)
    place = runs / f"{name}{secrets.token_hex(4)}"
    try:
        with disk_errors(f"making a temporary folder in {runs}"):
            disk.make_new_folder(place)
        yield Run(place)
    finally:
        disk.remove_folder(place)


def _train_again(
    taken: ResumedRun, before: Checkpoint | None, last: Checkpoint, place: Run, around: RunContext
) -> Checkpoint:
    """The checkpoint of the last step, as it comes out now."""
    experiment, run = _quiet(taken.experiment, last.step), taken.run
    made_as = run.recorded_id
    record = taken.record.model_copy(update={"id": made_as})
    place.write_record(record)
    rows = {row["step"]: row for row in run.metrics()}
    budget = TrainingBudget.of(experiment.training, _whole(rows, "expected_steps"))

    def listen(event: events.Event) -> None:
        """What happens there, told of the run; where it is kept and how it ended is nobody's concern."""
        if isinstance(event, events.RunStarted):
            around.listener(replace(event, run_id=run.id, folder=run.path))
        elif not isinstance(event, events.RunFinished | events.CheckpointSaved):
            around.listener(event)

    vocab_size = taken.tokenizer.vocab_size
    with computing(taken.backend), out_of_memory(experiment):
        if before:
            model = build_model_for(experiment, vocab_size, before.model, f"run {run.id}")
        else:
            check_memory(experiment, vocab_size)
            model = build_new_model(experiment, vocab_size, int(experiment.seed))
        session = Session(
            place,
            experiment,
            taken.corpus,
            taken.backend,
            model,
            record,
            replace(around, listener=listen, writes_report=False),
            resumed=before,
            budget=budget,
        )
        evaluated = [step for step, row in rows.items() if "val_loss" in row]
        trained = session.run_to(last.step, None, evaluate_at=frozenset(evaluated))
    if trained.progress.step < last.step:
        stop = _STOPPED.get(trained.status, RunInterruptedError)
        raise stop(f"{trained.status} at step {trained.progress.step}; run {run.id} is as it was")
    return load_checkpoint(place.checkpoints, last.step, run_id=made_as)


def _quiet(experiment: Experiment, end: int) -> Experiment:
    """The experiment without what costs time or space and changes no weight, and without ends of its own."""
    return experiment.model_copy(
        update={
            "checkpoints": experiment.checkpoints.model_copy(
                update={"save": True, "checkpoint_interval": end, "keep_last": 1, "keep_every": 0}
            ),
            "sampling": experiment.sampling.model_copy(update={"sample_interval": 0}),
            "evaluation": experiment.evaluation.model_copy(update={"stop_after_bad_evals": 0}),
        }
    )


def _whole(rows: dict[int, dict[str, Any]], key: str) -> dict[int, int]:
    return {
        step: row[key]
        for step, row in rows.items()
        if isinstance(row.get(key), int) and 0 < row[key] <= MOST_STEPS
    }
