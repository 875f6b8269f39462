"""What a training run reports, as frozen values.

The core is silent: it hands these to the listeners it was given. The run recorder and the terminal are two
of them. Events carry numbers, strings and paths, never tensors or the trainer, so a listener cannot change
what it watches and may outlive it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class RunStatus(StrEnum):
    """The state of a run, as in run.json."""

    STARTING = "starting"  # its folder is there, its first step is not
    RUNNING = "running"
    FINISHED = "finished"  # its schedule, its time or its patience has ended
    STOPPED = "stopped"  # at the step that it was asked to stop at
    INTERRUPTED = "interrupted"  # SIGINT
    TERMINATED = "terminated"  # SIGTERM, SIGHUP
    DIVERGED = "diverged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RunStarted:
    run_id: str
    folder: Path
    dataset: str  # what it trains on, for a person
    tokenizer: str  # name of the tokenizer plugin
    vocab_size: int
    train_tokens: int
    val_tokens: int
    parameters: int
    device: str
    precision: str  # "fp32" or "bf16"
    compiled: bool
    start_step: int  # 0, or the step that it resumes from
    stop_step: int  # the last step of this session; 0: the clock decides
    max_steps: int  # the step that the schedule ends at; 0: the clock decides
    tokens_per_step: int
    minutes: float | None = None  # of training in all sessions, where the schedule ends with the time


@dataclass(frozen=True, slots=True)
class StepFinished:
    """Sent every `log_interval` steps; loss is the mean of the steps since the last one, in nats a token."""

    step: int
    train_loss: float
    learning_rate: float
    grad_norm: float  # of the last step, before clipping
    tokens: int  # trained on so far, over the whole run
    tokens_per_second: float  # of the steps since the last one, evaluation and saving left out
    seconds: float  # of training in this run so far, all sessions
    expected_steps: int | None = None  # that the run will come to, where the clock ends it


@dataclass(frozen=True, slots=True)
class StepDone:
    """Sent after every step, for displays that count; it carries nothing that costs anything to know."""

    step: int


@dataclass(frozen=True, slots=True)
class EvaluationFinished:
    step: int
    val_loss: float  # mean nats per token
    bits_per_byte: float  # comparable across tokenizers
    best_val_loss: float
    best_step: int
    tokens: int
    learning_rate: float
    seconds: float  # of training in this run so far, all sessions

    @property
    def is_best(self) -> bool:
        return self.step == self.best_step


@dataclass(frozen=True, slots=True)
class SampleDrawn:
    step: int
    text: str  # the prompt included


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    step: int
    folder: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class RunFinished:
    status: RunStatus
    step: int
    max_steps: int  # the step that the run ends at; where the clock decides, as far as is known
    train_loss: float | None  # the last that was logged
    val_loss: float | None
    best_val_loss: float | None
    best_bits_per_byte: float | None
    best_step: int | None
    tokens: int
    seconds: float
    saved: bool  # a checkpoint of this step stands
    reason: str = ""  # why it is finished short of its last step
    report: Path | None = None  # the page of it, where it was written


@dataclass(frozen=True, slots=True)
class ResumeChecked:
    """Sent when a run is taken up again."""

    step: int  # that it goes on from
    differences: tuple[str, ...]  # from the recorded environment, such as "threads 2 -> 4"; none: exact
    replayed: int = 0  # steps after it that were recorded before, and are trained again


@dataclass(frozen=True, slots=True)
class ReplayStarted:
    """Sent when a stretch of a run is trained again, to see whether it comes out the same."""

    start: int  # the checkpoint that it is trained from; 0: the initial weights
    end: int


@dataclass(frozen=True, slots=True)
class Working:
    """Sent while something beside the training takes long: before it, or between two steps."""

    what: str  # "downloading the text", for a person
    done: int
    total: int  # in the unit of `done`; 0: unknown


@dataclass(frozen=True, slots=True)
class Warned:
    message: str


Event = (
    RunStarted
    | StepDone
    | StepFinished
    | EvaluationFinished
    | SampleDrawn
    | CheckpointSaved
    | RunFinished
    | ResumeChecked
    | ReplayStarted
    | Working
    | Warned
)
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener for those who do not listen."""
