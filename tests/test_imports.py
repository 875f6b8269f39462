"""What an import loads, and what no file may contain: rules that no linter checks.

The order of the layers, circles, unpickling, printing and docstrings are held by import-linter and ruff
(pyproject.toml).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gptkit"

# Imports the modules of sys.argv[1] in turn; prints each that loads one of the packages of sys.argv[2].
PROBE = """
import importlib, sys
modules, unwanted = sys.argv[1].split(), set(sys.argv[2].split())
for module in modules:
    importlib.import_module(module)
    loaded = unwanted & {name.partition(".")[0] for name in sys.modules}
    loaded |= {f"gptkit.{name}" for name in unwanted if f"gptkit.{name}" in sys.modules}
    unwanted -= loaded
    if loaded:
        print(module, "loads", *sorted(loaded))
"""

# What has to answer quickly imports no torch until it is used
LIGHT = (
    "errors",
    "events",
    "files",
    "seeds",
    "words",
    "plugins",
    "experiment",
    "runs",
    "report",
    "tracking",
    "cli",
)
# The modules of these parts that are torch code
HEAVY = ("gptkit.plugins.position", "gptkit.runs.checkpoint")


def light_modules() -> list[str]:
    names = []
    for part in LIGHT:
        for path in sorted([PACKAGE / f"{part}.py", *(PACKAGE / part).rglob("*.py")]):
            if path.exists():
                names.append(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    return [name.removesuffix(".__init__") for name in names if name not in HEAVY]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        (["gptkit"], "api cli experiment plugins torch pydantic"),
        (["gptkit.cli.app"], "pydantic rich numpy pooch jinja2"),  # so that --help is quick
        (light_modules(), "torch safetensors transformers tensorboard"),
        pytest.param(["gptkit.training.session"], "jinja2", marks=pytest.mark.slow),  # only reports need it
    ],
    ids=["gptkit", "help", "light", "training"],
)
def test_an_import_loads_no_more_than_it_needs(modules: list[str], unwanted: str) -> None:
    command = [sys.executable, "-c", PROBE, " ".join(modules), unwanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_the_probe_sees_what_is_loaded() -> None:
    command = [sys.executable, "-c", PROBE, "json gptkit.errors", "json errors"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "json loads json\ngptkit.errors loads gptkit.errors\n"


def test_the_model_is_one_file_of_at_most_300_lines() -> None:
    assert len((PACKAGE / "model" / "gpt.py").read_text(encoding="utf-8").splitlines()) <= 300


def test_no_file_of_the_package_names_a_folder_of_one_machine() -> None:
    folder = re.compile(r"(?<![\w.])/(work|root|home|Users|tmp|mnt)\b")
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert not [path for path in files if folder.search(path.read_text(encoding="utf-8"))]
