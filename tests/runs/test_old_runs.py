"""Runs of version 0.1.0, kept as fixtures: everything that can be done with a run still works with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import gptkit
from gptkit.events import RunStatus
from gptkit.runs import Run, find_run
from gptkit.runs.environment import environment_differences
from gptkit.training.setup import backend_again
from tests.support import Command
from tests.support.sums import TEXT

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[1] / "fixtures" / "runs_0_1_0"
NAMES = ("crashed", "finished", "loaded", "minutes", "stopped")
STATUSES = dict.fromkeys(NAMES, RunStatus.FINISHED) | {
    "crashed": RunStatus.CRASHED,
    "stopped": RunStatus.STOPPED,
}
# Where to resume each to, and the step that it then is at
RESUMED = {
    "crashed": (("--stop-at", 785), 785),
    "finished": (("--steps", 25), 25),
    "loaded": ((), 10),
    "minutes": ((), 69),
    "stopped": ((), 20),
}


@pytest.fixture(autouse=True)
def old_runs(workspace: Path) -> None:
    pytest.importorskip("tokenizers")  # of the stopped run
    (workspace / "runs").rmdir()
    shutil.copytree(FIXTURES, workspace / "runs")
    (workspace / "data" / "sums.txt").write_text(TEXT)


def differences_here(run: Run) -> tuple[str, ...]:
    record, experiment = run.read_record(), run.experiment()
    backend = backend_again(experiment, record, run.tokenizer(experiment).vocab_size)
    return environment_differences(record, experiment, backend)


def test_they_are_listed_and_compared(gptkit_command: Command) -> None:
    listed = json.loads(gptkit_command("runs", "--json").out)
    assert {run["id"].partition(".")[0]: run["status"] for run in listed} == STATUSES
    assert all(run["best_val_loss"] and run["step"] and run["parameters"] for run in listed)
    compared = gptkit_command("runs", "compare", *NAMES, "--html", "all.html")
    assert (compared.code, compared.err) == (0, "")
    assert "bits per byte do" in compared.out  # the tokenizers differ
    assert Path("all.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_each_is_shown_verified_reported_and_generated_from(name: str, gptkit_command: Command) -> None:
    shown = json.loads(gptkit_command("runs", "show", name, "--json").out)
    assert shown["status"] == STATUSES[name]
    assert None not in (shown["train_loss"], shown["val_loss"], shown["val_bits_per_byte"])
    assert [one["kind"] for one in shown["plugins"]] == ["tokenizer", "data.dataset", "model.position"]
    assert shown["checkpoints"]
    verified = gptkit_command("runs", "verify", name)
    assert verified.code == 0, verified.out
    assert gptkit_command("runs", "report", name).code == 0
    generated = gptkit_command("generate", name, "--prompt", "7 times", "-n", 8, "--seed", 1)
    assert generated.code == 0, generated.err
    assert generated.out.startswith("7 times")
    run = gptkit.open_run(name)
    assert run.generate("7 times", max_new_tokens=8, seed=1) == generated.out.rstrip("\n")
    assert run.metrics()[-1]["step"] >= 5


@pytest.mark.parametrize("name", NAMES)
def test_the_last_steps_of_each_come_out_the_same(name: str, gptkit_command: Command) -> None:
    replayed = gptkit_command("resume", name, "--verify")
    # On another processor the bits may differ; then the environment does too
    assert "identical: " in replayed.out or differences_here(find_run(name))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_resumed(name: str, gptkit_command: Command) -> None:
    more, step = RESUMED[name]
    run = find_run(name)
    before, exact = run.record(), not differences_here(run)
    resumed = gptkit_command("resume", name, *more)
    assert resumed.code == 0, resumed.err
    if name != "minutes":
        assert ("resume: exact" in resumed.out) == exact
    after = run.record()
    assert after["step"] == step
    assert set(before) - {"process"} <= set(after)
    for key in ("format", "id", "name", "started", "command", "dataset", "tokenizer", "plugins"):
        assert after[key] == before[key]
    assert gptkit_command("runs", "verify", name).code == 0


@pytest.mark.parametrize("name", ["finished", "stopped", "loaded"])
def test_training_them_again_gives_the_same_weights(name: str, gptkit_command: Command) -> None:
    # The C of another version must compute the same
    if [word for word in differences_here(find_run(name)) if not word.startswith("native ")]:
        pytest.skip("another machine or other packages than those that trained it")
    again = gptkit_command("rerun", name)
    assert again.code == 0, again.err
    assert "identical: " in again.out
