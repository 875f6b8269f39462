"""README.md and the documentation show only commands and files that work.

The commands of README.md and of the documentation's pages, in the order of the site, are run as they are
written, all in one folder that holds what a checkout holds; and so are the examples that `--help` shows, in
another one. What makes that take seconds instead of minutes: the experiments in these folders have fewer
steps and smaller models, and a benchmark measures for a moment. Installing gptkit is left out: a command that
begins with it is run from behind it. So are the tests and tools of a checkout: of tools, and of commands in a
sentence, the options are checked. A block of code below a line `<!-- not run: reason -->` is left out.

The Python code of the chapter on plugins is run by tests/plugins/test_packages.py.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import tomli_w
import typer

from gptkit.cli.app import app
from gptkit.data.catalog import data_folders, read_dataset, resolve_dataset
from gptkit.experiment.load import load_experiment
from gptkit.plugins import registry
from gptkit.plugins.scaffold import new_package
from gptkit.training.session import run_stem
from tests.support import Command, small_text

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(?P<skip><!-- not run: .+ -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.M | re.S)
INSTALL = re.compile(r"python -m venv \.venv && \.venv/bin/pip install -e \S+(?: && )?")
BIN = ".venv/bin/"
INLINE = re.compile(r"`((?:gptkit|python -m tools\.\w+) [^`]+)`")
KEEP = "set -e; touch .variables; . ./.variables; trap '[ -z \"$run\" ] || declare -p run >.variables' EXIT"
MOST_STEPS = 51  # of an experiment; the pages stop one at step 50
# `gptkit bench`, which measures for ten seconds, as it is but for that
QUICK_BENCH = """if True:
    from functools import partial
    from gptkit.bench import measure
    from gptkit.__main__ import main

    measure.benchmark = partial(measure.benchmark, seconds=0.01, blocks=1)
    main()
"""
TRANSFORMERS = importlib.util.find_spec("transformers") is not None
# Of the example for `runs delete`
DELETED = "tiny.c16.e32.h2.b2-20261122-104012"


def pages() -> list[Path]:
    """README.md, and the pages of the site in its order."""
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1].split("\n\n")[0]
    return [README, *(DOCS / name for name in re.findall(r"[\w/-]+\.md$", nav, re.MULTILINE))]


def blocks(text: str, language: str) -> Iterator[str]:
    """The blocks of code of a page that are to be run."""
    for found in BLOCK.finditer(text):
        if found["language"] == language and not found["skip"]:
            yield found["code"]


def commands(text: str) -> list[str]:
    """Its commands, without those that only install gptkit, run its tests or try to break it."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines() if line.strip()]
    bare = [INSTALL.sub("", line).replace(BIN, "") for line in lines]
    return [line for line in bare if line and line != "pytest" and not line.startswith("python -m tools.")]


def shrink(experiment: Path, **model: int) -> None:
    """Rewrites an experiment file to train a small model on less; `model` is set in its table."""
    fields = tomllib.loads(experiment.read_text("utf-8"))
    small = {
        "training": {"max_steps": MOST_STEPS, "batch_size": 2},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, **model},
        "evaluation": {"eval_tokens": 1024},
    }
    for table, values in small.items():
        fields.setdefault(table, {}).update(values)
    experiment.write_text(tomli_w.dumps(fields), "utf-8")


@dataclass(frozen=True)
class Checkout:
    """A folder that holds what a checkout of gptkit holds, no runs, and the texts that the pages name."""

    folder: Path
    scripts: Path  # gptkit, pip and pytest

    def run(self, command: str) -> str:
        """What a line of a shell prints; it has to succeed."""
        if "| jq " in command and not shutil.which("jq"):
            command = command.partition("| jq ")[0]
        variables = {
            "PATH": f"{self.scripts}{os.pathsep}{os.environ['PATH']}",
            "GPTKIT_MEASURE": "1" if "--operations" in command else "0",
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),  # which one of the commands clears
        }
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{KEEP}\n{command}"],
            cwd=self.folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout


def make_checkout(folder: Path, python: list[str], **model: int) -> Checkout:
    texts = os.environ.get("GPTKIT_DATA_DIR")
    if texts is None or not (Path(texts) / "tiny_shakespeare.txt").is_file():
        pytest.skip("Tiny Shakespeare is not here; GPTKIT_DATA_DIR names the folder that has it")
    for name in ("experiments", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(README, folder)
    for experiment in (folder / "experiments").glob("*.toml"):
        shrink(experiment, **model)
    for text in ("novel.txt", "home/novel.txt", "home/Documents/novel.txt"):
        (folder / text).parent.mkdir(parents=True, exist_ok=True)
        (folder / text).write_text(small_text())
    (folder / "beginning.txt").write_text("the")
    (folder / "corpus.jsonl").write_text(json.dumps({"body": small_text()}))
    compiled = Path(platformdirs.user_cache_dir("gptkit", appauthor=False)) / "native"
    if compiled.is_dir():  # so that nothing is compiled again
        shutil.copytree(compiled, folder / "cache" / "gptkit" / "native")
    scripts = folder / "scripts"
    scripts.mkdir()
    pip = (
        "pip install --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps --target ."
    )
    for name, line in {
        "gptkit": f'{shlex.join(python)} -m gptkit "$@"',
        "quick-bench": f'{shlex.join([*python, "-c", QUICK_BENCH])} "$@"',
        "pytest": f'{shlex.join(python)} -m pytest -p no:cacheprovider "$@"',
        # Into the folder, and not this environment; the first two words are install -e, or install
        "pip": f'{sys.executable} -m {pip} "$(echo "$*" | sed -E "s/^install (-e )?//; s/\\[.*//")"',
    }.items():
        (scripts / name).write_text(f"#!/bin/sh\nexec {line}\n")
        (scripts / name).chmod(0o755)
    gptkit = (scripts / "gptkit").read_text()
    (scripts / "gptkit").write_text(gptkit.replace("\n", '\n[ "$1" = bench ] && exec quick-bench "$@"\n', 1))
    return Checkout(folder, scripts)


shell = pytest.mark.skipif(sys.platform == "win32", reason="the pages show commands of a Unix shell")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, python: list[str]) -> Checkout:
    return make_checkout(tmp_path_factory.mktemp("tour"), python, context_length=16)


@pytest.mark.slow
@shell
@pytest.mark.parametrize(
    "page", [page for page in pages() if commands(page.read_text("utf-8"))], ids=lambda page: page.stem
)
def test_every_command_of_every_page_works_as_written_and_in_order(page: Path, checkout: Checkout) -> None:
    for command in commands(page.read_text("utf-8")):
        checkout.run(command)


@pytest.mark.slow
@shell
def test_every_example_of_the_help_works_as_written_and_in_order(tmp_path: Path, python: list[str]) -> None:
    checkout = make_checkout(tmp_path, python)  # the ids of runs begin with the context's length
    examples = commands(hooks().on_page_markdown((DOCS / "commands.md").read_text("utf-8")))
    assert len(examples) >= 40
    for command in examples:
        if command.startswith("gptkit import") or ("transformers" in command and not TRANSFORMERS):
            continue  # needs published weights, or a package that is not here
        if DELETED in command:
            runs = tmp_path / "runs"
            shutil.copytree(next(runs.iterdir()), runs / DELETED)
            command = f"{command.removesuffix(' --yes')} --yes"  # noqa: PLW2901  (it asks on a terminal only)
        checkout.run(command)


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("documentation_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_the_two_commands_of_a_checkout() -> None:
    lines = README.read_text("utf-8").splitlines()
    setup = "python -m venv .venv && .venv/bin/pip install -e "
    assert f"{setup}. && .venv/bin/gptkit train experiments/shakespeare.toml" in lines
    assert f"{setup}'.[dev]' && .venv/bin/pytest" in lines


def test_the_readme_shows_an_experiment_as_it_is() -> None:
    (shown,) = blocks(README.read_text("utf-8"), "toml")
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
    text = (DOCS / "getting-started.md").read_text("utf-8")
    assert [path.name for path in (ROOT / "experiments").glob("*.toml") if f"`{path.name}`" not in text] == []


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "experiment-files.md"], ids=lambda page: page.name)
def test_the_shown_mistakes_are_answered_as_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gptkit_command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text('[model]\nn_hed = 4\n\n\n[optimizer]\ntype = "mun"\n')
    answer = gptkit_command("train", "my.toml")
    assert answer.code == 2
    assert answer.err in list(blocks(page.read_text("utf-8"), ""))


@pytest.mark.slow
@shell
def test_the_example_of_the_python_api_works(checkout: Checkout, python: list[str]) -> None:
    (code,) = blocks((DOCS / "python-api.md").read_text("utf-8"), "python")
    printed = checkout.run(f"{shlex.join(python)} -c {shlex.quote(code)}")
    assert "'val_loss'" in printed
    assert "ROMEO:" in printed


# Files


def test_the_page_on_texts_shows_datasets_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("one")
    Path("b").mkdir()
    Path("b/c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"content": "two"}).encode()))
    files, network, tokens, val = blocks((DOCS / "texts.md").read_text("utf-8"), "toml")
    Path("files.toml").write_text(files)
    dataset, used = resolve_dataset(load_experiment("files.toml").data.dataset, data_folders(None))
    assert read_dataset(used.type, dataset, data_folders(None)) == "one\n\ntwo"
    Path("network.toml").write_text(network)
    assert load_experiment("network.toml").data.dataset.type == "hf"
    for block in (tokens, val):
        Path("tokens.toml").write_text(block)
        data = load_experiment("tokens.toml").data
        assert data.dataset.type == "tokens"
    assert data.val is not None
    assert data.val.type == "tokens"


def test_every_line_that_the_template_has_as_a_comment_can_be_used(tmp_path: Path) -> None:
    lines = (ROOT / "experiments" / "my_text.toml").read_text("utf-8").splitlines()
    commented = [line for line in lines if re.match(r"# \w+ =", line)]
    assert len(commented) >= 5
    for line in commented:
        key = f"{line.split()[1]} ="
        table = "[tracking]\n" if key == "tensorboard =" else ""
        kept = [each for each in lines if not each.startswith(key)]
        kept[kept.index(line)] = table + line.removeprefix("# ")
        (tmp_path / "my.toml").write_text("\n".join(kept))
        load_experiment(tmp_path / "my.toml")


@pytest.mark.slow
@shell
def test_a_run_holds_what_its_page_shows(checkout: Checkout) -> None:
    tree = next(blocks((DOCS / "run-folder.md").read_text("utf-8"), "text"))
    checkout.run(
        "gptkit train experiments/shakespeare_quick.toml --steps 2 --name tree "
        "--set tracking.tensorboard=true --set sampling.sample_interval=2"
    )
    (run,) = (checkout.folder / "runs").glob("tree.*")
    assert names_in_tree(tree) == {
        as_any_step(path.relative_to(run).as_posix())
        for path in run.rglob("*")
        if path.name != ".lock" and path.parent.name != "tensorboard"
    }
    assert tree.startswith(f"runs/{run_stem(load_experiment(ROOT / 'experiments' / 'shakespeare.toml'))}-")


def test_a_new_package_holds_what_the_tutorial_shows(tmp_path: Path) -> None:
    tree = next(blocks((DOCS / "plugins" / "tutorial.md").read_text("utf-8"), "text"))
    package = new_package(registry.TOKENIZERS, "words", tmp_path)
    files = [path for path in package.rglob("*") if path.is_file()]
    assert names_in_tree(tree) == {path.relative_to(package).as_posix() for path in files}


def names_in_tree(tree: str) -> set[str]:
    """The paths in a drawn folder. A line has a path, or a folder and the files in it, and then a comment."""
    found, folder = set(), ""
    for line in tree.splitlines()[1:]:
        shown = re.split(r" {3,}", line.strip())[0].split()
        path = (folder if line.startswith("    ") else "") + shown[0]
        found |= {path.rstrip("/"), *(path + name for name in shown[1:])}
        folder = path if line.strip() == shown[0] and path.endswith("/") else folder
    return {as_any_step(path) for path in found}


def as_any_step(path: str) -> str:
    return re.sub(r"\d{12}", "#", path)


# Commands in a sentence


@pytest.mark.parametrize(
    "page",
    [*pages(), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "experiments").glob("*.toml"))],
    ids=lambda page: page.name,
)
def test_every_command_in_a_sentence_exists_with_its_options(page: Path) -> None:
    text = page.read_text("utf-8")
    shown = INLINE.findall(text) + re.findall(r"^#   (gptkit .*)", text, re.MULTILINE)
    shown += [line for block in blocks(text, "sh") for line in block.splitlines() if "-m tools." in line]
    for line in shown:
        words = shlex.split(line, comments=True)
        there = options_of_tool(words[2]) if words[0] == "python" else options_of_command(words[1:])
        asked = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert [option for option in asked if option not in there] == [], line


def options_of_command(words: list[str]) -> set[str]:
    """Fails for a command that does not exist."""
    command: Any = typer.main.get_command(app)
    while words and not words[0].startswith("-") and words[0] != "COMMAND" and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    named = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    return {*named, "--help"}


def options_of_tool(module: str) -> set[str]:
    source = ROOT / module.replace(".", "/")
    source = source / "__main__.py" if source.is_dir() else source.with_suffix(".py")
    return set(re.findall(r'"(--[\w-]+)"', source.read_text("utf-8")))
