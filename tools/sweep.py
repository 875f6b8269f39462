"""Fails every disk operation in every way, and checks that no run or text is lost.

    python -m tools.sweep [--every K] [--seed S]

Records the disk operations of a training, a resume after a crash, a download and an added text. Then, for
each of them (or each K-th), simulates a full disk, a disk that stays full, an I/O error, a short write, and
power cuts that lose all unsynced bytes and names, unsynced bytes only, or some of both. After each fault,
every checkpoint must verify, no committed one may be missing, and `resume` must reach the weights and losses
of an undisturbed run. Every failed operation must end with exit code 6, except while a report is written.
Prints statistics; exit code 1 after any violation.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptkit.cli.app import run_command
from gptkit.data.datasets import shakespeare
from gptkit.errors import GptkitError
from gptkit.plugins import DataFolders
from gptkit.report import page
from gptkit.runs import Run, list_steps, run_ids
from gptkit.runs.checkpoint import MODEL, load_checkpoint
from gptkit.training import session
from tools.support import argument_parser, small_text
from tools.support.disks import ALL_LOST, DATA_LOST, SOME_LOST, ForgetfulDisk, Forgetting, disk_that_fails
from tools.support.outcome import Outcome, outcome

STEPS = 6
EXPERIMENT = f"""\
name = "sweep"
seed = 7
data = {{ dataset = "data/mine.txt" }}
[model]
context_length = 8
n_embd = 8
n_layer = 1
n_head = 1
[training]
max_steps = {STEPS}
batch_size = 2
log_interval = 1
backend = "cpu"
threads = 1
[evaluation]
eval_interval = 3
[checkpoints]
checkpoint_interval = 2
keep_last = 1
[sampling]
sample_interval = 4
max_new_tokens = 3
"""
TEXT = small_text(400).encode()
FAILURES: dict[str, dict[str, Any]] = {
    "disk full": {"stays_full": False},
    "disk full from then on": {"stays_full": True},
    "I/O error": {"stays_full": False, "number": errno.EIO},
    "short write": {"stays_full": False, "short": True},
}
DONE = -1  # committed without a step: a text is in its place
CRASHES = (ALL_LOST, DATA_LOST, SOME_LOST, SOME_LOST)


@dataclass
class Figures:
    operations: Counter[str] = field(default_factory=Counter)  # of each scenario
    faults: Counter[str] = field(default_factory=Counter)  # of each kind
    violations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scenario:
    """Work that changes the disk, and what must hold after it failed.

    `check(workspace, committed)` continues from what is left and yields violations; `committed` holds the
    steps announced as saved and, once the work was done, DONE.
    """

    name: str
    prepare: Callable[[Path], None]
    work: Callable[[], int]
    check: Callable[[Path, set[int]], Iterator[str]]


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Changes to a folder, and discards all output."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.chdir(before)


def gptkit(*arguments: str) -> int:
    return run_command(list(arguments))


# Training


def the_run() -> Run | None:
    ids = run_ids(Path("runs"))
    return Run(Path("runs", ids[0])) if ids else None


def prepare_training(workspace: Path) -> None:
    (workspace / "data").mkdir(parents=True)
    (workspace / "data" / "mine.txt").write_bytes(TEXT)
    (workspace / "sweep.toml").write_text(EXPERIMENT)


def prepare_resume(workspace: Path) -> None:
    """A run that was killed while it saved, pruned and logged."""
    prepare_training(workspace)
    with working_in(workspace):
        assert gptkit("train", "sweep.toml", "--stop-at", "3") == 0
        run = the_run()
        assert run is not None
        (run.checkpoints / ".tmp-4-abcd").mkdir()
        (run.checkpoints / ".tmp-4-abcd" / MODEL).write_bytes(b"half of it")
        (run.path / ".tmp-report.html-abcd").write_bytes(b"half of it")
        (run.checkpoints / ".trash-step-000000000001-ab").mkdir()
        with (run.path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 4, "train_lo')


def check_training(workspace: Path, committed: set[int], wanted: Outcome) -> Iterator[str]:
    with working_in(workspace):
        run = the_run()
        steps = list_steps(run.checkpoints) if run else []
        if max(committed, default=DONE) > max(steps, default=DONE):
            yield f"step {max(committed)} was saved, found {steps}"
        for step in steps:
            assert run is not None
            try:
                load_checkpoint(run.checkpoints, step, run_id=run.id)
            except GptkitError as error:
                yield str(error)
        if not steps:  # nothing was saved, so nothing can be resumed
            shutil.rmtree("runs", ignore_errors=True)
        arguments = ("resume", "latest") if steps else ("train", "sweep.toml")
        code = gptkit(*arguments)
        run = the_run()
        if code or run is None:
            yield f"{' '.join(arguments)}: exit code {code}"
        elif outcome(run) != wanted:
            yield "weights, optimizer or losses differ from the undisturbed run"
        else:
            left = [path.name for path in run.path.rglob(".t*") if path.is_dir()]
            if left:
                yield f"{left} left after {arguments[0]}"


# Texts


class SmallShakespeare(shakespeare.ShakespeareDataset):
    """Another text of that name, which the replaced `download` below returns."""

    sha256 = hashlib.sha256(TEXT).hexdigest()


def fetch() -> int:
    real = shakespeare.download
    shakespeare.download = lambda *arguments: TEXT
    try:
        SmallShakespeare(SmallShakespeare.Options()).fetch(DataFolders())
    except GptkitError as error:
        return error.exit_code
    finally:
        shakespeare.download = real
    return 0


def prepare_text(workspace: Path) -> None:
    workspace.mkdir()
    (workspace / "novel.txt").write_bytes(TEXT)


def check_text(name: str, again: Callable[[], int], workspace: Path, committed: set[int]) -> Iterator[str]:
    path = workspace / "data" / name
    if committed and not path.exists():
        yield f"lost {name}"
    if path.exists() and path.read_bytes() != TEXT:
        yield f"{name} has {path.stat().st_size} bytes"
        return
    with working_in(workspace):
        if not path.exists() and again() != 0:
            yield "a second attempt fails"
    if path.read_bytes() != TEXT:
        yield f"{name} has other bytes"


def scenarios(scratch: Path) -> list[Scenario]:
    prepare_training(scratch / "undisturbed")
    with working_in(scratch / "undisturbed"):
        assert gptkit("train", "sweep.toml") == 0
        run = the_run()
        assert run is not None
        wanted = outcome(run)

    def training(workspace: Path, committed: set[int]) -> Iterator[str]:
        return check_training(workspace, committed, wanted)

    def add() -> int:
        return gptkit("datasets", "add", "mine", "novel.txt")

    return [
        Scenario("train", prepare_training, lambda: gptkit("train", "sweep.toml"), training),
        Scenario("resume", prepare_resume, lambda: gptkit("resume", "latest"), training),
        Scenario(
            "datasets fetch",
            prepare_text,
            fetch,
            lambda *left: check_text("tiny_shakespeare.txt", fetch, *left),
        ),
        Scenario(
            "datasets add",
            prepare_text,
            add,
            lambda *left: check_text("mine.txt", add, *left),
        ),
    ]


# The sweep


@dataclass
class Sweep:
    """One scenario, once for each `every`-th of its disk operations, which fails."""

    scenario: Scenario
    scratch: Path
    every: int
    rng: random.Random
    figures: Figures
    committed: dict[int, set[int]] = field(default_factory=dict)  # before each operation
    of_reports: set[int] = field(default_factory=set)  # operations that write a report

    def run(self) -> None:
        self.scenario.prepare(self.scratch / "prepared")
        for refused, at in enumerate(self.power_cuts(), start=1):
            if refused % self.every == 0:
                for kind, settings in FAILURES.items():
                    self.fail(refused, at, kind, settings)

    def power_cuts(self) -> list[int]:
        """Runs the scenario, cuts the power before each operation, and returns those that can fail."""
        workspace = shutil.copytree(self.scratch / "prepared", self.scratch / "recorded")
        offset = self.rng.randrange(self.every)
        left: list[tuple[int, Forgetting, Path]] = []

        def before(at: int) -> None:
            self.committed[at] = set(announced)
            if at % self.every != offset:
                return
            for number, losing in enumerate(CRASHES):
                into = self.scratch / f"crash-{at}-{number}"
                disk.crash(into, losing, self.rng)
                left.append((at, losing, into))

        save, announced = session.save_checkpoint, set[int]()

        def record_save(*arguments: Any, **named: Any) -> Path:
            path = save(*arguments, **named)
            announced.add(named["step"])
            return path

        write = page.write_report

        def reported(run: Run) -> Path:
            first = disk.done + 1
            path = write(run)
            self.of_reports |= set(range(first, disk.done + 1))
            return path

        disk = ForgetfulDisk(workspace, before)
        session.save_checkpoint = record_save
        page.write_report = reported
        try:
            with working_in(workspace), disk.recording():
                code = self.scenario.work()
        finally:
            session.save_checkpoint, page.write_report = save, write
        announced.add(DONE)
        before(disk.done + 1)  # and once after the last
        if code:
            self.violated(0, "nothing", f"the scenario itself: exit code {code}")
        self.figures.operations[self.scenario.name] = disk.done
        for at, losing, into in left:
            self.check(at, losing.name, into)
        return disk.refusable

    def fail(self, refused: int, at: int, kind: str, settings: dict[str, Any]) -> None:
        """Fails the `refused`-th of the operations that can fail, which is the `at`-th of all."""
        workspace = shutil.copytree(self.scratch / "prepared", self.scratch / "failing")
        with working_in(workspace), disk_that_fails(refused, **settings):
            code = self.scenario.work()
        if code != (0 if settings.get("short") or at in self.of_reports else 6):
            self.violated(at, kind, f"exit code {code}")
        temporary = [path.name for path in workspace.rglob(".tmp-*")]
        if temporary and self.scenario.name != "resume":
            self.violated(at, kind, f"{temporary} left behind")
        self.check(at, kind, workspace)

    def check(self, at: int, kind: str, workspace: Path) -> None:
        self.figures.faults[kind] += 1
        for problem in list(self.scenario.check(workspace, self.committed.get(at, set()))):
            self.violated(at, kind, problem)
        shutil.rmtree(workspace)

    def violated(self, at: int, kind: str, problem: str) -> None:
        text = f"{self.scenario.name}, operation {at}, {kind}: {problem}"
        self.figures.violations.append(text)
        print(f"VIOLATION: {text}", flush=True)


def sweep(every: int, seed: int) -> Figures:
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        for scenario in scenarios(scratch):
            inner = scratch / scenario.name
            inner.mkdir()
            Sweep(scenario, inner, every, random.Random(seed), figures).run()
    return figures


def main() -> int:
    parser = argument_parser("sweep", __doc__)
    parser.add_argument("--every", type=int, default=1, metavar="K", help="fail each K-th operation only")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    settings = parser.parse_args()
    figures = sweep(settings.every, settings.seed)
    print("operations: " + ", ".join(f"{name} {number}" for name, number in figures.operations.items()))
    print("faults: " + ", ".join(f"{number} {kind}" for kind, number in figures.faults.items()))
    print(f"violations: {len(figures.violations)}")
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
