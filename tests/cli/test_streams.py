"""Output that cannot be written: a full disk, a closed pipe, a closed stream, a closed terminal."""

from __future__ import annotations

import json
import os
import pty
import re
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
from gptkit.cli.streams import write_path
from gptkit.runs import Run, find_run
from tests.support import TINY, Command, small_text
from tests.support.runs import make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full and terminals as Linux has"),
]

EVERY_STEP = ("--set", "training.log_interval=1")
FULL = "gptkit: cannot write standard output: No space left on device.\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with finished runs `mine` and `other`, whose dataset has a name outside ASCII."""
    root = tmp_path_factory.mktemp("streams")
    (root / "data").mkdir()
    (root / "data" / "mine.txt").write_text(small_text())
    (root / "tiny.toml").write_text(TINY)
    run = api.train(root / "tiny.toml", runs_folder=root / "runs", data_dir=root)
    record = json.loads((run.path / "run.json").read_text())
    record["dataset"]["title"] = "caf\N{LATIN SMALL LETTER E WITH ACUTE}…"
    (run.path / "run.json").write_text(json.dumps(record))
    shutil.copytree(run.path, root / "runs" / "other")
    run.path.rename(root / "runs" / "mine")
    return root


@pytest.fixture
def finished(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That workspace, for commands that only read."""
    monkeypatch.chdir(trained)
    return trained


@contextmanager
def full_disk(*streams: str) -> Iterator[None]:
    """Within it these streams go to a file on a full disk."""
    with pytest.MonkeyPatch.context() as patch, open("/dev/full", "w") as file:
        for name in streams:
            patch.setattr(sys, name, file)
        yield


@contextmanager
def pipe_without_reader() -> Iterator[None]:
    """Within it standard output is a pipe whose reader has closed it."""
    ours, theirs = os.pipe()
    os.close(ours)
    with pytest.MonkeyPatch.context() as patch, open(theirs, "w") as out:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", sys.stderr)  # click replaces both
        yield


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


# A full disk


@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "runs", "runs --json", "schema", "datasets list", "generate mine -n 5"],
)
def test_output_onto_a_full_disk_is_code_6(
    command: str, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with full_disk("stdout"):
        assert run_command(command.split()) == 6
    assert capfd.readouterr().err.endswith(FULL)


@pytest.mark.parametrize("view", [(), ("--json",)])
def test_a_log_on_a_full_disk_does_not_stop_the_training(
    view: tuple[str, ...], tiny_experiment: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with full_disk("stdout"):
        assert run_command(["train", str(tiny_experiment), *EVERY_STEP, *view]) == 0
    warning = FULL.replace("gptkit: ", "gptkit: warning: ").replace(".\n", "; continuing without it.\n")
    assert capfd.readouterr().err == warning
    assert find_run("latest").record()["status"] == "finished"


def test_both_streams_on_a_full_disk_do_not_stop_it_either(tiny_experiment: Path) -> None:
    with full_disk("stdout", "stderr"):
        assert run_command(["train", str(tiny_experiment), *EVERY_STEP]) == 0
        assert run_command(["generate", "no-such-run"]) == 2
    assert find_run("latest").record()["status"] == "finished"


# One file for both streams


@contextmanager
def one_file(path: Path) -> Iterator[None]:
    """Within it both streams go to this file, as with `> FILE 2>&1`."""
    with (
        pytest.MonkeyPatch.context() as patch,
        path.open("w") as out,
        os.fdopen(os.dup(out.fileno()), "w") as errors,
    ):
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", errors)
        yield


@pytest.mark.parametrize("many", [(), ("--num-samples", "2")])
def test_the_last_line_of_generate_is_a_line_where_the_text_ends_without_one(
    many: tuple[str, ...], finished: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    command = ["generate", "mine", "-n", "7", "--seed", "3", "--prompt", "ab", *many]
    with one_file(tmp_path / "both"):
        assert run_command(command) == 0
    assert run_command(command) == 0
    text, _ = capfdbinary.readouterr()
    both = (tmp_path / "both").read_text()
    first, *_, last = both.splitlines()
    assert first.startswith("mine, step 20")
    assert re.fullmatch(r"\d+ tokens in .* tokens/s\)", last)
    if not many:
        assert not text.endswith(b"\n")  # what a pipe gets is the text alone
        assert both.removeprefix(f"{first}\n").removesuffix(f"\n{last}\n") == text.decode()


# A reader that has gone


@pytest.mark.parametrize(
    "command",
    [
        *("--help", "train --help", "schema", "runs", "runs list --json", "runs show mine", "plugins list"),
        *("plugins show rope", "datasets list", "generate mine -n 5", "generate mine --num-samples 2 -n 5"),
        "runs verify mine",
    ],
)
def test_a_closed_pipe_is_not_an_error(
    command: str, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pipe_without_reader():
        assert run_command(command.split()) == 0
    assert "gptkit: " not in capfd.readouterr().err


@pytest.mark.parametrize("view", [(), ("--json",)])
def test_a_closed_pipe_does_not_stop_the_training(
    view: tuple[str, ...], tiny_experiment: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pipe_without_reader():
        assert run_command(["train", str(tiny_experiment), *EVERY_STEP, *view]) == 0
    assert capfd.readouterr().err == ""
    assert find_run("latest").record()["status"] == "finished"


def test_a_closed_pipe_does_not_stop_a_removal(workspace: Path) -> None:
    for name in ("one", "two"):
        make(name)
    with pipe_without_reader():
        assert run_command(["runs", "delete", "one", "two", "--yes"]) == 0
    assert list(Path("runs").iterdir()) == []


# As a shell starts it


def test_a_shell_sees_the_same_exit_codes(finished: Path) -> None:
    done = gptkit("> /dev/full", "runs")
    assert (done.returncode, done.stderr) == (6, FULL)
    done = gptkit("| true; exit ${PIPESTATUS[0]}", "runs", "show", "mine")
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_streams_do_not_stop_the_training(tiny_experiment: Path) -> None:
    """And no file of the run gets the number of a stream, with what a library prints to it."""
    done = gptkit(">&- 2>&- <&-", "train", tiny_experiment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run = find_run("latest")
    assert run.record()["status"] == "finished"
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    assert gptkit("2>&-", "runs").returncode == 0
    assert gptkit(">&-", "runs").returncode == 0


def test_an_empty_standard_input_is_an_empty_prompt(finished: Path, gptkit_command: Command) -> None:
    done = gptkit_command("generate", "mine", "-n", 5, "--prompt", "-")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gptkit: the prompt has no tokens")


def test_a_locale_without_a_character_shows_its_escape(finished: Path) -> None:
    code = (
        "from gptkit.cli.streams import prepare; from gptkit.cli.app import run_command; prepare()\n"
        "commands = 'runs', 'runs show mine', 'runs compare mine other', 'datasets list'\n"
        "assert not any(run_command(command.split()) for command in commands)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert rb"caf\xe9\u2026" in done.stdout


def test_a_working_folder_that_is_gone_is_code_6(workspace: Path) -> None:
    (workspace / "gone").mkdir()
    done = subprocess.run(
        ["bash", "-c", 'cd gone && rmdir ../gone && "$@"', "-", sys.executable, "-m", "gptkit", "runs"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.count("\n") == 1


# The terminal becomes the process's own; and SIGHUP is not ignored, as it is under nohup
ON_A_TERMINAL = """if True:
    import fcntl, os, signal, termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    from gptkit.__main__ import main

    main()
"""


def test_a_terminal_that_is_closed_has_the_run_saved(tiny_experiment: Path, python: list[str]) -> None:
    ours, theirs = pty.openpty()
    arguments = ["train", tiny_experiment, "--steps", 100000, *EVERY_STEP]
    process = subprocess.Popen(
        [*python, "-c", ON_A_TERMINAL, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
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


@pytest.mark.parametrize(("is_terminal", "shown"), [(False, "a\x1b[2Jb\n"), (True, "a\\x1b[2Jb\n")])
def test_a_path_is_escaped_on_a_terminal_and_exact_for_a_script(
    is_terminal: bool, shown: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    write_path(Path("a\x1b[2Jb"))
    sys.stdout.flush()
    assert capfd.readouterr().out == shown
