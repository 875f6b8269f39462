"""One sitting of a run: the loop, with what is done between its steps.

In: a run folder that is locked, a corpus, a model with its initial weights or a checkpoint. Out: events, to
the recorder and to the listener it was given. Both train and resume end here.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from gptkit import events
from gptkit.backend import Backend, fingerprint
from gptkit.data.corpus import Corpus
from gptkit.errors import CheckpointError, DiskError, DivergedError, GptkitError, PluginError
from gptkit.events import RunStatus
from gptkit.experiment import Experiment
from gptkit.generation import encode_prompt, generate
from gptkit.model import GPT
from gptkit.model.build import build_model
from gptkit.plugins import DataFolders
from gptkit.runs import DEFAULT_RUNS_FOLDER, Recorder, Run, RunRecord, tokenizer_hash
from gptkit.runs.checkpoint import Checkpoint, prune, save_checkpoint
from gptkit.runs.record import Environment
from gptkit.tracking import ChosenTracker, Tracking
from gptkit.training.budget import TrainingBudget, TrainingProgress
from gptkit.training.compile import CompilationError, compile_model
from gptkit.training.loss import bits_per_byte, evaluate
from gptkit.training.setup import build_trainer
from gptkit.training.text import telling, title_of
from gptkit.training.trainer import Evaluation, StopReason, Trainer

_LONG_EVALUATION = 0.5  # seconds after which it is told how far it is

StopRequested = Callable[[], RunStatus | None]
"""Called between steps: None to go on, or the status to stop with (INTERRUPTED, TERMINATED)."""


def never() -> None:
    return None


@dataclass(frozen=True)
class RunContext:
    """What a run depends on beside its experiment: where things are, who listens, who may stop it."""

    runs_folder: Path = DEFAULT_RUNS_FOLDER
    folders: DataFolders = field(default_factory=DataFolders)
    listener: events.Listener = events.ignore
    stop_requested: StopRequested = never
    command: Sequence[str] = ()
    writes_report: bool = True  # report.html, when the session ends


HERE = RunContext()


@dataclass(frozen=True)
class TrainingResult:
    """What a session came to. `status` is that of RunFinished."""

    run: Run
    status: RunStatus
    progress: TrainingProgress
    write: Callable[[int], str]  # the experiment's prompt and N tokens after it, by the model as it is now


class Session:
    """One sitting of a run: everything a step needs, and what is done between steps."""

    def __init__(
        self,
        run: Run,
        experiment: Experiment,
        corpus: Corpus,
        backend: Backend,
        model: GPT,
        record: RunRecord,
        around: RunContext,
        resumed: Checkpoint | None = None,
        budget: TrainingBudget | None = None,
        trackers: Sequence[ChosenTracker] = (),
    ) -> None:
        self.run, self.experiment, self.corpus, self.backend = run, experiment, corpus, backend
        self.around, self.model, self.resumed = around, model, resumed
        self.budget = budget or TrainingBudget.of(experiment.training)
        self.record = record
        self.recorder = Recorder(run, record)
        self.tracking = Tracking(trackers, experiment, lambda message: self.emit(events.Warned(message)))
        self.trainer = self._trainer(model.to(backend.device))
        self.reader = self._reader()

    def emit(self, event: events.Event) -> None:
        self.recorder(event)
        self.tracking(event)
        self.around.listener(event)

    def _trainer(self, model: GPT) -> Trainer:
        resumed = self.resumed
        with self._fitting():
            progress = progress_of(resumed) if resumed else TrainingProgress()
        trainer = build_trainer(
            self.experiment,
            self.backend,
            model,
            self.corpus.train,
            progress,
            seed=int(self.experiment.seed),
            budget=self.budget,
        )
        if resumed:
            with self._fitting():
                trainer.parameters.load_state_dict(resumed.model)
                trainer.optimizer.load_state_dict(resumed.optimizer)
        return trainer

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Raises CheckpointError where what is read of the checkpoint is not this run's."""
        try:
            yield
        except (ValueError, KeyError, AttributeError) as error:
            assert self.resumed is not None
            raise CheckpointError(
                f"step {self.resumed.step} of {self.run.id} does not fit the run: {error}"
            ) from error

    def _reader(self) -> GPT:
        """A model in fp32 whose parameters are the master weights themselves: what `generate` will load."""
        reader = build_model(self.experiment, self.corpus.tokenizer.vocab_size).to(self.backend.device)
        master = self.trainer.parameters.named()
        for name, parameter in reader.named_parameters():
            parameter.data = master[name]
        return reader.eval()

    def run_to(
        self, stop_step: int | None, final_step: int | None, evaluate_at: Collection[int] = ()
    ) -> TrainingResult:
        """Trains to `stop_step`, or to the end of the run; at `final_step` the run is finished.

        None stands for no such step: then the clock decides.
        """
        with self.tracking:
            return self._run_to(stop_step, final_step, evaluate_at)

    def _run_to(
        self, stop_step: int | None, final_step: int | None, evaluate_at: Collection[int]
    ) -> TrainingResult:
        if final_step is not None:
            stop_step = min(stop_step or final_step, final_step)
        progress = self.trainer.progress
        self._announce(stop_step)
        self._warn_of_standstill(stop_step)
        try:
            self._compile()
            reason = self.trainer.fit(
                self, stop_step=stop_step, final_step=final_step, evaluate_at=evaluate_at
            )
        except BaseException as error:
            with suppress(DiskError):  # the first error is the one to report
                hopeless = isinstance(error, KeyboardInterrupt | DiskError)  # at once; on a disk that refuses
                self._conclude(_how_it_ended(error), final_step, writes_report=not hopeless)
            raise
        at_end = final_step is not None and progress.step >= final_step
        if at_end or reason.ends_run:
            status = RunStatus.FINISHED
        else:
            status = self.around.stop_requested() or RunStatus.STOPPED
        self._conclude(status, final_step, "" if at_end else self._describe(reason))
        return TrainingResult(self.run, status, progress, self.write)

    def _describe(self, reason: StopReason) -> str:
        """A sentence on why a run is finished short of its last step, for a person; "" where it is not."""
        progress, most = self.trainer.progress, self.experiment.evaluation.stop_after_bad_evals
        match reason:
            case StopReason.TIME_IS_UP:
                minutes = progress.seconds / 60
                shown = f"{minutes:.1f}" if minutes >= 1 else f"{minutes:.2g}"
                return f"stopped after {shown} minutes at step {progress.step}"
            case StopReason.NO_IMPROVEMENT:
                evaluations = "evaluation" if most == 1 else f"{most} evaluations"
                return f"stopped at step {progress.step} after {evaluations} without a better val loss"
        return ""

    def stop_requested(self) -> bool:
        return self.around.stop_requested() is not None

    def _announce(self, stop_step: int | None) -> None:
        experiment, corpus, backend = self.experiment, self.corpus, self.backend
        self.emit(
            events.RunStarted(
                run_id=self.run.id,
                folder=self.run.path,
                dataset=title_of(experiment.data.dataset),
                tokenizer=experiment.tokenizer.type,
                vocab_size=corpus.tokenizer.vocab_size,
                train_tokens=len(corpus.train),
                val_tokens=len(corpus.val),
                parameters=self.model.parameter_count,
                device=backend.device,
                precision=backend.precision,
                compiled=backend.compile,
                start_step=self.trainer.progress.step,
                stop_step=stop_step or 0,
                max_steps=self.budget.max_steps or 0,
                tokens_per_step=experiment.tokens_per_step,
                minutes=experiment.training.minutes,
            )
        )

    def _compile(self) -> None:
        """Has the trainer use the model compiled. Where only "auto" would and it fails, it warns instead."""
        if not self.backend.compile:
            return
        self.around.listener(events.Working("compiling the model", 0, 0))
        try:
            self.trainer.model = compile_model(self.model, *self.trainer.batches.batch(0))
        except CompilationError as error:
            if self.experiment.training.compile is True:
                raise PluginError(
                    f"torch.compile failed here: {error}\nSet training.compile = false to train without it."
                ) from error
            self.backend = replace(self.backend, compile=False)
            if not self.resumed:
                self.record.environment = Environment.model_validate(fingerprint(self.backend))
                self.run.write_record(self.record)
            self.emit(events.Warned(f"torch.compile failed here: {error}\nTraining goes on without it."))

    def _warn_of_standstill(self, stop_step: int | None) -> None:
        end = self.budget.max_steps
        if (
            end is not None
            and stop_step is not None
            and stop_step > end
            and self.trainer.learning_rate_factor(end + 1) == 0
        ):
            self.emit(
                events.Warned(
                    f"the schedule of this run ends at step {end} with a learning rate of 0, so later steps "
                    "change nothing.\nTo train its model further, start a new run: "
                    f"gptkit train EXPERIMENT --load {self.run.path}"
                )
            )

    def _conclude(
        self, status: RunStatus, final_step: int | None, reason: str = "", *, writes_report: bool = True
    ) -> None:
        progress = self.trainer.progress
        best = progress.best_val_loss
        ended = events.RunFinished(
            status=status,
            step=progress.step,
            max_steps=final_step or progress.expected_steps or progress.step,
            train_loss=progress.train_loss,
            val_loss=progress.val_loss,
            best_val_loss=best,
            best_bits_per_byte=None if best is None else self._bits_per_byte(best),
            best_step=progress.best_step,
            tokens=progress.tokens,
            seconds=progress.seconds,
            saved=self.experiment.checkpoints.save and status not in (RunStatus.DIVERGED, RunStatus.FAILED),
            reason=reason,
        )
        self.recorder(ended)
        self.tracking(ended)
        written = self._write_report() if writes_report and self.around.writes_report else None
        self.around.listener(replace(ended, report=written))

    def _write_report(self) -> Path | None:
        """The run's report.html, or None: for want of it nothing else fails."""
        try:
            from gptkit.report.page import write_report  # jinja2, which nothing needs until now

            return write_report(self.run)
        except Exception as error:
            said = error if isinstance(error, GptkitError) else f"{type(error).__name__}: {error}"
            self.around.listener(
                events.Warned(
                    f"the report of the run is not written: {said}\nAll else of it is. To write it: "
                    f"gptkit runs report {shlex.quote(str(self.run.path))}"
                )
            )
            return None

    def evaluate(self) -> Evaluation:
        loss = evaluate(
            self.model,  # not compiled: another shape would be compiled anew, and the last batch once more
            self.corpus.val,
            context_length=self.experiment.model.context_length,
            eval_tokens=self.experiment.evaluation.eval_tokens,
            progress=telling(self.around.listener, "evaluating", if_longer_than=_LONG_EVALUATION),
        )
        return Evaluation(loss, self._bits_per_byte(loss))

    def _bits_per_byte(self, loss: float) -> float:
        return bits_per_byte(loss, tokens=len(self.corpus.val), text_bytes=self.corpus.val_bytes)

    def write(self, tokens: int) -> str:
        """The experiment's prompt and `tokens` tokens after it, by the model as it is now."""
        tokenizer = self.corpus.tokenizer
        sampling = self.experiment.sampling.model_copy(update={"max_new_tokens": tokens})
        prompt, ids = encode_prompt(tokenizer, sampling.prompt)
        pieces = generate(self.reader, tokenizer, ids, sampling, seed=int(self.experiment.seed))
        return prompt + "".join(piece for _, piece in pieces)

    def sample(self, step: int) -> None:
        self.emit(events.SampleDrawn(step, self.write(self.experiment.sampling.max_new_tokens)))

    @cached_property
    def _tokenizer_sha256(self) -> str:
        """Once a session: a large vocabulary takes a while to hash."""
        return tokenizer_hash(self.corpus.tokenizer)

    def save(self, progress: TrainingProgress) -> None:
        settings = self.experiment.checkpoints
        if not settings.save:
            return
        started = time.monotonic()
        folder = save_checkpoint(
            self.run.checkpoints,
            run_id=self.run.recorded_id,
            step=progress.step,
            model=self.trainer.parameters.state_dict(),
            optimizer=self.trainer.optimizer.state_dict(),
            state={
                "step": progress.step,
                "progress": progress.to_json(),
                "tokenizer_sha256": self._tokenizer_sha256,
                "text_sha256": self.corpus.text_sha256,
            },
        )
        keep = [
            step
            for step in (progress.best_step, self.resumed.step if self.resumed else None)
            if step is not None
        ]
        prune(self.run.checkpoints, keep=keep, keep_last=settings.keep_last, keep_every=settings.keep_every)
        self.emit(events.CheckpointSaved(progress.step, folder, time.monotonic() - started))


def progress_of(checkpoint: Checkpoint) -> TrainingProgress:
    """Where the run stood. Raises ValueError, or KeyError, where the checkpoint does not say."""
    progress = TrainingProgress.from_json(checkpoint.state["progress"])
    if progress.step != checkpoint.step:
        raise ValueError(f"its progress is that of step {progress.step}")
    return progress


def _how_it_ended(error: BaseException) -> RunStatus:
    """The status of a run whose training raised."""
    if isinstance(error, DivergedError):
        return RunStatus.DIVERGED
    return RunStatus.INTERRUPTED if isinstance(error, KeyboardInterrupt) else RunStatus.FAILED
