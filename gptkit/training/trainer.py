"""The training loop: batch, forward, loss, backward, clip, step, report.

In: a model with its weights and optimizer, a sampler, where to start and stop. Out: events, and whatever the
callables that it was given make of a step (a checkpoint, a sample). A step is a function of (experiment,
weights, optimizer state, step number): all that is random in it is seeded by (seed, purpose, step).

Knows nothing of files, runs or terminals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gptkit.data.sampler import BatchSampler
from gptkit.events import EvaluationFinished, Listener, StepDone, StepFinished
from gptkit.experiment.schema import Experiment
from gptkit.seeds import derive_seed
from gptkit.training.budget import FOREVER, STEPS, Pace
from gptkit.training.loss import cross_entropy
from gptkit.training.nonfinite import Watch
from gptkit.training.optim import Optimizer, learning_rate_factor
from gptkit.training.parameters import Weights
from gptkit.training.prefetch import Feed
from gptkit.training.progress import Progress

__all__ = ["Evaluation", "Progress", "Trainer", "reason_to_end", "train"]


@dataclass(frozen=True)
class Evaluation:
    val_loss: float  # mean nats per token
    bits_per_byte: float


@dataclass
class Trainer:
    """All that a step needs."""

    experiment: Experiment
    model: nn.Module  # the GPT, or that compiled
    weights: Weights
    optimizer: Optimizer
    sampler: BatchSampler
    seed: int
    progress: Progress
    pace: Pace = STEPS
    watch: Watch = field(init=False)
    feed: Feed = field(init=False)

    def __post_init__(self) -> None:
        device = self.weights.master.device
        self.watch = Watch(self.progress, device, self.experiment.tokens_per_step)
        self.feed = Feed(self.sampler, device)

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """One step: the loss (mean over its batches) and the gradient's norm before clipping, scalars.

        On a GPU the step is only begun: the host copies nothing back, and goes on at once.
        Raises DivergedError on a CPU; on a GPU `watch.look` does.
        """
        training = self.experiment.training
        batches = training.gradient_accumulation_steps
        if self.experiment.model.drops_out:
            torch.manual_seed(derive_seed(self.seed, "dropout", step))
        loss = torch.zeros((), device=self.weights.master.device)
        for index in range((step - 1) * batches, step * batches):
            inputs, targets = self.feed.batch(index)
            batch_loss = cross_entropy(self.model(inputs), targets)
            batch_loss.backward()  # type: ignore[no-untyped-call]
            loss += batch_loss.detach() / batches
            self.feed.prepare(index + 1)
        self.weights.collect_gradients(scale=1 / batches)
        norm = self.weights.clip(training.grad_clip)
        skip = self.watch.take(step, loss, norm)
        self.optimizer.step(self.learning_rate_factor(step), skip)
        return loss, norm

    def learning_rate_factor(self, step: int) -> float:
        """The rate of `step` as a share of the peak, over max_steps or the steps that the time does for."""
        experiment = self.experiment
        end = experiment.training.max_steps
        if self.pace.minutes is not None:
            end = self.progress.expected_steps or FOREVER
        peak = experiment.optimizer.learning_rate
        return learning_rate_factor(experiment.schedule, step, peak=peak, max_steps=end)


def train(
    trainer: Trainer,
    *,
    stop_step: int,
    final_step: int,
    listener: Listener,
    evaluate: Callable[[], Evaluation],
    sample: Callable[[int], None],
    save: Callable[[Progress], None],
    stop_requested: Callable[[], bool],
    evaluate_at: Container[int] = (),
) -> str:
    """Trains from the step after `trainer.progress.step` to `stop_step`, or until `stop_requested`.

    Returns why the run is finished where that is before `stop_step` ("" otherwise): see `reason_to_end`.
    `evaluate` is called at every eval_interval, at `final_step` or such an end, and at the steps of
    `evaluate_at`. `save` is called when the step is recorded: at every checkpoint_interval, at a new best,
    and at the end of this session, however it comes.
    On a CPU the host looks at every step whether it was finite; on a GPU, which it would have to wait for,
    only at a step of which something is told, and before whatever uses the weights.
    Raises DivergedError; weights and progress are then those of the step before.
    """
    experiment, progress, watch = trainer.experiment, trainer.progress, trainer.watch
    clock = _Clock(progress)
    trainer.model.train()
    while progress.step < stop_step:
        step = progress.step + 1
        clock.start()
        trainer.update(step)
        progress.step = step
        progress.tokens += experiment.tokens_per_step
        progress.loss_count += 1
        last = step == stop_step or stop_requested()
        due = _due(experiment, step, step == final_step or step in evaluate_at)
        if last or due.anything or not watch.seldom:
            norm = watch.look()
            clock.stop()
            if trainer.pace.time_is_up(progress):
                due = _due(experiment, step, True)
        rate = experiment.optimizer.learning_rate * trainer.learning_rate_factor(step)
        if due.log:
            progress.expected_steps = trainer.pace.expected_steps(progress)
            listener(_log(progress, norm, rate, clock))
        best, ending = False, ""
        if due.evaluate:
            evaluation = evaluate()
            best = _take_in(progress, evaluation)
            ending = reason_to_end(trainer)
            listener(_evaluated(progress, evaluation, rate))
        listener(StepDone(step))
        if due.sample or (ending and experiment.sampling.sample_interval):
            sample(step)
        if due.save or best or last or ending:
            save(progress)
        if last or ending:
            return ending
    return ""


def reason_to_end(trainer: Trainer) -> str:
    """Why a run is finished where it stands, short of its last step; "" where it is not."""
    progress, most = trainer.progress, trainer.experiment.evaluation.stop_after_bad_evals
    if trainer.pace.time_is_up(progress):
        minutes = progress.seconds / 60
        said = f"{minutes:.1f}" if minutes >= 1 else f"{minutes:.2g}"
        return f"stopped after {said} minutes at step {progress.step}"
    if most and progress.bad_evals >= most:
        evaluations = "evaluation" if most == 1 else f"{most} evaluations"
        return f"stopped at step {progress.step} after {evaluations} without a better val loss"
    return ""


@dataclass(frozen=True)
class _Due:
    """What a step ends with."""

    log: bool
    evaluate: bool
    sample: bool
    save: bool

    @property
    def anything(self) -> bool:
        return self.log or self.evaluate or self.sample or self.save


def _due(experiment: Experiment, step: int, at_end: bool) -> _Due:
    evaluating = step % experiment.evaluation.eval_interval == 0 or at_end
    interval = experiment.sampling.sample_interval
    return _Due(
        log=step % experiment.training.log_interval == 0 or evaluating,
        evaluate=evaluating,
        sample=interval > 0 and (step % interval == 0 or at_end),
        save=step % experiment.checkpoints.checkpoint_interval == 0,
    )


class _Clock:
    """Training time by a monotonic clock, and the speed since the last log.

    It runs on from step to step until the host has waited for the device: only then is the time true.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._logged_seconds, self._logged_tokens = progress.seconds, progress.tokens
        self._started: float | None = None

    def start(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        if self._started is not None:
            self._progress.seconds += time.monotonic() - self._started
        self._started = None

    def tokens_per_second(self) -> float:
        progress = self._progress
        seconds = progress.seconds - self._logged_seconds
        speed = (progress.tokens - self._logged_tokens) / max(seconds, 1e-9)
        self._logged_seconds, self._logged_tokens = progress.seconds, progress.tokens
        return speed


def _log(progress: Progress, grad_norm: float, learning_rate: float, clock: _Clock) -> StepFinished:
    progress.train_loss = progress.loss_sum / progress.loss_count
    progress.loss_sum, progress.loss_count = 0.0, 0
    return StepFinished(
        step=progress.step,
        train_loss=progress.train_loss,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        tokens=progress.tokens,
        tokens_per_second=clock.tokens_per_second(),
        seconds=progress.seconds,
        expected_steps=progress.expected_steps,
    )


def _take_in(progress: Progress, evaluation: Evaluation) -> bool:
    """Whether the evaluation is the best so far."""
    progress.val_loss = evaluation.val_loss
    if progress.best_val_loss is not None and not evaluation.val_loss < progress.best_val_loss:
        progress.bad_evals += 1
        return False
    progress.bad_evals = 0
    progress.best_val_loss, progress.best_step = evaluation.val_loss, progress.step
    return True


def _evaluated(progress: Progress, evaluation: Evaluation, learning_rate: float) -> EvaluationFinished:
    return EvaluationFinished(
        step=progress.step,
        val_loss=evaluation.val_loss,
        bits_per_byte=evaluation.bits_per_byte,
        best_val_loss=progress.best_val_loss if progress.best_val_loss is not None else evaluation.val_loss,
        best_step=progress.best_step if progress.best_step is not None else progress.step,
        tokens=progress.tokens,
        learning_rate=learning_rate,
        seconds=progress.seconds,
    )
