"""Commands that fail: exit code, a message of at most three lines, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gptkit
from gptkit.experiment.load import experiment_from_dict
from tests.support import TINY, Command, run_of, small_text


@pytest.fixture(scope="module")
def bad_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run called `good`, one without checkpoints, and files of many kinds."""
    root = tmp_path_factory.mktemp("bad")
    contents: dict[str, str | bytes] = {
        "tiny.toml": TINY,
        "data/mine.txt": small_text(),
        "empty.txt": "",
        "short.txt": "x" * 50,
        "tiny.txt": "x",
        "latin.txt": b"caf\xe9 " * 100,
        "greek.txt": "αβγ " * 1000,
        "utf16.toml": "seed = 1".encode("utf-16"),
        "broken.toml": "seed = ",
        "deep.toml": "a = " + "[" * 20_000,
        "dotted.toml": "a." * 30_000 + "a = 1",
        "huge.toml": "#" * 2_000_000,
        "digits.toml": "seed = 0x" + "f" * 9000,
        "wrong.toml": 'seeed = 1\n[model]\nn_layer = "4"\nmax_steps = 4\n[training]\nbatch_size = nan\n',
        "prompt.bin": b"\xff\xfe",
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    runs = root / "runs"
    runs.mkdir()
    for name in ("good", "unsaved"):
        options: dict[str, Any] = {"name": name, "checkpoints": {"save": name == "good"}}
        experiment = experiment_from_dict({**tomllib.loads(TINY), **options})
        gptkit.train(experiment, runs_folder=runs, data_dir=root)
    return root


@pytest.fixture
def in_bad_workspace(bad_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Works there, without a network, and sees to it that nothing was written, changed or removed."""
    monkeypatch.chdir(bad_workspace)
    monkeypatch.delenv("GPTKIT_DATA_DIR", raising=False)
    monkeypatch.setattr(
        "gptkit.data.datasets.shakespeare.ShakespeareDataset.url", "http://127.0.0.1:9/nothing"
    )
    before = snapshot(bad_workspace)
    yield
    assert snapshot(bad_workspace) == before


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


TRAIN = ("train", "tiny.toml")
GENERATE = ("generate", "good")
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")

BAD: list[Any] = [
    # The command line itself
    (("trian",), 2, "No such command 'trian'. Did you mean 'train'?"),
    (("train",), 2, "Missing argument 'EXPERIMENT'"),
    (("resume",), 2, "Missing argument 'RUN'"),
    ((*TRAIN, "--stepz", 3), 2, "No such option: --stepz"),
    ((*TRAIN, "--steps"), 2, "requires an argument"),
    ((*TRAIN, "--steps", "many"), 2, "Invalid value for '--steps'"),
    ((*TRAIN, "--steps", "1e3"), 2, "Invalid value for '--steps'"),
    ((*TRAIN, "another.toml"), 2, "unexpected extra argument"),
    ((*TRAIN, "--stop-at", 0), 2, "Invalid value for '--stop-at'"),
    ((*TRAIN, "--generate", -1), 2, "Invalid value for '--generate'"),
    ((*TRAIN, "--generate", 10**12), 2, "Invalid value for '--generate'"),
    ((*TRAIN, "--steps", 3, "--epochs", 2), 2, "--steps 3 and --epochs 2.0 both set the length of training"),
    (
        (*TRAIN, "--minutes", 3, "--epochs", 2),
        2,
        "--epochs 2.0 and --minutes 3.0 both set the length of training",
    ),
    ((*TRAIN, "--minutes", 0), 2, "training.minutes = 0.0: should be greater than 0"),
    ((*TRAIN, "--minutes", "nan"), 2, "training.minutes = nan: should be a finite number"),
    (("runs", "--all"), 2, "No such option: --all"),
    # The experiment file
    (("train", "nofile.toml"), 2, "there is no experiment file nofile.toml. There are: "),
    (("train", "data"), 2, "data is a folder, not an experiment file"),
    (("train", "x" * 3000), 2, "cannot read xxx"),
    (("train", ""), 2, "is a folder, not an experiment file"),
    (("train", "broken.toml"), 2, "^ not valid TOML: Invalid value"),
    (("train", "utf16.toml"), 2, "utf16.toml: not UTF-8 at byte 0"),
    (("train", "deep.toml"), 2, "deep.toml: not usable TOML: nested too deeply"),
    (("train", "dotted.toml"), 2, "dotted.toml: not usable TOML: nested too deeply"),
    (("train", "huge.toml"), 2, "huge.toml: larger than 1 MB"),
    (("train", "digits.toml"), 2, "^ seed = a number of thousands of digits"),
    (("train", "data/mine.txt"), 2, "data/mine.txt: not valid TOML"),
    (("train", "wrong.toml"), 2, "wrong.toml has 4 problems:\n"),
    # Its fields
    ((*TRAIN, "--steps", -5), 2, "training.max_steps = -5: should be greater than or equal to 1"),
    ((*TRAIN, "--steps", 0), 2, "training.max_steps = 0: should be"),
    ((*TRAIN, "--epochs", 0), 2, "training.epochs = 0.0: should be greater than 0"),
    ((*TRAIN, "--epochs", "nan"), 2, "training.epochs = nan: should be a finite number"),
    ((*TRAIN, "--lr", "inf"), 2, "optimizer.learning_rate = inf: should be a finite number"),
    ((*TRAIN, "--drop", 1), 2, "model.dropout = 1.0: should be less than 1"),
    ((*TRAIN, "--heads", 3), 2, "n_head = 3 does not divide n_embd = 32"),
    ((*TRAIN, "--heads", 32), 2, "model.position: rope"),
    ((*TRAIN, "--seed", -1), 2, "seed = -1: should be 'random' or"),
    ((*TRAIN, "--backend", "tpu"), 2, "training.backend = \"tpu\": should be 'auto', 'cpu', 'cuda' or 'mps'"),
    pytest.param(
        (*TRAIN, "--backend", "cuda"), 2, "'cuda' is not available here; there is cpu", marks=NO_CUDA
    ),
    (
        (*TRAIN, "--set", "training.max_step=3"),
        2,
        "training.max_step: unknown key; did you mean 'max_steps'?",
    ),
    ((*TRAIN, "--set", "max_steps=3"), 2, "max_steps: unknown key; it belongs in [training]"),
    ((*TRAIN, "--set", "training.max_steps"), 2, "expected KEY=VALUE"),
    ((*TRAIN, "--set", "model.position.bse=3"), 2, "model.position.bse: unknown key; did you mean 'base'?"),
    ((*TRAIN, "--set", "optimizer.type=adam"), 2, 'optimizer.type = "adam": should be '),
    (
        (*TRAIN, "--set", "sampling.prompt=Ω"),
        2,
        "sampling.prompt has characters that are not in the text: 'Ω'",
    ),
    ((*TRAIN, "--name", "../evil"), 2, 'name = "../evil": should be letters'),
    ((*TRAIN, "--name", "/tmp/evil"), 2, 'name = "/tmp/evil": should be letters'),
    ((*TRAIN, "--name", "a\\b"), 2, "should be letters"),
    ((*TRAIN, "--name", "CON"), 2, 'name = "CON": is a name that Windows reserves for a device'),
    ((*TRAIN, "--name", "мой прогон"), 2, 'name = "мой прогон": should be letters, digits'),
    ((*TRAIN, "--output", ""), 2, 'name = ""'),
    # Plugins
    ((*TRAIN, "--set", "tokenizer=chars"), 3, "no tokenizer is called 'chars'; did you mean 'char'?"),
    (
        (*TRAIN, "--set", "model.position=roep"),
        3,
        "no positional encoding is called 'roep'; did you mean 'rope'?",
    ),
    # Texts
    ((*TRAIN, "--dataset", "no\x1b[2J\u202e.txt"), 4, r"Looked for no\x1b[2J\u202e.txt"),
    ((*TRAIN, "--dataset", "nowhere.txt"), 4, "there is no dataset or text file 'nowhere.txt'"),
    ((*TRAIN, "--dataset", ""), 2, "data.dataset.type"),
    ((*TRAIN, "--dataset", "empty.txt"), 4, "empty.txt is empty"),
    ((*TRAIN, "--dataset", "tiny.txt"), 4, "needs at least 17"),
    ((*TRAIN, "--dataset", "short.txt", "-c", 30), 4, "the largest model.context_length that fits is 4"),
    ((*TRAIN, "--dataset", "latin.txt"), 4, "latin.txt is not UTF-8: byte 0xe9 at offset 3"),
    ((*TRAIN, "--dataset", "harry_potter"), 4, "gptkit datasets add harry_potter FILE"),
    ((*TRAIN, "--dataset", "shakespeare", "--quiet"), 10, "cannot download http://127.0.0.1:9/nothing"),
    # What does not fit
    ((*TRAIN, "-e", 2**20, "--bl", 100), 9, "Lower model.n_embd or model.n_layer"),
    ((*TRAIN, "-B", 2**20, "-c", 2000), 9, "Lower training.batch_size and raise"),
    ((*TRAIN, "--runs-dir", "tiny.toml"), 6, "tiny.toml is a file; pass a folder with --runs-dir"),
    # Other runs
    ((*TRAIN, "--load", "nope"), 2, "no run 'nope' in runs"),
    ((*TRAIN, "--load", "unsaved"), 5, "there is no checkpoint"),
    ((*TRAIN, "--load", "good", "-e", 64), 2, "model.n_embd is 32 there, 64 here"),
    ((*TRAIN, "--load", "good", "--dataset", "greek.txt"), 4, "the run's tokenizer lacks: 'α' 'β' 'γ'"),
    (("resume", "nope"), 2, "no run 'nope' in runs"),
    (("resume", "unsaved"), 5, "there is no checkpoint"),
    (("resume", "good", "--steps", 0), 2, "Invalid value for '--steps'"),
    (("resume", "good", "--steps", 10), 2, "is at step 20 already, past --steps 10"),
    (("resume", "good", "--stop-at", 5), 2, "is at step 20 already, past --stop-at 5"),
    (("resume", "good", "--runs-dir", "data"), 2, "no run 'good' in data"),
    # Generating
    (("generate", ""), 2, "names no run"),
    (("generate", ".."), 2, "no experiment.toml"),
    (("generate", "../../etc"), 2, "no run '../../etc' in runs"),
    (("generate", "x" * 3000), 2, "no run 'xxx"),
    (("generate", "goof"), 2, "no run 'goof' in runs"),
    (
        (*GENERATE, "--prompt", "oldΩ"),
        2,
        "has never seen: 'Ω'. Leave them out, or drop them with --unknown skip",
    ),
    ((*GENERATE, "--prompt", ""), 2, "the prompt has no tokens"),
    ((*GENERATE, "--prompt", "Ω", "--unknown", "skip"), 2, "the prompt has no tokens"),
    ((*GENERATE, "--prompt", "@nofile"), 2, "cannot read the prompt from nofile: No such file or directory"),
    ((*GENERATE, "--prompt", "@data"), 2, "cannot read the prompt from data: Is a directory"),
    ((*GENERATE, "--prompt", "@prompt.bin"), 2, "the prompt from prompt.bin is not UTF-8 at byte 0"),
    ((*GENERATE, "--prompt", "-"), 2, "the prompt has no tokens"),  # nothing on standard input
    ((*GENERATE, "--unknown", "maybe"), 2, "--unknown 'maybe': expected error or skip"),
    ((*GENERATE, "--checkpoint", "7"), 5, "there is no checkpoint of step 7"),
    ((*GENERATE, "--checkpoint", "newest"), 2, "--checkpoint 'newest': expected best, last or a step"),
    ((*GENERATE, "--temperature", -1), 2, "temperature = -1.0: should be"),
    ((*GENERATE, "--temperature", "nan", "--top-p", 0), 2, "has 2 problems"),
    ((*GENERATE, "--top-k", -3), 2, "top_k = -3: should be"),
    ((*GENERATE, "--min-p", 2), 2, "min_p = 2.0: should be"),
    ((*GENERATE, "-n", -1), 2, "Invalid value for '--tokens'"),
    ((*GENERATE, "-n", 10**12), 2, "max_new_tokens = 1000000000000: should be"),
    ((*GENERATE, "--num-samples", 0), 2, "Invalid value for '--num-samples'"),
    ((*GENERATE, "--stop", ""), 2, 'stop.0 = "": should have at least 1 character'),
    ((*GENERATE, "--seed", -1), 2, "Invalid value for '--seed'"),
    ((*GENERATE, "--backend", "tpu"), 2, "'tpu' is not available here; there is "),
    (("generate", "unsaved"), 5, "there is no checkpoint"),
    # Datasets
    (("datasets", "show", "nowhere"), 4, "there is no dataset or text file 'nowhere'"),
    (("datasets", "show", "empty.txt"), 4, "empty.txt is empty"),
    (("datasets", "add", "../evil", "data/mine.txt"), 2, "cannot be the name of a text"),
    (("datasets", "add", "con", "data/mine.txt"), 2, "cannot be the name of a text"),
    (("datasets", "add", "new", "nofile.txt"), 4, "there is no file nofile.txt"),
    (("datasets", "add", "new", "latin.txt"), 4, "is not UTF-8"),
    (("datasets", "add", "mine", "data/mine.txt"), 2, "already"),
    (("datasets", "fetch", "avatar_script"), 4, "under copyright"),
    (("datasets", "fetch", "shakespeare"), 10, "cannot download"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code", "message"), BAD)
@pytest.mark.usefixtures("in_bad_workspace")
def test_a_bad_invocation_has_a_short_message_and_leaves_nothing_behind(
    arguments: tuple[object, ...], code: int, message: str, gptkit_command: Command
) -> None:
    done = gptkit_command(*arguments)
    assert done.code == code, done.err
    assert message in done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if not line.startswith("downloading ")]
    assert lines[0].startswith("gptkit: ")
    problems = re.search(r"has (\d+) problems:\n", done.err)
    assert len(lines) <= (2 * int(problems[1]) + 1 if problems else 3)


@pytest.mark.usefixtures("in_bad_workspace")
def test_debug_adds_the_traceback_and_keeps_the_exit_code(gptkit_command: Command) -> None:
    for arguments in (("train", "nofile.toml"), ("generate", "nope"), ("datasets", "show", "nowhere")):
        plain, debug = gptkit_command(*arguments), gptkit_command(*arguments, "--debug")
        assert debug.code == plain.code
        assert "Traceback (most recent call last):" in debug.err
        assert debug.err.endswith(plain.err)


def test_an_unexpected_error_is_reported_as_a_defect_with_exit_code_1(
    gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr("gptkit.runs.store.select_runs", fail)
    done = gptkit_command("runs")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("gptkit: ZeroDivisionError: by 0\nThis is a defect of gptkit.")
    assert "Traceback" not in done.err


def test_a_run_with_a_link_in_it_is_refused(tiny_experiment: Path, gptkit_command: Command) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 2, "--quiet"))
    outside = Path("outside")
    run.checkpoints.rename(outside)
    (outside / ".tmp-mine").mkdir()
    run.checkpoints.symlink_to(outside.absolute(), target_is_directory=True)
    for command in ("generate", "resume"):
        refused = gptkit_command(command, run.path)
        assert (refused.code, refused.out) == (5, "")
        assert "checkpoints is a symbolic link" in refused.err
    assert (outside / ".tmp-mine").is_dir()


@pytest.mark.slow
def test_sizes_that_only_the_experiment_file_of_a_run_states_take_no_memory(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    run = run_of(gptkit_command("train", tiny_experiment, "--stop-at", 2, "--quiet"))
    text = run.experiment_file.read_text()
    run.experiment_file.write_text(text.replace("n_embd = 32", "n_embd = 1048576"))
    for command, reason in (("generate", "are not of this model"), ("resume", "n_embd 32 -> 1048576")):
        refused = gptkit_command(command, run.path)
        assert refused.code == 5
        assert reason in refused.err


# Packages that cannot be imported

ROOT = Path(__file__).parents[2]


def gptkit_with(
    package: str, code: str, workspace: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """A command line, with this code in the place of a package."""
    (workspace / "broken").mkdir()
    (workspace / "broken" / f"{package}.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "gptkit", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(workspace / "broken"), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("torch", 'raise OSError("libcudart.so.12: cannot open shared object file")'),
        ("torch", "import not_installed_anywhere"),
        ("filelock", "1 / 0"),
        ("pydantic", 'raise ImportError("cannot import name")'),
        ("typer", "import not_installed_anywhere"),
    ],
)
def test_a_package_that_cannot_be_imported_is_code_3(
    package: str, code: str, tiny_experiment: Path, workspace: Path
) -> None:
    done = gptkit_with(package, code, workspace, "train", str(tiny_experiment))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"gptkit: the package {package} cannot be imported: ")
    assert done.stderr.endswith(f"until python -c 'import {package}' works.\n")


def test_a_module_of_gptkit_that_cannot_be_imported_is_a_defect() -> None:
    code = "import sys; sys.modules['gptkit.cli.command'] = None; from gptkit.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("gptkit: ModuleNotFoundError: ")
    assert done.stderr.endswith("This is a defect of gptkit. Please report it, with what --debug shows.\n")
