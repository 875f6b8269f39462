"""What a run reports, written into its folder as it happens: metrics.jsonl, samples, run.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from gptkit import events
from gptkit.files import append_lines, disk_errors
from gptkit.runs.run import METRICS, Run, this_process


class Recorder:
    """A listener that writes metrics.jsonl, samples and run.json as a run reports.

    A step's line is written when the step is complete, before its checkpoint is: so a checkpoint never stands
    without the metrics that led to it.
    """

    def __init__(self, run: Run, record: dict[str, Any], now: Callable[[], datetime] = datetime.now) -> None:
        self._run = run
        self._record = record
        self._now = now
        self._row: dict[str, Any] = {}

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self._record |= {
                    "status": "running",
                    "process": this_process(),
                    "parameters": event.parameters,
                }
                self._write()
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
                self._flush()
            case events.SampleDrawn():
                self._run.write_sample(event.step, event.text)
            case events.CheckpointSaved():
                self._record["last_checkpoint"] = event.step
            case events.RunFinished():
                self._finish(event)

    def _flush(self) -> None:
        if self._row:
            row, self._row = self._row, {}
            with disk_errors(f"recording step {row['step']}"):
                append_lines(self._run.path / METRICS, [json.dumps(row)])

    def _finish(self, event: events.RunFinished) -> None:
        self._flush()
        self._record |= {
            "status": event.status,
            "reason": event.reason,
            "ended": self._now().astimezone().isoformat(timespec="seconds"),
            "step": event.step,
            "train_loss": event.train_loss,
            "val_loss": event.val_loss,
            "best_val_loss": event.best_val_loss,
            "best_bits_per_byte": event.best_bits_per_byte,
            "best_step": event.best_step,
            "tokens": event.tokens,
            "seconds": round(event.seconds, 3),
        }
        self._record.pop("process", None)
        self._write()

    def _write(self) -> None:
        self._run.write_record(self._record)
