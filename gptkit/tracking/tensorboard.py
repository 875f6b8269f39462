"""The tracker `tensorboard`: event files in the run's folder, which TensorBoard shows as they grow.

Input: the calls of a tracker. Output: `tensorboard/events.out.tfevents.*`, one file per session, so that
`tensorboard --logdir runs` shows every run under its id. Each call is one write of a few hundred bytes
without fsync: a power cut may lose the last of them, but metrics.jsonl has the numbers.

Events and records are TensorBoard's own classes. Its writers are not used, as they write from threads, and
load TensorFlow where that is installed.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import tomli_w
from pydantic import Field

from gptkit.files import disk, make_folder
from gptkit.plugins import PluginOptions, TrackedRun, Tracker

_FILE = re.compile(r"events\.out\.tfevents\.(\d{10,12})\.gptkit")
_FORMAT = "brain.Event:2"  # the version in which TensorBoard drops the steps that a resumed session repeats


class TensorBoardTracker(Tracker):
    """Scalars by step, samples and the experiment as texts, for `tensorboard --logdir runs`.

    When a run is resumed, TensorBoard drops the steps after the checkpoint: they are trained again.
    """

    class Options(PluginOptions):
        samples: bool = Field(default=True, description="Also write samples, as texts.")

    summary = "event files for TensorBoard, in the run's folder"
    needs = ("tensorboard",)

    _file: IO[bytes] | None = None

    def start(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        make_folder(run.place)
        self._file = disk.create(run.place / _new_name(run.place))
        self._write(Event(file_version=_FORMAT))
        if run.start_step:
            self._write(Event(step=run.start_step + 1, session_log=SessionLog(status=SessionLog.START)))
        else:
            self._write_text(0, "experiment", tomli_w.dumps(run.experiment))

    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def text(self, step: int, name: str, text: str) -> None:
        if self.options.samples:
            self._write_text(step, name, text)

    def finish(self, status: str) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _write_text(self, step: int, name: str, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        # TensorBoard renders Markdown; an indented block is shown verbatim
        code = "".join(f"    {line}\n" for line in text.split("\n")).encode("utf-8", "replace")
        value = Summary.Value(
            tag=name,
            metadata=create_summary_metadata(display_name=name, description=""),
            tensor=TensorProto(dtype=DT_STRING, string_val=[code]),
        )
        self._write(Event(step=step, summary=Summary(value=[value])))

    def _write(self, event: Any) -> None:
        """Writes a record in one call, so that TensorBoard never reads half of one."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        assert self._file
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        disk.write(self._file, record.getbuffer())


def _new_name(folder: Path) -> str:
    """A name that sorts after all others, even if the clock went back: TensorBoard reads in that order."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))]
    number = max([int(time.time()), *(one + 1 for one in taken)])
    return f"events.out.tfevents.{number:010d}.gptkit"
