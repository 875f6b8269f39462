"""Building the C library, or doing without it: compilers, caches and processes that fail.

Mostly with a source of one line, since the real ones take seconds.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptkit.errors import GptkitWarning
from gptkit.native import build

REAL = build._compiler()
REAL_SOURCES = build.SOURCES
FIND = build.library.__wrapped__  # without its memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled on Windows")
needs_compiler = pytest.mark.skipif(REAL is None, reason="no C compiler here")

Script = Callable[[str], str]


@pytest.fixture(autouse=True)
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One small source, and an empty cache."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "answer.c").write_text(
        '__attribute__((visibility("default"))) int answer(void) { return 42; }\n'
    )
    monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
    monkeypatch.setenv("GPTKIT_NATIVE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "cache" / "gptkit"))
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "tmp").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes a shell script the compiler."""

    def make(script: str) -> str:
        path = tmp_path / "fake-cc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        return str(path)

    return make


def found() -> build.Library | None:
    """As if asked for the first time."""
    return FIND()


def cached(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "cache" / "gptkit" / "native"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def temporary_cache(tmp_path: Path) -> Path:
    return tmp_path / "tmp" / f"gptkit-{os.getuid()}"


class FullDisk:
    """Takes the place of `tempfile.TemporaryFile`, where the disk of a folder is full."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._make = folder, tempfile.TemporaryFile

    def __call__(self, dir: Path) -> Any:
        if self._folder in dir.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._make(dir=dir)


# A process that loads what is cached, as a library that is already loaded is not read again; it imports
# build.py alone, as the package imports torch
LOAD = """
import importlib.util, sys
from pathlib import Path
import platformdirs
spec = importlib.util.spec_from_file_location("build", sys.argv[3])
build = sys.modules["build"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.SOURCES = Path(sys.argv[1]) / "src"
platformdirs.user_cache_dir = lambda *_, **__: sys.argv[1] + "/cache/gptkit"
print(build._load(sys.argv[2], ["-fPIC", "-O1"], "key").answer())
"""


def loading(tmp_path: Path, compiler: str | None = REAL) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, str(tmp_path), str(compiler), build.__file__]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer_of(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out.strip()


@needs_compiler
def test_what_is_compiled_is_loaded_and_kept(tmp_path: Path, compiler: Script) -> None:
    library = found()
    assert library is not None
    assert library.functions.answer() == 42
    (kept,) = cached(tmp_path)
    assert library.key in kept.name
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    # From now on only the compiler's name is asked for
    compiler(f'test "$1" = --version && exec {REAL} --version; exit 1')
    again = found()
    assert again is not None
    assert again.key == library.key


def test_without_a_compiler_there_is_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "nowhere"))
    assert found() is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found() is None
    monkeypatch.setattr(build, "library", found)
    assert not build.usable()
    assert build.build_key() == ""


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "kill -9 $$",
        'test "$1" = --version || exit 1',
        'test "$1" = --version || kill -9 $$',
        'test "$1" = --version || test "$1" != -shared',  # writes nothing
        'test "$1" = --version || for x; do test "$last" = -o && echo garbage > "$x"; last=$x; done; exit 0',
    ],
)
def test_a_compiler_that_fails_leaves_nothing_behind(script: str, compiler: Script, tmp_path: Path) -> None:
    compiler(script)
    assert found() is None
    assert not [path for path in cached(tmp_path) if path.is_dir()]


@pytest.mark.parametrize("script", ["exec sleep 60", 'test "$1" = --version || exec sleep 60'])
def test_a_compiler_that_hangs_is_given_up_and_ended(
    script: str, compiler: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "_COMPILER_TIMEOUT", 0.3)
    path = tmp_path / "pids"
    compiler(f"echo $$ >> {path}; {script}")
    began = time.monotonic()
    assert found() is None
    assert time.monotonic() - began < 20
    for pid in path.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


# The cache


@needs_compiler
@pytest.mark.parametrize("why", ["a file in its place", "a full disk", "no home"])
def test_what_the_users_cache_cannot_take_is_kept_among_the_temporary_files(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Script
) -> None:
    monkeypatch.chdir(tmp_path)
    if why == "a file in its place":
        (tmp_path / "cache").write_text("a file")
    elif why == "a full disk":
        monkeypatch.setattr(tempfile, "TemporaryFile", FullDisk(tmp_path / "cache"))
    else:
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~/.cache/gptkit")
    with pytest.warns(GptkitWarning, match=r"are kept in .*gptkit-\d+, as .*native cannot be used"):
        library = found()
    assert library is not None
    assert library.functions.answer() == 42
    folder = temporary_cache(tmp_path)
    assert [path.suffix for path in folder.iterdir()] == [".so"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "~").exists()
    # The next command loads it without a word
    compiler(f'test "$1" = --version && exec {REAL} --version; exit 1')
    again = found()
    assert again is not None
    assert again.key == library.key


@needs_compiler
@pytest.mark.parametrize("why", ["others write to it", "of another user", "a link", "in a folder of all"])
def test_a_temporary_folder_that_others_could_fill_is_not_used(why: str, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    folder = temporary_cache(tmp_path)
    folder.mkdir()
    if why == "others write to it":
        folder.chmod(0o777)
    elif why == "of another user":
        if os.getuid():
            pytest.skip("only root can give a folder to another user")
        os.chown(folder, 12345, 12345)
    elif why == "a link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.parent.chmod(0o777)
    with pytest.warns(GptkitWarning, match="are compiled again by every command"):
        library = found()
    assert library is not None
    assert library.functions.answer() == 42
    assert list(folder.iterdir()) == []


@needs_compiler
def test_in_a_temporary_folder_of_all_that_is_sticky_one_of_this_user_is_used(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    (tmp_path / "tmp").chmod(0o1777)
    assert build.cache_folder() == temporary_cache(tmp_path)


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_nothing_is_loaded_from_where_others_write(tmp_path: Path, mode: int) -> None:
    assert answer_of(loading(tmp_path)) == "42"
    (kept,) = cached(tmp_path)
    kept.parent.chmod(mode)
    with pytest.warns(GptkitWarning, match="cannot be used"):
        library = found()
    assert library is not None
    assert cached(tmp_path) == [kept]


@needs_compiler
@pytest.mark.parametrize("left", [0, 100, 0.3, 0.9, "garbage"])
def test_a_damaged_library_is_built_again_and_never_loaded(tmp_path: Path, left: float | str) -> None:
    assert answer_of(loading(tmp_path)) == "42"
    (kept,) = cached(tmp_path)
    whole = kept.read_bytes()
    kept.unlink()
    many = left if isinstance(left, int) else int(left * len(whole)) if isinstance(left, float) else 0
    kept.write_bytes(whole[:many] if left != "garbage" else b"\x7fELF" + bytes(5000))
    assert answer_of(loading(tmp_path)) == "42"
    assert cached(tmp_path) == [kept]
    assert kept.read_bytes() == whole


@needs_compiler
def test_processes_that_build_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    processes = [loading(tmp_path) for _ in range(4)]
    assert [answer_of(process) for process in processes] == ["42"] * 4
    names = [path.suffix for path in cached(tmp_path)]
    assert set(names) == {".so"}


# What is kept apart


def test_the_key_depends_on_sources_flags_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(identity: bytes = b"cc 1", flags: tuple[str, ...] = ("-O3",)) -> str:
        return build._key(identity, list(flags))

    first = key()
    assert first == key()
    keys = {first, key(b"cc 2"), key(flags=("-O2",)), key(flags=("-O3", "-fopenmp"))}
    (tmp_path / "src" / "answer.c").write_text("int answer(void) { return 43; }\n")
    keys.add(key())
    (tmp_path / "src" / "more.h").write_text("/* included */\n")
    keys.add(key())
    monkeypatch.setattr(build, "_processor", lambda: b"another")
    keys.add(key())
    assert len(keys) == 7


@needs_compiler
def test_another_source_is_another_library(tmp_path: Path) -> None:
    assert found() is not None
    source = tmp_path / "src" / "answer.c"
    source.write_text(source.read_text().replace("42", "43"))
    library = found()
    assert library is not None
    assert library.functions.answer() == 43
    assert len(cached(tmp_path)) == 2


def test_the_environment_switches_it_off_and_then_nothing_is_compiled(
    compiler: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the compiler called for its version: it might hang."""
    compiler(f"touch {tmp_path}/asked; exit 1")
    monkeypatch.setattr(build, "library", found)
    for value, asked in (("0", False), ("1", True)):
        monkeypatch.setenv("GPTKIT_NATIVE", value)
        assert not build.usable()
        assert build.build_key() == ""
        assert (tmp_path / "asked").exists() == asked


# Libraries of a wheel

LEVELS = [level for level in build.LEVELS if level.machine == build._machine()]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of a wheel: a library for each level of this architecture, the best first."""
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(build, "PACKAGED", tmp_path / "lib")
    monkeypatch.setattr(build, "_runtime_is_loaded", lambda compiler: True)  # on macOS it need not be visible
    monkeypatch.delenv("GPTKIT_MARCH", raising=False)
    return build.compile_levels(tmp_path / "lib")


def processor_with(monkeypatch: pytest.MonkeyPatch, *capabilities: str) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(capabilities, True))


@needs_compiler
def test_the_best_library_of_a_wheel_is_loaded_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: list[Path]
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "nowhere"))
    keys = []
    for level, file in zip(LEVELS, package, strict=True):
        processor_with(monkeypatch, *level.needs)
        library = found()
        assert library is not None
        assert library.functions.answer() == 42
        assert library.threaded
        assert library.key == f"wheel-{level.name}-{file.stem[-16:]}"
        keys.append(library.key)
    assert len(set(keys)) == len(LEVELS) > 1
    assert cached(tmp_path) == []
    for level in LEVELS:  # with all but one of what it needs
        processor_with(monkeypatch, *level.needs[:-1])
        library = found()
        assert library is None or f"wheel-{level.name}-" not in library.key


@needs_compiler
def test_a_processor_that_a_wheel_has_no_library_for_needs_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: list[Path]
) -> None:
    processor_with(monkeypatch)
    library = found()
    assert library is not None
    assert library.key in cached(tmp_path)[0].name
    monkeypatch.setenv("CC", str(tmp_path / "nowhere"))
    monkeypatch.setattr(build, "library", found)
    assert build.unavailable() == [
        "the package has no library for this processor, and there is no C compiler, or it failed"
    ]


@needs_compiler
def test_gptkit_march_chooses_among_the_libraries_of_a_wheel_or_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: list[Path]
) -> None:
    processor_with(monkeypatch, *(name for level in LEVELS for name in level.needs))
    for level in LEVELS:
        monkeypatch.setenv("GPTKIT_MARCH", level.name)
        library = found()
        assert library is not None
        assert library.key.startswith(f"wheel-{level.name}-")
        assert build._for_this_processor() == list(level.flags)  # where it has to be compiled
    assert cached(tmp_path) == []
    monkeypatch.setenv("GPTKIT_MARCH", "native")
    library = found()
    assert library is not None
    assert library.key in cached(tmp_path)[0].name


@needs_compiler
@pytest.mark.parametrize("level", build.LEVELS, ids=lambda level: level.name)
def test_gptkit_march_of_another_processor_is_a_warning_and_no_crash(
    level: build.Level, monkeypatch: pytest.MonkeyPatch, package: list[Path]
) -> None:
    """In a wheel and in a checkout."""
    monkeypatch.setenv("GPTKIT_MARCH", level.name)
    monkeypatch.setattr(build, "library", found)
    processor_with(monkeypatch, *level.needs[:-1])
    for folder in (build.PACKAGED, build.PACKAGED / "missing"):
        monkeypatch.setattr(build, "PACKAGED", folder)
        with pytest.warns(GptkitWarning, match="cannot execute that, so gptkit computes with torch alone"):
            assert build.unavailable() == [f"this processor cannot execute GPTKIT_MARCH={level.name}"]


@needs_compiler
@pytest.mark.parametrize("what", ["the file", "no library", "the sources", "OpenMP"])
def test_a_library_of_a_wheel_that_does_not_fit_is_not_loaded(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: list[Path]
) -> None:
    """It is compiled instead."""
    processor_with(monkeypatch, *LEVELS[0].needs)
    if what == "the file":
        for file in package:
            file.write_bytes(file.read_bytes()[:-100])
    elif what == "no library":  # for this system, as if built for another one
        for file in package:
            file.write_bytes(b"garbage")
            file.rename(file.with_name(build._name(file.stem[:-17], file)))
    elif what == "the sources":
        (tmp_path / "src" / "answer.c").write_text(
            '__attribute__((visibility("default"))) int answer(void) { return 43; }\n'
        )
    else:
        monkeypatch.setattr(build, "_runtime_is_loaded", lambda compiler: False)
    library = found()
    assert library is not None
    assert library.functions.answer() == (43 if what == "the sources" else 42)
    assert library.threaded == (what != "OpenMP")
    assert library.key in cached(tmp_path)[0].name


def test_apples_clang_compiles_openmp_although_it_has_none() -> None:
    assert build._openmp(b"Apple clang version 17.0.0 (clang-1700.0.13.3)") == ["-Xclang", "-fopenmp"]
    assert build._openmp(b"clang version 18.1.8") == ["-fopenmp"]


# What this processor does not need


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are of x86's levels")
@pytest.mark.parametrize(
    ("compiler", "level"),
    [("gcc", "x86-64-v3"), ("gcc", "x86-64-v4"), ("clang", "x86-64-v4")],
)
def test_the_real_sources_compile_for_other_processors(
    compiler: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """v3 has no vectors of 16 floats and v4 no products of bf16: each has its own branches in the sources."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    monkeypatch.setattr(build, "SOURCES", REAL_SOURCES)
    build._compile(compiler, ["-std=gnu11", "-fPIC", "-O0", f"-march={level}"], tmp_path / "built.so")
    assert (tmp_path / "built.so").exists()
