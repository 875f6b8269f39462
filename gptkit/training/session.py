"""One training session: the loop plus evaluation, sampling, checkpoints, and what is recorded of it.

Input: an experiment to train a new run with, or a run to resume. Output: the run's folder, and events to the
listener. Knows nothing of command lines or terminals.
"""

from __future__ import annotations

import math
import os
import random
import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from gptkit import events
from gptkit.backend import computing, fingerprint
from gptkit.errors import (
    CheckpointError,
    DiskError,
    DivergedError,
    GptkitError,
    PluginError,
    RunInterruptedError,
    RunTerminatedError,
    StoppedError,
    UsageError,
)
from gptkit.events import RunStatus
from gptkit.experiment.identity import hash_of, values_of
from gptkit.experiment.load import to_toml
from gptkit.experiment.overrides import ALTERNATIVES, Override
from gptkit.experiment.schema import Experiment
from gptkit.files import disk, disk_errors
from gptkit.generation import encode_prompt, generate
from gptkit.model import GPT
from gptkit.model.build import build_model
from gptkit.plugins import Tokenizer
from gptkit.runs import (
    Process,
    Recorder,
    Run,
    RunRecord,
    create_run,
    list_steps,
    lock_run,
    tokenizer_hash,
)
from gptkit.runs.checkpoint import (
    Checkpoint,
    clear_temporaries,
    newest_checkpoint,
    prune,
    replace_state,
    save_checkpoint,
    set_aside,
)
from gptkit.runs.environment import (
    changed_later,
    experiment_at,
    record_resumed,
    refuse_foreign_checkpoint,
    trackers_again,
)
from gptkit.runs.record import Environment
from gptkit.tracking import Tracking
from gptkit.training.budget import TrainingProgress
from gptkit.training.compile import CompilationError, compile_model
from gptkit.training.context import RunContext
from gptkit.training.cost import out_of_memory
from gptkit.training.distributed import tensor_hash
from gptkit.training.loss import bits_per_byte, evaluate
from gptkit.training.schedule import surprises
from gptkit.training.setup import (
    NewRun,
    ResumedRun,
    RunSetup,
    evaluation_rule,
    new_record,
    prepare_new,
    prepare_resumed,
    target_step,
)
from gptkit.training.text import dataset_title
from gptkit.training.trainer import Evaluation, StepPlan, StopReason, Trainer

_LONG_EVALUATION = 0.5  # seconds after which its progress is reported
_STOPPED_ERRORS: dict[RunStatus, type[StoppedError]] = {
    RunStatus.INTERRUPTED: RunInterruptedError,
    RunStatus.TERMINATED: RunTerminatedError,
}


@dataclass(frozen=True)
class TrainingResult:
    """What a session leaves: the run, its status, and its model in fp32, in eval mode."""

    run: Run
    status: RunStatus
    progress: TrainingProgress
    experiment: Experiment
    model: GPT
    tokenizer: Tokenizer

    def generate(self, max_new_tokens: int) -> str:
        """The experiment's prompt and the text that the model generates after it; stored as a sample."""
        text = _generate(self.experiment, self.model, self.tokenizer, max_new_tokens)
        self.run.write_sample(self.progress.step, text)
        return text

    @property
    def stopped_by_signal(self) -> bool:
        return self.status in _STOPPED_ERRORS

    def raise_if_stopped(self, consequence: str) -> None:
        """Raises the StoppedError of the signal that ended the session, if one did."""
        if self.stopped_by_signal:
            raise _STOPPED_ERRORS[self.status](f"{self.status} at step {self.progress.step}{consequence}")


def train_run(
    experiment: Experiment,
    context: RunContext,
    *,
    stop_at: int | None = None,
) -> TrainingResult:
    """Trains a new run to the end of its schedule, or to `stop_at`.

    Raises a subclass of GptkitError. Nothing is written before text, tokenizer and model are known to be
    usable.
    """
    processes = context.processes
    if experiment.seed == "random" and processes.count > 1:  # all need the same
        seed = processes.from_first(random.SystemRandom().randrange(2**31))
        experiment = experiment.model_copy(update={"seed": seed})
    with processes.first_before_others():
        setup = prepare_new(experiment, context)
    if processes.count > 1:  # each may have measured something else as the fastest
        backend = setup.backend
        precision, operations = processes.from_first((backend.precision, backend.operations))
        setup = replace(setup, backend=replace(backend, precision=precision, operations=operations))
    return train_new(setup, context, StepPlan(stop_at, target_step(setup.experiment)))


def train_new(
    setup: NewRun, context: RunContext, plan: StepPlan, *, rerun_of: str | None = None
) -> TrainingResult:
    """Creates the run's folder and trains. `rerun_of` is the id of the run that it repeats, for run.json."""
    experiment, processes = setup.experiment, context.processes
    processes.require_same(lambda: _facts(setup), _SAME)
    with computing(setup.backend), out_of_memory(experiment):
        model = setup.build_model()
        if not processes.first:
            run = Run(Path(processes.from_first("")))
            return Follower(run, setup, setup.build_trainer(model, processes=processes), context).train(plan)
        run = create_run(context.runs_folder, stem=run_stem(experiment), experiment_toml=to_toml(experiment))
        with ExitStack() as held:
            try:
                held.enter_context(lock_run(run))
                run.write_tokenizer(setup.corpus.tokenizer)
                record = new_record(run, setup, context, rerun_of)
                run.write_record(record)
            except BaseException:  # without a record it is not a run yet
                disk.remove_folder(run.path)
                raise
            processes.from_first(os.path.abspath(run.path))
            trainer = setup.build_trainer(model, processes=processes)
            return Session(run, record, setup, trainer, context).train(plan)


def resume_run(
    run: Run,
    context: RunContext,
    *,
    steps: int | None = None,
    stop_at: int | None = None,
    require_exact: bool = False,
    overrides: Sequence[Override] = (),
) -> TrainingResult:
    """Continues a run to its end, to the `steps` given now or earlier, or to `stop_at`.

    `overrides` are fields of its experiment to continue with other values of. Raises CheckpointError if no
    checkpoint verifies or the experiment is not the recorded one, DataError if the text has changed,
    PluginError where the result would not be bit-identical and `require_exact` asks for that.
    """
    run.refuse_special_files()
    run.require_training()
    processes = context.processes
    if not processes.first:
        return _follow(run, context, overrides)
    with lock_run(run):
        setup = prepare_resumed(run, context, overrides)
        inexact = setup.inexact
        if require_exact:
            _refuse_inexact(run, inexact)
        checkpoint = _recover(run, setup, context)
        inexact += changed_later(setup.record, checkpoint.step)
        if require_exact:
            _refuse_inexact(run, inexact)
        final_step = _final_step(setup, checkpoint.step, steps)
        if stop_at is not None and stop_at < checkpoint.step:
            raise UsageError(
                f"run {run.id} is at step {checkpoint.step} already, past --stop-at {stop_at}; use more."
            )
        replayed = max(0, run.metrics_log.last_step() - checkpoint.step)
        scheduled = target_step(setup.experiment)
        decays = setup.experiment.schedule.type != "constant"
        beyond = scheduled if decays and scheduled and final_step and final_step > scheduled else None
        context.listener(events.ResumeChecked(checkpoint.step, inexact, replayed, beyond))
        plan = StepPlan(stop_at, final_step)
        # The others read the run before anything in it changes
        processes.from_first([checkpoint.step, stop_at, final_step, steps is not None])
        processes.wait()
        processes.require_same(lambda: _facts(setup), _SAME)
        record = setup.record
        record.target_step, record.process = final_step, Process.current()
        setup = replace(setup, trackers=trackers_again(setup.experiment, record, context.warn))
        with computing(setup.backend), out_of_memory(setup.experiment):
            trainer = setup.build_trainer(setup.build_model(checkpoint), checkpoint, processes=processes)
            if steps is not None:  # --steps continues a run that was stopped early
                trainer.progress.bad_evals = 0
            if setup.changes:  # before run.json: where it alone is written, the next resume asks again
                run.write_experiment(setup.experiment)
            here = fingerprint(setup.backend)
            record_resumed(
                record, setup.experiment, setup.changes, setup.differences, here, step=checkpoint.step
            )
            run.write_record(record)
            if scheduled and plan.last_step and plan.last_step > scheduled:
                _warn_of_no_rate(run, trainer, scheduled, plan.last_step, context)
            return Session(run, record, setup, trainer, context).train(plan)


def _follow(run: Run, context: RunContext, overrides: Sequence[Override]) -> TrainingResult:
    """Continues a run that rank 0 has locked and checked, as one of the other processes."""
    processes = context.processes
    step, stop_at, final_step, goes_on = processes.from_first([0, 0, 0, False])
    setup = prepare_resumed(run, context, overrides)
    checkpoint = run.checkpoint(str(step))
    processes.wait()
    processes.require_same(lambda: _facts(setup), _SAME)
    with computing(setup.backend), out_of_memory(setup.experiment):
        model = setup.build_model(checkpoint)
        trainer = setup.build_trainer(model, checkpoint, processes=processes)
        if goes_on:
            trainer.progress.bad_evals = 0
        return Follower(run, setup, trainer, context).train(StepPlan(stop_at, final_step))


_SAME = "All processes need the same text, packages and kind of processor."


def _facts(setup: RunSetup) -> dict[str, Any]:
    """What has to be the same for all processes, before the first step."""
    return {
        "the experiment's hash": hash_of(values_of(setup.experiment)),
        "the text's SHA-256": setup.corpus.text_sha256,
        "the tokenizer's SHA-256": tokenizer_hash(setup.corpus.tokenizer),
        **fingerprint(setup.backend),
    }


def _refuse_inexact(run: Run, inexact: Sequence[str]) -> None:
    if inexact:
        raise PluginError(
            f"run {run.id} would not be bit-identical: {', '.join(inexact)}. "
            "Without --require-exact it continues anyway."
        )


def _warn_of_no_rate(run: Run, trainer: Trainer, scheduled: int, last_step: int, context: RunContext) -> None:
    if trainer.learning_rate_factor(last_step) == 0:
        context.warn(
            f"the schedule of this run ends at step {scheduled} with a learning rate of 0, so later steps "
            f"change nothing.\nFor a longer schedule: --set training.max_steps={last_step}. "
            f"For a new run from its weights: gptkit train EXPERIMENT --load {run.path}"
        )


def run_stem(experiment: Experiment) -> str:
    """A run's id without its time: name, context, width, heads, layers."""
    model = experiment.model
    return f"{experiment.name}.c{model.context_length}.e{model.n_embd}.h{model.n_head}.b{model.n_layer}"


def _recover(run: Run, setup: ResumedRun, context: RunContext) -> Checkpoint:
    """The newest checkpoint that verifies; removes what a crash left, and sets damaged checkpoints aside.

    Raises CheckpointError if none verifies.
    """
    for folder in (run.path, run.checkpoints, run.samples):
        clear_temporaries(folder)
    run.metrics_log.drop_torn_line()
    run.require_checkpoint(setup.experiment, locked=True)
    run.check_recorded_id()

    def on_bad(step: int, error: CheckpointError) -> None:
        with disk_errors(f"setting aside step {step}"):
            path = set_aside(run.checkpoints, step)
        context.warn(f"{error}\nIt was set aside as {path.name}; the one before it is used.")

    checkpoint = newest_checkpoint(run.checkpoints, run_id=run.recorded_id, on_bad=on_bad)
    run.check_tokenizer(checkpoint, setup.corpus.tokenizer)
    refuse_foreign_checkpoint(run.id, setup.record, checkpoint)
    return checkpoint


def _final_step(setup: ResumedRun, step: int, steps: int | None) -> int | None:
    """The last step of a run that is resumed at `step`; None if the clock decides.

    Raises UsageError for `steps` that it is past, or that are before the end of its schedule.
    """
    run, training = setup.run, setup.experiment.training
    scheduled = target_step(setup.experiment)
    if steps is None:
        if scheduled is None or not _sets_length(setup):
            return None if scheduled is None else max(scheduled, setup.record.target_step or 0)
        if scheduled < step:
            raise UsageError(
                f"run {run.id} is at step {step} already, past training.max_steps = {scheduled}; use more."
            )
        return scheduled
    if scheduled is None:
        raise UsageError(
            f"run {run.id} trains for {training.minutes:g} minutes, and its schedule ends with them.\n"
            f"To train its model further, start a new run: gptkit train EXPERIMENT --load {run.id}"
        )
    if steps < step:
        raise UsageError(
            f"run {run.id} is at step {step} already, past --steps {steps}; use more than {step}."
        )
    if steps < scheduled:
        raise UsageError(
            f"--steps {steps} is before step {scheduled}, where the schedule of run {run.id} ends. "
            f"To stop there: --stop-at {steps}"
        )
    return steps


def _sets_length(setup: ResumedRun) -> bool:
    return any(change.key in ALTERNATIVES["the length of training"] for change in setup.changes)


class Session:
    """The hooks of the training loop for a run, whose lock the caller holds."""

    def __init__(
        self, run: Run, record: RunRecord, setup: RunSetup, trainer: Trainer, context: RunContext
    ) -> None:
        self.run, self.setup, self.trainer, self.context = run, setup, trainer, context
        self._experiment, self._corpus = setup.experiment, setup.corpus
        self._run_id = record.id or run.id
        self._start_step = trainer.progress.step
        saved = self._start_step in list_steps(run.checkpoints)
        self._saved_step = self._start_step if saved else None  # the step of the last checkpoint
        self._samples_fail = False
        self._evaluation_rule = evaluation_rule(record)
        self._tokenizer_sha256 = tokenizer_hash(setup.corpus.tokenizer)
        self._identity, self._record = values_of(setup.experiment), record
        self._recorder = Recorder(run, record)
        self._tracking = Tracking(setup.trackers, setup.experiment, context.warn)
        self.model = trainer.model  # as it trains, never compiled
        self._fp32_model = _fp32_model(setup, trainer)
        self._processes = context.processes
        self._stop: RunStatus | None = None  # that a signal to one of the processes asks for

    def train(self, plan: StepPlan) -> TrainingResult:
        """Trains, and records how it ends, also if an exception is raised."""
        progress = self.trainer.progress
        with self._tracking:
            self._start(plan)
            try:
                self._compile()
                require_same_weights(self.trainer)
                reason = self.trainer.fit(self, plan)
            except BaseException as error:
                with suppress(DiskError):  # the first error is the one to report
                    self._finish(_failure_status(error), plan, error=error)
                raise
            at_end = plan.final_step is not None and progress.step >= plan.final_step
            if at_end or reason.ends_run:
                status = RunStatus.FINISHED
            else:
                status = self._stop or self.context.stop_requested() or RunStatus.STOPPED
            self._finish(status, plan, "" if at_end else self._describe(reason))
        tokenizer = self._corpus.tokenizer
        return TrainingResult(self.run, status, progress, self._experiment, self._fp32_model, tokenizer)

    # Hooks of the loop

    def evaluate(self) -> Evaluation:
        try:
            evaluation = self._evaluate()
        except BaseException:
            self._processes.leave()  # the others wait for the result; what follows here is not theirs
            raise
        self._processes.from_first([evaluation.val_loss, evaluation.bits_per_byte])
        return evaluation

    def _evaluate(self) -> Evaluation:
        found = evaluate(
            self.model,  # not compiled: another shape would be compiled anew, and the last batch once more
            self._corpus.val,
            context_length=self._experiment.model.context_length,
            eval_tokens=self._experiment.evaluation.eval_tokens,
            rule=self._evaluation_rule,
            progress=self.context.progress("evaluating", after=_LONG_EVALUATION),
        )
        loss = found.mean
        if not math.isfinite(loss):
            self._refuse_weights(loss)
        return Evaluation(loss, self._bits_per_byte(loss), found.block_losses)

    def _refuse_weights(self, loss: float) -> NoReturn:
        """Ends a training whose weights have no finite val loss; sets their checkpoint aside."""
        step = self.trainer.progress.step
        if self._saved_step == step:
            with disk_errors(f"setting aside step {step}"):
                set_aside(self.run.checkpoints, step)
            self._saved_step = None
        raise DivergedError(
            f"training diverged at step {step}: the val loss is {loss}. Its weights are not kept. "
            "Lower optimizer.learning_rate, or lengthen schedule.warmup_steps."
        )

    def sample(self, step: int) -> None:
        """Whatever fails ends here, since a run can be trained without samples."""
        if self._samples_fail:
            return
        count = self._experiment.sampling.max_new_tokens
        try:
            text = _generate(self._experiment, self._fp32_model, self._corpus.tokenizer, count)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit of a plugin, and panics of Rust extensions
            self._samples_fail = True
            reason = error if isinstance(error, GptkitError) else f"{type(error).__name__}: {error}"
            self.context.warn(
                f"no sample at step {step}: {reason}\nNo more are drawn in this session; training continues."
            )
            return
        self.emit(events.SampleDrawn(step, text))

    def save(self, progress: TrainingProgress) -> None:
        require_same_weights(self.trainer)
        settings, step = self._experiment.checkpoints, progress.step
        if not settings.save:
            return
        started, folder, new = time.monotonic(), self.run.checkpoints, None
        at_start = step == self._start_step  # what trained that step may have changed since
        identity = experiment_at(self._record, step) if at_start else self._identity
        state = {
            "step": step,
            "progress": progress.to_json(),
            "tokenizer_sha256": self._tokenizer_sha256,
            "text_sha256": self._corpus.text_sha256,
            "experiment_sha256": hash_of(identity),
            "experiment": identity,
        }
        if not self._replaces_state(step, state):
            new = save_checkpoint(
                folder,
                run_id=self._run_id,
                step=step,
                model=self.trainer.parameters.state_dict(),
                optimizer=self.trainer.optimizer.state_dict(),
                state=state,
            )
            self._saved_step = step
        keep = [kept for kept in (progress.best_step, self._start_step) if kept]
        prune(folder, keep=keep, keep_last=settings.keep_last, keep_every=settings.keep_every)
        if new is not None:
            self.emit(events.CheckpointSaved(step, new, time.monotonic() - started))

    def _replaces_state(self, step: int, state: dict[str, Any]) -> bool:
        """Saves the state alone where the step has a checkpoint already."""
        if step != self._saved_step:
            return False
        try:
            replace_state(self.run.checkpoints, step=step, state=state)
        except CheckpointError:  # somebody removed it meanwhile
            return False
        return True

    def stop_requested(self) -> bool:
        self._stop = agreed_stop(self.context)
        return self._stop is not None

    def emit(self, event: events.Event) -> None:
        self._recorder(event)
        self._tracking(event)
        self.context.listener(event)

    # Start and end

    def _start(self, plan: StepPlan) -> None:
        experiment, corpus, backend = self._experiment, self._corpus, self.setup.backend
        if corpus.lost is not None:
            self.context.warn(
                f"tokenizer {experiment.tokenizer.type!r} {corpus.lost}.\nBits per byte would count bytes "
                "that the model is never asked for, so they are left out; nats per token are right, and "
                "compare between runs with this tokenizer."
            )
        last_step, schedule_end = plan.last_step, self.trainer.budget.max_steps
        self.emit(
            events.RunStarted(
                run_id=self.run.id,
                folder=self.run.path,
                dataset=dataset_title(experiment.data.dataset),
                tokenizer=experiment.tokenizer.type,
                vocab_size=self.setup.vocab_size,
                train_tokens=len(corpus.train),
                val_tokens=len(corpus.val),
                parameters=self._fp32_model.parameter_count,
                device=backend.device,
                precision=backend.precision,
                compiled=backend.compile,
                start_step=self._start_step,
                stop_step=last_step or 0,
                max_steps=schedule_end or 0,
                tokens_per_step=experiment.tokens_per_step,
                minutes=experiment.training.minutes,
            )
        )
        if self._start_step == 0:
            for message in surprises(experiment):
                self.context.warn(message)

    def _compile(self) -> None:
        """Compiles the trainer's model. With compile = "auto" a failure is only a warning."""
        backend = self.setup.backend
        if not backend.compile:
            return
        self.context.listener(events.Working("compiling the model", 0, 0))
        try:
            self.trainer.model = compile_model(self.model, *self.trainer.batches.batch(0))
        except CompilationError as error:
            if self._experiment.training.compile is True:
                raise PluginError(
                    f"torch.compile failed here: {error}\nSet training.compile = false to train without it."
                ) from error
            if self._start_step == 0:
                eager = fingerprint(replace(backend, compile=False))
                self._recorder.record.environment = Environment.model_validate(eager)
                self.run.write_record(self._recorder.record)
            elif self._record.resumed:
                *_, session = self._record.resumed
                session.differences = [*session.differences, "compile True -> False"]
                self.run.write_record(self._record)
            self.context.warn(f"torch.compile failed here: {error}\nTraining continues without it.")

    def _finish(
        self, status: RunStatus, plan: StepPlan, reason: str = "", *, error: BaseException | None = None
    ) -> None:
        """Records the end of the session; writes the report, unless it must end at once or the disk fails."""
        progress = self.trainer.progress
        best = progress.best_val_loss
        ended = events.RunFinished(
            status=status,
            step=progress.step,
            max_steps=plan.final_step or progress.expected_steps or progress.step,
            train_loss=progress.train_loss,
            val_loss=progress.val_loss,
            best_val_loss=best,
            best_bits_per_byte=None if best is None else self._bits_per_byte(best),
            best_step=progress.best_step,
            tokens=progress.tokens,
            seconds=progress.seconds,
            saved=self._saved_step == progress.step and status is not RunStatus.DIVERGED,
            reason=reason,
        )
        self._recorder(ended)
        self._tracking(ended)
        report = None
        if self.context.writes_report and not isinstance(error, KeyboardInterrupt | DiskError):
            report = _write_report(self.run, self.context)
        self.context.listener(replace(ended, report=report))

    def _describe(self, reason: StopReason) -> str:
        """A sentence on why the run is finished before its last step; "" where it is not finished."""
        progress, most = self.trainer.progress, self._experiment.evaluation.stop_after_bad_evals
        match reason:
            case StopReason.TIME_IS_UP:
                minutes = progress.seconds / 60
                shown = f"{minutes:.1f}" if minutes >= 1 else f"{minutes:.2g}"
                return f"stopped after {shown} minutes at step {progress.step}"
            case StopReason.NO_IMPROVEMENT:
                evaluations = "evaluation" if most == 1 else f"{most} evaluations"
                return f"stopped at step {progress.step} after {evaluations} without a better val loss"
        return ""

    def _bits_per_byte(self, loss: float) -> float | None:
        """None where the tokenizer does not return the text: its bits are those of another text."""
        if self._corpus.lost is not None:
            return None
        return bits_per_byte(loss, tokens=len(self._corpus.val), text_bytes=self._corpus.val_bytes)


class Follower:
    """The hooks of the training loop for a process that is not rank 0: it computes, and has no run folder."""

    def __init__(self, run: Run, setup: RunSetup, trainer: Trainer, context: RunContext) -> None:
        self.run, self.setup, self.trainer, self.context = run, setup, trainer, context
        self._stop: RunStatus | None = None

    def train(self, plan: StepPlan) -> TrainingResult:
        setup, progress = self.setup, self.trainer.progress
        model = _fp32_model(setup, self.trainer)
        if setup.backend.compile:
            with suppress(CompilationError):  # which rank 0 reports
                self.trainer.model = compile_model(self.trainer.model, *self.trainer.batches.batch(0))
        require_same_weights(self.trainer)
        reason = self.trainer.fit(self, plan)
        at_end = plan.final_step is not None and progress.step >= plan.final_step
        ended = RunStatus.FINISHED if at_end or reason.ends_run else self._stop or RunStatus.STOPPED
        return TrainingResult(self.run, ended, progress, setup.experiment, model, setup.corpus.tokenizer)

    def evaluate(self) -> Evaluation:
        nothing: list[float | None] = []
        val_loss, bits = self.context.processes.from_first(nothing)
        assert val_loss is not None
        return Evaluation(val_loss, bits)

    def sample(self, step: int) -> None:
        pass

    def save(self, progress: TrainingProgress) -> None:
        require_same_weights(self.trainer)

    def stop_requested(self) -> bool:
        self._stop = agreed_stop(self.context)
        return self._stop is not None

    def emit(self, event: events.Event) -> None:
        pass


_STOPS = (None, RunStatus.INTERRUPTED, RunStatus.TERMINATED)


def agreed_stop(context: RunContext) -> RunStatus | None:
    """The signal that one of the processes received, by which all stop after the same step."""
    return _STOPS[context.processes.largest(_STOPS.index(context.stop_requested()))]


def require_same_weights(trainer: Trainer) -> None:
    """Raises PluginError, naming a rank, if the processes do not have the same weights, bit for bit."""
    trainer.processes.require_same(
        lambda: {
            f"the weights' SHA-256 at step {trainer.progress.step}": tensor_hash(trainer.parameters.master)
        },
        "The same packages and kind of processor compute the same; otherwise the memory of one is faulty.",
    )


def _fp32_model(setup: RunSetup, trainer: Trainer) -> GPT:
    """A model whose parameters are the fp32 master values themselves, as `gptkit generate` loads them."""
    model = build_model(setup.experiment, setup.vocab_size).to(setup.backend.device)
    master = trainer.parameters.named()
    for name, parameter in model.named_parameters():
        parameter.data = master[name]
    return model.eval()


def _generate(experiment: Experiment, model: GPT, tokenizer: Tokenizer, max_new_tokens: int) -> str:
    sampling = experiment.sampling.model_copy(update={"max_new_tokens": max_new_tokens})
    prompt, ids = encode_prompt(tokenizer, sampling.prompt)
    pieces = generate(model, tokenizer, ids, sampling, seed=int(experiment.seed))
    text = prompt + "".join(piece for _, piece in pieces)
    return text.encode("utf-8", "replace").decode()  # a plugin may return lone surrogates


def _failure_status(error: BaseException) -> RunStatus:
    """The status of a run whose training raised."""
    if isinstance(error, DivergedError):
        return RunStatus.DIVERGED
    return RunStatus.INTERRUPTED if isinstance(error, KeyboardInterrupt) else RunStatus.FAILED


def _write_report(run: Run, context: RunContext) -> Path | None:
    """The run's report.html; None, with a warning, where it cannot be written."""
    try:
        from gptkit.report.page import write_report  # imports jinja2

        return write_report(run)
    except Exception as error:
        shown = error if isinstance(error, GptkitError) else f"{type(error).__name__}: {error}"
        context.warn(
            f"the report of the run is not written: {shown}\nEverything else is saved. To write it: "
            f"gptkit runs report {shlex.quote(str(run.path))}"
        )
        return None
