"""Two `gptkit resume` of one run at the same time.

    python -m tools.pairs --times 10

One must go on and the other exit 7, and the run must come out as if nobody had disturbed it. Prints a line;
exit code 1 where anything was violated.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from gptkit.runs import Run, run_ids
from tests.support import processes, small_text
from tools.soak import EXPERIMENT, STEPS, outcome

BOTH = [0, 7]  # the exit codes: one goes on, the other is told that the run is in use


def pairs(workspace: Path, times: int) -> list[str]:
    """What was violated."""
    (workspace / "data").mkdir()
    (workspace / "data" / "mine.txt").write_text(small_text())
    (workspace / "soak.toml").write_text(EXPERIMENT)
    log = workspace / "log.txt"
    for arguments in (["train", "soak.toml", "--stop-at", "2"], ["resume", "latest", "--runs-dir", "runs-0"]):
        assert processes.start(arguments, workspace, log, forked=True).wait() == 0, log.read_text()
        if arguments[0] == "train":
            shutil.copytree(workspace / "runs", workspace / "runs-0")
    (run_id,) = run_ids(workspace / "runs")
    wanted = outcome(Run(workspace / "runs-0" / run_id))
    violations = []
    for number in range(1, times + 1):
        runs = f"runs-{number}"
        shutil.copytree(workspace / "runs", workspace / runs)
        log.unlink()
        two = [
            processes.start(["resume", run_id, "--runs-dir", runs], workspace, log, forked=True) for _ in "ab"
        ]
        codes = sorted(child.wait() for child in two)
        if codes != BOTH or f"run {run_id} is in use" not in log.read_text():
            violations.append(f"pair {number}: exit codes {codes}\n{log.read_text()}")
        elif outcome(Run(workspace / runs / run_id)) != wanted:
            violations.append(f"pair {number}: step {STEPS} differs from that of the undisturbed run")
    return violations


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.pairs")
    parser.add_argument("--times", type=int, default=10)
    times = parser.parse_args().times
    processes.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        violations = pairs(Path(folder), times)
    for violation in violations:
        print(f"VIOLATION: {violation}")
    print(f"pairs: {times}, one went on and the other exited 7: {times - len(violations)}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
