"""Runs that version 0.1.0 made can still be listed, shown, verified, replayed, resumed, compared, used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gptkit.reproduce.replay import replay_run
from gptkit.reproduce.verify import Verdict, verify_run
from gptkit.runs import Run
from gptkit.training.setup import RunContext
from tests.support import Command

FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs_0_1_0"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
EACH = pytest.mark.parametrize("name", NAMES, ids=[name.partition(".")[0] for name in NAMES])


@pytest.fixture
def runs(context: RunContext) -> Path:
    """Copies of the runs, beside the text that they were trained on."""
    shutil.copytree(FIXTURES, context.runs_folder)
    return context.runs_folder


def test_they_are_listed_and_compared(runs: Path, gptkit_command: Command) -> None:
    listed = gptkit_command("runs", "--runs-dir", runs)
    assert (listed.code, listed.err) == (0, "")
    statuses = {line.split()[0]: line.split()[1] for line in listed.out.splitlines()[1:]}
    assert statuses == {name: name.partition(".")[0] for name in NAMES} | {
        name: "finished" for name in NAMES if name.startswith(("loaded", "minutes"))
    }
    compared = gptkit_command("runs", "compare", *NAMES, "--runs-dir", runs)
    assert (compared.code, compared.err) == (0, "")


@EACH
def test_every_file_verifies_and_the_last_steps_come_out_the_same(
    name: str, context: RunContext, runs: Path
) -> None:
    """On another processor the bits may differ; then the environment does too."""
    run = Run(runs / name)
    assert [found for found in verify_run(run) if found.verdict is Verdict.BAD] == []
    comparison = replay_run(run, context)
    assert comparison.step == comparison.end
    assert comparison.identical or comparison.differences


@EACH
def test_they_are_shown_resumed_and_generated_from(name: str, runs: Path, gptkit_command: Command) -> None:
    shown = gptkit_command("runs", "show", runs / name)
    assert (shown.code, shown.err) == (0, "")
    text = gptkit_command("generate", runs / name, "-n", 8, "--seed", 1)
    assert text.code == 0
    newest = max((runs / name / "checkpoints").glob("step-*"))
    stop = int(newest.name.removeprefix("step-")) + 2
    resumed = gptkit_command("resume", runs / name, "--stop-at", stop, "--data-dir", runs.parent, "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    assert Run(runs / name).read_record().status in ("finished", "stopped")
