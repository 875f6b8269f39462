"""One run folder: `Run` reads it, `Recorder` writes it as the run trains, `lock_run` keeps it to one process.

    runs/<id>/  experiment.toml run.json metrics.jsonl evaluations.json tokenizer.json report.html
                checkpoints/step-000000001000/   samples/step-000000001000.txt

Input: the folder's path, whose files may come from another version or be damaged on purpose; the events of a
training. Output: typed values, or a GptkitError that names the file; and all files of the folder but the
checkpoints. Imports torch only to load a model. Knows nothing of training.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from gptkit import events
from gptkit.errors import CheckpointError, PluginError, RunInUseError, UsageError
from gptkit.events import RunStatus
from gptkit.files import disk_errors, make_folder, replace_file, sha256, to_json
from gptkit.runs.folder import (
    CHECKPOINTS,
    DAMAGED,
    DEFAULT_RUNS_FOLDER,
    EVALUATIONS,
    EXPERIMENT,
    LOCK,
    LOCK_HOLDER,
    METRICS,
    RECORD,
    SAMPLES,
    TOKENIZER,
    list_steps,
    sample_name,
    sample_steps,
)
from gptkit.runs.metrics import Metrics
from gptkit.runs.record import EvaluationRecord, Evaluations, Process, RunRecord, read_json_object
from gptkit.words import printable

if TYPE_CHECKING:
    from gptkit.experiment.load import Overrides
    from gptkit.experiment.schema import Experiment, SamplingSettings
    from gptkit.model import GPT
    from gptkit.plugins import Tokenizer
    from gptkit.runs.checkpoint import Checkpoint

_MAX_TOKENIZER = 1_000_000_000  # bytes
_MAX_COMMAND = 400  # characters
# What a network disk without a lock service answers to flock
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def _ignore(message: str) -> None:
    """Drops a warning."""


@dataclass(frozen=True)
class Sample:
    """A text that the model generated at a step of its training."""

    step: int
    text: str
    complete: bool = True  # whether `text` is all of the file


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32, on the CPU, in eval mode, with its tokenizer and the checkpoint it was loaded from."""

    model: GPT
    tokenizer: Tokenizer
    checkpoint: Checkpoint


@dataclass(frozen=True, repr=False)
class Run:
    """A recorded run: its folder, and all that can be read from it."""

    path: Path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def experiment_file(self) -> Path:
        return self.path / EXPERIMENT

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def samples(self) -> Path:
        return self.path / SAMPLES

    def refuse_special_files(self) -> None:
        """Raises CheckpointError if something in the folder is neither a file nor a folder.

        A symbolic link may lead anywhere, and opening a pipe may block forever.
        """
        for entry in self.path.iterdir():
            if entry.is_symlink():
                raise CheckpointError(f"{entry} is a symbolic link, which gptkit does not follow in a run.")
            if not entry.is_file() and not entry.is_dir():
                raise CheckpointError(f"{entry} is a pipe or a device, not a file of a run; remove it.")

    def require_training(self) -> None:
        """Raises UsageError for a run of imported weights, which has no training to continue or repeat."""
        if self.read_record_or_empty().status is RunStatus.IMPORTED:
            raise UsageError(
                f"run {self.id} was imported, and has no training of its own.\n"
                f"To train its model further: gptkit train EXPERIMENT --load {self.id}"
            )

    # run.json

    def record(self) -> dict[str, Any]:
        """run.json as it is: status, times, losses, hashes, plugins, environment. Raises CheckpointError."""
        return read_json_object(self.path / RECORD)

    def read_record(self) -> RunRecord:
        """run.json with typed fields. Raises CheckpointError if it is not a JSON object."""
        return RunRecord.read(self.path / RECORD)

    def read_record_or_empty(self) -> RunRecord:
        """The same, empty if run.json is missing or damaged."""
        with suppress(CheckpointError):
            return self.read_record()
        return RunRecord()

    def write_record(self, record: RunRecord) -> None:
        """Raises DiskError."""
        with disk_errors(f"recording the run {self.id}"):
            record.write(self.path / RECORD)

    @property
    def recorded_id(self) -> str:
        """The id that the run was created with, which its checkpoints carry; its folder may be renamed."""
        return self.read_record_or_empty().id or self.id

    # metrics.jsonl

    @property
    def metrics_log(self) -> Metrics:
        return Metrics(self.path / METRICS)

    def metrics(self) -> list[dict[str, Any]]:
        """One dict per recorded step, in order: step, train_loss, val_loss (where evaluated), …"""
        return self.metrics_log.rows()

    # evaluations.json

    def read_evaluations(self) -> Evaluations:
        """The losses of blocks of the val split. Raises CheckpointError if the file is missing or damaged."""
        return Evaluations.read(self.path / EVALUATIONS)

    def read_evaluations_or_empty(self) -> Evaluations:
        """The same, empty if the file is missing, as in runs of 0.1.0, or damaged."""
        with suppress(CheckpointError):
            return self.read_evaluations()
        return Evaluations()

    def write_evaluations(self, evaluations: Evaluations) -> None:
        """Raises DiskError."""
        with disk_errors(f"recording the run {self.id}"):
            evaluations.write(self.path / EVALUATIONS)

    # samples/

    def sample_steps(self) -> list[int]:
        """The steps that have a sample, by file name, in order. Raises OSError for an unreadable folder."""
        return sample_steps(self.samples)

    def read_sample(self, step: int, *, max_characters: int, errors: str = "replace") -> Sample:
        """The sample of a step, or its beginning.

        `errors` is that of bytes.decode. Raises OSError or ValueError if it cannot be read.
        """
        path = self.samples / sample_name(step)
        if path.is_symlink() or not path.is_file():
            raise ValueError("it is not a file")
        with path.open("rb") as file:
            data = file.read(4 * max_characters + 1)  # a character takes at most four bytes in UTF-8
        text = data.decode(errors=errors)
        return Sample(step, text[:max_characters], len(text) <= max_characters)

    def last_sample(self, *, max_characters: int = 100_000) -> Sample | None:
        """The sample of the last step; None if there is none, or it cannot be read."""
        with suppress(OSError, ValueError):
            if steps := self.sample_steps():
                return self.read_sample(steps[-1], max_characters=max_characters)
        return None

    def write_sample(self, step: int, text: str) -> None:
        """Raises DiskError."""
        with disk_errors(f"writing a sample of step {step}"):
            make_folder(self.samples)
            replace_file(self.samples / sample_name(step), text.encode())

    # experiment.toml and tokenizer.json

    def experiment(self, overrides: Overrides = ()) -> Experiment:
        """The experiment as it was resolved: every field explicit; with `overrides`, other values of some.

        Raises CheckpointError if the file is damaged, PluginError with what to install, ExperimentError for
        overrides that are not valid.
        """
        from gptkit.experiment.load import load_recorded
        from gptkit.runs.environment import what_to_install

        self.refuse_special_files()
        try:
            experiment = load_recorded(self.experiment_file)
        except PluginError as error:
            remedy = what_to_install(self.read_record_or_empty(), error.plugins)
            raise PluginError(f"{error}\n{remedy}".rstrip(), error.plugins) from error
        except UsageError as error:
            raise CheckpointError(f"the run's own experiment file is damaged: {error}") from error
        return load_recorded(self.experiment_file, overrides) if overrides else experiment

    def write_experiment(self, experiment: Experiment) -> None:
        """Raises DiskError."""
        from gptkit.experiment.load import to_toml

        with disk_errors(f"recording the run {self.id}"):
            replace_file(self.experiment_file, to_toml(experiment).encode())

    def sampling(self, overrides: Overrides) -> SamplingSettings:
        """The [sampling] table of the experiment with these overrides. Raises ExperimentError."""
        from gptkit.experiment.load import override_sampling

        return override_sampling(self.experiment().sampling, overrides)

    def tokenizer(self, experiment: Experiment | None = None) -> Tokenizer:
        """The tokenizer of the run; `experiment` saves reading it again.

        Raises CheckpointError if tokenizer.json is damaged, PluginError.
        """
        from gptkit.plugins import registry

        kind = (experiment or self.experiment()).tokenizer.type
        plugin = registry.load(registry.TOKENIZERS, kind)
        data = self.tokenizer_json()
        try:
            tokenizer: Tokenizer = plugin.from_json(data)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path / TOKENIZER} is not a {kind} tokenizer: {error}") from error
        return tokenizer

    def tokenizer_json(self) -> dict[str, Any]:
        """Raises CheckpointError."""
        return read_json_object(self.path / TOKENIZER, max_bytes=_MAX_TOKENIZER)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises DiskError."""
        with disk_errors(f"recording the run {self.id}"):
            replace_file(self.path / TOKENIZER, to_json(tokenizer.to_json()))

    # checkpoints/

    def checkpoint(self, which: str | int = "best", *, warn: Callable[[str], None] = _ignore) -> Checkpoint:
        """The checkpoint of a step, the "last" one that verifies, or the "best": that of the lowest val loss.

        Without evaluations the best is the last. `warn` gets a message for each checkpoint that does not
        verify and is passed over. Raises CheckpointError, UsageError.
        """
        from gptkit.runs.checkpoint import load_checkpoint, newest_checkpoint

        self.require_checkpoint()
        self.check_recorded_id()
        which, run_id = str(which), self.recorded_id
        if which.isdecimal() and len(which) <= 12:
            return load_checkpoint(self.checkpoints, int(which), run_id=run_id)
        if which not in ("best", "last"):
            raise UsageError(f"--checkpoint {which!r}: expected best, last or a step.")
        last = newest_checkpoint(self.checkpoints, run_id=run_id, on_bad=lambda step, error: warn(str(error)))
        progress = last.state.get("progress")
        best = progress.get("best_step") if isinstance(progress, dict) else None
        if which == "last" or not isinstance(best, int) or best == last.step:
            return last
        try:
            return load_checkpoint(self.checkpoints, best, run_id=run_id)
        except CheckpointError as error:
            warn(f"{error}\nThe last checkpoint, of step {last.step}, is used instead of the best.")
            return last

    def check_recorded_id(self) -> None:
        """Raises CheckpointError if no checkpoint can verify because of run.json, which has their id."""
        from gptkit.runs.checkpoint import run_ids

        theirs = run_ids(self.checkpoints)
        if not theirs or self.recorded_id in theirs:
            return
        remedy = "Put the run's own run.json back"
        try:
            recorded = self.read_record().id
            problem = f"{self.path / RECORD} has {f'the id {recorded!r}' if recorded else 'no id'}"
        except CheckpointError as error:
            recorded, problem = None, str(error)
        if not recorded and len(theirs) == 1:
            remedy += ", or rename the folder to that: without run.json its name counts as the id"
        ids = " and ".join(printable(one[:200]) for one in theirs[:3])
        raise CheckpointError(f"{problem}; the run's checkpoints have the id {ids}.\n{remedy}.")

    def require_checkpoint(self, experiment: Experiment | None = None, *, locked: bool = False) -> None:
        """Raises CheckpointError, with what to do, where the run has no checkpoint, whole or damaged.

        `locked` is whether the caller holds the run, so that no other process is training it.
        """
        if list_steps(self.checkpoints):
            return
        experiment, record = experiment or self.experiment(), self.read_record_or_empty()
        first, reached = _first_save(experiment, record), 0
        with suppress(OSError):
            reached = self.metrics_log.last_step()
        at = f" at step {reached}" if reached else ""
        training = not locked and is_locked(self)
        advice = f"To train it again from the start: {self.train_again_command(as_typed=True)}"
        if not experiment.checkpoints.save:
            reason = "it is trained with --no-save" if training else "it was trained with --no-save"
            advice = f"To train it again, saved: {self.train_again_command()} --set checkpoints.save=true"
        elif any(self.checkpoints.glob(f"{DAMAGED}*")):
            reason = "those it had were damaged, and are set aside there as .bad-…"
        elif record.last_checkpoint or reached > first:
            reason = "those it had are not there any more"
        elif training:
            reason = f"it is being trained{at and ', last logged'}{at}, and saves first at step {first}"
            advice = "Wait for that, or stop it with Ctrl-C, which saves it."
        else:
            how = {RunStatus.DIVERGED: "it diverged", RunStatus.FAILED: "an error ended it"}
            status = record.status or RunStatus.UNKNOWN
            ended = "its process was killed" if status.is_active else how.get(status, "it ended")
            reason = f"{ended}{at}, before its first save at step {first}"
        raise CheckpointError(f"there is no checkpoint of run {self.id}: {reason}.\n{advice}")

    def train_again_command(self, *, as_typed: bool = False) -> str:
        """The command that trains the run's experiment again, as a new run beside it.

        `as_typed` prefers the recorded command, which names the folders of texts and runs too.
        """
        typed = self.read_record_or_empty().command or ""
        if (
            as_typed
            and typed.startswith("gptkit train ")
            and len(typed) < _MAX_COMMAND
            and typed.isprintable()
        ):
            return typed
        words = ["gptkit", "train", str(self.experiment_file)]
        if self.path.parent != DEFAULT_RUNS_FOLDER:
            words += ["--runs-dir", str(self.path.parent)]
        source = self.read_record_or_empty().loaded_from
        if source and source.run and source.sha256 is None:  # of a version whose file does not name it
            words += ["--load", source.run]
        return shlex.join(words)

    # The model

    def load(self, checkpoint: str | int = "best") -> tuple[GPT, Tokenizer]:
        """The model, in fp32 on the CPU and in eval mode, and its tokenizer.

        `checkpoint` is "best", "last" or a step. Raises CheckpointError if it does not verify.
        """
        loaded = self.load_model(checkpoint)
        return loaded.model, loaded.tokenizer

    def load_model(
        self, checkpoint: str | int = "best", *, warn: Callable[[str], None] = _ignore
    ) -> LoadedModel:
        """As `load`, with warnings: for a tokenizer or positional encoding of another version than in
        training, and for a checkpoint that does not verify and is passed over.

        Raises CheckpointError if files do not verify or do not fit together, PluginError.
        """
        from gptkit.model.build import build_model_for, load_weights
        from gptkit.runs.environment import warn_of_changed_plugins

        experiment = self.experiment()
        warn_of_changed_plugins(self.read_record_or_empty(), experiment, warn)
        tokenizer = self.tokenizer(experiment)
        read = self.checkpoint(checkpoint, warn=warn)
        self.check_tokenizer(read, tokenizer)
        whose = f"run {self.id}, step {read.step},"
        model = build_model_for(experiment, tokenizer.vocab_size, read.model, whose)
        load_weights(model, read.model, whose)
        return LoadedModel(model.eval(), tokenizer, read)

    def check_tokenizer(self, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError if the checkpoint was trained with another tokenizer."""
        if checkpoint.state.get("tokenizer_sha256") != tokenizer_hash(tokenizer):
            raise CheckpointError(
                f"the tokenizer of run {self.id} is not the one that step {checkpoint.step} was trained "
                "with; put the run's own tokenizer.json back."
            )

    def generate(
        self, prompt: str | None = None, *, seed: int = 0, checkpoint: str | int = "best", **sampling: Any
    ) -> str:
        """The prompt and the text that the model generates after it.

        `sampling` takes the fields of the [sampling] table: max_new_tokens, temperature, top_k, top_p,
        min_p, stop. Defaults are those of the run's experiment. Raises ExperimentError for an invalid value,
        UsageError for a prompt with characters that are not in the vocabulary.
        """
        from gptkit.generation import encode_prompt, generate

        settings = self.sampling(list(sampling.items()))
        model, tokenizer = self.load(checkpoint)
        text, ids = encode_prompt(tokenizer, settings.prompt if prompt is None else prompt)
        return text + "".join(piece for _, piece in generate(model, tokenizer, ids, settings, seed=seed))


def _first_save(experiment: Experiment, record: RunRecord) -> int:
    """The step after which a run is saved first: at its interval, at the first evaluation, or at its end."""
    first = min(experiment.checkpoints.checkpoint_interval, experiment.evaluation.eval_interval)
    return min(first, record.target_step) if record.target_step else first


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer as JSON: equal exactly where two tokenizers are the same."""
    return sha256(to_json(tokenizer.to_json()))


class Recorder:
    """A listener that records a run; `record` is written when it starts and when it ends.

    The row of a step is written when the step is complete, before its checkpoint: so a checkpoint never
    exists without the metrics that led to it.
    """

    def __init__(self, run: Run, record: RunRecord, now: Callable[[], datetime] = datetime.now) -> None:
        self.record = record
        self._run = run
        self._now = now
        self._row: dict[str, Any] = {}
        self._evaluation: events.EvaluationFinished | None = None

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self.record.status = RunStatus.RUNNING
                self.record.process = Process.current()
                self.record.parameters = event.parameters
                self._run.write_record(self.record)
            case events.StepFinished():
                self._row |= {
                    "step": event.step,
                    "train_loss": event.train_loss,
                    "learning_rate": event.learning_rate,
                    "grad_norm": event.grad_norm,
                    "tokens": event.tokens,
                    "tokens_per_second": round(event.tokens_per_second, 1),
                    "seconds": round(event.seconds, 3),
                }
                if event.expected_steps is not None:
                    self._row["expected_steps"] = event.expected_steps
                if event.adamw_learning_rate is not None:
                    self._row["adamw_learning_rate"] = event.adamw_learning_rate
            case events.EvaluationFinished():
                bits, self._evaluation = event.bits_per_byte, event
                self._row |= {
                    "step": event.step,
                    "val_loss": event.val_loss,
                    **({} if bits is None else {"bits_per_byte": bits}),
                    "tokens": event.tokens,
                    "learning_rate": event.learning_rate,
                    "seconds": round(event.seconds, 3),
                }
            case events.StepDone():
                self._write_row()
            case events.SampleDrawn():
                self._run.write_sample(event.step, event.text)
            case events.CheckpointSaved():
                self.record.last_checkpoint = event.step
            case events.RunFinished():
                self._write_row()
                self._finish(event)

    def _write_row(self) -> None:
        if self._row:
            row, self._row = self._row, {}
            self._run.metrics_log.append(row)
        if self._evaluation:
            event, self._evaluation = self._evaluation, None
            self._write_evaluation(event)

    def _write_evaluation(self, event: events.EvaluationFinished) -> None:
        """Replaces the last evaluation, and the best unless that is an earlier one."""
        last = EvaluationRecord(step=event.step, val_loss=event.val_loss, block_losses=event.block_losses)
        best = last if event.is_best else self._run.read_evaluations_or_empty().best
        self._run.write_evaluations(Evaluations(best=best, last=last))

    def _finish(self, event: events.RunFinished) -> None:
        record = self.record
        record.process = None
        record.status = RunStatus(event.status)
        record.reason = event.reason
        record.ended = self._now().astimezone().isoformat(timespec="seconds")
        record.step = event.step
        record.train_loss = event.train_loss
        record.val_loss = event.val_loss
        record.best_val_loss = event.best_val_loss
        record.best_bits_per_byte = event.best_bits_per_byte
        record.best_step = event.best_step
        record.tokens = event.tokens
        record.seconds = round(event.seconds, 3)
        self._run.write_record(record)


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Holds the run for this process.

    Raises RunInUseError if another process holds it, DiskError if the folder cannot be written.
    """
    with disk_errors(f"locking the run {run.id}"):
        try:
            lock = _acquire(run)
        except filelock.Timeout:  # an OSError too
            raise RunInUseError(f"run {run.id} is in use{_holder(run)}") from None
    try:
        yield
    finally:
        lock.release()


def _acquire(run: Run) -> filelock.BaseFileLock:
    """The lock of the run, held; by a file that exists where the disk has no locks.

    Raises filelock.Timeout if another process holds it, OSError.
    """
    lock: filelock.BaseFileLock
    try:
        lock = filelock.FileLock(run.path / LOCK, timeout=0, fallback_to_soft=False)
        lock.acquire()
    except filelock.Timeout:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Not the file LOCK: what another disk left of it in a run that was copied would look like a holder
        lock = filelock.SoftFileLock(run.path / LOCK_HOLDER, timeout=0)
        lock.acquire()
    return lock


def is_locked(run: Run) -> bool:
    """Whether a process holds the run now; False where that cannot be found out."""
    if not (run.path / LOCK).exists():
        return False
    try:
        _acquire(run).release()
    except filelock.Timeout:
        return True
    except OSError:
        return _is_locked_read_only(run.path / LOCK)
    return False


def _is_locked_read_only(path: Path) -> bool:
    """The same where the folder or the file cannot be written, such as a run of another user."""
    if os.name == "nt":
        return False
    import fcntl

    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def refuse_use(run: Run) -> None:
    """Raises RunInUseError if a process holds the run; changes nothing."""
    if is_locked(run):
        with lock_run(run):  # raises with the process that holds it; or it has been released meanwhile
            pass


def _holder(run: Run) -> str:
    """The process that holds it, and what to do."""
    process = run.read_record_or_empty().process
    by = f" by process {process.pid} on {process.host}" if process and process.pid is not None else ""
    if not (run.path / LOCK_HOLDER).exists():
        return f"{by}; wait for it or stop it first."
    return (
        f"{by}: {run.path / LOCK_HOLDER} exists, which stands for a lock on a disk that has none.\n"
        "Wait for that process or stop it. If there is none any more (it was killed, or the run was copied "
        "while it trained), remove that file."
    )
