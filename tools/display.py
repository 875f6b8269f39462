"""What the live display costs: the same short training with and without it, alternately.

    python -m tools.display --pairs 6

Each trains in a process of its own, forked from one that has imported everything: with the display into a
pseudo-terminal of 100 columns that is read as fast as it is written, and with --quiet. Prints the ratios of
processor time and of wall time, pair by pair, with their median and spread. What else runs on the machine
makes the spread; that of processor time is the smaller one. What the display itself took is counted as well,
which is the number to go by on a noisy machine: its processor time as a share of the whole process's.
"""

from __future__ import annotations

import argparse
import fcntl
import mmap
import os
import pty
import statistics
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gptkit.cli.app import run_command
from gptkit.cli.display.live import LiveView
from tools.support import processes, small_text

EXPERIMENT = """\
seed = 7

[data]
dataset = "data/mine.txt"

[model]
context_length = 64
n_embd = 128
n_layer = 4
n_head = 4

[training]
batch_size = 8
backend = "cpu"
threads = 1

[evaluation]
eval_interval = 200

[sampling]
sample_interval = 200
max_new_tokens = 100
"""
COLUMNS, ROWS = 100, 30

_drawing = mmap.mmap(-1, 8)  # processor seconds that the display of the newest child took


def count_drawing() -> None:
    """From now on a child process measures the processor time of its display."""
    show, conclude = LiveView.__call__, LiveView.conclude

    def counted(work: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            begin = time.thread_time()
            work(*arguments)
            (before,) = struct.unpack("d", _drawing[:])
            _drawing[:] = struct.pack("d", before + time.thread_time() - begin)

        return run

    LiveView.__call__ = counted(show)  # type: ignore[method-assign]
    LiveView.conclude = counted(conclude)  # type: ignore[method-assign]


def train(workspace: Path, steps: int, *, live: bool) -> tuple[float, float, float]:
    """Trains once: processor seconds, wall seconds, and the processor seconds of drawing."""
    arguments = ["train", "display.toml", "--steps", str(steps), *([] if live else ["--quiet"])]
    master, slave = pty.openpty()
    _drawing[:] = struct.pack("d", 0.0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _be_gptkit(arguments, workspace, slave)
    os.close(slave)
    reader = threading.Thread(target=_read, args=(master,))
    reader.start()
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - begin
    reader.join()
    os.close(master)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"gptkit {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, wall, struct.unpack("d", _drawing[:])[0]


def _read(master: int) -> None:
    try:
        while os.read(master, 1 << 16):
            pass
    except OSError:  # Linux's error for a closed other end
        return


def _be_gptkit(arguments: list[str], workspace: Path, terminal: int) -> None:
    code = 99
    try:
        os.chdir(workspace)
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for number in (0, 1, 2):
            os.dup2(terminal, number)
        os.environ["TERM"] = "xterm-256color"
        for name in ("COLUMNS", "LINES", "NO_COLOR", "LC_ALL"):
            os.environ.pop(name, None)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
        code = run_command(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def report(name: str, ratios: list[float]) -> str:
    return (
        f"{name}: median {statistics.median(ratios):.4f}, from {min(ratios):.4f} to {max(ratios):.4f} "
        f"({len(ratios)} pairs)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.display")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    processes.warm_up()
    count_drawing()
    processor, wall, drawing = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        (workspace / "data").mkdir()
        (workspace / "data" / "mine.txt").write_text(small_text())
        (workspace / "display.toml").write_text(EXPERIMENT)
        train(workspace, 10, live=False)  # compiles what is compiled once on a machine
        for number in range(1, asked.pairs + 1):
            order = (True, False) if number % 2 else (False, True)
            found = {live: train(workspace, asked.steps, live=live) for live in order}
            processor.append(found[True][0] / found[False][0])
            wall.append(found[True][1] / found[False][1])
            drawing.append(found[True][2] / found[True][0])
            print(
                f"pair {number}: processor {found[True][0]:.2f} and {found[False][0]:.2f} s, "
                f"wall {found[True][1]:.2f} and {found[False][1]:.2f} s, {found[True][2]:.3f} s of drawing",
                flush=True,
            )
    print(report("processor time, with the display / without", processor))
    print(report("wall time, with the display / without", wall))
    print(report("drawing, as a share of the processor time", drawing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
