"""gptkit in processes that can be struck down: forked from this one, which is warm, or begun by Python.

A real `python -m gptkit` spends two seconds on its imports, a fork a few milliseconds. So most children of
the soak are forks of a process that has imported everything and computed nothing; they run the same
command, train in their own memory and die for real. A share is begun as a user begins them, imports and
all.
"""

from __future__ import annotations

import importlib
import mmap
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gptkit
from gptkit.cli.app import run_command
from gptkit.training import session
from gptkit.training import start as training
from gptkit.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STARTING, TRAINING, EVALUATING, SAVING, PRUNING, ENDED = (
    "starting",
    "training",
    "evaluation",
    "save",
    "prune",
    "end",
)
PHASES = (STARTING, TRAINING, EVALUATING, SAVING, PRUNING, ENDED)

_shared = mmap.mmap(-1, 1)  # what a forked child is doing now, for the one who waits for the moment


def phase() -> str:
    """What the newest forked child does now, or did when it died."""
    return PHASES[_shared[0]]


def _marked(work: Callable[..., Any], inside: str, after: str) -> Callable[..., Any]:
    def marked(*arguments: Any, **named: Any) -> Any:
        _shared[0] = PHASES.index(inside)
        try:
            return work(*arguments, **named)
        finally:
            _shared[0] = PHASES.index(after)

    return marked


def warm_up() -> None:
    """Imports all of gptkit, and what torch imports on first use, so that no fork has to."""
    for module in pkgutil.walk_packages(gptkit.__path__, "gptkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # imported by the first update of AdamW: a second


def mark_phases() -> None:
    """From now on a forked child says which part of its work it is in."""
    Trainer.fit = _marked(Trainer.fit, TRAINING, ENDED)  # type: ignore[method-assign]
    session.evaluate = _marked(session.evaluate, EVALUATING, TRAINING)
    session.save_checkpoint = _marked(session.save_checkpoint, SAVING, TRAINING)
    session.prune = _marked(session.prune, PRUNING, TRAINING)
    assert training.Session is session.Session


@dataclass
class Child:
    """A gptkit process of ours."""

    pid: int
    forked: bool
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, as subprocess has it (-9: died of signal 9), or None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 120) -> int:
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"gptkit hangs: process {self.pid}")
            time.sleep(0.001)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(arguments: Sequence[str], workspace: Path, log: Path, *, forked: bool) -> Child:
    """`gptkit ARGUMENTS` in the workspace; both of its outputs are added to `log`."""
    _shared[0] = PHASES.index(STARTING)
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal for the child is not to hit it while it still is a copy of this process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid == 0:
        _be_gptkit(list(arguments), workspace, log, forked=forked)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Child(pid, forked)


def _be_gptkit(arguments: list[str], workspace: Path, log: Path, *, forked: bool) -> None:
    code = 99
    try:
        os.chdir(workspace)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored
        if not forked:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.execve(sys.executable, [sys.executable, "-m", "gptkit", *arguments], environment)
        sys.argv = ["gptkit", *arguments]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = run_command(arguments)
    except KeyboardInterrupt:  # before or after the command: a fork has no imports in which to be interrupted
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _python_path() -> str:
    """The gptkit of these tests first, wherever another one may be installed."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
