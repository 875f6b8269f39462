"""Finds the compiled library of the C sources in `src/`, or compiles it, and loads it.

Output: a `Library`, or None; without one gptkit uses torch. A wheel has a library in `lib/` for each of the
`LEVELS`: the best one that the processor can execute is loaded, and no compiler is needed. Without one, as in
a checkout, the sources are compiled for this processor, once per compiler, sources and processor, and cached
in the user's cache folder, or where that cannot be written in one among the temporary files. `library` never
raises. Knows nothing of what the functions compute.

The library must share torch's pool of OpenMP threads, as two pools would compete for the processors: it is
compiled with OpenMP but linked to no runtime, and uses the one that torch has loaded. If there is none, it is
compiled for one thread.

hatch_build.py imports this file alone, where torch and gptkit's other requirements are missing.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptkit.errors import GptkitWarning

SOURCES = Path(__file__).parent / "src"
PACKAGED = Path(__file__).parent / "lib"  # in a wheel: <level>-<hash of the sources>-<hash of the file>.so

# No fast-math: NaN must stay NaN, and a sum must not be reordered differently from one build to the next.
_FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
)


@dataclass(frozen=True)
class Level:
    """Instructions for which a wheel has a library. GPTKIT_MARCH takes the name."""

    name: str
    machine: str
    flags: tuple[str, ...]  # of the compiler
    needs: tuple[str, ...]  # what the processor must have, by the names of torch.cpu.get_capabilities


_V3 = ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt")
_V4 = (*_V3, "avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl")
LEVELS = (  # the best first
    Level("x86-64-v4+bf16", "x86_64", ("-march=x86-64-v4", "-mavx512bf16"), (*_V4, "avx512_bf16")),
    Level("x86-64-v4", "x86_64", ("-march=x86-64-v4",), _V4),
    Level("x86-64-v3", "x86_64", ("-march=x86-64-v3",), _V3),
    Level("armv8.2-a+bf16", "aarch64", ("-march=armv8.2-a+bf16",), ("neon", "bf16")),
    Level("armv8-a", "aarch64", ("-march=armv8-a",), ("neon",)),
)

_COMPILER_TIMEOUT = 120  # seconds
_LIBRARY_BYTES = 2**20  # more than the library and what its compilation leaves for a moment


@dataclass(frozen=True)
class Library:
    """The loaded functions, and whether they can use several threads."""

    functions: ctypes.CDLL
    threaded: bool
    key: str


def unavailable() -> list[str]:
    """The reasons why there is no library: none, if there is one. The first call may compile it."""
    if os.environ.get("GPTKIT_NATIVE", "1") == "0":
        return ["GPTKIT_NATIVE=0"]
    if library() is not None:
        return []
    if (wanted := _named_level()) and not _can_execute(wanted):
        return [f"this processor cannot execute GPTKIT_MARCH={wanted.name}"]
    none = "the package has no library for this processor, and " if PACKAGED.is_dir() else ""
    return [f"{none}there is no C compiler, or it failed"]


def usable() -> bool:
    """Whether there is a library. The first call may compile it."""
    return not unavailable()


def build_key() -> str:
    """Identifies the compiled code: equal keys compute equal bits. "" if there is none."""
    found = library() if usable() else None
    return found.key if found else ""


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The library of the package, or one that is compiled if it is not cached; None without either.

    None too, after a warning, if GPTKIT_MARCH names a level that this processor lacks: its instructions would
    end the process.
    """
    wanted = _named_level()
    if wanted and not _can_execute(wanted):
        warnings.warn(
            f"GPTKIT_MARCH={wanted.name}: this processor cannot execute that, "
            "so gptkit computes with torch alone.\n"
            "To use gptkit's operations in C, unset GPTKIT_MARCH.",
            GptkitWarning,
            stacklevel=2,
        )
        return None
    return _packaged() or _compiled()


def _packaged() -> Library | None:
    """The best library in the package for this processor, or that for the level in GPTKIT_MARCH."""
    if not PACKAGED.is_dir() or not _runtime_is_loaded("clang" if sys.platform == "darwin" else "gcc"):
        return None
    wanted = os.environ.get("GPTKIT_MARCH")
    levels = [one for one in LEVELS if _can_execute(one) and wanted in (None, "", one.name)]
    with suppress(OSError):
        sources = _hash(*_sources())
        for level in levels:
            for file in PACKAGED.glob(f"{level.name}-{sources}-*.so"):
                if file.name == _name(f"{level.name}-{sources}", file):
                    key = f"wheel-{level.name}-{_hash(file)}"
                    return Library(ctypes.CDLL(str(file)), threaded=True, key=key)
    return None


def _compiled() -> Library | None:
    """The library for this processor, compiled if it is not cached; None if that fails."""
    compiler = _compiler()
    if compiler is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        identity = _identity(compiler)
        threaded = _runtime_is_loaded("clang" if b"clang" in identity else "gcc")
        flags = [*_FLAGS, *(_openmp(identity) if threaded else []), *_for_this_processor()]
        key = _key(identity, flags)
        return Library(_load(compiler, flags, key), threaded, key)
    return None


def compile_levels(folder: Path) -> list[Path]:
    """Compiles the libraries of a wheel into a folder: one for each level of this machine's architecture.

    None without a compiler. Raises OSError or SubprocessError if the compiler fails.
    """
    compiler, made = _compiler(), []
    if compiler is None:
        return []
    flags, sources = [*_FLAGS, *_openmp(_identity(compiler))], _hash(*_sources())
    for level in LEVELS:
        if level.machine == _machine():
            built = folder / "native.so"
            _compile(compiler, [*flags, *level.flags], built)
            made.append(built.rename(folder / _name(f"{level.name}-{sources}", built)))
    return made


def declared(signatures: dict[str, tuple[Any, list[Any]]]) -> Any:
    """The library's functions, with the result and argument types of `signatures`.

    Call it only if the library is `usable`.
    """
    found = library()
    assert found is not None, "there is no library"
    for name, (result, arguments) in signatures.items():
        function = getattr(found.functions, name)
        function.restype, function.argtypes = result, arguments
    return found.functions


def _compiler() -> str | None:
    if sys.platform == "win32":
        return None  # the sources need GCC's vector extensions
    wanted = os.environ.get("CC", "").split()
    return shutil.which(wanted[0]) if wanted else shutil.which("cc") or shutil.which("gcc")


def _identity(compiler: str) -> bytes:
    command = [compiler, "--version"]
    return subprocess.run(command, capture_output=True, timeout=_COMPILER_TIMEOUT, check=True).stdout


def _openmp(identity: bytes) -> list[str]:
    """The flags for OpenMP. Apple's clang compiles it too, although it has neither header nor runtime."""
    return ["-Xclang", "-fopenmp"] if b"Apple" in identity else ["-fopenmp"]


def _runtime_is_loaded(compiler: str) -> bool:
    """Whether this process has loaded an OpenMP runtime for this compiler's code: torch brings one."""
    import torch  # noqa: F401

    with suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), "__kmpc_fork_call" if compiler == "clang" else "GOMP_parallel")
        return True
    return False


def _for_this_processor() -> list[str]:
    """The compiler's flags for this processor, or for the one that GPTKIT_MARCH names."""
    if level := _named_level():
        return list(level.flags)
    if wanted := os.environ.get("GPTKIT_MARCH"):
        return [f"-march={wanted}"]
    return ["-march=native" if _machine() in ("x86_64", "i686") else "-mcpu=native"]


def _machine() -> str:
    """The architecture, by one name on all systems."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _named_level() -> Level | None:
    """The level that GPTKIT_MARCH names, if it is one of `LEVELS`."""
    return next((level for level in LEVELS if level.name == os.environ.get("GPTKIT_MARCH")), None)


def _can_execute(level: Level) -> bool:
    import torch

    has = torch.cpu.get_capabilities()
    return level.machine == _machine() and all(has.get(name) for name in level.needs)


def _key(identity: bytes, flags: list[str]) -> str:
    return _hash(identity + " ".join(flags).encode() + _processor(), *_sources())


def _sources() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.is_file())


def _hash(*parts: bytes | Path) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part)
    return digest.hexdigest()[:16]


def _processor() -> bytes:
    """Identifies the processor: machines that differ may share a home folder."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        return b"".join(
            sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model"))})
        )
    return (platform.machine() + platform.processor()).encode()


def _load(compiler: str, flags: list[str], key: str) -> ctypes.CDLL:
    """From a cache, or compiled into one. Raises OSError or SubprocessError."""
    for folder in filter(_is_private, _places()):
        for found in sorted(folder.glob(f"native-{key}-*.so")):
            with suppress(OSError):
                if found.name == _name(
                    f"native-{key}", found
                ):  # loading a damaged library could crash the process
                    return ctypes.CDLL(str(found))
    cache = cache_folder()
    _report_cache(cache)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        built = Path(work) / "native.so"
        _compile(compiler, flags, built)
        if cache:
            kept = cache / _name(f"native-{key}", built)
            os.replace(built, kept)  # another process may do the same; either file is good
            return ctypes.CDLL(str(kept))
        return ctypes.CDLL(str(built))


def _name(stem: str, built: Path) -> str:
    """Contains the hash of the content, so that a truncated file is recognized."""
    return f"{stem}-{_hash(built)}.so"


def cache_folder() -> Path | None:
    """Where to keep what is compiled; None if there is no such folder.

    The user's cache folder, or where that cannot be written (a home that is missing, full or read-only) one
    among the temporary files.
    """
    return next(filter(_can_keep, _places()), None)


def _places() -> Iterator[Path]:
    """Where the cache may be, the best first."""
    if (cache := _user_cache()).is_absolute():  # without a home it would be created in the current folder
        yield cache
    with suppress(OSError):  # there is no folder for temporary files
        temporary = Path(tempfile.gettempdir())
        found = temporary.stat()
        # Others could put a folder of theirs in the place of ours where all may write, unless it is sticky
        if not found.st_mode & 0o022 or found.st_mode & stat.S_ISVTX:
            yield temporary / f"gptkit-{os.getuid()}"


def _user_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("gptkit", appauthor=False)) / "native"


def _is_private(folder: Path) -> bool:
    """Whether this folder is the user's own, and no other can write to it: code is loaded from it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _can_keep(folder: Path) -> bool:
    """Whether the folder, created if need be, is private and takes a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_private(folder):
            return False
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LIBRARY_BYTES))
    except OSError:
        return False
    return True


def _report_cache(cache: Path | None) -> None:
    """Warns, before something is compiled, if it is not to be kept in the user's cache folder."""
    wanted = _user_cache()
    if cache == wanted:
        return
    kept = f"kept in {cache}" if cache else "compiled again by every command"
    warnings.warn(
        f"gptkit's operations in C are {kept}, as {wanted} cannot be used.\n"
        "To keep them elsewhere, set XDG_CACHE_HOME to a folder that you can write to, and others cannot.",
        GptkitWarning,
        stacklevel=2,
    )


def _compile(compiler: str, flags: list[str], built: Path) -> None:
    """Compiles all sources in parallel and links them, without the compiler's own OpenMP runtime."""
    sources = sorted(SOURCES.glob("*.c"))
    objects = [built.with_name(source.stem + ".o") for source in sources]
    running = [
        subprocess.Popen(
            [compiler, *flags, "-c", str(source), "-o", str(target)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for source, target in zip(sources, objects, strict=True)
    ]
    try:
        for process in running:
            if process.wait(timeout=_COMPILER_TIMEOUT):
                raise OSError("the compiler failed")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    # On Linux a symbol that torch has too must resolve to ours; those of OpenMP are resolved at loading
    linking = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-Bsymbolic"]
    subprocess.run(
        [compiler, "-shared", *linking, *map(str, objects), "-o", str(built), "-lm"],
        capture_output=True,
        timeout=_COMPILER_TIMEOUT,
        check=True,
    )
