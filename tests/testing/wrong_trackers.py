"""Trackers with one defect each, a few odd ones that are right, and which check has to find it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from gptkit.plugins import TrackedRun, Tracker


class Right(Tracker):
    """A line for each call, in a file of its own folder."""

    summary = "lines"
    mode = "a"
    _file: TextIO | None = None

    def start(self, run: TrackedRun) -> None:
        run.place.mkdir(exist_ok=True)
        self._file = (run.place / "lines.txt").open(self.mode, encoding="utf-8", errors="replace")

    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        self.write(f"{step} {seconds} {dict(values)}")

    def text(self, step: int, name: str, text: str) -> None:
        self.write(f"{step} {name} {text!r}")

    def finish(self, status: str) -> None:
        self.write(status)
        assert self._file
        self._file.close()

    def write(self, line: str) -> None:
        assert self._file
        self._file.write(line + "\n")


class CannotBeMade(Right):
    def __init__(self) -> None:
        pass


class NeedsItsFolder(Right):
    def start(self, run: TrackedRun) -> None:
        self._file = (run.place / "lines.txt").open("a", encoding="utf-8")


class StartExits(Right):
    def start(self, run: TrackedRun) -> None:
        raise SystemExit("no licence")


class OnlyTraining(Right):
    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        self.write(f"{step} {values['loss/train']}")


class AsciiAlone(Right):
    def text(self, step: int, name: str, text: str) -> None:
        self.write(text.encode("ascii").decode())


class StrictNumbers(Right):
    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        self.write(json.dumps(dict(values), allow_nan=False))


class OnlySamples(Right):
    def text(self, step: int, name: str, text: str) -> None:
        assert name == "sample"


class NoEmptyText(Right):
    def text(self, step: int, name: str, text: str) -> None:
        self.write(text.splitlines()[0])


class FinishRaises(Right):
    def finish(self, status: str) -> None:
        super().finish(status)
        raise TimeoutError("no answer")


class HoldsItsFile(Right):
    def finish(self, status: str) -> None:
        self.write(status)


class WritesBesideTheRun(Right):
    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        Path("numbers.txt").write_text(str(values))


class WritesIntoTheRun(Right):
    def start(self, run: TrackedRun) -> None:
        super().start(run)
        (run.folder / "more.json").write_text("{}")


class MakesItsFolderAnew(Right):
    def start(self, run: TrackedRun) -> None:
        run.place.mkdir()
        super().start(run)


class BeginsAnew(Right):
    mode = "w"


class KnowsOneEnd(Right):
    def finish(self, status: str) -> None:
        super().finish(status)
        {"finished": 0}[status]


class NeedsANumber(Right):
    last: int

    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        self.last = step

    def finish(self, status: str) -> None:
        self.write(str(self.last))
        super().finish(status)


WRONG: list[tuple[type, str]] = [
    (CannotBeMade, "made"),
    (NeedsItsFolder, "start"),
    (StartExits, "start"),
    (OnlyTraining, "scalars"),
    (AsciiAlone, "text"),
    (StrictNumbers, "odd values"),
    (OnlySamples, "odd values"),
    (NoEmptyText, "odd values"),
    (FinishRaises, "finish"),
    (HoldsItsFile, "released"),
    (WritesBesideTheRun, "files"),
    (WritesIntoTheRun, "files"),
    (MakesItsFolderAnew, "resume"),
    (BeginsAnew, "resume"),
    (KnowsOneEnd, "ended at once"),
    (NeedsANumber, "ended at once"),
]


# Odd, and right


class OnlyScalars(Tracker):
    """The least that there can be."""

    summary = "nothing"

    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        pass


class ForgetsWhatComesAgain(Right):
    """Cuts the steps that a resumed run repeats out of its file."""

    def start(self, run: TrackedRun) -> None:
        place = run.place / "lines.txt"
        lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
        kept = [line for line in lines if not line[0].isdigit() or int(line.split()[0]) <= run.start_step]
        super().start(run)
        assert self._file
        self._file.truncate(0)
        for line in kept:
            self.write(line)


class ChangesWhatItGets(Right):
    """What it is given is its own."""

    def start(self, run: TrackedRun) -> None:
        super().start(run)
        experiment: Any = run.experiment
        experiment.clear()

    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        given: Any = values
        given.clear()


RIGHT: list[type] = [Right, OnlyScalars, ForgetsWhatComesAgain, ChangesWhatItGets]
