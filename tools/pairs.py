"""Resumes one run in two processes at the same time.

    python -m tools.pairs [--times 10]

One process must continue, the other must exit with code 7, and the result must be that of an undisturbed
run. Prints a line; exit code 1 after any violation.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from gptkit.runs import Run, run_ids
from tools.soak import EXPERIMENT, STEPS
from tools.support import argument_parser, processes, small_text
from tools.support.outcome import outcome

BOTH = [0, 7]  # exit codes: one continues, for the other the run is in use


def pairs(workspace: Path, times: int) -> list[str]:
    """The violations."""
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
            violations.append(f"pair {number}: step {STEPS} differs from the undisturbed run")
    return violations


def main() -> int:
    parser = argument_parser("pairs", __doc__)
    parser.add_argument("--times", type=int, default=10, metavar="N", help="number of pairs")
    times = parser.parse_args().times
    processes.warm_up()
    with tempfile.TemporaryDirectory() as folder:
        violations = pairs(Path(folder), times)
    for violation in violations:
        print(f"VIOLATION: {violation}")
    print(f"pairs: {times}, one continued and the other exited with 7: {times - len(violations)}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
