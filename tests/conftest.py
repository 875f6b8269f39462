"""What the tests share: a workspace with a text in it, a very small experiment, and the command."""

from __future__ import annotations

import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptkit.cli.app import run_command
from gptkit.native import switched, usable
from gptkit.plugins import registry
from gptkit.text.catalogue import data_folders
from gptkit.workflows.session import Surroundings
from tests.sums import TEXT

SENTENCES = (
    "the old lamp hummed while rain fell over every narrow street and someone quietly read aloud "
    "about ships, storms and far harbours. Nobody asked why; it was enough to listen"
)

TINY = """\
seed = 7

[data]
dataset = "data/mine.txt"

[model]
context_length = 16
n_embd = 32
n_layer = 2
n_head = 2

[training]
max_steps = 20
batch_size = 4
backend = "cpu"
threads = 1

[sampling]
sample_interval = 0
"""


def answer_interrupts() -> None:
    """SIGINT as in a terminal, also where a shell began this in the background and had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


answer_interrupts()


@dataclass(frozen=True)
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]
Install = Callable[..., None]


def small_text(words: int = 3600) -> str:
    """About 20 kB of words and punctuation in an order that is always the same."""
    known = SENTENCES.split()
    drawn = [known[(number * number + 7 * (number // 5)) % len(known)] for number in range(words)]
    return "".join(" ".join(drawn[start : start + 11]) + "\n" for start in range(0, words, 11))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with data/mine.txt and runs/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPTKIT_DATA_DIR", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "data" / "mine.txt").write_text(small_text())
    return tmp_path


@pytest.fixture
def tiny_experiment(workspace: Path) -> Path:
    """An experiment file, in the workspace, whose model trains in a fraction of a second."""
    Path("tiny.toml").write_text(TINY)
    return Path("tiny.toml")


@pytest.fixture
def gptkit_command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a gptkit command line in this process; neither output is a terminal."""

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["gptkit", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code = run_command(words)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def run_process(workspace: Path) -> Command:
    """Runs `python -m gptkit …` in the workspace, as a user would."""

    def run(*arguments: object) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "gptkit", *map(str, arguments)],
            cwd=workspace,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(params=[True, False], ids=["in C", "by torch"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs once with the C of gptkit/native and once without, as where there is no compiler."""
    if request.param and not usable():
        pytest.skip("no C compiler here, or GPTKIT_NATIVE=0: there is only torch's way to test")
    with switched(request.param):
        yield


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    """A place for runs, with the text of tests/sums.py."""
    (tmp_path / "sums.txt").write_text(TEXT)
    return Surroundings(runs_folder=tmp_path / "runs", folders=data_folders(tmp_path))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on sys.path: `entries` is its entry_points.txt, `module` one file of code."""
    before = set(sys.modules)

    def put(
        name: str,
        entries: str,
        module: str = "",
        version: str = "1.2",
        under: str = "site",
        metadata: str = "",
    ) -> None:
        site = tmp_path / under
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        (info / "entry_points.txt").write_text(entries)
        (site / f"{name}_code.py").write_text(module)
        monkeypatch.syspath_prepend(str(site))
        registry.forget()

    yield put
    monkeypatch.undo()
    for name in set(sys.modules) - before:
        if name.endswith("_code"):
            del sys.modules[name]
    importlib.invalidate_caches()
    registry.forget()
