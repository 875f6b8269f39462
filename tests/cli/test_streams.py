"""Output that cannot be written: a full disk, a reader gone, a stream closed, a terminal closed."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptkit import api
from gptkit.cli.app import run_command
from gptkit.runs import Run, find_run
from tests.support import TINY, Command, small_text, write_record

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full and terminals as Linux has")

EVERY_STEP = ("--set", "training.log_interval=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    (root / "data").mkdir()
    (root / "data" / "mine.txt").write_text(small_text())
    (root / "tiny.toml").write_text(TINY)
    run = api.train(root / "tiny.toml", runs_folder=root / "runs", data_dir=root)
    run.path.rename(root / "runs" / "mine")
    return root


@pytest.fixture
def finished(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a finished run `mine`, for commands that only read."""
    monkeypatch.chdir(trained)
    return trained


def gptkit(redirected: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command line with a redirection as a shell does it."""
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirected}', "gptkit", sys.executable, "-m", "gptkit", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", ["--help", "--version", "runs", "runs --json", "schema", "datasets list"])
def test_output_onto_a_full_disk_is_code_6(command: str, workspace: Path) -> None:
    done = gptkit("> /dev/full", *command.split())
    assert done.returncode == 6
    assert done.stderr == "gptkit: cannot write standard output: No space left on device.\n"


def test_text_onto_a_full_disk_is_code_6(tiny_experiment: Path, gptkit_command: Command) -> None:
    assert gptkit_command("train", tiny_experiment, "--quiet").code == 0
    done = gptkit("> /dev/full", "generate", "latest", "-n", 5)
    assert done.returncode == 6
    assert done.stderr.endswith("gptkit: cannot write standard output: No space left on device.\n")


@pytest.mark.parametrize("view", [(), ("--json",)])
def test_a_log_on_a_full_disk_does_not_stop_the_training(
    view: tuple[str, ...], tiny_experiment: Path
) -> None:
    done = gptkit("> /dev/full", "train", tiny_experiment, *EVERY_STEP, *view)
    said = "cannot write standard output: No space left on device; training goes on without it."
    assert (done.returncode, done.stderr) == (0, f"gptkit: warning: {said}\n")
    assert find_run("latest").record()["status"] == "finished"


def test_a_log_of_everything_on_a_full_disk_does_not_either(tiny_experiment: Path) -> None:
    assert gptkit("> /dev/full 2>&1", "train", tiny_experiment, *EVERY_STEP).returncode == 0
    assert find_run("latest").record()["status"] == "finished"
    assert gptkit("2> /dev/full", "generate", "no-such-run").returncode == 2


@contextmanager
def pipe_without_reader() -> Iterator[None]:
    """Within it standard output is a pipe that nobody reads any more."""
    ours, theirs = os.pipe()
    os.close(ours)
    with pytest.MonkeyPatch.context() as patch, open(theirs, "w") as out:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", sys.stderr)  # click replaces both
        yield


@pytest.mark.parametrize(
    "command",
    [
        *("--help", "train --help", "schema", "runs", "runs list --json", "runs show mine", "plugins list"),
        *("plugins show rope", "datasets list", "generate mine -n 5", "generate mine --num-samples 2 -n 5"),
        "runs verify mine",
    ],
)
def test_a_reader_that_has_gone_is_no_error(
    command: str, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pipe_without_reader():
        assert run_command(command.split()) == 0
    assert "gptkit: " not in capfd.readouterr().err


def test_a_shell_sees_no_error_either(finished: Path) -> None:
    done = gptkit("| true; exit ${PIPESTATUS[0]}", "runs", "show", "mine")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_do_not_stop_the_training(closed: str, tiny_experiment: Path) -> None:
    done = gptkit(closed, "train", tiny_experiment)
    assert (done.returncode, done.stderr) == (0, "")
    run = find_run("latest")
    assert run.record()["status"] == "finished"
    assert all(b"step" in line for line in run.metrics_log.lines())


def test_a_closed_standard_input_is_an_empty_prompt(tiny_experiment: Path, gptkit_command: Command) -> None:
    assert gptkit_command("train", tiny_experiment, "--quiet").code == 0
    done = gptkit("<&-", "generate", "latest", "-n", 5, "--prompt", "-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gptkit: the prompt has no tokens")


@pytest.mark.parametrize(
    "command", ["runs", "runs show latest", "runs compare latest other", "datasets list"]
)
def test_a_locale_without_a_character_shows_its_escape(command: str, tiny_experiment: Path) -> None:
    assert gptkit("", "train", tiny_experiment, "--quiet", "--steps", 2).returncode == 0
    run = find_run("latest")
    write_record(run, {**run.record(), "dataset": {"name": "caf\N{LATIN SMALL LETTER E WITH ACUTE}…"}})
    shutil.copytree(run.path, "runs/other")
    done = subprocess.run(
        [sys.executable, "-m", "gptkit", *command.split()],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert b"defect" not in done.stderr


def test_a_folder_that_is_gone_is_said(workspace: Path) -> None:
    (workspace / "gone").mkdir()
    done = subprocess.run(
        ["bash", "-c", 'cd gone && rmdir ../gone && "$@"', "-", sys.executable, "-m", "gptkit", "runs"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("gptkit: the folder that it was started in is gone")


# The terminal becomes the process's own; and SIGHUP is not ignored, as it is under nohup
ON_A_TERMINAL = """if True:
    import fcntl, os, signal, sys, termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, "-m", "gptkit", *sys.argv[1:]])
"""


@pytest.mark.parametrize("view", [(), ("--json",)])
def test_a_terminal_that_is_closed_has_the_run_saved(view: tuple[str, ...], tiny_experiment: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["train", tiny_experiment, "--steps", 100000, *EVERY_STEP, *view]
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    os.close(theirs)
    until = time.monotonic() + 60
    while time.monotonic() < until and not recorded():
        os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(60) == 143
    run = find_run("latest")
    assert run.record()["status"] == "terminated"
    assert max(run.checkpoints.iterdir()).name == f"step-{run.record()['step']:012d}"
    assert (run.path / "report.html").exists()


def recorded() -> bool:
    """Whether a run here has got as far as a step."""
    return any(Run(path).metrics() for path in Path("runs").iterdir())
