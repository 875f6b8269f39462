"""Packages that gptkit needs and that are not as they should be: said with exit code 3, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
