"""Plugins as other people publish them: built and installed by pip into a fresh environment, and used there.

The environment has the wheel of gptkit, the packages of tests/plugins, those that `gptkit plugins new`
writes, that of the documentation, and two that cannot be imported: one call of pip builds and installs all.
Besides, it sees what this environment has (torch, pytest, hatchling, mypy), so nothing is downloaded. What is
done in it is done by processes, as a user would: forks of one that has imported torch, but nothing of gptkit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from gptkit.plugins.registry import FAMILIES
from gptkit.plugins.scaffold import new_package
from tests.support import Result
from tests.support.forkserver import ForkServer

pytestmark = pytest.mark.slow  # each test starts processes

ROOT = Path(__file__).parents[2]
SYLLABLES, T5, RECIPES = "gptkit-syllables", "gptkit-t5-bias", "gptkit-recipes"
ALL = (SYLLABLES, T5, RECIPES)
FRESH = {family: f"fresh-{family}" for family in FAMILIES}  # by `gptkit plugins new`
BROKEN = {"raises": "raise RuntimeError('no licence found')", "exits": "import sys\nsys.exit('good bye')"}

EXPERIMENT = """\
seed = 7
tokenizer = { type = "syllables", max_syllables = 60 }

[data]
dataset = { type = "recipes", count = 150, largest = 9 }

[model]
context_length = 16
n_embd = 32
n_layer = 2
n_head = 2
position = { type = "t5", num_buckets = 16 }

[training]
max_steps = 20
batch_size = 4
backend = "cpu"
threads = 1

[sampling]
sample_interval = 0
"""


@dataclass(frozen=True)
class Environment:
    """A Python environment with all packages, their sources, and a folder to work in."""

    python: list[str]
    site: Path  # its site-packages
    sources: Path  # copies of the packages, so that a build leaves nothing in the checkout
    workspace: Path

    def gptkit(self, *arguments: object) -> Result:
        return self.run("-m", "gptkit", *arguments)

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """As if the packages had been uninstalled: what pip put there is moved away, and back."""
        aside = self.site.parent / "aside"
        aside.mkdir(exist_ok=True)
        places = [path for name in names for path in self.site.glob(f"{name.replace('-', '_')}*")]
        assert len(places) == 2 * len(names)  # the module and its metadata
        for path in places:
            path.rename(aside / path.name)
        try:
            yield
        finally:
            for path in places:
                (aside / path.name).rename(path)

    @contextmanager
    def at_version(self, version: str, *names: str) -> Iterator[None]:
        """As if later releases of the packages were installed, of the same code."""
        for name in names:
            self._rename_version(name, "1.0", version)
        try:
            yield
        finally:
            for name in names:
                self._rename_version(name, version, "1.0")

    def _rename_version(self, name: str, before: str, after: str) -> None:
        info = self.site / f"{name.replace('-', '_')}-{before}.dist-info"
        metadata = (info / "METADATA").read_text()
        assert f"Version: {before}\n" in metadata
        (info / "METADATA").write_text(metadata.replace(f"Version: {before}\n", f"Version: {after}\n"))
        info.rename(info.with_name(info.name.replace(before, after)))

    def run(self, *arguments: object, timeout: float = 120, **variables: str) -> Result:
        done = subprocess.run(
            [*self.python, *map(str, arguments)],
            cwd=self.workspace,
            env={**clean_variables(), **variables},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)


def clean_variables() -> dict[str, str]:
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("GPTKIT_", "PIP_", "PYTHONPATH"))
    }
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


# What gptkit imports of others; torch._dynamo is for the contract of positional encodings
LIBRARIES = (
    "torch",
    "torch._dynamo",
    "numpy",
    "safetensors",
    "pydantic",
    "typer",
    "rich",
    "jinja2",
    "filelock",
    "tomli_w",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    place = tmp_path_factory.mktemp("packages")
    home, sources = place / "environment", place / "sources"
    # Not find_spec("pip"): it has setuptools, which torch.compile needs, take this process for pip's own
    has_pip = any(installed.name == "pip" for installed in distributions())
    venv.create(home, symlinks=os.name != "nt", with_pip=not has_pip)
    bases = {"base": str(home), "platbase": str(home)}
    paths = {key: Path(sysconfig.get_path(key, "venv", bases)) for key in ("purelib", "scripts")}
    # What is installed for this Python is there too: its .pth files are heeded, and none of it is copied
    here = {sysconfig.get_path(key) for key in ("purelib", "platlib")}
    added = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in sorted(here))
    (paths["purelib"] / "outer.pth").write_text(added)
    (place / "workspace" / "data").mkdir(parents=True)
    (place / "workspace" / "all.toml").write_text(EXPERIMENT)
    python = paths["scripts"] / ("python.exe" if os.name == "nt" else "python")
    made = Environment([str(python)], paths["purelib"], sources, place / "workspace")

    for name in ALL:
        shutil.copytree(ROOT / "tests" / "plugins" / name, sources / name)
    for family, name in FRESH.items():
        new_package(FAMILIES[family], name, sources)
    for name, code in BROKEN.items():
        (sources / f"gptkit-{name}").mkdir()
        (sources / f"gptkit-{name}" / "pyproject.toml").write_text(BROKEN_PROJECT.format(name=name))
        (sources / f"gptkit-{name}" / f"gptkit_{name}.py").write_text(code + "\n")
    write_documented_package(sources / "gptkit-examples")
    options = ("--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check")
    packages = [ROOT, *sorted(sources.iterdir())]
    done = made.run("-m", "pip", "install", *options, *packages, GPTKIT_NATIVE="0")  # compiles nothing
    assert done.code == 0, done.out + done.err
    if sys.platform != "linux":
        yield made
        return
    server = ForkServer(LIBRARIES, python, cwd=made.workspace, env=clean_variables())
    yield replace(made, python=server.python)
    server.close()


BROKEN_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "gptkit-{name}"
version = "3.0"

[project.entry-points."gptkit.tokenizers"]
{name} = "gptkit_{name}:Thing"

[project.entry-points."gptkit.positions"]
{name} = "gptkit_{name}:Thing"

[project.entry-points."gptkit.datasets"]
{name} = "gptkit_{name}:Thing"
"""


def documented_blocks(language: str) -> list[str]:
    """The code of the documentation's chapter on plugins, whose pages build one package."""
    pages = ("index", "tutorial", "positions", "datasets", "trackers")
    chapter = "".join((ROOT / "docs" / "plugins" / f"{page}.md").read_text("utf-8") for page in pages)
    return re.findall(rf"^```{language}\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL)


def write_documented_package(package: Path) -> None:
    (package / "gptkit_examples").mkdir(parents=True)
    (package / "pyproject.toml").write_text(documented_blocks("toml")[0])
    (package / "gptkit_examples" / "__init__.py").touch()
    modules = documented_blocks("python")
    assert len(modules) == 4
    for code in modules:
        first, _ = code.split("\n", 1)
        (package / first.removeprefix("# ")).write_text(code)


@pytest.fixture(scope="module")
def trained(environment: Environment) -> Path:
    """The folder of a run that has used all three packages, to its end."""
    done = environment.gptkit("train", "all.toml", "--name", "whole", "--quiet")
    assert done.code == 0, done.err
    return environment.workspace / done.out.strip()


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def hashes_of(run: Path, step: int) -> dict[str, str]:
    """SHA-256 of the tensors of a checkpoint, by file."""
    manifest = json.loads((run / "checkpoints" / f"step-{step:012d}" / "MANIFEST.json").read_text())
    found = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return {name: found[name] for name in ("model.safetensors", "optimizer.safetensors")}


def test_a_run_names_the_packages_that_it_used_and_their_options(trained: Path) -> None:
    record = record_of(trained)
    assert record["status"] == "finished"
    (code,) = (plugin.pop("code") for plugin in record["plugins"] if plugin["family"] == "gptkit.positions")
    assert re.fullmatch("[0-9a-f]{16}", code)
    assert record["plugins"] == [
        {"family": f"gptkit.{family}", "name": name, "distribution": distribution, "version": "1.0"}
        for family, name, distribution in (
            ("tokenizers", "syllables", SYLLABLES),
            ("positions", "t5", T5),
            ("datasets", "recipes", RECIPES),
        )
    ]
    assert record["dataset"]["used"] == {"type": "recipes", "count": 150, "largest": 9, "seed": 0}
    assert record["dataset"]["facts"] == {"recipes": 150}
    tokenizer = json.loads((trained / "tokenizer.json").read_text())
    assert len(tokenizer["syllables"]) == 60
    assert record["tokenizer"]["vocab_size"] == 60 + len(tokenizer["characters"])


def test_the_text_of_the_dataset_is_the_same_everywhere(trained: Path) -> None:
    """A hash from the day that it was written: it depends on neither Python nor the processor."""
    assert record_of(trained)["dataset"]["sha256"] == (
        "e6d6a370b23b0939465b3ca8c446bac03fbdb10edbd73f20a601a54b36957bb7"
    )


def test_stopped_and_resumed_it_ends_with_the_same_bytes_and_it_writes(
    trained: Path, environment: Environment
) -> None:
    stopped = environment.gptkit("train", "all.toml", "--name", "halves", "--stop-at", 10, "--quiet")
    assert stopped.code == 0, stopped.err
    run = environment.workspace / stopped.out.strip()
    resumed = environment.gptkit("resume", run, "--require-exact")
    assert resumed.code == 0, resumed.err
    assert "exact" in resumed.out + resumed.err
    assert hashes_of(run, 20) == hashes_of(trained, 20)
    # Longer than the context, so that keys fall behind by every distance there is
    written = environment.gptkit("generate", run, "--prompt", "Simple leek", "-n", 40, "--seed", 1)
    assert written.code == 0, written.err
    assert written.out.startswith("Simple leek")
    assert len(written.out) >= len("Simple leek") + 40
    assert "but was of" not in written.err


def test_options_are_refused_with_their_place_in_the_file(environment: Environment) -> None:
    wrong = [
        "tokenizer.max_syllables=-1",
        "model.position.num_buckets=300",
        "data.dataset.largest=0",
        "data.dataset.sweets=true",
    ]
    refused = environment.gptkit(
        "train", "all.toml", *(word for setting in wrong for word in ("--set", setting))
    )
    assert refused.code == 2, refused.err
    for message in (
        "tokenizer.max_syllables = -1: should be greater than or equal to 0",
        "model.position: max_distance should be more than half of num_buckets, 150; it is 128",
        "data.dataset.largest = 0: should be greater than or equal to 1",
        "data.dataset.sweets: unknown key",
    ):
        assert message in refused.err


def test_without_its_position_the_message_names_the_package_and_the_rest_works(
    trained: Path, environment: Environment
) -> None:
    with environment.without(T5):
        refused = environment.gptkit("generate", trained)
        listed = environment.gptkit("runs")
        texts = environment.gptkit("datasets", "list")
    assert (refused.code, refused.out) == (3, "")
    assert "no positional encoding is called 't5'" in refused.err
    assert refused.err.endswith(f"\nThe run had it from {T5} 1.0: pip install {T5}==1.0\n")
    assert (listed.code, "whole.c16" in listed.out) == (0, True), listed.err
    assert (texts.code, "recipes" in texts.out) == (0, True), texts.err


def test_without_its_dataset_the_message_names_the_package(trained: Path, environment: Environment) -> None:
    with environment.without(RECIPES):
        refused = environment.gptkit("resume", trained, "--steps", 25)
        written = environment.gptkit("generate", trained, "-n", 5, "--seed", 1)
        unknown = environment.gptkit("train", "all.toml")
    for done in (refused, written):
        assert (done.code, done.out) == (3, "")
        assert "no dataset is called 'recipes'" in done.err
        assert done.err.endswith(f"\nThe run had it from {RECIPES} 1.0: pip install {RECIPES}==1.0\n")
    assert unknown.code == 2
    assert "no dataset 'recipes' is installed, so it is taken for a text" in unknown.err
    assert hashes_of(trained, 20)  # it is as it was
    assert record_of(trained)["status"] == "finished"


def test_without_any_of_them_one_message_names_all_and_one_command_brings_them(
    trained: Path, environment: Environment
) -> None:
    with environment.without(*ALL):
        done = environment.gptkit("generate", trained)
    assert done.code == 3
    assert "no tokenizer is called 'syllables'" in done.err
    assert "no positional encoding is called 't5'" in done.err
    assert done.err.endswith(
        f"\nThe run had them from {SYLLABLES} 1.0, {RECIPES} 1.0 and {T5} 1.0: "
        f"pip install {SYLLABLES}==1.0 {RECIPES}==1.0 {T5}==1.0\n"
    )


def test_another_version_is_a_warning_that_names_both(trained: Path, environment: Environment) -> None:
    with environment.at_version("1.1", T5, RECIPES):
        written = environment.gptkit("generate", trained, "-n", 5, "--seed", 1)
        resumed = environment.gptkit("resume", trained, "--require-exact", "--steps", 25)
    assert (written.code, bool(written.out)) == (0, True), written.err
    assert f"'t5' is of {T5} 1.1 here, but was of {T5} 1.0 in training" in written.err
    assert f"pip install {T5}==1.0" in written.err
    assert "syllables" not in written.err  # is as it was
    assert "recipes" not in written.err  # wrote the text, which is in the weights now
    assert resumed.code == 3
    assert f"t5 of {T5} 1.0 -> {T5} 1.1, recipes of {RECIPES} 1.0 -> {RECIPES} 1.1" in resumed.err


def test_packages_that_raise_or_exit_when_imported_harm_only_who_names_them(
    environment: Environment,
) -> None:
    """They are installed beside the others all the time, and every other test here passes."""
    texts = environment.gptkit("datasets", "list")
    named = environment.gptkit(
        "train", "all.toml", "--set", "tokenizer=raises", "--set", "model.position=exits"
    )
    assert texts.code == 0, texts.err
    for part in ("recipes", "raises", "exits", "not usable"):
        assert part in texts.out
    assert named.code == 3
    assert "'raises' (gptkit_raises:Thing, from gptkit-raises) does not load: RuntimeError" in named.err
    assert "'exits' (gptkit_exits:Thing, from gptkit-exits) does not load: SystemExit: good bye" in named.err


def test_each_package_keeps_its_contract(environment: Environment) -> None:
    examples = ("words", "kerple", "brackets", "table")
    checked = environment.gptkit("plugins", "check", "syllables", "t5", "recipes", *examples)
    assert checked.code == 0, checked.out + checked.err
    assert " bad " not in checked.out
    assert checked.out.count("ok       base class") == 7
    listed = environment.gptkit("plugins")
    for family, name, package in (
        ("tokenizer", "syllables", SYLLABLES),
        ("position", "t5", T5),
        ("dataset", "recipes", RECIPES),
    ):
        (line,) = [line for line in listed.out.splitlines() if line.split()[:2] == [family, name]]
        assert line.split()[2:5] == [package, "1.0", "yes"]


def test_new_packages_pass_their_own_tests_which_are_their_contracts(environment: Environment) -> None:
    """The same checks as those of `plugins check`: tests/testing shows that both agree."""
    packages = [environment.sources / f"gptkit-{name}" for name in FRESH.values()]
    tested = environment.run("-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", *packages)
    assert tested.code == 0, tested.out + tested.err
    assert all(f"tests/test_{name.replace('-', '_')}.py" in tested.out for name in FRESH.values())
    (passed,) = re.findall(r"(\d+) passed", tested.out)
    assert int(passed) >= 4 * 14  # checks of each


def test_new_packages_train_together(environment: Environment) -> None:
    settings = ("tokenizer={}", "model.position={}", "data.dataset={}", "tracking.{}=true")
    chosen = [setting.format(name) for setting, name in zip(settings, FRESH.values(), strict=True)]
    words = [word for setting in chosen for word in ("--set", setting)]
    trained = environment.gptkit("train", "all.toml", "--steps", 2, "--quiet", *words)
    assert trained.code == 0, trained.err
    assert trained.err == ""


def test_mypy_sees_the_types_of_the_installed_gptkit_and_new_packages_are_strictly_typed(
    environment: Environment, pytestconfig: pytest.Config
) -> None:
    wrong = environment.workspace / "wrong.py"
    wrong.write_text(
        "from gptkit.plugins import DataFolders, Splits\n\n"
        "splits = Splits('a', 2)\nfolders = DataFolders(search=3)\nlength: str = splits.train.count('a')\n"
    )
    sources = [
        path
        for name in FRESH.values()
        for path in (environment.sources / f"gptkit-{name}").rglob("*.py")
        if path.name != "wrong.py"
    ]
    # Where pytest keeps a cache, the types of torch are read once: ten seconds of processor time
    cache = getattr(pytestconfig, "cache", None)
    kept = cache.mkdir("mypy") if cache else environment.workspace / ".mypy_cache"
    words = ("--strict", "--cache-dir", kept)
    checked = environment.run("-m", "mypy", *words, wrong, *sources, timeout=300)
    lines = [line for line in checked.out.splitlines() if ": error: " in line]
    assert len(lines) == 3, checked.out + checked.err
    assert 'wrong.py:3: error: Argument 2 to "Splits" has incompatible type "int"' in checked.out
    assert 'wrong.py:4: error: Argument "search" to "DataFolders"' in checked.out
    assert (environment.site / "gptkit" / "py.typed").is_file()


def test_the_examples_of_the_documentation_are_a_package_that_trains(environment: Environment) -> None:
    _, experiment, tokenizer, tracker = documented_blocks("toml")
    with_options = re.sub("tokenizer = .*\n", tokenizer, experiment)
    with_options = with_options.replace("[tracking]\ntable = true\n", tracker)
    assert tokenizer in with_options
    assert tracker in with_options
    small = "[training]\nmax_steps = 3\nbatch_size = 2\nbackend = 'cpu'\nthreads = 1\n"
    for text in (experiment, with_options):
        (environment.workspace / "examples.toml").write_text(f"{text}context_length = 16\n\n{small}")
        trained = environment.gptkit("train", "examples.toml", "--quiet")
        assert trained.code == 0, trained.err
