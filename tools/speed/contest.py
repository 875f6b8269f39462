"""Measures contestants alternately, each in its own process, and compares gptkit with its baselines."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tools.speed.report import Finding, SkippedError, count

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    nanogpt: Path | None = None
    seconds: float = 4.0  # per block
    blocks: int = 5  # per contestant; and runs of each command
    seeds: int = 1
    gpu_batch: int = 32

    def nanogpt_folder(self) -> Path:
        """Raises SkippedError if --nanogpt was not given."""
        if self.nanogpt is None:
            raise SkippedError("no nanoGPT: name a checkout with --nanogpt FOLDER")
        return self.nanogpt.resolve()


@dataclass(frozen=True)
class Contestant:
    """The name of a function in `contestants`, and its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rate:
    tokens: float  # per second, the median of the blocks
    details: dict[str, float]  # further numbers of the contestant, medians


def environment() -> dict[str, str]:
    """The environment of child processes: they import this checkout's gptkit in any folder."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def compete(
    contestants: Sequence[Contestant | list[Contestant]], options: Options
) -> list[tuple[Contestant, Rate]]:
    """The rate of each contestant; of a list of contestants, the one that is fastest in a short trial.

    After a warm-up the blocks of all alternate.
    """
    with ExitStack() as stack:
        chosen: list[tuple[Contestant, _Worker]] = []
        for entry in contestants:
            group = entry if isinstance(entry, list) else [entry]
            workers = [(one, stack.enter_context(_started(one))) for one in group]
            trials = [
                worker.measure(options.seconds / 4)["rate"] for _, worker in workers if len(workers) > 1
            ]
            chosen.append(workers[trials.index(max(trials)) if trials else 0])
        found: list[list[dict[str, float]]] = [[] for _ in chosen]
        for _ in range(options.blocks):
            for (_, worker), blocks in zip(chosen, found, strict=True):
                blocks.append(worker.measure(options.seconds))
    rates = []
    for (one, _), blocks in zip(chosen, found, strict=True):
        medians = {key: statistics.median(block[key] for block in blocks) for key in blocks[0]}
        rates.append((one, Rate(medians.pop("rate"), medians)))
    return rates


class _Worker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin
        assert self._process.stdout
        return self._process.stdin, self._process.stdout

    def measure(self, seconds: float) -> dict[str, float]:
        """Works for about `seconds`; returns the rate in tokens per second, and further numbers."""
        asks, answers = self._pipes
        asks.write(f"{seconds}\n")
        asks.flush()
        return self.answer(answers)

    def answer(self, answers: IO[str] | None = None) -> dict[str, float]:
        line = (answers or self._pipes[1]).readline()
        if not line:
            raise RuntimeError(f"a contestant ended with exit code {self._process.wait()}; see above")
        answer: dict[str, Any] = json.loads(line)
        if "skipped" in answer:
            raise SkippedError(answer["skipped"])
        return answer


@contextmanager
def _started(contestant: Contestant) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "tools.speed.worker", contestant.name, json.dumps(contestant.arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        worker = _Worker(process)
        worker.answer()  # it is built and warm
        yield worker
    finally:
        process.communicate()  # closes its standard input, which ends it


def timed(command: Sequence[str], cwd: Path) -> float:
    """Wall seconds of a command; its output is discarded. Raises RuntimeError with its stderr if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return seconds


_HOW = "each in its own process, blocks in turn, medians"


@dataclass(frozen=True)
class Baseline:
    name: str
    target: float  # gptkit's rate should be this multiple of its rate
    contestants: Callable[[], list[Contestant]]  # the fastest counts; raises SkippedError if not installed
    note: str = ""


def compare(
    what: str, ours: Contestant, baselines: Sequence[Baseline], options: Options
) -> tuple[Rate, list[Finding]]:
    """gptkit's rate, and a line of the table per baseline; those that are not installed are skipped."""
    present: list[tuple[Baseline, list[Contestant]]] = []
    reasons: dict[str, SkippedError] = {}
    for baseline in baselines:
        try:
            present.append((baseline, baseline.contestants()))
        except SkippedError as reason:
            reasons[baseline.name] = reason
    (_, mine), *theirs = compete([[ours], *(contestants for _, contestants in present)], options)
    rates = {baseline.name: found for (baseline, _), found in zip(present, theirs, strict=True)}
    lines = []
    for baseline in baselines:
        if baseline.name in reasons:
            target = f"≥ {baseline.target:g}x {baseline.name}"
            alone = f"skipped: {reasons[baseline.name]} (gptkit alone: {count(mine.tokens)} tokens/s)"
            lines.append(Finding(what, target, alone))
        else:
            lines.append(_line(what, baseline, mine, *rates[baseline.name]))
    return mine, lines


def _line(what: str, baseline: Baseline, ours: Rate, contestant: Contestant, theirs: Rate) -> Finding:
    measured = ours.tokens / theirs.tokens
    how = _HOW
    if precision := contestant.arguments.get("precision"):
        how += f"; {baseline.name} in {precision}, the faster of fp32 and bf16"
    return Finding(
        what,
        f"≥ {baseline.target:g}x {baseline.name}",
        f"{measured:.2f}x ({count(ours.tokens)} against {count(theirs.tokens)} tokens/s)",
        f"{how}; {baseline.note}" if baseline.note else how,
        measured >= baseline.target,
        {"ratio": measured, "gptkit": ours.tokens, baseline.name: theirs.tokens},
    )


def nanogpt(
    options: Options, contestant: str, target: float, *, name: str = "nanoGPT", note: str = "", **rest: object
) -> Baseline:
    """`contestant` with the folder of --nanogpt."""

    def contestants() -> list[Contestant]:
        return [Contestant(contestant, {"folder": str(options.nanogpt_folder()), **rest})]

    return Baseline(name, target, contestants, note)


def transformers(contestant: str, target: float, **rest: object) -> Baseline:
    def contestants() -> list[Contestant]:
        if importlib.util.find_spec("transformers") is None:
            raise SkippedError("transformers is not installed")
        return [Contestant(contestant, {**rest, "precision": precision}) for precision in ("fp32", "bf16")]

    return Baseline("transformers", target, contestants)
