"""Shared fixtures: a workspace with a text in it, a very small experiment, and the command."""

from __future__ import annotations

import gc
import importlib
import io
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

# As the command does it, before torch is loaded: threads that wait for others spin for a moment only. The
# processes of the tests compete for the processors, and longer spinning took four times the processor time.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import pytest
import torch

import gptkit
from gptkit.backend import fast_operations
from gptkit.cli.app import run_command
from gptkit.data.catalog import data_folders
from gptkit.model import fast
from gptkit.native import usable
from gptkit.plugins import registry
from gptkit.training.context import RunContext
from tests.support import TINY, Command, Install, Result, small_text
from tests.support.forkserver import ForkServer
from tests.support.sums import TEXT
from tools.support import restore_sigint

ROOT = Path(__file__).parents[1]

restore_sigint()

# Each experiment of a test would be measured, and what is chosen could differ from one process to the next
os.environ.setdefault("GPTKIT_MEASURE", "0")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """No worker processes (`-n auto`) for a debugger, nor for one file, whose tests all go to one worker."""
    debugged = sys.gettrace() is not None or "debugpy" in sys.modules or "pydevd" in sys.modules
    files = {argument.partition("::")[0] for argument in config.args}
    return 0 if debugged or (len(files) == 1 and files.pop().endswith(".py")) else None


@pytest.fixture(scope="session", autouse=True)
def frozen_objects() -> Iterator[None]:
    """Exempts the objects of pytest and of imported modules from garbage collection.

    Training collects garbage before its first step and freezes what is left until its last. With all that a
    test process keeps, each collection would take half a second of processor time; so what was frozen once,
    stays frozen.
    """
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patched:
        kept = SimpleNamespace(collect=gc.collect, freeze=gc.freeze, unfreeze=lambda: None)
        patched.setattr("gptkit.backend.gc", kept)
        yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Computes with one thread, unless an experiment or a test sets another number.

    The models of tests are so small that threads take longer to meet than to compute, and the processes of
    the tests compete for the processors.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="session")
def python() -> Iterator[list[str]]:
    """Takes the place of `sys.executable` in a command line: a Python that has imported gptkit and torch.

    Its processes begin in milliseconds instead of two seconds (tests/support/forkserver.py); they have one
    thread for computations. Where Python cannot fork safely, it is `sys.executable`.
    """
    if sys.platform != "linux":
        yield [sys.executable]
        return
    found = pkgutil.walk_packages(gptkit.__path__, "gptkit.")
    modules = [module.name for module in found if not module.name.endswith("__main__")]
    server = ForkServer(modules, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    yield server.python
    server.close()


@pytest.fixture
def run_process(workspace: Path, python: list[str]) -> Command:
    """Runs `python -m gptkit …` in the workspace, as a user would."""

    def run(*arguments: object) -> Result:
        done = subprocess.run(
            [*python, "-m", "gptkit", *map(str, arguments)],
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


@pytest.fixture(params=[True, False], ids=["in C", "in torch"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs the test once with the C of gptkit/native and once without, as if there were no compiler."""
    if request.param and not usable():
        pytest.skip("no C compiler, or GPTKIT_NATIVE=0")
    if not request.param:
        monkeypatch.setenv("GPTKIT_NATIVE", "0")
    with fast.using(fast_operations("cpu", native=request.param)):
        yield


@pytest.fixture
def native_operations() -> Iterator[None]:
    """Installs the operations in C; skips the test where there is no compiler."""
    if not usable():
        pytest.skip("no C compiler, or GPTKIT_NATIVE=0")
    with fast.using(fast_operations("cpu", native=True)):
        yield


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """A run context in an empty folder, with the text of tests/support/sums.py."""
    (tmp_path / "sums.txt").write_text(TEXT)
    return RunContext(runs_folder=tmp_path / "runs", folders=data_folders(tmp_path))


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
        registry.installed.cache_clear()

    yield put
    monkeypatch.undo()
    for name in set(sys.modules) - before:
        if name.endswith("_code"):
            del sys.modules[name]
    importlib.invalidate_caches()
    registry.installed.cache_clear()
