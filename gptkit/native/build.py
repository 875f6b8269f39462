"""Compiles the C sources in `src/` and loads them.

Input: a C compiler, if there is one. Output: a `Library`, compiled once per compiler, sources and processor,
and cached in the user's cache folder, or where that cannot be written in one among the temporary files; or
None. Nothing here raises: without a library gptkit uses torch. Knows nothing of what the functions compute.

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
    """From a cache, or compiled into one. Raises OSError or SubprocessError."""
    for folder in filter(_is_private, _places()):
        for found in sorted(folder.glob(f"native-{key}-*.so")):
            with suppress(OSError):
                if found.name == _name(key, found):  # loading a damaged library could crash the process
                    return ctypes.CDLL(str(found))
    cache = cache_folder()
    _report_cache(cache)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        built = Path(work) / "native.so"
        _compile(compiler, flags, built)
        if cache:
            kept = cache / _name(key, built)
            os.replace(built, kept)  # another process may do the same; either file is good
            return ctypes.CDLL(str(kept))
        return ctypes.CDLL(str(built))


def _name(key: str, built: Path) -> str:
    """Contains the hash of the content, so that a truncated file is recognized."""
    return f"native-{key}-{hashlib.sha256(built.read_bytes()).hexdigest()[:16]}.so"


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
