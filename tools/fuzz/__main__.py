"""Runs gptkit with hostile experiment files, run folders, names and command lines.

    python -m tools.fuzz --cases 100000 [--seed S]

The files are made by hypothesis and mutation, with hashes forged to match. Every command must end with a
documented exit code other than 1, without a traceback or a control character in its output, without changing
a file outside the workspace, starting a process, unpickling or connecting (an audit hook watches), within
bounded memory and time; and with what the kind of case expects (`tools.fuzz.kinds`): an edited experiment is
never called exact, a run of any name is listed. Prints statistics; exit code 1 after any violation.
"""

from __future__ import annotations

import io
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gptkit.cli.app import run_command
from gptkit.data.datasets import shakespeare
from gptkit.errors import NetworkError
from tools.fuzz.kinds import KINDS, Drawn, Workspace, prepare
from tools.support import argument_parser, processes
from tools.support.guard import GIGABYTE, EscapedError, Guard, limit_memory, peak_memory

MAX_SECONDS = 60  # per case; a legitimate one takes at most about one
MAX_MEMORY = 2 * GIGABYTE  # for all cases, in addition to what gptkit itself needs
BATCH = 500  # cases per run of hypothesis, which remembers them all
# What could change the terminal, or the direction of the text
_CONTROL = re.compile(
    "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]"
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


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
    """A workspace with valid runs, and what became of the cases that were made from them."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.figures = Figures()
        self.workspace: Workspace = prepare(self.run, guard)

    def run(self, *arguments: str, read: int | None = None) -> tuple[int, str]:
        """The exit code of a command line, and all of its output.

        With `read` standard output is a pipe whose reader closes it after so many bytes.
        """
        before = sys.stdout, sys.stderr, sys.argv
        both = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
        sys.stdout = sys.stderr = both
        sys.argv = ["gptkit", *arguments]
        if read is not None:
            sys.stdout = _closed_after(read)
        try:
            code = run_command(arguments)
        finally:
            if read is not None:
                with suppress(OSError):
                    sys.stdout.close()
            sys.stdout, sys.stderr, sys.argv = before
        both.flush()
        buffer = both.buffer
        assert isinstance(buffer, io.BytesIO)
        return code, buffer.getvalue().decode("utf-8", "replace")

    def case(self, drawn: Drawn) -> None:
        made = KINDS[drawn.kind][1](self.workspace, drawn)
        where = f"{drawn.kind}: gptkit {made.arguments!r}; {made.description}"
        began = time.monotonic()
        signal.alarm(MAX_SECONDS)
        try:
            with self.guard.armed():
                code, output = self.run(*made.arguments, read=made.read)
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
        problem = ""
        if code not in (0, *range(2, 11)) or "Traceback" in output:
            problem = "not a documented end"
        elif _CONTROL.search(output) and (code or not _writes_as_is(made.arguments)):
            problem = "a control character in the output"
        elif made.expected:
            problem = made.expected(code, output)
        if problem:
            self.violated(f"{where}\n  {problem}; exit code {code}: {output[-600:]}")

    def violated(self, text: str) -> None:
        self.figures.violations.append(text)
        print(f"VIOLATION: {text}".encode("utf-8", "backslashreplace").decode(), flush=True)


def _writes_as_is(arguments: Sequence[str]) -> bool:
    """Whether the command writes generated text, or a path for a script, byte for byte."""
    return arguments[0] in ("generate", "train", "resume") or tuple(arguments[:2]) == ("runs", "report")


def _closed_after(count: int) -> io.TextIOWrapper:
    """The writing end of a pipe; a thread reads that many bytes and closes the other end."""
    ours, theirs = os.pipe()

    def read() -> None:
        left = count
        while left > 0 and (data := os.read(ours, left)):
            left -= len(data)
        os.close(ours)

    if count:
        threading.Thread(target=read, daemon=True).start()
    else:
        read()
    return io.TextIOWrapper(io.BufferedWriter(io.FileIO(theirs, "w")), encoding="utf-8")


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
    yield Fuzzer(Guard(workspace))


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
    print(f"violations: {len(figures.violations)}")


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
