"""What a tracker has to do: take every call, keep to its folder, let go of it at the end.

In: a tracker class and its options. Out: checks. The run that it is told of is made up, in a folder of its
own; what a tracker sends elsewhere, by its options, is sent. Uses no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any

from gptkit.experiment import Experiment
from gptkit.plugins import TrackedRun
from gptkit.testing.runner import Check, Note, SkippedError, asked, require, shown
from gptkit.testing.subject import PluginSubject

_STATUSES = ("finished", "stopped", "interrupted", "terminated", "diverged", "failed")
_NUMBERS = {"loss/train": 3.25, "learning_rate": 0.02, "grad_norm": 1.5, "tokens_per_second": 24_000.5}
_EVALUATED = {"loss/val": 3.5, "bits_per_byte/val": 4.75}
_SAMPLE = "To be,\r\n\tor not   to be \U0001f600 <b>*e\u0301*</b>\n\n# and so on"
_ODD_TEXTS = ("", "\n", "\0", "a\ud83d", "```\n" * 9, "x" * 100_000)


@dataclass
class TrackerSubject(PluginSubject):
    """`tracker` is set by the check "made", `before` when it starts, `calls` by each call of it."""

    tracker: Any = field(init=False, default=None)
    before: set[Path] = field(init=False, default_factory=set)
    calls: list[float] = field(init=False, default_factory=list)  # seconds

    @property
    def name(self) -> str:
        return "checked"

    def run(self, name: str, start_step: int = 0) -> TrackedRun:
        """A run in a folder of its own, as it is after its first second."""
        folder = self.folder / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.toml").touch()
        experiment = Experiment().model_dump(exclude_none=True)
        return TrackedRun(name, folder, folder / self.name, experiment, start_step)

    def tell(self, what: str, call: str, *arguments: Any) -> None:
        """One call, timed."""
        started = time.perf_counter()
        with asked(what):
            getattr(self.tracker, call)(*arguments)
        self.calls.append(time.perf_counter() - started)


def check_made(subject: TrackerSubject) -> str:
    subject.tracker = subject.cls(subject.options)
    return "with its options"


def check_start(subject: TrackerSubject) -> str:
    run = subject.run("first")
    subject.before = _everything(subject)
    subject.tell("start()", "start", run)
    return "takes a run"


def check_scalars(subject: TrackerSubject) -> str:
    for step in (10, 20):
        subject.tell(f"scalars() of step {step}", "scalars", step, dict(_NUMBERS), step / 8)
    subject.tell("scalars() of an evaluation", "scalars", 20, dict(_EVALUATED), 2.5)
    return "takes those of steps and of evaluations"


def check_text(subject: TrackerSubject) -> str:
    subject.tell("text()", "text", 20, "sample", _SAMPLE)
    return "takes a sample"


def check_odd(subject: TrackerSubject) -> str:
    """What a run may come to, and what later versions of gptkit may tell."""
    for value in (inf, -inf, nan, 0.0, -1e300, 3):
        subject.tell(f"scalars() with {value}", "scalars", 30, {"loss/train": value, "new/name": value}, 3.0)
    subject.tell("scalars() without any", "scalars", 30, {}, 3.0)
    for text in _ODD_TEXTS:
        subject.tell(f"text() with {shown(text, 12)}", "text", 30, "sample", text)
    subject.tell("text() of another name", "text", 30, "new name", "x")
    return "takes inf, nan, other names and odd texts"


def check_finish(subject: TrackerSubject) -> str:
    subject.tell("finish()", "finish", "finished")
    return "takes the end"


def check_released(subject: TrackerSubject) -> str:
    left = sorted(path.name for path in _open_files() if subject.folder.resolve() in path.parents)
    require(not left, f"after finish() it holds {', '.join(left[:3])} open")
    return "no file is held open"


def _open_files() -> Iterator[Path]:
    """The files that this process has open. Raises SkippedError where the system does not tell."""
    place = Path("/proc/self/fd")
    if not place.is_dir():
        raise SkippedError("this system does not tell which files are open")
    for entry in place.iterdir():
        try:
            yield Path(os.readlink(entry).removesuffix(" (deleted)"))
        except OSError:  # the one that listed them
            continue


def check_files(subject: TrackerSubject) -> str:
    place = subject.run("first").place
    new = _everything(subject) - subject.before
    outside = sorted(str(path) for path in new if path != place and place not in path.parents)
    require(not outside, f"it writes {', '.join(outside[:3])}; write to run.place alone")
    return f"{sum(path.is_file() for path in new)} written, in the folder of its own"


def _everything(subject: TrackerSubject) -> set[Path]:
    """What stands in the run's folder, beside it, and where one works."""
    here = {path for path in Path.cwd().iterdir() if path.name != "__pycache__"}
    return {path for path in here if path.resolve() not in subject.folder.resolve().parents} | set(
        subject.folder.rglob("*")
    )


def check_resume(subject: TrackerSubject) -> str:
    """Another session in the folder of the first, after all that was told there: nothing of it is void."""
    before = _size(subject.run("first").place)
    tracker = subject.cls(subject.options)
    with asked("a second object, with a start_step,"):
        tracker.start(subject.run("first", start_step=30))
        tracker.scalars(40, dict(_NUMBERS), 5.0)
        tracker.finish("finished")
    after = _size(subject.run("first").place)
    require(after >= before, f"of {before:,} bytes of the first session a second one leaves {after:,}")
    return "a second session keeps what the first wrote"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_short(subject: TrackerSubject) -> str:
    """Sessions that end before there is anything to tell."""
    for status in _STATUSES:
        tracker = subject.cls(subject.options)
        with asked(f'start() and at once finish("{status}")'):
            tracker.start(subject.run(f"short-{status}"))
            tracker.finish(status)
    return "may end at once, in any way"


def check_time(subject: TrackerSubject) -> Note:
    longest = max(subject.calls) * 1000
    return Note(f"{len(subject.calls)} calls, the longest {longest:.1f} ms; training waits for each")


CHECKS: tuple[Check[TrackerSubject], ...] = (
    Check("made", check_made, ("options",)),
    Check("start", check_start, ("made",)),
    Check("scalars", check_scalars, ("start",)),
    Check("text", check_text, ("start",)),
    Check("odd values", check_odd, ("scalars", "text")),
    Check("finish", check_finish, ("start",)),
    Check("released", check_released, ("finish",)),
    Check("files", check_files, ("finish",)),
    Check("resume", check_resume, ("scalars", "finish")),
    Check("ended at once", check_short, ("finish",)),
    Check("time", check_time, ("finish",)),
)
