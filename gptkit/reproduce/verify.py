"""Checks every file of a run: against its hashes, and against the run that it is part of.

Input: a run's folder. Output: a finding per file or checkpoint. Nothing in the run is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

import torch

from gptkit.errors import CheckpointError, GptkitError, OutOfMemoryError, PluginError
from gptkit.events import RunStatus
from gptkit.experiment.identity import changes_weights, differences, hash_of
from gptkit.experiment.load import read_toml
from gptkit.experiment.schema import Experiment
from gptkit.files import sha256, to_json
from gptkit.model.build import build_model_for, freeze
from gptkit.plugins import Tokenizer
from gptkit.runs import (
    CHECKPOINTS,
    EVALUATIONS,
    METRICS,
    RECORD,
    SAMPLES,
    TOKENIZER,
    Run,
    RunRecord,
    is_locked,
    list_steps,
)
from gptkit.runs.checkpoint import Checkpoint, load_checkpoint
from gptkit.runs.environment import (
    experiment_changes,
    list_changes,
    refuse_changes,
    refuse_foreign_checkpoint,
)
from gptkit.runs.folder import DAMAGED, TEMPORARY, TRASH, entries, sample_name
from gptkit.runs.metrics import parse_row
from gptkit.training.optim import Optimizer, flatten_parameters
from gptkit.training.parameters import FlatParameters
from gptkit.training.setup import restore_checkpoint

_MAX_TORN = 100_000  # bytes of a last line that a crash cut off
_MAX_SAMPLE = 25_000_000  # characters
_LEFTOVERS = {
    TEMPORARY: "left by a save that was cut off; 'gptkit resume' removes it",
    TRASH: "left by a removal that was cut off; 'gptkit resume' removes it",
    DAMAGED: "a checkpoint that was set aside; remove it when you no longer need it",
}


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"  # harmless
    SKIPPED = "skip"  # not checked, as a plugin of the run cannot be used here
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    name: str  # of the file, or "checkpoint STEP"
    message: str = ""


def verify_run(run: Run) -> Iterator[Finding]:
    """Every file of a run, one after another. Raises CheckpointError for a folder that has links in it."""
    run.refuse_special_files()
    if is_locked(run):
        yield Finding(
            Verdict.NOTE, run.id, "is being trained now; files that change meanwhile may be found bad"
        )
    record, finding = _check_record(run)
    experiment, of_experiment = _check_experiment(run, record)
    yield of_experiment
    yield finding
    tokenizer, finding = _check_tokenizer(run, experiment, record)
    yield finding
    yield _check_metrics(run)
    yield from _check_evaluations(run, record)
    yield from _check_checkpoints(run, experiment, tokenizer, record)
    yield from _check_samples(run)
    yield from _check_trackers(run, experiment)
    for folder in (run.path, run.checkpoints, run.samples):
        for entry in sorted(entries(folder)):
            for prefix, message in _LEFTOVERS.items():
                if entry.name.startswith(prefix):
                    yield Finding(Verdict.NOTE, str(entry.relative_to(run.path)), message)


def _check_record(run: Run) -> tuple[RunRecord, Finding]:
    """The record is empty where it cannot be read."""
    try:
        record = run.read_record()
    except GptkitError as error:
        message = f"{error}; it records how the run was trained, and on what"
        return RunRecord(), Finding(Verdict.BAD, RECORD, message)
    if record.experiment is not None and hash_of(record.experiment) != record.experiment_sha256:
        message = "its experiment is not that of its experiment_sha256: it was edited"
        return record, Finding(Verdict.BAD, RECORD, message)
    return record, Finding(Verdict.OK, RECORD, f"{record.status or 'no status'}, step {record.step or 0}")


def _check_experiment(run: Run, record: RunRecord) -> tuple[Experiment | None, Finding]:
    name = run.experiment_file.name
    try:
        experiment = run.experiment()
    except PluginError as error:
        written = read_toml(run.experiment_file)[1]
        changes = differences(record.experiment, written) if record.experiment else ()
        if found := [change for change in changes if changes_weights(change, written)]:
            message = f"it is not what the run was trained with: {list_changes(found)}"
            return None, Finding(Verdict.BAD, name, message)
        return None, Finding(Verdict.SKIPPED, name, str(error))
    except GptkitError as error:
        return None, Finding(Verdict.BAD, name, str(error))
    changes = experiment_changes(run.experiment_file, record, experiment)
    try:
        refuse_changes(run.experiment_file, changes, experiment)
    except CheckpointError as error:
        return experiment, Finding(Verdict.BAD, name, str(error))
    if changes:
        message = f"edited, but no weight depends on it: {list_changes(changes)}"
        return experiment, Finding(Verdict.NOTE, name, message)
    return experiment, Finding(Verdict.OK, name)


def _check_tokenizer(
    run: Run, experiment: Experiment | None, record: RunRecord
) -> tuple[Tokenizer | None, Finding]:
    """The tokenizer is returned where it is the recorded one."""
    try:
        if sha256(to_json(run.tokenizer_json())) != record.tokenizer.sha256:
            message = f"it is not what {RECORD} recorded (SHA-256 differs); put the run's own back"
            return None, Finding(Verdict.BAD, TOKENIZER, message)
        tokenizer = run.tokenizer(experiment) if experiment else None
    except PluginError as error:
        return None, Finding(Verdict.SKIPPED, TOKENIZER, f"SHA-256 as recorded; {error}")
    except (GptkitError, ValueError) as error:
        return None, Finding(Verdict.BAD, TOKENIZER, str(error))
    return tokenizer, Finding(Verdict.OK, TOKENIZER, "SHA-256 as recorded")


def _check_metrics(run: Run) -> Finding:
    path, rows, wrong, torn = run.path / METRICS, 0, [], False
    if not path.exists():
        return Finding(Verdict.NOTE, METRICS, "there is none: no step was logged")
    if not path.is_file():
        return Finding(Verdict.BAD, METRICS, "it is not a file")
    try:
        for number, line in enumerate(run.metrics_log.lines(), start=1):
            torn = not line.endswith(b"\n")
            if parse_row(line):
                rows += 1
            elif not torn or len(line) > _MAX_TORN:
                wrong.append(number)
    except OSError as error:
        return Finding(Verdict.BAD, METRICS, f"it cannot be read: {error.strerror}")
    if wrong:
        shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        message = f"no JSON object with a step in line {shown}; such lines are left out"
        return Finding(Verdict.BAD, METRICS, message)
    if torn:
        message = "its last line was cut off by a crash; 'gptkit resume' repairs it"
        return Finding(Verdict.NOTE, METRICS, message)
    return Finding(Verdict.OK, METRICS, f"{rows} lines")


def _check_evaluations(run: Run, record: RunRecord) -> Iterator[Finding]:
    """Nothing for runs that have none. Each val loss is the mean of its blocks, and the best the recorded."""
    if not os.path.lexists(run.path / EVALUATIONS):
        return
    try:
        found = run.read_evaluations()
    except GptkitError as error:
        yield Finding(Verdict.BAD, EVALUATIONS, str(error))
        return
    for name, one in (("best", found.best), ("last", found.last)):
        loss, blocks = one.val_loss or 0.0, one.block_losses
        if blocks and abs(fmean(blocks) - loss) > 0.01 * loss:  # blocks differ in size, by a token
            message = f"the val loss of its {name} evaluation is not the mean of its blocks: it was edited"
            yield Finding(Verdict.BAD, EVALUATIONS, message)
            return
    if found.best.step != record.best_step and not (record.status and record.status.is_active):
        yield Finding(
            Verdict.NOTE, EVALUATIONS, "its best evaluation is not the recorded one; it is not used"
        )
        return
    yield Finding(Verdict.OK, EVALUATIONS, f"{len(found.best.block_losses)} blocks")


def _check_samples(run: Run) -> Iterator[Finding]:
    read = 0
    try:
        steps = run.sample_steps()
    except OSError as error:
        yield Finding(Verdict.BAD, SAMPLES, f"the folder cannot be read: {error.strerror}")
        return
    for step in steps:
        try:
            if not run.read_sample(step, max_characters=_MAX_SAMPLE, errors="strict").complete:
                raise ValueError("it is too large")
            read += 1
        except (OSError, ValueError) as error:
            name = f"{SAMPLES}/{sample_name(step)}"
            yield Finding(Verdict.BAD, name, f"it cannot be read as UTF-8: {error}")
    if read:
        yield Finding(Verdict.OK, SAMPLES, f"{read} of them")


def _check_trackers(run: Run, experiment: Experiment | None) -> Iterator[Finding]:
    """Counts the files of trackers, which have no hashes: nothing in the run depends on them."""
    for name in experiment.tracking if experiment else ():
        if set(name) & set("/\\\0.") or not os.path.isdir(run.path / name):
            continue  # unlike Path.is_dir, no error for an impossible name
        files = sum(path.is_file() for path in entries(run.path / name))
        message = f"{files} file{'' if files == 1 else 's'} of the tracker of that name, which has no hashes"
        yield Finding(Verdict.OK, name, message)


def _check_checkpoints(
    run: Run, experiment: Experiment | None, tokenizer: Tokenizer | None, record: RunRecord
) -> Iterator[Finding]:
    try:
        steps = list_steps(run.checkpoints)
    except OSError as error:
        yield Finding(Verdict.BAD, CHECKPOINTS, f"the folder cannot be read: {error.strerror}")
        return
    if not steps:
        yield from _check_absence(run, experiment)
    good: list[int] = []
    damaged: list[tuple[int, str]] = []
    foreign: list[tuple[int, str]] = []  # undamaged, but of another run
    fit = _Fit(run, experiment, tokenizer, record)
    for step in steps:
        found = damaged
        try:
            checkpoint = load_checkpoint(run.checkpoints, step, run_id=record.id or run.id)
            found = foreign
            fit.check(checkpoint)
            good.append(step)
        except PluginError as error:  # of the model: its files are as saved
            fit.is_known = False
            good.append(step)
            yield Finding(Verdict.SKIPPED, "model", str(error))
        except OutOfMemoryError:
            raise
        except GptkitError as error:
            if step in list_steps(run.checkpoints):  # not pruned meanwhile by a process that trains
                found.append((step, str(error).rstrip(".")))
    for step in good:
        message = "" if fit.is_known else "undamaged; not compared with the model"
        yield Finding(Verdict.OK, f"checkpoint {step}", message)
    if good:
        remedy = f"'gptkit resume' continues from step {good[-1]}"
    else:
        remedy = f"train it again: {run.train_again_command()}"
    for step, message in damaged:
        newer = "a newer one is undamaged" if good and step < good[-1] else remedy
        yield Finding(Verdict.BAD, f"checkpoint {step}", f"{message}; {newer}")
    for step, message in foreign:
        advice = "its files are as saved, and 'gptkit resume' does not pass over it: move it away"
        yield Finding(Verdict.BAD, f"checkpoint {step}", f"{message}; {advice}")


def _check_absence(run: Run, experiment: Experiment | None) -> Iterator[Finding]:
    """The finding for a run without checkpoints."""
    try:
        run.require_checkpoint(experiment)
    except PluginError:
        yield Finding(Verdict.NOTE, CHECKPOINTS, "there is none")
    except GptkitError as error:
        never_saved = experiment is not None and not experiment.checkpoints.save
        yield Finding(Verdict.NOTE if never_saved else Verdict.BAD, CHECKPOINTS, str(error))


class _Fit:
    """Whether checkpoints are of this run's model, optimizer, tokenizer and text."""

    def __init__(
        self, run: Run, experiment: Experiment | None, tokenizer: Tokenizer | None, record: RunRecord
    ) -> None:
        self._run, self._experiment, self._tokenizer = run, experiment, tokenizer
        self._record, self._text_sha256 = record, record.dataset.sha256
        self._imported = record.status is RunStatus.IMPORTED
        self._built: tuple[FlatParameters, Optimizer] | None = None
        self.is_known = experiment is not None and tokenizer is not None

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError, PluginError for a plugin of the model that cannot be used here."""
        if self._experiment is None or self._tokenizer is None or not self.is_known:
            return
        refuse_foreign_checkpoint(self._run.id, self._record, checkpoint)
        self._run.check_tokenizer(checkpoint, self._tokenizer)
        if self._text_sha256 is not None and checkpoint.state.get("text_sha256") != self._text_sha256:
            raise CheckpointError("it was trained on another text than the run's")
        whose, optimizer = f"step {checkpoint.step}", self._experiment.optimizer
        model = build_model_for(self._experiment, self._tokenizer.vocab_size, checkpoint.model, whose)
        if self._imported:
            return  # it has weights, and no optimizer state
        if self._built is None:
            freeze(model, self._experiment.training.freeze)
            fp16 = self._experiment.training.precision == "fp16"  # its optimizer state has a loss scale
            parameters = flatten_parameters(model, torch.float16 if fp16 else torch.float32, optimizer)
            self._built = parameters, Optimizer(parameters, optimizer)
        restore_checkpoint(checkpoint, *self._built)
