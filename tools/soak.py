"""Kills and interrupts training at random moments, resumes it, and checks that nothing is lost.

    python -m tools.soak --kills 300 [--signals 100] [--seed S]

Trains a very small model with frequent checkpoints; kills the process and resumes it until the run is
complete; repeats that until the number of kills is reached. After every kill, each checkpoint must verify and
the newest must be no older than before. At the end, the SHA-256 of weights and optimizer and the losses of
all steps must equal those of an undisturbed run. Prints statistics; exit code 1 after any violation.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptkit.errors import GptkitError
from gptkit.runs import Run, list_steps, run_ids
from gptkit.runs.checkpoint import load_checkpoint
from tools.support import argument_parser, processes, restore_sigint, small_text
from tools.support.outcome import outcome
from tools.support.processes import EVALUATING, PRUNING, SAVING, SIGNALS, STARTING, Child

STEPS = 60
# Intervals that do not divide one another, so that kills also fall between a log line and its checkpoint
EXPERIMENT = f"""\
name = "soak"
seed = 7
data = {{ dataset = "data/mine.txt" }}
[model]
context_length = 16
n_embd = 32
n_layer = 2
n_head = 2
dropout = 0.1
[training]
max_steps = {STEPS}
batch_size = 4
gradient_accumulation_steps = 2
log_interval = 2
backend = "cpu"
threads = 1
[evaluation]
eval_interval = 5
[checkpoints]
checkpoint_interval = 3
keep_last = 2
keep_every = 21
[sampling]
sample_interval = 20
max_new_tokens = 5
"""
# When to strike, with weights: mostly while something is being written
MOMENTS = {SAVING: 5, PRUNING: 2, EVALUATING: 1, STARTING: 1, "any": 3}
MAX_SAVES_TO_SKIP = 3


@dataclass
class Figures:
    """Counts of what happened, and every violation."""

    strikes: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    started: Counter[str] = field(default_factory=Counter)  # new interpreters and forks
    codes: Counter[int] = field(default_factory=Counter)
    resumes: int = 0
    restarts: int = 0  # killed before anything was saved
    runs: int = 0
    identical: int = 0
    checkpoints: set[tuple[str, int]] = field(default_factory=set)
    lost: int = 0
    before_gptkit: int = 0  # signals that arrived before gptkit was imported
    violations: list[str] = field(default_factory=list)


class Soak:
    """Runs in a workspace, struck by SIGKILL or, with `signals`, by signals that gptkit handles."""

    def __init__(self, workspace: Path, rng: random.Random, *, signals: bool, real_share: float) -> None:
        self.workspace, self.rng, self.signals, self.real_share = workspace, rng, signals, real_share
        self.figures = Figures()
        self.log = workspace / "log.txt"
        self.newest = -1  # the newest checkpoint of the run so far
        self.recorded = 0  # lines of its metrics when the session began
        (workspace / "data").mkdir(parents=True)
        (workspace / "data" / "mine.txt").write_text(small_text())
        (workspace / "soak.toml").write_text(EXPERIMENT)
        began = time.monotonic()
        child = self.start(["train", "soak.toml", "--runs-dir", "undisturbed"], forked=True)
        run = self.run_in("undisturbed") if child.wait() == 0 else None
        if run is None:
            raise SystemExit(f"the undisturbed run failed:\n{self.log.read_text()}")
        self.seconds = time.monotonic() - began
        self.wanted = outcome(run)

    def start(self, arguments: list[str], *, forked: bool) -> Child:
        self.log.write_text("")
        return processes.start(arguments, self.workspace, self.log, forked=forked)

    def run_in(self, runs: str) -> Run | None:
        """The one run of a folder of runs."""
        ids = run_ids(self.workspace / runs)
        return Run(self.workspace / runs / ids[0]) if ids else None

    def until(self, strikes: int) -> Figures:
        """Strikes until `strikes` have hit, and completes the last run."""
        while self.figures.strikes < strikes:
            self.one_run(strikes)
        return self.figures

    def one_run(self, strikes: int) -> None:
        """One run from its first step to its last, resumed as often as needed."""
        self.figures.runs += 1
        runs = f"runs-{self.figures.runs}"
        child = None
        while child is None or child.code != 0:
            run = self.run_in(runs)
            if run is not None and list_steps(run.checkpoints):
                arguments = ["resume", run.id, "--runs-dir", runs]
                self.figures.resumes += 1
            else:  # nothing was saved yet, so nothing can be lost
                shutil.rmtree(self.workspace / runs, ignore_errors=True)
                self.figures.restarts += child is not None
                arguments, self.newest = ["train", "soak.toml", "--runs-dir", runs], -1
            self.recorded = len(self.lines(runs))
            child = self.start(arguments, forked=self.rng.random() >= self.real_share)
            struck = self.figures.strikes < strikes and self.strike(child, runs)
            if child.wait() != 0 and not struck:
                self.violated(f"{arguments} ended with {child.code}")
                return
            self.check_checkpoints(runs)
            if arguments[0] == "resume" and not struck and "resume: exact" not in self.log.read_text():
                self.violated("a resume was not reported as exact")
        run = self.run_in(runs)
        if run is not None and self.newest == STEPS and outcome(run) == self.wanted:
            self.figures.identical += 1
        else:
            self.violated(f"{runs} differs from the undisturbed run")
        shutil.rmtree(self.workspace / runs)

    def check_checkpoints(self, runs: str) -> None:
        """Checks that every checkpoint verifies and the newest is no older than before."""
        run = self.run_in(runs)
        steps = list_steps(run.checkpoints) if run else []
        for step in steps:
            assert run is not None
            self.figures.checkpoints.add((runs, step))
            try:
                load_checkpoint(run.checkpoints, step, run_id=run.id)
            except GptkitError as error:
                self.figures.lost += 1
                self.violated(str(error))
        newest = max(steps, default=-1)
        if newest < self.newest:
            self.figures.lost += 1
            self.violated(f"{runs} had step {self.newest}, now {newest}")
        self.newest = newest

    # Striking

    def strike(self, child: Child, runs: str) -> bool:
        """Waits for a random moment and strikes; returns whether it hit."""
        moment = self.await_moment(child, runs)
        if not self.signals:
            child.send(signal.SIGKILL)
            if child.wait() != -signal.SIGKILL:
                return False
            self.count(child, self.was_in(child, runs))
            return True
        before = self.last_step(runs)
        number = self.rng.choice(SIGNALS)
        if child.poll() is not None:
            return False
        was_in = self.was_in(child, runs)
        child.send(number)
        after = self.last_step(runs)
        twice = number == signal.SIGINT and self.rng.random() < 0.1
        if twice:
            time.sleep(self.rng.uniform(0, 0.01))
            child.send(number)
        child.wait()
        self.count(child, f"{was_in}, twice" if twice else was_in)
        self.check_stop(child, runs, number, (before, after), f"{moment}, in {was_in}", twice=twice)
        return True

    def count(self, child: Child, moment: str) -> None:
        self.figures.strikes += 1
        self.figures.moments[moment] += 1
        self.figures.started["forks" if child.forked else "new interpreters"] += 1
        self.figures.codes[child.code or 0] += 1

    def await_moment(self, child: Child, runs: str) -> str:
        """Returns at a random moment of a random kind, or when the child has ended."""
        moment = self.rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        if moment in ("any", STARTING) or (not child.forked and moment == EVALUATING):
            # During the first tenth of its imports, a new interpreter has no handler of gptkit yet
            startup = 0.03 if child.forked else self.rng.choice((0.3, 3.0))
            longest = startup if moment == STARTING else startup + self.seconds
            self.sleep(child, self.rng.uniform(0, longest))
            return moment
        to_pass, inside = self.rng.randint(0, MAX_SAVES_TO_SKIP), False
        while child.poll() is None:
            now = self.is_in(child, moment, runs)
            if now and not inside:
                to_pass -= 1
                if to_pass < 0:
                    self.sleep(child, self.rng.uniform(0, 0.004))  # about as long as a save takes
                    break
            inside = now
            time.sleep(0.00005)
        return moment

    @staticmethod
    def sleep(child: Child, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and child.poll() is None:
            time.sleep(min(0.001, max(0.0, end - time.monotonic())))

    def is_in(self, child: Child, moment: str, runs: str) -> bool:
        """Whether the child is in that phase: a fork reports it, for a new interpreter the disk shows it."""
        return processes.phase() == moment if child.forked else self.was_in(child, runs) == moment

    def was_in(self, child: Child, runs: str) -> str:
        if child.forked:
            return processes.phase()
        run = self.run_in(runs)
        names = os.listdir(run.checkpoints) if run and run.checkpoints.is_dir() else []
        if any(name.startswith(".tmp-") for name in names):
            return SAVING
        if any(name.startswith(".trash-") for name in names):
            return PRUNING
        return "training or evaluation" if run and child.pid == self.owner(run) else "imports and start"

    @staticmethod
    def owner(run: Run) -> int:
        """The process that trains the run, from its record."""
        try:
            process = run.record().get("process")
        except GptkitError:
            return 0
        return int(process["pid"]) if isinstance(process, dict) else 0

    def lines(self, runs: str) -> list[str]:
        """The complete lines of metrics.jsonl."""
        run = self.run_in(runs)
        path = run.path / "metrics.jsonl" if run else None
        return path.read_text().split("\n")[:-1] if path and path.exists() else []

    def last_step(self, runs: str) -> int:
        """The last step recorded by this session, or the step that it started from."""
        lines = self.lines(runs)
        return int(json.loads(lines[-1])["step"]) if len(lines) > self.recorded else max(self.newest, 0)

    def check_stop(
        self, child: Child, runs: str, number: int, steps: tuple[int, int], moment: str, *, twice: bool
    ) -> None:
        """Checks the effect of a signal: exit code, record, and a checkpoint of the current step.

        `steps`: the last recorded step just before the signal and just after it.
        """
        codes = {130, -signal.SIGINT} if number == signal.SIGINT else {143, -number}
        what = f"signal {number} ({moment}, {'fork' if child.forked else 'python'}): exit code {child.code}"
        output = self.log.read_text()
        if not child.forked and (
            "import runpy" in output or ("Traceback" in output and "gptkit" not in output)
        ):
            self.figures.before_gptkit += 1  # Python itself was still starting
            return
        if "Traceback" in output:
            self.violated(f"{what} and a traceback:\n{output}")
        run = self.run_in(runs)
        record: dict[str, Any] = {}
        if run is not None and (run.path / "run.json").exists():
            record = run.record()
        status, finished = record.get("status"), record.get("status") == "finished"
        if child.code not in codes | ({0} if finished else set()):
            self.violated(f"{what}, status {status}")
        if child.code == 0 and steps[1] < STEPS - 4:  # it continued as if there had been no signal
            if child.forked or "imports" not in moment:
                self.violated(f"{what}: the signal was lost after step {steps[1]}")
            else:
                self.figures.before_gptkit += 1
        if finished or twice or child.code not in (130, 143) or run is None:
            return
        if status != ("interrupted" if number == signal.SIGINT else "terminated"):
            return  # it arrived before the run was resumed: nothing has changed
        newest = max(list_steps(run.checkpoints), default=0)
        # Every second step is recorded, so the last record may be two steps behind, and more may follow
        if newest != record.get("step") or not steps[0] <= newest <= steps[1] + 4:
            self.violated(f"{what}: saved step {newest}, recorded {steps[0]} and {steps[1]}")

    def violated(self, text: str) -> None:
        self.figures.violations.append(text)
        print(f"VIOLATION: {text}", flush=True)


def report(figures: Figures, what: str, seconds: float) -> None:
    def listed(counter: Counter[Any]) -> str:
        return ", ".join(f"{number} {name}" for name, number in counter.most_common())

    print(f"{what}: {figures.strikes} ({listed(figures.started)}), in {seconds:.0f} s")
    print(f"  struck in: {listed(figures.moments)}")
    print(f"  exit codes: {', '.join(f'{code}: {n}' for code, n in sorted(figures.codes.items()))}")
    print(f"  runs {figures.runs}, resumes {figures.resumes}, restarts {figures.restarts}")
    print(f"  checkpoints seen {len(figures.checkpoints)}, lost {figures.lost}")
    if figures.before_gptkit:
        print(f"  signals before gptkit was imported: {figures.before_gptkit}")
    print(f"  runs identical to the undisturbed one: {figures.identical} of {figures.runs}")
    print(f"  violations: {len(figures.violations)}", flush=True)


def main() -> int:
    parser = argument_parser("soak", __doc__)
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="number of SIGKILLs")
    parser.add_argument(
        "--signals", type=int, default=0, metavar="N", help="number of SIGINTs, SIGTERMs and SIGHUPs"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="default: a random one, which is printed")
    parser.add_argument(
        "--real",
        type=float,
        metavar="SHARE",
        help="share of new interpreters among the processes, the others are forks (0.1; for signals 0.3)",
    )
    settings = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if settings.seed is None else settings.seed
    print(f"seed {seed}")
    restore_sigint()
    processes.warm_up()
    processes.mark_phases()
    violations = 0
    for name, strikes, share in (("kills", settings.kills, 0.1), ("signals", settings.signals, 0.3)):
        if not strikes:
            continue
        real = share if settings.real is None else settings.real
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            soak = Soak(Path(folder) / name, random.Random(seed), signals=name == "signals", real_share=real)
            figures = soak.until(strikes)
        report(figures, name, time.monotonic() - began)
        violations += len(figures.violations)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
