"""The contract of a tracker: it accepts every call, writes only to its folder, and closes it at the end.

Input: a tracker class and its options. Output: a result per check. The run that it follows is invented, in a
temporary folder; what its options make a tracker send elsewhere is sent. Imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from gptkit.experiment.schema import Experiment
from gptkit.plugins import TrackedRun
from gptkit.plugins.registry import TRACKERS
from gptkit.testing.contract import PluginContract, Verdict, calling, check, quote, require

_STATUSES = ("finished", "stopped", "interrupted", "terminated", "diverged", "failed")
_NUMBERS = {"loss/train": 3.25, "learning_rate": 0.02, "grad_norm": 1.5, "tokens_per_second": 24_000.5}
_EVALUATED = {"loss/val": 3.5, "bits_per_byte/val": 4.75}
_SAMPLE = "To be,\r\n\tor not   to be \U0001f600 <b>*e\u0301*</b>\n\n# and so on"
_ODD_TEXTS = ("", "\n", "\0", "a\ud83d", "```\n" * 9, "x" * 100_000)


class TrackerContract(PluginContract):
    """The checks of a tracker.

    Attributes:
        plugin: the tracker class. Set it.
        options: options to check it with; by default those of `plugin.Options.example`.
    """

    family = TRACKERS

    tracker: ClassVar[Any]  # set by test_made
    before: ClassVar[set[Path]]  # set by test_start: the files of the run before it
    seconds: ClassVar[list[float]]  # of each call

    @classmethod
    def setup_class(cls) -> None:
        super().setup_class()
        cls.seconds = []

    def run(self, name: str, start_step: int = 0) -> TrackedRun:
        """A run in a folder of its own, as it is after its first second."""
        folder = self.folder / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.toml").touch()
        experiment = Experiment().model_dump(exclude_none=True)
        return TrackedRun(name, folder, folder / "checked", experiment, start_step)

    def call(self, what: str, method: str, *arguments: Any) -> None:
        """One timed call of the tracker."""
        started = time.perf_counter()
        with calling(what):
            getattr(self.tracker, method)(*arguments)
        self.seconds.append(time.perf_counter() - started)

    @check("options")
    def test_made(self) -> None:
        """`plugin(options)` makes a tracker.

        Fix: let `__init__` accept the options as its one argument, or leave it as it is in Tracker.
        """
        type(self).tracker = self.plugin(self.example)
        self.report("with its options")

    @check("made")
    def test_start(self) -> None:
        """`start(run)` works for a run whose folder has no `run.place` yet.

        Fix: make the folder with `run.place.mkdir(exist_ok=True)` before you write to it.
        """
        run = self.run("first")
        type(self).before = self._files()
        self.call("start()", "start", run)
        self.report("accepts a run")

    @check("start")
    def test_scalars(self) -> None:
        """`scalars` works with the numbers of a step and with those of an evaluation.

        Fix: accept any mapping of names to numbers; a call has some of the names, not all.
        """
        for step in (10, 20):
            self.call(f"scalars() of step {step}", "scalars", step, dict(_NUMBERS), step / 8)
        self.call("scalars() of an evaluation", "scalars", 20, dict(_EVALUATED), 2.5)
        self.report("accepts those of steps and of evaluations")

    @check("start")
    def test_text(self) -> None:
        """`text` works with a sample that has line ends, tabs, emoji and markup.

        Fix: write UTF-8, or escape what your service cannot show.
        """
        self.call("text()", "text", 20, "sample", _SAMPLE)
        self.report("accepts a sample")

    @check("scalars", "text")
    def test_odd_values(self) -> None:
        """inf, nan, other names, and texts that are empty, long or have a lone surrogate are accepted.

        Fix: expect any number, name and text: runs diverge, and later versions of gptkit may send more.
        """
        for value in (inf, -inf, nan, 0.0, -1e300, 3):
            values = {"loss/train": value, "new/name": value}
            self.call(f"scalars() with {value}", "scalars", 30, values, 3.0)
        self.call("scalars() without any", "scalars", 30, {}, 3.0)
        for text in _ODD_TEXTS:
            self.call(f"text() with {quote(text, 12)}", "text", 30, "sample", text)
        self.call("text() of another name", "text", 30, "new name", "x")
        self.report("accepts inf, nan, other names and odd texts")

    @check("start")
    def test_finish(self) -> None:
        """`finish("finished")` works.

        Fix: close files and connections without raising; give up on a service that does not answer.
        """
        self.call("finish()", "finish", "finished")
        self.report("accepts the end")

    @check("finish")
    def test_released(self) -> None:
        """After `finish` no file is open.

        Fix: close every file in `finish`.
        """
        left = sorted(path.name for path in _open_files() if self.folder.resolve() in path.parents)
        require(not left, f"after finish() it holds {', '.join(left[:3])} open")
        self.report("no file is held open")

    @check("finish")
    def test_files(self) -> None:
        """Files are written to `run.place` and nowhere else, so that they move and vanish with the run.

        Fix: write below `run.place`.
        """
        place = self.run("first").place
        new = self._files() - self.before
        outside = sorted(str(path) for path in new if path != place and place not in path.parents)
        require(not outside, f"it writes {', '.join(outside[:3])}")
        self.report(f"{sum(path.is_file() for path in new)} written, in its own folder")

    def _files(self) -> set[Path]:
        """What is in the run's folder, beside it, and in the working directory."""
        here = {path for path in Path.cwd().iterdir() if path.name not in ("__pycache__", ".pytest_cache")}
        outside = {path for path in here if path.resolve() not in self.folder.resolve().parents}
        return outside | set(self.folder.rglob("*"))

    @check("scalars", "finish")
    def test_resume(self) -> None:
        """A resumed run has a new object, with `start_step`; it keeps what the first session wrote.

        Fix: open files for appending, and make the folder with `exist_ok=True`.
        """
        before = self._bytes_written()
        tracker = self.plugin(self.example)
        with calling("a second object, with a start_step,"):
            tracker.start(self.run("first", start_step=30))
            tracker.scalars(40, dict(_NUMBERS), 5.0)
            tracker.finish("finished")
        after = self._bytes_written()
        require(after >= before, f"the first session wrote {before:,} bytes, the second leaves {after:,}")
        self.report("a second session keeps what the first wrote")

    def _bytes_written(self) -> int:
        place = self.run("first").place
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())

    @check("finish")
    def test_ended_at_once(self) -> None:
        """A session may end before its first number, with each status.

        Fix: let `finish` accept every status, also right after `start`.
        """
        for status in _STATUSES:
            tracker = self.plugin(self.example)
            with calling(f'start() and at once finish("{status}")'):
                tracker.start(self.run(f"short-{status}"))
                tracker.finish(status)
        self.report("may end at once, with each status")

    @check("finish")
    def test_time(self) -> None:
        """How long the calls take; training waits for each."""
        longest = max(self.seconds) * 1000
        text = f"{len(self.seconds)} calls, the longest {longest:.1f} ms; training waits for each"
        self.report(text, Verdict.NOTE)


def _open_files() -> Iterator[Path]:
    """The files that this process has open. Raises SkipTest if the system does not list them."""
    place = Path("/proc/self/fd")
    if not place.is_dir():
        raise SkipTest("this system does not list open files")
    for entry in place.iterdir():
        try:
            yield Path(os.readlink(entry).removesuffix(" (deleted)"))
        except OSError:  # the descriptor that listed them
            continue
