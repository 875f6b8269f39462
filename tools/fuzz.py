"""Runs gptkit with hostile experiment files, run folders and names.

    python -m tools.fuzz --cases 100000 [--seed S]

The files are made by hypothesis and mutation, with hashes forged to match. Every command must end with a
documented exit code other than 1, without a traceback, without changing a file outside the workspace,
starting a process, unpickling or connecting (an audit hook watches), within bounded memory and time. Prints
statistics; exit code 1 after any violation.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gptkit.cli.app import run_command
from gptkit.data.datasets import shakespeare
from gptkit.errors import NetworkError
from tools.support import argument_parser, processes, small_text
from tools.support.guard import GIGABYTE, EscapedError, Guard, limit_memory, peak_memory
from tools.support.mutations import (
    HOSTILE,
    Files,
    disturb_folder,
    mutate_experiment,
    mutate_run,
    read_folder,
    write_folder,
)

EXPERIMENT = """\
name = "fuzz"
seed = 7
tokenizer = {{ type = "{tokenizer}" }}
data = {{ dataset = "data/mine.txt", val_fraction = 0.2 }}
model = {{ context_length = 8, n_embd = 8, n_layer = 1, n_head = 2, position = {{ type = "{position}" }} }}
training = {{ max_steps = 4, batch_size = 2, log_interval = 1, backend = "cpu", threads = 1 }}
optimizer = {{ type = "{optimizer}" }}
evaluation = {{ eval_interval = 2 }}
checkpoints = {{ checkpoint_interval = 2 }}
sampling = {{ sample_interval = 4, max_new_tokens = 3 }}
tracking = {{ tensorboard = true }}
"""
BASES = (("char", "rope", "muon"), ("bigram", "learned", "adamw"), ("byte", "alibi", "muon"))
# fmt: off
NAMES = (
    "../x", "..", ".", "/", "~", "", "\0", "a\0b", "CON", "con.txt", "nul", "aux.txt", "a\\b", "..\\x",
    "-", "--", "mine", "mine.txt", "data/mine.txt", "latest", "best", "fuzz", "x" * 300,
    "a/" * 2000, "\udcff", "\ud800",
    "data", "data/*.txt", "[", "*", "?", "**", "{", "shakespeare", "text", "markov", "novel.txt", "\r\n",
    "é" * 99,
)
# fmt: on
MAX_SECONDS = 60  # per case; a legitimate one takes at most about one
MAX_MEMORY = 2 * GIGABYTE  # for all cases, in addition to what gptkit itself needs
BATCH = 500  # cases per run of hypothesis, which remembers them all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Drawn:
    """What hypothesis draws for a case."""

    kind: str
    rng: random.Random
    wild: Any
    name: str


@dataclass
class Figures:
    cases: Counter[tuple[str, int]] = field(default_factory=Counter)  # by kind and exit code
    slowest: tuple[float, str] = (0.0, "")  # seconds, and which case
    violations: list[str] = field(default_factory=list)


class TookTooLongError(BaseException):
    """Raised by the alarm of a case."""


def _alarm(number: int, frame: Any) -> None:
    raise TookTooLongError


class Fuzzer:
    """A workspace with valid runs, and the cases that are made from them."""

    def __init__(self, workspace: Path, guard: Guard) -> None:
        self.workspace, self.guard = workspace, guard
        self.figures = Figures()
        self.runs: list[Files] = []
        self.experiments: list[dict[str, Any]] = []
        Path("data").mkdir()
        Path("data/mine.txt").write_text(small_text(60))
        Path("novel.txt").write_text(small_text(20))
        Path("short.txt").write_text("x")
        for tokenizer, position, optimizer in BASES:
            text = EXPERIMENT.format(tokenizer=tokenizer, position=position, optimizer=optimizer)
            Path("base.toml").write_text(text)
            self.experiments.append(tomllib.loads(text))
            code, output = self.run("train", "base.toml", "--stop-at", "3", "--runs-dir", f"made-{tokenizer}")
            assert code == 0, output
            (made,) = Path(f"made-{tokenizer}").iterdir()
            self.runs.append(read_folder(made))

    def run(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a command line, and all of its output."""
        before = sys.stdout, sys.stderr, sys.argv
        both = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
        sys.stdout = sys.stderr = both
        sys.argv = ["gptkit", *arguments]
        try:
            code = run_command(arguments)
        finally:
            sys.stdout, sys.stderr, sys.argv = before
        both.flush()
        buffer = both.buffer
        assert isinstance(buffer, io.BytesIO)
        return code, buffer.getvalue().decode("utf-8", "replace")

    def case(self, drawn: Drawn) -> None:
        arguments, made = KINDS[drawn.kind][1](self, drawn)
        where = f"{drawn.kind}: gptkit {arguments!r}; {made}"
        began = time.monotonic()
        signal.alarm(MAX_SECONDS)
        try:
            with self.guard.armed():
                code, output = self.run(*arguments)
        except EscapedError as error:
            code, output = -1, f"escaped: {error}"
        except TookTooLongError:
            code, output = -2, f"took more than {MAX_SECONDS} s"
        except BaseException as error:  # no exception may escape, not even SystemExit
            code, output = -3, f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
        self.figures.slowest = max(self.figures.slowest, (time.monotonic() - began, where[:1000]))
        self.figures.cases[drawn.kind, code] += 1
        if code not in (0, *range(2, 11)) or "Traceback" in output:
            self.violated(f"{where}\n  exit code {code}: {output[-600:]}")

    def violated(self, text: str) -> None:
        self.figures.violations.append(text)
        print(f"VIOLATION: {text}".encode("utf-8", "backslashreplace").decode(), flush=True)

    # The kinds of cases: each makes its files, and returns the command line and a description of the files

    def experiment(self, drawn: Drawn) -> tuple[list[str], str]:
        """An experiment file with a text that is too short, so that it is checked but not trained."""
        return self._experiment(drawn, ["--dataset", "short.txt"])

    def trained(self, drawn: Drawn) -> tuple[list[str], str]:
        """An experiment file that is trained for a step if it is valid."""
        return self._experiment(drawn, ["--set", "sampling.sample_interval=0", "--dataset", "data/mine.txt"])

    def _experiment(self, drawn: Drawn, more: list[str]) -> tuple[list[str], str]:
        data = mutate_experiment(drawn.rng.choice(self.experiments), drawn.rng, drawn.wild)
        if drawn.rng.random() < 0.02:
            data = drawn.rng.choice(HOSTILE)
        Path("case.toml").write_bytes(data)
        write_folder(Path("runs"), {})
        return ["train", "case.toml", "--stop-at", "1", *more], repr(data[:2000])

    def run_folder(self, drawn: Drawn) -> tuple[list[str], str]:
        """A run folder in which something is changed."""
        rng = drawn.rng
        files, names = mutate_run(rng.choice(self.runs), rng, drawn.wild)
        folder = Path("runs", rng.choice(("fuzz-1", "renamed")))
        write_folder(Path("runs"), {})
        write_folder(folder, files)
        if rng.random() < 0.1:
            names.append(disturb_folder(folder, self.workspace.parent / "outside", rng))
        if rng.random() < 0.1:
            closed = rng.choice(
                [*folder.rglob("*"), folder, Path("runs"), Path("data/mine.txt"), Path("base.toml")]
            )
            self.guard.make_unreadable(closed)
            names.append(f"{closed.name} is unreadable")
        commands = [
            ["runs"],
            ["runs", "verify", folder.name],
            ["runs", "report", folder.name],
            ["resume", folder.name, "--verify"],
            ["resume", folder.name, "--stop-at", "4", "--require-exact"],
            ["generate", folder.name, "-n", "2", "--checkpoint", rng.choice(("best", "last", "3", "2"))],
            ["resume", folder.name, "--stop-at", "4"],
            ["train", "base.toml", "--load", folder.name, "--stop-at", "1"],
        ]
        return rng.choices(commands, (2, 3, 3, 2, 1, 4, 3, 1))[0], f"changed {names}, wild {drawn.wild!r}"

    def dataset_name(self, drawn: Drawn) -> tuple[list[str], str]:
        name = self._name(drawn)
        commands = [
            ["datasets", "show", name],
            ["datasets", "add", name, "novel.txt"],
            ["datasets", "add", name, name, "--force"],
            ["datasets", "fetch", name, "--repair"],
            ["train", "base.toml", "--dataset", name, "--stop-at", "1", "--no-save"],
            ["train", "base.toml", "--set", f"data.dataset.type={name}", "--stop-at", "1", "--no-save"],
        ]
        return drawn.rng.choices(commands, (4, 4, 1, 1, 1, 1))[0], "a name"

    def run_name(self, drawn: Drawn) -> tuple[list[str], str]:
        name = self._name(drawn)
        commands = [
            ["generate", name, "-n", "1"],
            ["resume", name, "--stop-at", "1"],
            ["runs", "verify", name],
            ["train", "base.toml", "--name", name, "--dataset", "short.txt"],
            ["train", "base.toml", "--load", name, "--dataset", "short.txt"],
            ["generate", "latest", "-n", "1", "--checkpoint", name],
            [
                "generate",
                "latest",
                "-n",
                "1",
                "--prompt",
                f"x{name}",
            ],  # x: not '-'
        ]
        return drawn.rng.choice(commands), "a name"

    @staticmethod
    def _name(drawn: Drawn) -> str:
        """A name, but none of an existing folder outside the workspace, which would take long to search."""
        name = drawn.rng.choice((drawn.name, drawn.rng.choice(NAMES), drawn.rng.choice(NAMES) + drawn.name))
        leads_away = os.path.isabs(name) or ".." in Path(name).parts or name.startswith("~")
        return f"x{name}" if leads_away and (os.path.isdir(name) or set(name) & set("*?[")) else name


Case = Callable[[Fuzzer, Drawn], tuple[list[str], str]]
# The number of cases of each kind among twenty
KINDS: dict[str, tuple[int, Case]] = {
    "experiment file": (6, Fuzzer.experiment),
    "experiment, trained": (1, Fuzzer.trained),
    "run folder": (9, Fuzzer.run_folder),
    "dataset name": (2, Fuzzer.dataset_name),
    "run name": (2, Fuzzer.run_name),
}


def _no_download(url: str, *rest: Any) -> bytes:
    """Replaces the network, which hostile names must not reach."""
    raise NetworkError(f"cannot download {url}: there is no network in a test.")


@contextmanager
def ready(workspace: Path) -> Iterator[Fuzzer]:
    """Prepares this process to run cases; it is unusable for anything else afterwards."""
    (workspace.parent / "outside").mkdir()
    (workspace.parent / "outside" / "file").write_text("not yours")
    sys.dont_write_bytecode = True  # of modules that are imported later
    os.environ.pop("GPTKIT_DATA_DIR", None)
    os.chdir(workspace)
    processes.warm_up()
    shakespeare.download = _no_download
    signal.signal(signal.SIGALRM, _alarm)
    yield Fuzzer(workspace, Guard(workspace))


def fuzz(fuzzer: Fuzzer, cases: int, first_seed: int, skip: int = 0) -> None:
    kinds = [kind for kind, (share, _) in KINDS.items() for _ in range(share)]
    strategy = st.builds(
        Drawn,
        st.sampled_from(kinds),
        st.integers(0, 2**64 - 1).map(random.Random),
        JSON,
        st.text(max_size=20),
    )
    for number in range(skip // BATCH, (cases + BATCH - 1) // BATCH):
        asked = min(BATCH, cases - number * BATCH)

        @seed(first_seed * 1_000_003 + number)
        @settings(
            max_examples=asked,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def one(drawn: Drawn) -> None:
            fuzzer.case(drawn)

        one()


def report(figures: Figures, seconds: float, memory: int) -> None:
    print(f"cases: {sum(figures.cases.values())} in {seconds:.0f} s, the slowest {figures.slowest[0]:.1f} s")
    for kind in KINDS:
        codes = {code: n for (of, code), n in sorted(figures.cases.items()) if of == kind}
        listed = ", ".join(f"{code}: {number}" for code, number in codes.items())
        print(f"  {kind}: {sum(codes.values())}; by exit code {listed}")
    if figures.slowest[0] > 5:
        print(f"  the slowest: {figures.slowest[1]}".encode("utf-8", "backslashreplace").decode())
    print(f"memory in addition to gptkit's own: {memory / 1e6:.0f} MB")
    print(f"exit codes 1, tracebacks, escapes, hangs: {len(figures.violations)}")


def main() -> int:
    parser = argument_parser("fuzz", __doc__)
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="number of cases")
    parser.add_argument("--seed", type=int, metavar="S", help="default: a random one, which is printed")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="skip the first N cases of the seed")
    wanted = parser.parse_args()
    first_seed = random.SystemRandom().randrange(2**31) if wanted.seed is None else wanted.seed
    print(f"seed {first_seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder).resolve() / "workspace"
        workspace.mkdir()
        with ready(workspace) as fuzzer:
            before, began = peak_memory(), time.monotonic()
            limit_memory(MAX_MEMORY)
            fuzz(fuzzer, wanted.cases, first_seed, wanted.skip)
        os.chdir("/")
    memory = peak_memory() - before
    report(fuzzer.figures, time.monotonic() - began, memory)
    return 1 if fuzzer.figures.violations or memory > MAX_MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
