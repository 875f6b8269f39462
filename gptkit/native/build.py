"""Compiles the C sources in `src/` and loads them.

Input: a C compiler, if there is one. Output: a `Library`, compiled once per compiler, sources and processor,
and cached in the user's cache folder; or None. Nothing here raises: without a library gptkit uses torch.
Knows nothing of what the functions compute.

The library must share torch's pool of OpenMP threads, as two pools would compete for the processors: it is
compiled with OpenMP but linked to no runtime, and uses the one that torch has loaded. If there is none, it
works with one thread.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "src"

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
_COMPILER_TIMEOUT = 120  # seconds


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
    return [] if library() is not None else ["there is no C compiler, or it failed"]


def usable() -> bool:
    """Whether there is a library. The first call may compile it."""
    return not unavailable()


def build_key() -> str:
    """Identifies the compiled code: equal keys compute equal bits. "" if there is none."""
    found = library() if usable() else None
    return found.key if found else ""


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The library, compiled if it is not cached; None if that fails."""
    compiler = _compiler()
    if compiler is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        identity = subprocess.run(
            [compiler, "--version"], capture_output=True, timeout=_COMPILER_TIMEOUT, check=True
        ).stdout
        threaded = _runtime_is_loaded("clang" if b"clang" in identity else "gcc")
        flags = [*_FLAGS, *(["-fopenmp"] if threaded else []), _for_this_processor()]
        key = _key(identity, flags)
        return Library(_load(compiler, flags, key), threaded, key)
    return None


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


def _runtime_is_loaded(compiler: str) -> bool:
    """Whether this process has loaded an OpenMP runtime for this compiler's code: torch brings one."""
    import torch  # noqa: F401

    with suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), "__kmpc_fork_call" if compiler == "clang" else "GOMP_parallel")
        return True
    return False


def _for_this_processor() -> str:
    """The compiler's flag for this processor, or for the one that GPTKIT_MARCH names."""
    if wanted := os.environ.get("GPTKIT_MARCH"):
        return f"-march={wanted}"
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"


def _key(identity: bytes, flags: list[str]) -> str:
    digest = hashlib.sha256(identity + " ".join(flags).encode() + _processor())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
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
    """From the cache, or compiled into it. Raises OSError or SubprocessError."""
    folder = _cache()
    for found in sorted(folder.glob(f"native-{key}-*.so")) if folder else ():
        if found.name == _name(key, found):  # loading a damaged library could crash the process
            with suppress(OSError):
                return ctypes.CDLL(str(found))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        built = Path(work) / "native.so"
        _compile(compiler, flags, built)
        if folder:
            kept = folder / _name(key, built)
            os.replace(built, kept)  # another process may do the same; either file is good
            return ctypes.CDLL(str(kept))
        return ctypes.CDLL(str(built))


def _name(key: str, built: Path) -> str:
    """Contains the hash of the content, so that a truncated file is recognized."""
    return f"native-{key}-{hashlib.sha256(built.read_bytes()).hexdigest()[:16]}.so"


def _cache() -> Path | None:
    """A folder that only this user can write to, as code is loaded from it; or None."""
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("gptkit", appauthor=False)) / "native"
    if not folder.is_absolute():
        return None  # a user without a home folder: it would be created in the current folder
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = folder.stat()
    except OSError:
        return None
    safe = mine.st_uid == os.getuid() and not mine.st_mode & 0o022 and os.access(folder, os.W_OK)
    return folder if safe else None


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
