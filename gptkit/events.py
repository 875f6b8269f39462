"""The events of a training run, as frozen values.

Training prints nothing: it calls listeners with these. The recorder of a run and the terminal are two of
them. Events carry numbers, strings and paths, never tensors or the trainer, so a listener cannot change the
training and may keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

RECORDED_ONLY = {"recorded_only": True}
"""The metadata of a field that the run folder keeps and `--json` leaves out."""


class RunStatus(StrEnum):
    """The state of a run, as in run.json or, where a process may be gone or the file damaged, in a list."""

    STARTING = "starting"  # its folder is there, its first step is not
    RUNNING = "running"
    FINISHED = "finished"  # its schedule, its time or its patience has ended
    STOPPED = "stopped"  # at the step that it was asked to stop at
    INTERRUPTED = "interrupted"  # SIGINT
    TERMINATED = "terminated"  # SIGTERM, SIGHUP
    DIVERGED = "diverged"
    FAILED = "failed"
    IMPORTED = "imported"  # made of published weights, without a training

    # In lists only
    CRASHED = "crashed"  # recorded as starting or running, but no process holds its lock
    UNREADABLE = "unreadable"  # run.json is missing or damaged
    UNKNOWN = "unknown"  # run.json has no status, or one that this version does not know

    @property
    def is_active(self) -> bool:
        """Whether run.json was last written by a process that was training."""
        return self in (RunStatus.STARTING, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class RunStarted:
    run_id: str
    folder: Path
    dataset: str  # its title
    tokenizer: str  # name of the tokenizer plugin
    vocab_size: int
    train_tokens: int
    val_tokens: int
    parameters: int
    device: str
    precision: str  # "fp32", "bf16" or "fp16"
    compiled: bool
    start_step: int  # 0, or the step of the checkpoint that it resumes from
    stop_step: int  # the last step of this session; 0 if the time ends it
    max_steps: int  # the last step of the schedule; 0 if the time ends it
    tokens_per_step: int
    minutes: float | None = None  # of training over all sessions, if the time ends the schedule


@dataclass(frozen=True, slots=True)
class StepFinished:
    """Sent every `log_interval` steps; the loss is the mean since the last one, in nats per token."""

    step: int
    train_loss: float
    learning_rate: float
    grad_norm: float  # of this step, before clipping
    tokens: int  # trained on so far, over all sessions
    tokens_per_second: float  # since the last one, without evaluation and saving
    seconds: float  # of training so far, over all sessions
    expected_steps: int | None = None  # estimated length of the run, if the time ends it
    seconds_left: float | None = None  # estimated, to the end of this session; None: not known yet
    adamw_learning_rate: float | None = None  # with Muon: of the parameters that AdamW updates


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Sent where no StepFinished came for a second: the figures so far, for displays. It is not recorded.

    The loss is the mean since the last StepFinished, and so is the speed.
    """

    step: int
    train_loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    seconds: float
    expected_steps: int | None = None
    seconds_left: float | None = None
    adamw_learning_rate: float | None = None


@dataclass(frozen=True, slots=True)
class StepDone:
    """Sent after every step; carries no values that need a device sync."""

    step: int


@dataclass(frozen=True, slots=True)
class EvaluationFinished:
    step: int
    val_loss: float  # mean nats per token
    bits_per_byte: float | None  # comparable across tokenizers; None where the tokenizer loses text
    best_val_loss: float
    best_step: int
    tokens: int
    learning_rate: float
    seconds: float  # of training so far, over all sessions
    # Nats per token of contiguous blocks of the split; recorded, and left out of `--json`
    block_losses: tuple[float, ...] = field(default=(), metadata=RECORDED_ONLY)

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
    max_steps: int  # the last step of the run; an estimate if the time ends it
    train_loss: float | None  # the last one logged
    val_loss: float | None
    best_val_loss: float | None
    best_bits_per_byte: float | None
    best_step: int | None
    tokens: int
    seconds: float
    saved: bool  # there is a checkpoint of this step
    reason: str = ""  # why it finished before its last step, as a sentence
    report: Path | None = None  # report.html, if it was written


@dataclass(frozen=True, slots=True)
class ResumeChecked:
    """Sent when a run is resumed."""

    step: int  # of the checkpoint
    differences: tuple[str, ...]  # from the recorded environment, such as "threads 2 -> 4"; empty if exact
    replayed: int = 0  # steps after it that metrics.jsonl has already, and that are trained again
    schedule_end: int | None = None  # the last step of the schedule, if the run is to go on past it


@dataclass(frozen=True, slots=True)
class ReplayStarted:
    """Sent when steps of a run are trained again, to check that they give the same result."""

    start: int  # the step of the checkpoint to start from; 0: the initial weights
    end: int


@dataclass(frozen=True, slots=True)
class Working:
    """Progress of other long work: before the first step, between two steps, or of a step that takes long."""

    what: str  # such as "downloading the text"
    done: int
    total: int  # in the unit of `done`; 0 if unknown


@dataclass(frozen=True, slots=True)
class Warned:
    message: str


Event = (
    RunStarted
    | StepDone
    | StepFinished
    | StepProgress
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
    """A listener that does nothing."""
