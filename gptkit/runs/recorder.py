"""Writes what a run reports into its folder as it happens: metrics.jsonl, samples, run.json.

Input: a run, its record, and the events of its training. Output: files; a checkpoint is written elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from gptkit import events
from gptkit.events import RunStatus
from gptkit.runs.record import Process, RunRecord
from gptkit.runs.run import Run


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
            case events.EvaluationFinished():
                self._row |= {
                    "step": event.step,
                    "val_loss": event.val_loss,
                    "bits_per_byte": event.bits_per_byte,
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
