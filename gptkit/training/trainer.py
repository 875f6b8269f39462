"""The training loop: batch, forward, loss, backward, clip, update.

Input: a model with its flat parameters and optimizer, a sampler, where to start and stop. Output: updated
parameters, and calls of the hooks between steps: evaluate, sample, save, emit an event. A step is a function
of (experiment, parameters, optimizer state, step number): all randomness in it is seeded by (seed, purpose,
step).

Knows nothing of files, runs or terminals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import torch
from torch import nn

from gptkit.data.sampler import BatchSampler
from gptkit.errors import DivergedError
from gptkit.events import EvaluationFinished, Event, StepDone, StepFinished, StepProgress, Working
from gptkit.experiment.schema import Experiment, MuonSettings
from gptkit.seeds import derive_seed
from gptkit.training.budget import TimeLeft, TrainingBudget, TrainingProgress
from gptkit.training.distributed import ONE_PROCESS, Processes, RankBatches, rank_batches
from gptkit.training.loss import cross_entropy
from gptkit.training.nonfinite import NonFiniteGuard, nonfinite_guard
from gptkit.training.optim import Optimizer
from gptkit.training.parameters import FlatParameters, gradient_norm
from gptkit.training.prefetch import Prefetcher
from gptkit.training.schedule import learning_rate_factor

_LONGEST_SILENCE = 1.0  # seconds without figures


@dataclass(frozen=True)
class Evaluation:
    val_loss: float  # mean nats per token
    bits_per_byte: float | None  # None where the tokenizer does not return the text
    block_losses: tuple[float, ...] = ()  # nats per token of contiguous blocks of the split


class StopReason(StrEnum):
    """Why the loop ended."""

    LAST_STEP = "last step"  # the step that it was to stop at
    REQUESTED = "requested"  # a hook asked for it
    TIME_IS_UP = "time is up"  # the minutes of the run are over
    NO_IMPROVEMENT = "no improvement"  # too many evaluations without a better val loss

    @property
    def ends_run(self) -> bool:
        """Whether the run is finished, although it could make more steps."""
        return self in (StopReason.TIME_IS_UP, StopReason.NO_IMPROVEMENT)


@dataclass(frozen=True)
class StepPlan:
    """The steps to train."""

    stop_at: int | None  # stop after this step; None: not before the end
    final_step: int | None  # the run is finished after this step; None: when the time is up
    evaluate_at: Container[int] = ()  # in addition to every eval_interval

    @property
    def last_step(self) -> int | None:
        """Where the loop stops at the latest; None if only the clock ends it."""
        return min([step for step in (self.stop_at, self.final_step) if step is not None], default=None)


class Hooks(Protocol):
    """What the loop calls between steps; none of it changes what later steps compute."""

    def evaluate(self) -> Evaluation:
        """The loss on the val split."""
        ...

    def sample(self, step: int) -> None:
        """Generates a text."""
        ...

    def save(self, progress: TrainingProgress) -> None:
        """Saves a checkpoint; of a step that has one already, its progress alone."""
        ...

    def stop_requested(self) -> bool:
        """Called after every step: whether it is to be the last of the session."""
        ...

    def emit(self, event: Event) -> None:
        """Passes an event on to the listeners."""
        ...


@dataclass
class Trainer:
    """The model in training, with all that a step needs."""

    experiment: Experiment
    model: nn.Module  # the GPT, or that compiled
    parameters: FlatParameters
    optimizer: Optimizer
    sampler: BatchSampler
    seed: int
    progress: TrainingProgress
    budget: TrainingBudget
    processes: Processes = ONE_PROCESS
    guard: NonFiniteGuard = field(init=False)
    batches: Prefetcher = field(init=False)
    rank_batches: RankBatches = field(init=False)

    def __post_init__(self) -> None:
        device = self.parameters.master.device
        self.guard = nonfinite_guard(self.progress, device, self.experiment.tokens_per_step)
        self.batches = Prefetcher(self.sampler, device)
        self.rank_batches = rank_batches(self.experiment.training, self.processes.count)

    def step(self, batch_done: Callable[[int], None] | None = None) -> None:
        """One optimizer update, over `gradient_accumulation_steps` batches, and its place in the progress.

        Of several processes each computes its rows of them; then gradient and loss are averaged.
        `batch_done` is called between two batches with the number that is done.
        On a GPU the step is only enqueued: the host reads nothing back. Raises DivergedError on a CPU; on a
        GPU `guard.synchronize` does.
        """
        training, step = self.experiment.training, self.progress.step + 1
        processes, count = self.processes, self.rank_batches.passes
        if self.experiment.model.drops_out:
            purpose = "dropout" if processes.first else f"dropout/{processes.rank}"
            torch.manual_seed(derive_seed(self.seed, purpose, step))
        loss, loss_scale = torch.zeros((), device=self.parameters.master.device), self.optimizer.loss_scale
        indices = self.rank_batches.numbers(step, processes.rank, processes.count)
        total = count * processes.count
        for index in indices:
            if batch_done and index > indices[0]:
                batch_done(index - indices[0])
            inputs, targets = self.batches.batch(index)
            batch_loss = cross_entropy(self.model(inputs), targets)
            scaled_loss = batch_loss if loss_scale is None else loss_scale.scaled(batch_loss)
            scaled_loss.backward()  # type: ignore[no-untyped-call]
            scale = 1 / total if index == indices[-1] else 1.0
            norm = self.parameters.collect_gradients(scale, add=index > indices[0])
            loss += batch_loss.detach() / total
            self.batches.prefetch(indices[0] + total if index == indices[-1] else index + 1)
        if processes.count > 1:
            processes.sum(self.parameters.gradient)
            processes.sum(loss)
            norm = gradient_norm(self.parameters.gradient)
        overflow = None  # 1.0 where the scaled gradient left the range of fp16
        if loss_scale is not None:
            norm, overflow = loss_scale.unscale(self.parameters.gradient, norm)
        if training.grad_clip > 0:
            self.parameters.clip_gradient(norm, training.grad_clip)
        skip = self.guard.record(step, loss, norm.float())
        if overflow is not None:
            skip = overflow if skip is None else torch.maximum(skip, overflow)
        self.optimizer.step(self.learning_rate_factor(step), skip)
        self.progress.step = step
        self.progress.tokens += self.experiment.tokens_per_step
        self.progress.loss_count += 1

    def learning_rate_factor(self, step: int) -> float:
        """The learning rate of `step` as a fraction of the peak."""
        experiment = self.experiment
        return learning_rate_factor(
            experiment.schedule,
            step,
            peak=experiment.optimizer.learning_rate,
            max_steps=self.budget.schedule_end(self.progress),
        )

    def _learning_rates(self, step: int) -> _LearningRates:
        optimizer, factor = self.experiment.optimizer, self.learning_rate_factor(step)
        adamw_rate = optimizer.adamw_peak * factor if isinstance(optimizer, MuonSettings) else None
        return _LearningRates(optimizer.learning_rate * factor, adamw_rate)

    def fit(self, hooks: Hooks, plan: StepPlan) -> StopReason:
        """Trains from the step after `progress.step` to the end of the plan or of the run.

        Evaluates at every eval_interval, at the end of the run, and where the plan asks for it. Saves at
        every checkpoint_interval, at a new best, and whenever the loop ends. On a CPU every step is checked
        at once; on a GPU, where that would wait for the device, only where a step is logged, where no figures
        were sent for a second, and before anything uses the parameters.
        Raises DivergedError; parameters and progress are then those of the step before.
        """
        progress, guard, last_step = self.progress, self.guard, plan.last_step
        clock = _Clock(progress, TimeLeft(progress, self.budget, last_step))
        batches = self.rank_batches.passes
        by_clock = self.budget.minutes is not None and self.processes.count > 1

        def batch_done(done: int) -> None:
            if clock.is_silent():
                hooks.emit(Working("next step", done, batches))

        self.model.train()
        if (norm := progress.unlogged_norm) is not None:  # an earlier session ended in the evaluation
            progress.unlogged_norm = None
            due = self._due(plan)
            due = replace(due, log=True, evaluate=True, save=True)
            self._record_step(hooks, due, norm, clock, saved=True)
        if (reason := self.end_reached()) is not None:
            return reason
        while last_step is None or progress.step < last_step:
            clock.start()
            self.step(batch_done if guard.immediate else None)
            last = progress.step == last_step or hooks.stop_requested()
            due, norm = self._due(plan, silent=clock.is_silent()), math.nan
            if last or due.anything or guard.immediate or by_clock:
                norm = guard.synchronize()
                clock.stop()
                if by_clock:  # that of rank 0 decides
                    progress.seconds = self.processes.from_first(progress.seconds)
                due = self._due(plan, silent=due.figures)  # the time may be up
            clock.time_left.step_done()
            if reason := self._record_step(hooks, replace(due, save=due.save or last), norm, clock):
                return reason
            if last:
                return StopReason.LAST_STEP if progress.step == last_step else StopReason.REQUESTED
        return StopReason.LAST_STEP

    def _due(self, plan: StepPlan, *, silent: bool = False) -> _Due:
        """What is due after the step that was made last; `silent`: no figures were sent for long."""
        experiment, step = self.experiment, self.progress.step
        at_end = step == plan.final_step or step in plan.evaluate_at or self.budget.time_is_up(self.progress)
        evaluating = step % experiment.evaluation.eval_interval == 0 or at_end
        interval = experiment.sampling.sample_interval
        return _Due(
            figures=silent,
            log=step % experiment.training.log_interval == 0 or evaluating,
            evaluate=evaluating,
            sample=interval > 0 and (step % interval == 0 or at_end),
            save=step % experiment.checkpoints.checkpoint_interval == 0,
        )

    def _record_step(
        self, hooks: Hooks, due: _Due, norm: float, clock: _Clock, *, saved: bool = False
    ) -> StopReason | None:
        """Logs, evaluates, saves and samples as is due; returns why the run is finished, if it is.

        A save waits for nothing: where an evaluation is due too, the step is saved before it, as one that is
        still to be logged and evaluated, and its progress is saved again afterwards. `saved`: an earlier
        session did so.
        """
        progress = self.progress
        step = progress.step
        unlogged = replace(progress, unlogged_norm=norm) if due.evaluate else progress
        if due.evaluate and due.save and not saved:
            hooks.save(unlogged)
        rates = self._learning_rates(step)
        if due.log:
            progress.expected_steps = self.budget.expected_steps(progress)
            hooks.emit(_step_finished(progress, norm, rates, clock))
        elif due.figures:
            hooks.emit(_step_progress(progress, norm, rates, clock))
        best, reason = False, None
        if due.evaluate:
            try:
                evaluation = hooks.evaluate()
            except DivergedError:
                raise
            except Exception:
                if not due.save:
                    hooks.save(unlogged)
                raise
            best = progress.record_evaluation(evaluation.val_loss)
            reason = self.end_reached()
            hooks.emit(_evaluation_finished(progress, evaluation, rates.learning_rate))
        hooks.emit(StepDone(step))
        if due.save or best or reason:
            hooks.save(progress)
        if due.sample or (reason and self.experiment.sampling.sample_interval):
            hooks.sample(step)
        return reason

    def end_reached(self) -> StopReason | None:
        """Why the run is finished before its last step; None if it is not."""
        if self.budget.time_is_up(self.progress):
            return StopReason.TIME_IS_UP
        most = self.experiment.evaluation.stop_after_bad_evals
        if most and self.progress.bad_evals >= most:
            return StopReason.NO_IMPROVEMENT
        return None


@dataclass(frozen=True)
class _Due:
    """The work that is due after a step."""

    figures: bool  # to be shown only
    log: bool
    evaluate: bool
    sample: bool
    save: bool

    @property
    def anything(self) -> bool:
        return self.figures or self.log or self.evaluate or self.sample or self.save


class _Clock:
    """Training time by a monotonic clock, the speed since the last log, and the time since the last figures.

    It runs on from step to step until the host has synchronized with the device: only then is the time true.
    """

    def __init__(self, progress: TrainingProgress, time_left: TimeLeft) -> None:
        self._progress, self.time_left = progress, time_left
        self._logged_seconds, self._logged_tokens = progress.seconds, progress.tokens
        self._started: float | None = None
        self._sent = time.monotonic()

    def start(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        if self._started is not None:
            self._progress.seconds += time.monotonic() - self._started
        self._started = None

    def is_silent(self) -> bool:
        """Whether no figures were sent for long."""
        return time.monotonic() - self._sent >= _LONGEST_SILENCE

    def tokens_per_second(self, *, logged: bool) -> float:
        """The speed since the last log, to be sent now; where no step was made since, that of the run."""
        progress, self._sent = self._progress, time.monotonic()
        seconds = progress.seconds - self._logged_seconds
        speed = (progress.tokens - self._logged_tokens) / max(seconds, 1e-9)
        if progress.tokens == self._logged_tokens:  # an earlier session made the step
            speed = progress.tokens / max(progress.seconds, 1e-9)
        if logged:
            self._logged_seconds, self._logged_tokens = progress.seconds, progress.tokens
        return speed


@dataclass(frozen=True)
class _LearningRates:
    """Those of a step."""

    learning_rate: float
    adamw_learning_rate: float | None  # with Muon: of the parameters that AdamW updates


def _step_finished(
    progress: TrainingProgress, grad_norm: float, rates: _LearningRates, clock: _Clock
) -> StepFinished:
    progress.train_loss = progress.loss_sum / progress.loss_count
    progress.loss_sum, progress.loss_count = 0.0, 0
    return StepFinished(
        step=progress.step,
        train_loss=progress.train_loss,
        learning_rate=rates.learning_rate,
        grad_norm=grad_norm,
        tokens=progress.tokens,
        tokens_per_second=clock.tokens_per_second(logged=True),
        seconds=progress.seconds,
        expected_steps=progress.expected_steps,
        seconds_left=clock.time_left.seconds(),
        adamw_learning_rate=rates.adamw_learning_rate,
    )


def _step_progress(
    progress: TrainingProgress, grad_norm: float, rates: _LearningRates, clock: _Clock
) -> StepProgress:
    """Leaves the progress as it is, so that what is recorded does not depend on the clock."""
    return StepProgress(
        step=progress.step,
        train_loss=progress.loss_sum / progress.loss_count,
        learning_rate=rates.learning_rate,
        grad_norm=grad_norm,
        tokens=progress.tokens,
        tokens_per_second=clock.tokens_per_second(logged=False),
        seconds=progress.seconds,
        expected_steps=progress.expected_steps,
        seconds_left=clock.time_left.seconds(),
        adamw_learning_rate=rates.adamw_learning_rate,
    )


def _evaluation_finished(
    progress: TrainingProgress, evaluation: Evaluation, learning_rate: float
) -> EvaluationFinished:
    assert progress.best_val_loss is not None
    assert progress.best_step is not None
    return EvaluationFinished(
        step=progress.step,
        val_loss=evaluation.val_loss,
        bits_per_byte=evaluation.bits_per_byte,
        block_losses=evaluation.block_losses,
        best_val_loss=progress.best_val_loss,
        best_step=progress.best_step,
        tokens=progress.tokens,
        learning_rate=learning_rate,
        seconds=progress.seconds,
    )
