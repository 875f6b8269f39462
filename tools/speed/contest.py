"""Contestants in processes of their own, measured in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .report import SkippedError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """What the user said."""

    nanogpt: Path | None = None
    seconds: float = 4.0  # of a block
    blocks: int = 5  # of each contestant, and runs of each command
    seeds: int = 1
    gpu_batch: int = 32

    def nanogpt_folder(self) -> Path:
        """Raises SkippedError where the user named none."""
        if self.nanogpt is None:
            raise SkippedError("no nanoGPT here; --nanogpt FOLDER names a checkout")
        return self.nanogpt.resolve()


@dataclass(frozen=True)
class Contestant:
    """The name of a function of `contestants`, and its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rate:
    tokens: float  # a second, the median of the blocks
    details: dict[str, float]  # what the contestant said beside, medians


def environment() -> dict[str, str]:
    """For child processes: this checkout's gptkit, from whatever folder they run in."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def compete(
    contestants: Sequence[Contestant | list[Contestant]], options: Options
) -> list[tuple[Contestant, Rate]]:
    """The rate of each; where several are given for one, that of the fastest in a short trial.

    The blocks of all alternate, after a warm-up.
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
        """Works for about so long; the rate in tokens a second, and what else it said."""
        asks, answers = self._pipes
        asks.write(f"{seconds}\n")
        asks.flush()
        return self.answer(answers)

    def answer(self, answers: IO[str] | None = None) -> dict[str, float]:
        line = (answers or self._pipes[1]).readline()
        if not line:
            raise RuntimeError(f"a contestant ended with exit code {self._process.wait()}; see above")
        said: dict[str, Any] = json.loads(line)
        if "skipped" in said:
            raise SkippedError(said["skipped"])
        return said


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
    """Wall seconds of a command, its output thrown away. Raises RuntimeError with its complaint."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return seconds
