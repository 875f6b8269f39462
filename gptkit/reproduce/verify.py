"""Does a run keep its promise? Every file held against its hashes; a stretch of it trained again.

In: a run's folder. Out: a finding for each thing in it; or what differs between a stretch as it was recorded
and as it comes out now. Nothing in the run is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gptkit.errors import CheckpointError, GptkitError
from gptkit.experiment import Experiment
from gptkit.files import sha256, to_json
from gptkit.model import GPT
from gptkit.model.build import build_model_for
from gptkit.plugins import Tokenizer
from gptkit.runs import (
    CHECKPOINTS,
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
from gptkit.runs.folder import entries, sample_name
from gptkit.runs.metrics import parse_row
from gptkit.training.optim import Optimizer, flatten_parameters
from gptkit.training.parameters import FlatParameters
from gptkit.training.session import progress_of

_MAX_TORN, _MAX_SAMPLE = 100_000, 25_000_000  # bytes, characters
_LEFT = {
    ".tmp-": "left by a save that was cut off; 'gptkit resume' removes it",
    ".trash-": "left by a removal that was cut off; 'gptkit resume' removes it",
    ".bad-": "a checkpoint that was set aside; remove it when you need it no more",
}


@dataclass(frozen=True)
class Finding:
    """One thing of a run. `verdict` is "ok", "note" for what harms nothing, or "bad"."""

    verdict: str
    what: str
    said: str = ""


def verify_run(run: Run) -> Iterator[Finding]:
    """Every file of a run, one after another. Raises CheckpointError for a folder that has links in it."""
    run.refuse_special_files()
    if is_locked(run):
        yield Finding("note", run.id, "is being trained now; what changes meanwhile may be found wrong")
    experiment: Experiment | None = None
    try:
        experiment = run.experiment()
        yield Finding("ok", run.experiment_file.name)
    except GptkitError as error:
        yield Finding("bad", run.experiment_file.name, str(error))
    record = RunRecord()
    try:
        record = run.read_record()
        yield Finding("ok", RECORD, f"{record.status or 'no status'}, step {record.step or 0}")
    except GptkitError as error:
        yield Finding("bad", RECORD, f"{error}; it says how the run was trained, and what on")
    tokenizer, finding = _tokenizer(run, experiment, record)
    yield finding
    yield _metrics(run)
    yield from _checkpoints(run, experiment, tokenizer, record)
    yield from _samples(run)
    yield from _tracked(run, experiment)
    for folder in (run.path, run.checkpoints, run.samples):
        for entry in sorted(entries(folder)):
            for beginning, said in _LEFT.items():
                if entry.name.startswith(beginning):
                    yield Finding("note", str(entry.relative_to(run.path)), said)


def _tokenizer(
    run: Run, experiment: Experiment | None, record: RunRecord
) -> tuple[Tokenizer | None, Finding]:
    """The tokenizer, where it is the one that the run recorded."""
    try:
        if sha256(to_json(run.tokenizer_json())) != record.tokenizer.sha256:
            said = f"it is not what {RECORD} recorded (SHA-256 differs); put the run's own back"
            return None, Finding("bad", TOKENIZER, said)
        tokenizer = run.tokenizer(experiment) if experiment else None
    except (GptkitError, ValueError) as error:
        return None, Finding("bad", TOKENIZER, str(error))
    return tokenizer, Finding("ok", TOKENIZER, "SHA-256 as recorded")


def _metrics(run: Run) -> Finding:
    path, rows, wrong, torn = run.path / METRICS, 0, [], False
    if not path.exists():
        return Finding("note", METRICS, "there is none: no step was logged")
    if not path.is_file():
        return Finding("bad", METRICS, "it is not a file")
    try:
        for number, line in enumerate(run.metrics_log.lines(), start=1):
            torn = not line.endswith(b"\n")
            if parse_row(line):
                rows += 1
            elif not torn or len(line) > _MAX_TORN:
                wrong.append(number)
    except OSError as error:
        return Finding("bad", METRICS, f"it cannot be read: {error.strerror}")
    if wrong:
        shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
        return Finding("bad", METRICS, f"no JSON object with a step in line {shown}; such lines are left out")
    if torn:
        return Finding("note", METRICS, "its last line was cut off by a crash; 'gptkit resume' mends it")
    return Finding("ok", METRICS, f"{rows} lines")


def _samples(run: Run) -> Iterator[Finding]:
    read = 0
    try:
        steps = run.sample_steps()
    except OSError as error:
        yield Finding("bad", SAMPLES, f"the folder cannot be read: {error.strerror}")
        return
    for step in steps:
        try:
            if not run.read_sample(step, max_characters=_MAX_SAMPLE, errors="strict").complete:
                raise ValueError("it is too large")
            read += 1
        except (OSError, ValueError) as error:
            yield Finding("bad", f"{SAMPLES}/{sample_name(step)}", f"it cannot be read as UTF-8: {error}")
    if read:
        yield Finding("ok", SAMPLES, f"{read} of them")


def _tracked(run: Run, experiment: Experiment | None) -> Iterator[Finding]:
    """What trackers have written: theirs to read, and nothing that the run depends on."""
    for name in experiment.tracking if experiment else ():
        if set(name) & set("/\\\0.") or not os.path.isdir(run.path / name):
            continue  # unlike Path.is_dir, no error for a name that cannot be
        files = sum(path.is_file() for path in entries(run.path / name))
        said = f"{files} file{'' if files == 1 else 's'} of the tracker of that name, which has no hashes"
        yield Finding("ok", name, said)


def _checkpoints(
    run: Run, experiment: Experiment | None, tokenizer: Tokenizer | None, record: RunRecord
) -> Iterator[Finding]:
    try:
        steps = list_steps(run.checkpoints)
    except OSError as error:
        yield Finding("bad", CHECKPOINTS, f"the folder cannot be read: {error.strerror}")
        return
    if not steps:
        try:
            run.require_checkpoint(experiment)
        except GptkitError as error:
            saved_none = experiment is not None and not experiment.checkpoints.save
            yield Finding("note" if saved_none else "bad", CHECKPOINTS, str(error))
    good: list[int] = []
    bad: list[tuple[int, str]] = []
    strange: list[tuple[int, str]] = []  # whole, but of something else
    fits = _Fitting(run, experiment, tokenizer, record)
    for step in steps:
        found = bad
        try:
            checkpoint = load_checkpoint(run.checkpoints, step, run_id=run.recorded_id)
            found = strange
            fits.check(checkpoint)
            good.append(step)
        except GptkitError as error:
            if step in list_steps(run.checkpoints):  # not pruned meanwhile by a process that trains
                found.append((step, str(error)))
    for step in good:
        yield Finding("ok", f"checkpoint {step}", "" if fits.known else "whole; not held against the model")
    instead = (
        f"'gptkit resume' goes on from step {good[-1]}"
        if good
        else f"train it again: {run.train_again_command()}"
    )
    for step, said in bad:
        newer = "; a newer one is whole" if good and step < good[-1] else f"; {instead}"
        yield Finding("bad", f"checkpoint {step}", f"{said}{newer}")
    for step, said in strange:
        advice = "its files are as saved, and 'gptkit resume' does not pass over it: move it away"
        yield Finding("bad", f"checkpoint {step}", f"{said}; {advice}")


class _Fitting:
    """Whether checkpoints are of this run's model, optimizer, tokenizer and text."""

    def __init__(
        self,
        run: Run,
        experiment: Experiment | None,
        tokenizer: Tokenizer | None,
        record: RunRecord,
    ) -> None:
        self._run, self._experiment, self._tokenizer = run, experiment, tokenizer
        self._text = record.dataset.sha256
        self._built: tuple[FlatParameters, Optimizer] | None = None
        self.known = experiment is not None and tokenizer is not None

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError."""
        if self._experiment is None or self._tokenizer is None:
            return
        self._run.check_tokenizer(checkpoint, self._tokenizer)
        if self._text is not None and checkpoint.state.get("text_sha256") != self._text:
            raise CheckpointError("it was trained on another text than the run's")
        whose = f"step {checkpoint.step}"
        model = build_model_for(self._experiment, self._tokenizer.vocab_size, checkpoint.model, whose)
        try:
            parameters, optimizer = self._build(model, self._experiment)
            parameters.load_state_dict(checkpoint.model)
            optimizer.load_state_dict(checkpoint.optimizer)
            progress_of(checkpoint)
        except (ValueError, KeyError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"it does not fit the run: {error}") from error

    def _build(self, model: GPT, experiment: Experiment) -> tuple[FlatParameters, Optimizer]:
        if self._built is None:
            parameters = flatten_parameters(model, torch.float32, experiment.optimizer)
            self._built = parameters, Optimizer(parameters, experiment.optimizer)
        return self._built
