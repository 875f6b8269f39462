"""Kills, signals, power cuts, failing disks and two processes at once: short forms of the tools.

`python -m tools.soak`, `tools.sweep`, `tools.fuzz` and `tools.pairs` describe what each does; here each runs
for a few seconds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.sweep import sweep

ROOT = Path(__file__).parents[2]


def run_module(python: list[str], *arguments: str) -> str:
    """What `python -m ARGUMENTS` printed, in a process that has computed nothing before it forks."""
    done = subprocess.run(
        [*python, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_a_run_that_is_killed_and_resumed_equals_one_that_was_not(python: list[str]) -> None:
    output = run_module(
        python, "tools.soak", "--kills", "6", "--signals", "5", "--real", "0.05", "--seed", "3"
    )
    assert "kills: 6" in output
    assert "signals: 5" in output
    assert output.count("lost 0") == 2
    assert output.count("violations: 0") == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_of_two_that_resume_one_run_at_once_one_trains_and_the_other_exits_7(python: list[str]) -> None:
    assert "exited with 7: 4" in run_module(python, "tools.pairs", "--times", "4")


@pytest.mark.slow
def test_a_disk_that_fails_or_forgets_at_any_operation_loses_nothing() -> None:
    figures = sweep(every=41, seed=3)
    assert figures.violations == []
    assert figures.operations["train"] > 100
    assert min(figures.faults.values()) >= 4
    assert len(figures.faults) == 7


INTERRUPTED = """if True:
    import os, signal, sys

    from gptkit.__main__ import main

    module, name, *arguments = sys.argv[1:]

    class Interrupter:
        def find_spec(self, wanted, path, target=None):
            if wanted == module:
                sys.meta_path.remove(self)
                os.kill(os.getpid(), getattr(signal, name))

    sys.meta_path.insert(0, Interrupter())
    sys.argv[1:] = arguments
    main()
"""


def interrupted(module: str, name: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    """`gptkit train tiny.toml` that gets the signal at the moment in which it imports `module`."""
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, name, "train", "tiny.toml"],
        cwd=workspace,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_there_is_anything_to_save_ends_it_at_once_and_in_silence(
    name: str, tiny_experiment: Path, workspace: Path
) -> None:
    done = interrupted("typer", name, workspace)
    assert (done.returncode, done.stdout, done.stderr) == (-getattr(signal, name), "", "")


@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
def test_an_interrupt_that_pydantic_would_swallow_is_not_lost(tiny_experiment: Path, workspace: Path) -> None:
    """Some versions of typer import pydantic to parse the arguments, before training is there to be saved."""
    done = interrupted("pydantic_core", "SIGINT", workspace)
    assert done.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as Unix has them")
@pytest.mark.parametrize(
    ("module", "name", "code"), [("gptkit.experiment.schema", "SIGINT", 130), ("torch", "SIGTERM", 143)]
)
def test_a_signal_during_the_imports_of_training_is_kept_until_a_step_is_saved(
    module: str, name: str, code: int, tiny_experiment: Path, workspace: Path
) -> None:
    done = interrupted(module, name, workspace)
    assert done.returncode == code
    assert re.fullmatch(r"gptkit: (interrupted|terminated) at step 1, saved\n", done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does, and makes pipes")
def test_hostile_files_cause_neither_a_defect_nor_access_outside(python: list[str]) -> None:
    output = run_module(python, "tools.fuzz", "--cases", "150", "--seed", "5")
    assert "cases: 150" in output
    assert "violations: 0" in output
