"""Runs gptkit in child processes that can be killed: forks of this process, or new interpreters.

A new `python -m gptkit` spends two seconds on imports, a fork a few milliseconds. So most children are forks
of a process that has imported everything and computed nothing; they run the same command and die for real.
The others start like a user's command, imports included.
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

_shared = mmap.mmap(-1, 1)  # the phase of the forked child, shared with this process


def phase() -> str:
    """The phase of the newest forked child, or the one in which it died."""
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
    """Imports all of gptkit, so that no fork has to."""
    for module in pkgutil.walk_packages(gptkit.__path__, "gptkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def mark_phases() -> None:
    """Makes forked children report their phase from now on."""
    Trainer.fit = _marked(Trainer.fit, TRAINING, ENDED)  # type: ignore[method-assign]
    session.evaluate = _marked(session.evaluate, EVALUATING, TRAINING)
    session.save_checkpoint = _marked(session.save_checkpoint, SAVING, TRAINING)
    session.prune = _marked(session.prune, PRUNING, TRAINING)


@dataclass
class Child:
    """A process that runs gptkit."""

    pid: int
    forked: bool
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code as in subprocess (-9: killed by signal 9), or None while it runs."""
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
    """Starts `gptkit ARGUMENTS` in the workspace; its output is appended to `log`."""
    _shared[0] = PHASES.index(STARTING)
    sys.stdout.flush()
    sys.stderr.flush()
    # Blocks signals for the child while it still is a copy of this process
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
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        if not forked:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.execve(sys.executable, [sys.executable, "-m", "gptkit", *arguments], environment)
        sys.argv = ["gptkit", *arguments]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = run_command(arguments)
    except KeyboardInterrupt:  # before or after the command itself
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _python_path() -> str:
    """The gptkit of this checkout first, in case another one is installed."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
