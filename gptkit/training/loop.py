"""The training loop: batch, forward, loss, backward, clip, step, report.

In: a model with its weights and optimizer, a sampler, where to start and stop. Out: events, and whatever the
callables that it was given make of a step (a checkpoint, a sample). A step is a function of (experiment,
weights, optimizer state, step number): all that is random in it is seeded by (seed, purpose, step).

Knows nothing of files, runs or terminals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from gptkit.errors import DivergedError
from gptkit.events import EvaluationFinished, Listener, StepDone, StepFinished
from gptkit.experiment.schema import Experiment
from gptkit.seeds import derive_seed
from gptkit.text.batches import BatchSampler
from gptkit.training.loss import cross_entropy
from gptkit.training.optim import Optimizer, learning_rate_factor
from gptkit.training.weights import Weights


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint, so that a resumed run reports as one undisturbed."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training: evaluating, sampling and saving left out
    loss_sum: float = 0.0  # of the steps since the last that was logged
    loss_count: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """Raises ValueError where `data` is not what `to_json` gave."""
        known = {field.name: field.type for field in fields(cls)}
        if data.keys() != known.keys():
            raise ValueError("its progress has other fields")
        for name, value in data.items():
            wanted = (int,) if "int" in str(known[name]) else (int, float)
            optional = value is None and "None" in str(known[name])
            if not optional and (isinstance(value, bool) or not isinstance(value, wanted)):
                raise ValueError(f"its progress has {name} = {value!r}")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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

    def update(self, step: int) -> tuple[Tensor, Tensor]:
        """One step: the loss (mean over its batches) and the gradient's norm before clipping, scalars."""
        training = self.experiment.training
        batches = training.gradient_accumulation_steps
        device = self.weights.master.device
        if self.experiment.model.drops_out:
            torch.manual_seed(derive_seed(self.seed, "dropout", step))
        loss = torch.zeros((), device=device)
        for part in range(batches):
            inputs, targets = self.sampler.batch((step - 1) * batches + part)
            logits = self.model(torch.from_numpy(inputs).to(device, non_blocking=True))
            batch_loss = cross_entropy(logits, torch.from_numpy(targets).to(device, non_blocking=True))
            batch_loss.backward()  # type: ignore[no-untyped-call]
            loss += batch_loss.detach() / batches
        self.weights.collect_gradients(scale=1 / batches)
        norm = self.weights.clip(training.grad_clip)
        if not math.isfinite(norm.item() + loss.item()):
            raise DivergedError(
                f"training diverged at step {step}: loss {loss.item():.4g}, gradient norm {norm.item():.4g}. "
                "The step was not applied. Lower optimizer.learning_rate, or lengthen schedule.warmup_steps."
            )
        self.optimizer.step(self.learning_rate_factor(step))
        return loss, norm

    def learning_rate_factor(self, step: int) -> float:
        experiment = self.experiment
        return learning_rate_factor(
            experiment.schedule,
            step,
            peak=experiment.optimizer.learning_rate,
            max_steps=experiment.training.max_steps,
        )


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
) -> None:
    """Trains from the step after `trainer.progress.step` to `stop_step`, or until `stop_requested`.

    `evaluate` is called at every eval_interval and at `final_step`. `save` is called when the step is
    recorded: at every checkpoint_interval, at a new best, and at the end of this session, however it comes.
    Raises DivergedError; the weights are then those of the step before.
    """
    experiment, progress = trainer.experiment, trainer.progress
    log_interval = experiment.training.log_interval
    clock = _Clock(progress)
    trainer.model.train()
    while progress.step < stop_step:
        step = progress.step + 1
        clock.start()
        loss, norm = trainer.update(step)
        progress.step = step
        progress.tokens += experiment.tokens_per_step
        progress.loss_sum += loss.item()
        progress.loss_count += 1
        clock.stop()
        last = step == stop_step or stop_requested()
        evaluating = step % experiment.evaluation.eval_interval == 0 or step == final_step
        if step % log_interval == 0 or evaluating:
            listener(_log(trainer, norm.item(), clock))
        best = False
        if evaluating:
            evaluation = evaluate()
            best = _take_in(progress, evaluation)
            listener(_evaluated(trainer, evaluation))
        listener(StepDone(step))
        interval = experiment.sampling.sample_interval
        if interval and (step % interval == 0 or step == final_step):
            sample(step)
        if step % experiment.checkpoints.checkpoint_interval == 0 or best or last:
            save(progress)
        if last:
            return


class _Clock:
    """Training time by a monotonic clock, and the speed since the last log."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._logged_seconds, self._logged_tokens = progress.seconds, progress.tokens
        self._started = 0.0

    def start(self) -> None:
        self._started = time.monotonic()

    def stop(self) -> None:
        self._progress.seconds += time.monotonic() - self._started

    def tokens_per_second(self) -> float:
        progress = self._progress
        seconds = progress.seconds - self._logged_seconds
        speed = (progress.tokens - self._logged_tokens) / max(seconds, 1e-9)
        self._logged_seconds, self._logged_tokens = progress.seconds, progress.tokens
        return speed


def _log(trainer: Trainer, grad_norm: float, clock: _Clock) -> StepFinished:
    progress = trainer.progress
    progress.train_loss = progress.loss_sum / progress.loss_count
    progress.loss_sum, progress.loss_count = 0.0, 0
    return StepFinished(
        step=progress.step,
        train_loss=progress.train_loss,
        learning_rate=_learning_rate(trainer),
        grad_norm=grad_norm,
        tokens=progress.tokens,
        tokens_per_second=clock.tokens_per_second(),
        seconds=progress.seconds,
    )


def _take_in(progress: Progress, evaluation: Evaluation) -> bool:
    """Whether the evaluation is the best so far."""
    progress.val_loss = evaluation.val_loss
    if progress.best_val_loss is not None and not evaluation.val_loss < progress.best_val_loss:
        return False
    progress.best_val_loss, progress.best_step = evaluation.val_loss, progress.step
    return True


def _evaluated(trainer: Trainer, evaluation: Evaluation) -> EvaluationFinished:
    progress = trainer.progress
    return EvaluationFinished(
        step=progress.step,
        val_loss=evaluation.val_loss,
        bits_per_byte=evaluation.bits_per_byte,
        best_val_loss=progress.best_val_loss if progress.best_val_loss is not None else evaluation.val_loss,
        best_step=progress.best_step if progress.best_step is not None else progress.step,
        tokens=progress.tokens,
        learning_rate=_learning_rate(trainer),
        seconds=progress.seconds,
    )


def _learning_rate(trainer: Trainer) -> float:
    return trainer.experiment.optimizer.learning_rate * trainer.learning_rate_factor(trainer.progress.step)
