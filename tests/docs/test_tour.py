"""README.md and the documentation show only commands and files that work.

The commands of README.md, and those of docs/getting-started.md, are run as they are written, in order, in one
folder that holds what a checkout holds. What makes that take seconds instead of minutes: the experiments in
that folder have fewer steps and shorter windows. Installing is left out: a command that begins with it
is run from behind it. A block of code below a line `<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.support import Command

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TOUR = ROOT / "docs" / "getting-started.md"
BLOCK = re.compile(r"(?P<skip><!-- not run: .+ -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.M | re.S)
INSTALL = re.compile(r"python -m venv \.venv && \.venv/bin/pip install -e \S+(?: && )?")
BIN = ".venv/bin/"
KEEP = "set -e; touch .variables; . ./.variables; trap '[ -z \"$run\" ] || declare -p run >.variables' EXIT"
MOST_STEPS = 60  # of an experiment; the pages stop one at step 50


def blocks(page: Path, language: str) -> Iterator[str]:
    """The blocks of code of a page that are to be run."""
    for found in BLOCK.finditer(page.read_text("utf-8")):
        if found["language"] == language and not found["skip"]:
            yield found["code"]


def commands(page: Path) -> list[str]:
    """Its commands, without those that only install something or run the tests."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    bare = [INSTALL.sub("", line).replace(BIN, "") for line in lines]
    return [line for line in bare if line and line != "pytest"]


def shrink(experiment: Path) -> None:
    """Rewrites an experiment file to train and evaluate on less; model and data stay as they are."""
    fields = tomllib.loads(experiment.read_text("utf-8"))
    training, model = fields.setdefault("training", {}), fields.setdefault("model", {})
    training["max_steps"] = min(training.get("max_steps", 1000), MOST_STEPS)
    training["batch_size"] = 2
    model["context_length"] = 16
    fields.setdefault("evaluation", {})["eval_tokens"] = 1024
    experiment.write_text(tomli_w.dumps(fields), "utf-8")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the pages expect around them, and no runs."""
    texts = os.environ.get("GPTKIT_DATA_DIR")
    if texts is None or not (Path(texts) / "tiny_shakespeare.txt").is_file():
        pytest.skip("Tiny Shakespeare is not here; GPTKIT_DATA_DIR names the folder that has it")
    for folder in ("experiments", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(README, tmp_path)
    for experiment in (tmp_path / "experiments").glob("*.toml"):
        shrink(experiment)
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the pages show commands of a Unix shell")
@pytest.mark.parametrize("page", [README, TOUR], ids=lambda page: page.name)
def test_every_command_of_a_page_works_as_written_and_in_order(
    page: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory, python: list[str]
) -> None:
    scripts = tmp_path_factory.mktemp("scripts")
    (scripts / "gptkit").write_text(f'#!/bin/sh\nexec {shlex.join(python)} -m gptkit "$@"\n')
    (scripts / "gptkit").chmod(0o755)
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    shown = commands(page)
    assert len(shown) >= 5
    for command in shown:
        if "| jq " in command and not shutil.which("jq"):
            command = command.partition("| jq ")[0]  # noqa: PLW2901  (the program is not here)
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{KEEP}\n{command}"],
            cwd=checkout,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert len(list((checkout / "runs").iterdir())) >= 1


def test_the_readme_shows_the_two_commands_of_a_checkout() -> None:
    lines = README.read_text("utf-8").splitlines()
    setup = "python -m venv .venv && .venv/bin/pip install -e "
    assert f"{setup}. && .venv/bin/gptkit train experiments/shakespeare.toml" in lines
    assert f"{setup}'.[dev]' && .venv/bin/pytest" in lines


def test_the_readme_shows_an_experiment_as_it_is() -> None:
    (shown,) = blocks(README, "toml")
    assert shown == (ROOT / "experiments" / "shakespeare.toml").read_text("utf-8")


@pytest.mark.parametrize(
    "page", [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name
)
def test_files_that_a_page_links_to_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r'(?:\]\(|src="|srcset=")([^)"#:\s]+)[)"#]', text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert links


def test_every_experiment_that_comes_along_is_in_the_tour() -> None:
    text = TOUR.read_text("utf-8")
    assert [path.name for path in (ROOT / "experiments").glob("*.toml") if f"`{path.name}`" not in text] == []


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "experiment-files.md"], ids=lambda page: page.name)
def test_the_shown_mistakes_are_answered_as_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gptkit_command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text('[model]\nn_hed = 4\n\n\n[optimizer]\ntype = "mun"\n')
    answer = gptkit_command("train", "my.toml")
    assert answer.code == 2
    assert answer.err in list(blocks(page, ""))


@pytest.mark.slow
def test_the_example_of_the_python_api_works(checkout: Path, python: list[str]) -> None:
    (code,) = blocks(ROOT / "docs" / "python-api.md", "python")
    done = subprocess.run(
        [*python, "-c", code],
        cwd=checkout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "'val_loss'" in done.stdout
    assert "ROMEO:" in done.stdout
