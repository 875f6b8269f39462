"""Plugins as strangers publish them: built and installed by pip into a fresh environment, and used there.

The packages are those of tests/plugins. The environment sees what this one has (gptkit, torch, hatchling), so
nothing is downloaded; whatever is done in it is done by processes, as a user would.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch

from gptkit.experiment import ModelSettings
from gptkit.model import GPT
from gptkit.plugins import DataFolders, ModelShape, Splits
from tests.support import Result

ROOT = Path(__file__).parents[2]
SYLLABLES, T5, RECIPES = "gptkit-syllables", "gptkit-t5-bias", "gptkit-recipes"
ALL = (SYLLABLES, T5, RECIPES)

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
    """A Python environment with the three packages, and a folder to work in."""

    python: Path
    sources: Path  # copies of the packages, so that a build leaves nothing in the checkout
    workspace: Path

    def gptkit(self, *arguments: object) -> Result:
        return self.run("-m", "gptkit", *arguments)

    def install(self, *names: str) -> None:
        folders = [self.sources / name for name in names]
        self._pip("install", "--no-index", "--no-build-isolation", "--no-deps", *folders)

    def uninstall(self, *names: str) -> None:
        self._pip("uninstall", "--yes", *names)

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        self.uninstall(*names)
        try:
            yield
        finally:
            self.install(*names)

    @contextmanager
    def at_version(self, version: str, *names: str) -> Iterator[None]:
        """The packages as a later release of them, of the same code."""
        files = [self.sources / name / "pyproject.toml" for name in names]
        before = [file.read_text() for file in files]
        try:
            for file, text in zip(files, before, strict=True):
                file.write_text(text.replace('version = "1.0"', f'version = "{version}"'))
            self.install(*names)
            yield
        finally:
            for file, text in zip(files, before, strict=True):
                file.write_text(text)
            self.install(*names)

    def _pip(self, *arguments: object) -> None:
        done = self.run("-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.code == 0, done.out + done.err

    def run(self, *arguments: object) -> Result:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("GPTKIT_", "PIP_"))}
        done = subprocess.run(
            [self.python, *map(str, arguments)],
            cwd=self.workspace,
            env={**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    place = tmp_path_factory.mktemp("packages")
    home = place / "environment"
    # Not find_spec("pip"): it has setuptools, which torch.compile needs, take this process for pip's own
    has_pip = any(installed.name == "pip" for installed in distributions())
    venv.create(home, symlinks=os.name != "nt", with_pip=not has_pip)
    bases = {"base": str(home), "platbase": str(home)}
    paths = {key: Path(sysconfig.get_path(key, "venv", bases)) for key in ("purelib", "scripts")}
    # What is installed for this Python is there too: its .pth files are heeded, and none of it is copied
    here = {sysconfig.get_path(key) for key in ("purelib", "platlib")}
    added = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in sorted(here))
    (paths["purelib"] / "outer.pth").write_text(added)
    for name in ALL:
        shutil.copytree(ROOT / "tests" / "plugins" / name, place / "sources" / name)
    (place / "workspace" / "data").mkdir(parents=True)
    (place / "workspace" / "all.toml").write_text(EXPERIMENT)
    python = paths["scripts"] / ("python.exe" if os.name == "nt" else "python")
    made = Environment(python, place / "sources", place / "workspace")
    made.install(*ALL)
    return made


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
    """A hash from the day that it was written: neither Python nor the processor has a say in it."""
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
    refused = environment.gptkit("train", "all.toml", *(word for said in wrong for word in ("--set", said)))
    assert refused.code == 2, refused.err
    for said in (
        "tokenizer.max_syllables = -1: should be greater than or equal to 0",
        "model.position: max_distance should be more than half of num_buckets, 150; it is 128",
        "data.dataset.largest = 0: should be greater than or equal to 1",
        "data.dataset.sweets: unknown key",
    ):
        assert said in refused.err


def test_without_its_position_a_run_says_what_to_install_and_the_rest_goes_on(
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


def test_without_its_dataset_a_run_says_what_to_install(trained: Path, environment: Environment) -> None:
    with environment.without(RECIPES):
        refused = environment.gptkit("resume", trained, "--steps", 25)
        written = environment.gptkit("generate", trained, "-n", 5, "--seed", 1)
        unknown = environment.gptkit("train", "all.toml")
    for done in (refused, written):
        assert (done.code, done.out) == (3, "")
        assert "no dataset is called 'recipes'" in done.err
        assert done.err.endswith(f"\nThe run had it from {RECIPES} 1.0: pip install {RECIPES}==1.0\n")
    assert unknown.code == 2
    assert "data.dataset: no dataset 'recipes' is installed, so it is taken for a text" in unknown.err
    assert hashes_of(trained, 20)  # it is as it was
    assert record_of(trained)["status"] == "finished"


def test_without_any_of_them_one_message_names_all_and_one_command_brings_them(
    trained: Path, environment: Environment
) -> None:
    with environment.without(*ALL):
        resumed = environment.gptkit("resume", trained, "--steps", 25)
        written = environment.gptkit("generate", trained)
    for done in (resumed, written):
        assert done.code == 3
        assert "no tokenizer is called 'syllables'" in done.err
        assert "no positional encoding is called 't5'" in done.err
        assert done.err.endswith(
            f"\nThe run had them from {SYLLABLES} 1.0, {T5} 1.0 and {RECIPES} 1.0: "
            f"pip install {SYLLABLES}==1.0 {T5}==1.0 {RECIPES}==1.0\n"
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


BROKEN = """\
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


def test_packages_that_raise_or_exit_when_imported_harm_only_who_names_them(
    trained: Path, environment: Environment
) -> None:
    codes = {"raises": "raise RuntimeError('no licence found')", "exits": "import sys\nsys.exit('good bye')"}
    for name, code in codes.items():
        folder = environment.sources / f"gptkit-{name}"
        folder.mkdir()
        (folder / "pyproject.toml").write_text(BROKEN.format(name=name))
        (folder / f"gptkit_{name}.py").write_text(code + "\n")
    environment.install("gptkit-raises", "gptkit-exits")
    try:
        written = environment.gptkit("generate", trained, "-n", 5, "--seed", 1)
        texts = environment.gptkit("datasets", "list")
        named = environment.gptkit(
            "train", "all.toml", "--set", "tokenizer=raises", "--set", "model.position=exits"
        )
    finally:
        environment.uninstall("gptkit-raises", "gptkit-exits")
    assert (written.code, bool(written.out)) == (0, True), written.err
    assert "licence" not in written.err
    assert texts.code == 0, texts.err
    for said in ("recipes", "raises", "exits", "not usable"):
        assert said in texts.out
    assert named.code == 3
    assert "'raises' (gptkit_raises:Thing, from gptkit-raises) does not load: RuntimeError" in named.err
    assert "'exits' (gptkit_exits:Thing, from gptkit-exits) does not load: SystemExit: good bye" in named.err


# What the packages do, in this process


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """The module of one of the packages, from its sources."""

    def load(name: str) -> Any:
        monkeypatch.syspath_prepend(str(ROOT / "tests" / "plugins" / name / "src"))
        return importlib.import_module(name.replace("-", "_"))

    return load


def test_syllables_are_cut_by_the_rule_and_come_back_as_the_text(package: Callable[[str], Any]) -> None:
    cls = package(SYLLABLES).SyllableTokenizer
    text = "The lantern's reading of strengths, hmm!\n\u00c5se 12  aeiou\U0001f600\r\n" * 3
    known = cls.train(cls.Options(), Splits(text, "q"))
    pieces = [known.decode([number]) for number in known.encode(" the lantern, reading hmm")]
    assert pieces == [" ", "t", "h", "e", " lan", "tern", ",", " rea", "ding", " hmm"]
    for tokenizer in (known, cls.train(cls.Options(max_syllables=3), Splits(text, "q"))):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids.tolist()) == text
        assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
        again = cls.from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert again.to_json() == tokenizer.to_json()
        assert (again.encode(text) == ids).all()
    assert known.unknown_characters("zebra, quiet? zz") == "?bz"
    assert len(known.encode("")) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"type": "char"},
        {"more": 1},
        {"characters": ["a", "b"]},
        {"characters": "ba"},
        {"characters": "aab"},
        {"syllables": "ab"},
        {"syllables": ["ab", 3]},
        {"syllables": ["ab", "ab"]},
        {"syllables": ["a"]},
        {"syllables": ["ac"]},
        {"syllables": ["a b"]},
    ],
)
def test_a_file_that_describes_no_syllables_is_refused(
    change: dict[str, Any], package: Callable[[str], Any]
) -> None:
    cls = package(SYLLABLES).SyllableTokenizer
    good = {"type": "syllables", "characters": " ab", "syllables": ["ab", "ba"]}
    assert cls.from_json(good).to_json() == good
    with pytest.raises(ValueError, match=r"\w"):
        cls.from_json(good | change)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 128), (2, 5), (7, 64), (8, 5)])
def test_distances_have_the_buckets_of_the_paper(
    num_buckets: int, max_distance: int, package: Callable[[str], Any]
) -> None:
    """The formula of Raffel et al.'s code, in plain arithmetic."""
    cls = package(T5).T5Bias
    options = cls.Options(num_buckets=num_buckets, max_distance=max_distance)
    position = cls(options, ModelShape(context_length=400, n_embd=8, n_head=2))
    torch.nn.init.normal_(position.embedding.weight, generator=torch.Generator().manual_seed(1))
    exact = num_buckets // 2
    bias = position.bias(torch.tensor([400]), torch.arange(400))  # (H, 1, 400)
    for key in range(400):
        distance, bucket = 400 - key, 400 - key
        if distance >= exact:
            share = math.log(distance / exact) / math.log(max_distance / exact)
            bucket = min(exact + math.floor(share * (num_buckets - exact) + 1e-9), num_buckets - 1)
        assert torch.equal(bias[:, 0, key], position.embedding.weight[bucket]), distance


def test_the_bias_of_explicit_positions_is_right_in_a_cache_in_bf16_and_when_compiled(
    package: Callable[[str], Any],
) -> None:
    cls = package(T5).T5Bias
    settings = ModelSettings(context_length=24, n_embd=32, n_layer=2, n_head=4)
    position = cls(cls.Options(num_buckets=8, max_distance=16), ModelShape(24, 32, 4))
    model = GPT(settings, 11, position)
    drawn = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=drawn)  # so that attention matters
    model.eval()
    tokens = torch.arange(24).remainder(11).view(1, 24)
    with torch.no_grad():
        whole, cache = model(tokens), model.new_cache(1)
        pieces = [model(tokens[:, start:end], cache) for start, end in ((0, 5), (5, 6), (6, 24))]
        assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-4)
        other = tokens.clone()
        other[0, -1] = 3
        assert torch.equal(model(other)[:, :-1], whole[:, :-1])  # the future changes nothing
    here, keys = torch.arange(3, 7), torch.arange(9)  # with keys ahead
    bias = position.bias(here, keys)
    assert bias.shape == (4, 4, 9)
    assert bias.isfinite().all()
    compiled = torch.compile(position.bias, backend="eager", fullgraph=True)
    assert torch.equal(compiled(here, keys), bias)
    assert position.bfloat16().bias(here, keys).dtype == torch.bfloat16


def test_recipes_can_be_worked_out_and_more_of_them_begin_alike(package: Callable[[str], Any]) -> None:
    cls = package(RECIPES).RecipesDataset
    few = cls(cls.Options(count=30, largest=4)).read(DataFolders())
    assert cls(cls.Options(count=60, largest=4)).read(DataFolders()).startswith(few)
    assert cls(cls.Options(count=30, largest=4, seed=1)).read(DataFolders()) != few
    recipes = few.split("\n\n")
    assert len(recipes) == 30
    for recipe in recipes:
        title, first, *_ = recipe.splitlines()
        people = int(title.split()[-1])
        assert 1 <= people <= 4
        assert int(first.split()[1]) == 150 * people


def test_each_package_keeps_what_gptkit_relies_on(environment: Environment) -> None:
    checked = environment.gptkit("plugins", "check", "syllables", "t5", "recipes")
    assert checked.code == 0, checked.out + checked.err
    assert " bad " not in checked.out
    listed = environment.gptkit("plugins")
    for family, name, package in (
        ("tokenizer", "syllables", SYLLABLES),
        ("position", "t5", T5),
        ("dataset", "recipes", RECIPES),
    ):
        (line,) = [line for line in listed.out.splitlines() if line.split()[:2] == [family, name]]
        assert line.split()[2:5] == [package, "1.0", "yes"]


@pytest.mark.parametrize("family", ["tokenizer", "position", "dataset", "tracker"])
def test_a_new_package_installs_passes_its_check_and_its_own_tests(
    family: str, environment: Environment
) -> None:
    name = f"fresh-{family}"
    made = environment.gptkit("plugins", "new", family, name, "--folder", environment.sources)
    assert made.code == 0, made.err
    package = f"gptkit-{name}"
    environment.install(package)
    try:
        checked = environment.gptkit("plugins", "check", name)
        tested = environment.run(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", environment.sources / package
        )
        setting = {
            "tokenizer": f"tokenizer={name}",
            "position": f"model.position={name}",
            "dataset": f"data.dataset={name}",
            "tracker": f"tracking.{name}=true",
        }[family]
        trained = environment.gptkit("train", "all.toml", "--steps", 2, "--quiet", "--set", setting)
    finally:
        environment.uninstall(package)
    assert checked.code == 0, checked.out + checked.err
    assert tested.code == 0, tested.out + tested.err
    assert "2 passed" in tested.out
    assert trained.code == 0, trained.err


def documented_blocks(language: str) -> list[str]:
    """The code of the documentation's chapter on plugins, whose pages build one package."""
    pages = ("index", "tutorial", "positions", "datasets", "trackers")
    chapter = "".join((ROOT / "docs" / "plugins" / f"{page}.md").read_text("utf-8") for page in pages)
    return re.findall(rf"^```{language}\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_documentation_are_a_package_that_installs_passes_and_trains(
    environment: Environment,
) -> None:
    project, experiment, *_ = documented_blocks("toml")
    package = environment.sources / "gptkit-examples"
    (package / "gptkit_examples").mkdir(parents=True)
    (package / "pyproject.toml").write_text(project)
    (package / "gptkit_examples" / "__init__.py").touch()
    modules = documented_blocks("python")
    for code in modules:
        first, _ = code.split("\n", 1)
        (package / first.removeprefix("# ")).write_text(code)
    assert len(modules) == 4
    small = "[training]\nmax_steps = 3\nbatch_size = 2\nbackend = 'cpu'\nthreads = 1\n"
    (environment.workspace / "examples.toml").write_text(f"{experiment}context_length = 16\n\n{small}")
    environment.install("gptkit-examples")
    try:
        checked = environment.gptkit("plugins", "check", "words", "kerple", "brackets", "table")
        trained = environment.gptkit("train", "examples.toml", "--quiet")
        assert checked.code == 0, checked.out + checked.err
        assert checked.out.count("ok       base class") == 4
        assert trained.code == 0, trained.err
        written = environment.gptkit("generate", trained.out.strip(), "--prompt", "([", "-n", 8)
        assert written.code == 0, written.err
    finally:
        environment.uninstall("gptkit-examples")
