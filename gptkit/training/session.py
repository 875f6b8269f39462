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
from typing import Any

from gptkit import events
from gptkit.backend import Backend, fingerprint
from gptkit.data.corpus import Corpus
from gptkit.errors import CheckpointError, DiskError, DivergedError, GptkitError, PluginError
from gptkit.experiment import Experiment
from gptkit.generation import encode_prompt, generate
from gptkit.model import GPT
from gptkit.model.build import build_model
from gptkit.plugins import DataFolders
from gptkit.runs import DEFAULT_RUNS_FOLDER, Recorder, Run
from gptkit.runs.checkpoint import Checkpoint, prune, save_checkpoint
from gptkit.runs.load import recorded_id, tokenizer_hash
from gptkit.tracking import ChosenTracker, Tracking
from gptkit.training.budget import FOREVER, Pace, last_step
from gptkit.training.compile import CompilationError, compile_model
from gptkit.training.loss import bits_per_byte, evaluate
from gptkit.training.setup import build_trainer
from gptkit.training.text import telling, title_of
from gptkit.training.trainer import Evaluation, Progress, Trainer, reason_to_end, train

_LONG_EVALUATION = 0.5  # seconds after which it is told how far it is

StopRequested = Callable[[], str]
"""Asked between steps: "" to go on, or the status to stop with ("interrupted", "terminated")."""


def never() -> str:
    return ""


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
    status: str
    progress: Progress
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
        record: dict[str, Any],
        around: RunContext,
        resumed: Checkpoint | None = None,
        pace: Pace | None = None,
        trackers: Sequence[ChosenTracker] = (),
    ) -> None:
        self.run, self.experiment, self.corpus, self.backend = run, experiment, corpus, backend
        self.around, self.model, self.resumed = around, model, resumed
        self.pace = pace or Pace(experiment.training.minutes)
        self.record = record
        self.recorder = Recorder(run, record)
        self.tracking = Tracking(trackers, experiment, lambda message: self.report(events.Warned(message)))
        self.trainer = self._trainer(model.to(backend.device))
        self.reader = self._reader()

    def report(self, event: events.Event) -> None:
        self.recorder(event)
        self.tracking(event)
        self.around.listener(event)

    def _trainer(self, model: GPT) -> Trainer:
        resumed = self.resumed
        with self._fitting():
            progress = progress_of(resumed) if resumed else Progress()
        trainer = build_trainer(
            self.experiment,
            self.backend,
            model,
            self.corpus.train,
            progress,
            seed=int(self.experiment.seed),
            pace=self.pace,
        )
        if resumed:
            with self._fitting():
                trainer.weights.load(resumed.model)
                trainer.optimizer.load_state(resumed.optimizer)
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
        master = self.trainer.weights.named()
        for name, parameter in reader.named_parameters():
            parameter.data = master[name]
        return reader.eval()

    def run_to(
        self, stop_at: int | None = None, final_step: int | None = None, evaluate_at: Collection[int] = ()
    ) -> TrainingResult:
        """Trains to `stop_at`, or to the end of the run: `final_step`, which is max_steps unless given."""
        with self.tracking:
            return self._run_to(stop_at, final_step, evaluate_at)

    def _run_to(
        self, stop_at: int | None, final_step: int | None, evaluate_at: Collection[int]
    ) -> TrainingResult:
        final = final_step or last_step(self.experiment.training)
        stop_step = min(stop_at or final, final)
        progress = self.trainer.progress
        self._announce(stop_step)
        self._warn_of_standstill(stop_step)
        try:
            self._compile()
            ending = reason_to_end(self.trainer) or train(
                self.trainer,
                stop_step=stop_step,
                final_step=final,
                evaluate_at=evaluate_at,
                listener=self.report,
                evaluate=self._evaluate,
                sample=self._sample,
                save=self._save,
                stop_requested=lambda: bool(self.around.stop_requested()),
            )
        except BaseException as error:
            with suppress(DiskError):  # what went wrong first is what is told
                hopeless = isinstance(error, KeyboardInterrupt | DiskError)  # at once; on a disk that refuses
                self._conclude(_how_it_ended(error), final, writes_report=not hopeless)
            raise
        finished = ending or progress.step >= final
        status = "finished" if finished else self.around.stop_requested() or "stopped"
        self._conclude(status, final, ending if progress.step < final else "")
        return TrainingResult(self.run, status, progress, self.write)

    def _announce(self, stop_step: int) -> None:
        experiment, corpus, backend = self.experiment, self.corpus, self.backend
        self.report(
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
                stop_step=_known(stop_step),
                max_steps=_known(last_step(experiment.training)),
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
            self.trainer.model = compile_model(self.model, *self.trainer.feed.batch(0))
        except CompilationError as error:
            if self.experiment.training.compile is True:
                raise PluginError(
                    f"torch.compile failed here: {error}\nSet training.compile = false to train without it."
                ) from error
            self.backend = replace(self.backend, compile=False)
            if not self.resumed:
                self.record["environment"] = fingerprint(self.backend)
                self.run.write_record(self.record)
            self.report(events.Warned(f"torch.compile failed here: {error}\nTraining goes on without it."))

    def _warn_of_standstill(self, stop_step: int) -> None:
        end = last_step(self.experiment.training)
        if stop_step > end and self.trainer.learning_rate_factor(end + 1) == 0:
            self.report(
                events.Warned(
                    f"the schedule of this run ends at step {end} with a learning rate of 0, so later steps "
                    "change nothing.\nTo train its model further, start a new run: "
                    f"gptkit train EXPERIMENT --load {self.run.path}"
                )
            )

    def _conclude(self, status: str, final: int, reason: str = "", *, writes_report: bool = True) -> None:
        progress = self.trainer.progress
        best = progress.best_val_loss
        ended = events.RunFinished(
            status=status,
            step=progress.step,
            max_steps=_known(final) or progress.expected_steps or progress.step,
            train_loss=progress.train_loss,
            val_loss=progress.val_loss,
            best_val_loss=best,
            best_bits_per_byte=None if best is None else self._bits_per_byte(best),
            best_step=progress.best_step,
            tokens=progress.tokens,
            seconds=progress.seconds,
            saved=self.experiment.checkpoints.save
            and status in ("finished", "stopped", "interrupted", "terminated"),
            reason=reason,
        )
        self.recorder(ended)
        self.tracking(ended)
        written = self._write_report() if writes_report and self.around.writes_report else None
        self.around.listener(replace(ended, report=written))

    def _write_report(self) -> Path | None:
        """The run's report.html, or None: for want of it nothing else fails."""
        try:
            from gptkit.report.run_page import write_report  # jinja2, which nothing needs until now

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

    def _evaluate(self) -> Evaluation:
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

    def _sample(self, step: int) -> None:
        self.report(events.SampleDrawn(step, self.write(self.experiment.sampling.max_new_tokens)))

    @cached_property
    def _tokenizer_sha256(self) -> str:
        """Once a session: a large vocabulary takes a while to hash."""
        return tokenizer_hash(self.corpus.tokenizer)

    def _save(self, progress: Progress) -> None:
        settings = self.experiment.checkpoints
        if not settings.save:
            return
        started = time.monotonic()
        folder = save_checkpoint(
            self.run.checkpoints,
            run_id=recorded_id(self.run),
            step=progress.step,
            model=self.trainer.weights.named_on_cpu(),
            optimizer=self.trainer.optimizer.state(),
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
        self.report(events.CheckpointSaved(progress.step, folder, time.monotonic() - started))


def progress_of(checkpoint: Checkpoint) -> Progress:
    """Where the run stood. Raises ValueError, or KeyError, where the checkpoint does not say."""
    progress = Progress.from_json(checkpoint.state["progress"])
    if progress.step != checkpoint.step:
        raise ValueError(f"its progress is that of step {progress.step}")
    return progress


def _known(step: int) -> int:
    """A last step for those who are told; 0 where the clock decides."""
    return 0 if step == FOREVER else step


def _how_it_ended(error: BaseException) -> str:
    """The status of a run whose training raised."""
    if isinstance(error, DivergedError):
        return "diverged"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
