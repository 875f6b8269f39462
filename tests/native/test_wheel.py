"""Wheels: what the build hook puts into them, and an environment without a compiler that one is installed in.

A copy of the project with a source of one line shows the decisions of the hook; the last tests install a
wheel with all of the C, built once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

from gptkit.native import build
from tests.support import TINY, Result, small_text
from tests.support.forkserver import ForkServer

ROOT = Path(__file__).parents[2]
LEVELS = [level for level in build.LEVELS if level.machine == build._machine()]
PURE = "py3-none-any"

pytestmark = pytest.mark.skipif(
    build._compiler() is None or not LEVELS, reason="no C compiler here, or no level of this architecture"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a wheel is built from, with one small source, and no variable that the hook heeds."""
    for name in ("CC", "GPTKIT_NATIVE", "MACOSX_DEPLOYMENT_TARGET"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "project"
    native = root / "gptkit" / "native"
    (native / "src").mkdir(parents=True)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    shutil.copy(build.__file__, native)
    (native / "src" / "answer.c").write_text("int answer(void) { return 42; }\n")
    return root


def built_from(root: Path, version: str = "standard") -> Path:
    (wheel,) = WheelBuilder(str(root)).build(directory=str(root.parent), versions=[version])
    return Path(wheel)


def libraries_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as opened:
        return [name for name in opened.namelist() if name.startswith("gptkit/native/lib/")]


def test_a_wheel_has_a_library_for_each_level_and_names_the_platform(project: Path) -> None:
    wheel = built_from(project)
    names = [Path(name).name.rsplit("-", 2)[0] for name in libraries_in(wheel)]
    assert sorted(names) == sorted(level.name for level in LEVELS)
    (tag,) = parse_wheel_filename(wheel.name)[3]
    assert (tag.interpreter, tag.abi) == ("py3", "none")
    assert tag in sys_tags()
    assert tag.platform != "any"
    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = (name for name in opened.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false" in opened.read(metadata).decode()
    assert not (project / "gptkit" / "native" / "lib").exists()  # nothing is left in the checkout


@pytest.mark.parametrize("why", ["no compiler", "it fails", "GPTKIT_NATIVE=0"])
def test_without_a_compiler_the_wheel_is_pure(
    why: str, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if why == "GPTKIT_NATIVE=0":
        monkeypatch.setenv("GPTKIT_NATIVE", "0")
    elif why == "no compiler":
        monkeypatch.setenv("CC", str(project / "nowhere"))
    else:
        (project / "gptkit" / "native" / "src" / "answer.c").write_text("not C")
    wheel = built_from(project)
    assert wheel.name.endswith(f"-{PURE}.whl")
    assert libraries_in(wheel) == []
    warned = "The wheel has no library of the C operations" in capfd.readouterr().err
    assert warned == (why != "GPTKIT_NATIVE=0")  # then it is as it was wanted


def test_an_editable_installation_compiles_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = project.parent / "asked"
    compiler = project / "cc"
    compiler.write_text(f"#!/bin/sh\ntouch {asked}\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert built_from(project, "editable").name.endswith(f"-{PURE}.whl")
    assert not asked.exists()


def test_the_sources_of_the_hook_are_in_the_source_distribution() -> None:
    from hatchling.builders.sdist import SdistBuilder

    files = {file.relative_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {"hatch_build.py", "gptkit/native/build.py", "gptkit/native/src/vectors.h"} <= files


# All of the C, in an environment without a compiler


class Installed:
    """An environment in which only the wheel of gptkit is installed, and a folder to work in."""

    def __init__(self, python: list[str], workspace: Path, variables: dict[str, str]) -> None:
        self._python, self.workspace, self._variables = python, workspace, variables

    def gptkit(self, *arguments: object, **variables: str) -> Result:
        command = [*self._python, "-m", "gptkit", *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=self.workspace,
            env={**self._variables, **variables},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def train(self, **variables: str) -> Path:
        out = self.gptkit("train", "tiny.toml", "--steps", 3, "--quiet", **variables).out
        return self.workspace / out.strip()


def native_of(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["environment"]["native"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    place = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("GPTKIT_NATIVE", raising=False)
        (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(place), versions=["standard"])
    venv.create(place / "environment", symlinks=True, with_pip=False)
    bases = {"base": str(place / "environment"), "platbase": str(place / "environment")}
    site, scripts = (Path(sysconfig.get_path(key, "venv", bases)) for key in ("purelib", "scripts"))
    # As pip does, which would take another second
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    # What is installed here is there too, but this checkout
    libraries = [site for site in sys.path if Path(site, "torch").is_dir()]
    (site / "outer.pth").write_text("\n".join(libraries) + "\n")
    workspace, nothing = place / "workspace", place / "nothing"
    nothing.mkdir()
    (workspace / "data").mkdir(parents=True)
    (workspace / "data" / "mine.txt").write_text(small_text())
    (workspace / "tiny.toml").write_text(TINY)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("GPTKIT_", "PYTHON", "CC"))
    }
    variables = {**kept, "PATH": str(nothing), "XDG_CACHE_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    python = scripts / "python"
    if sys.platform != "linux":
        yield Installed([str(python)], workspace, variables)
        return
    server = ForkServer(["gptkit.cli.app", "torch"], python, cwd=workspace, env=variables)
    yield Installed(server.python, workspace, variables)
    server.close()


@pytest.mark.slow
def test_an_installed_wheel_trains_and_generates_in_c_without_a_compiler(installed: Installed) -> None:
    best = next(level for level in LEVELS if build._can_execute(level))
    run = installed.train()
    assert native_of(run).startswith(f"wheel-{best.name}-")
    assert len(installed.gptkit("generate", run, "--tokens", 20).out) >= 20
    cache = Path(installed._variables["XDG_CACHE_HOME"])
    assert not list(cache.rglob("*.so"))


@pytest.mark.slow
def test_each_width_of_a_wheel_that_this_processor_has_trains(installed: Installed) -> None:
    """`resume` with another one than the run's says so, and with the same one is exact."""
    able = [level.name for level in LEVELS if build._can_execute(level)]
    runs = {name: installed.train(GPTKIT_MARCH=name, GPTKIT_MEASURE="0") for name in able}
    natives = {name: native_of(run) for name, run in runs.items()}
    assert all(native.startswith(f"wheel-{name}-") for name, native in natives.items())
    first, last = able[0], able[-1]
    resumed = installed.gptkit("resume", runs[first], "--steps", 4, GPTKIT_MARCH=first)
    assert "resume: exact" in resumed.out
    if first != last:
        resumed = installed.gptkit("resume", runs[first], "--steps", 5, GPTKIT_MARCH=last)
        differs = f"resume: valid, not bit-identical (native {natives[first]} -> {natives[last]})"
        assert differs in resumed.out


@pytest.mark.slow
def test_gptkit_native_0_computes_in_torch_from_a_wheel_too(installed: Installed) -> None:
    assert native_of(installed.train(GPTKIT_NATIVE="0")) == ""
