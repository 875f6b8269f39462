"""From the C sources beside this file to a loaded library, or to none.

In: a C compiler, if there is one. Out: a `Library`, compiled once for this compiler, these sources and this
processor, and kept in the user's cache folder. Nothing here raises: whatever goes wrong, gptkit has torch.

The library must share torch's pool of OpenMP threads, since two pools would fight for the processors: it is
compiled for OpenMP but linked to none, and finds the runtime that torch has loaded. Where that is not to be
found, it works with one thread.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
_PATIENCE = 120  # seconds for a compiler before it is given up

_switched_on = os.environ.get("GPTKIT_NATIVE", "1") != "0"


@dataclass(frozen=True)
class Library:
    """The loaded functions, and whether they can use several threads."""

    functions: ctypes.CDLL
    threaded: bool
    key: str


def usable() -> bool:
    """Whether the operations are switched on and to be had here. The first call may compile them."""
    return _switched_on and library() is not None


def build_key() -> str:
    """What identifies the code that runs: equal keys compute equal bits. "" where torch computes alone."""
    found = library() if _switched_on else None
    return found.key if found else ""


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Switches the operations on or off for a while: a run goes on with what it began with."""
    global _switched_on  # noqa: PLW0603 - one process computes in one way at a time, as with torch's threads
    was, _switched_on = _switched_on, on
    try:
        yield
    finally:
        _switched_on = was


@lru_cache(maxsize=1)
def library() -> Library | None:
    """The library, compiled if need be; None where it cannot be had."""
    compiler = _compiler()
    if compiler is None:
        return None
    with suppress(OSError, subprocess.SubprocessError):
        identity = subprocess.run(
            [compiler, "--version"], capture_output=True, timeout=_PATIENCE, check=True
        ).stdout
        threaded = _runtime_is_loaded("clang" if b"clang" in identity else "gcc")
        flags = [*_FLAGS, *(["-fopenmp"] if threaded else []), _for_this_processor()]
        key = _key(identity, flags)
        return Library(_load(compiler, flags, key), threaded, key)
    return None


def declared(signatures: dict[str, tuple[Any, list[Any]]]) -> Any:
    """The library's functions, those of `signatures` with the types that they return and take.

    Only for those who have asked `usable`.
    """
    found = library()
    assert found is not None, "asked for without asking whether it is there"
    for name, (returned, arguments) in signatures.items():
        function = getattr(found.functions, name)
        function.restype, function.argtypes = returned, arguments
    return found.functions


def _compiler() -> str | None:
    if sys.platform == "win32":
        return None  # its compilers speak another dialect
    wanted = os.environ.get("CC", "").split()
    return shutil.which(wanted[0]) if wanted else shutil.which("cc") or shutil.which("gcc")


def _runtime_is_loaded(compiler: str) -> bool:
    """Whether this process has an OpenMP runtime that code of the compiler can call: torch brings one."""
    import torch  # noqa: F401

    with suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), "__kmpc_fork_call" if compiler == "clang" else "GOMP_parallel")
        return True
    return False


def _for_this_processor() -> str:
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"


def _key(identity: bytes, flags: list[str]) -> str:
    digest = hashlib.sha256(identity + " ".join(flags).encode() + _processor())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> bytes:
    """What the code is compiled for: a home folder may be shared by machines that differ."""
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
        if found.name == _name(key, found):  # to load a damaged one could end the process
            with suppress(OSError):
                return ctypes.CDLL(str(found))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        built = Path(work) / "native.so"
        _compile(compiler, flags, built)
        if folder:
            kept = folder / _name(key, built)
            os.replace(built, kept)  # another process may have done the same; either will do
            return ctypes.CDLL(str(kept))
        return ctypes.CDLL(str(built))


def _name(key: str, built: Path) -> str:
    """Says what is in it, so that a file that a full disk or a power cut has shortened is known."""
    return f"native-{key}-{hashlib.sha256(built.read_bytes()).hexdigest()[:16]}.so"


def _cache() -> Path | None:
    """A folder that only this user writes to, or None: code is loaded from it."""
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("gptkit", appauthor=False)) / "native"
    if not folder.is_absolute():
        return None  # a user without a home: it would be made wherever one happens to work
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = folder.stat()
    except OSError:
        return None
    safe = mine.st_uid == os.getuid() and not mine.st_mode & 0o022 and os.access(folder, os.W_OK)
    return folder if safe else None


def _compile(compiler: str, flags: list[str], built: Path) -> None:
    """All sources at once, then linked, without the OpenMP that the compiler would add."""
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
            if process.wait(timeout=_PATIENCE):
                raise OSError("the compiler refused")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    # On Linux a name of ours that torch has too must still mean ours; OpenMP's are found at loading
    linking = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-Wl,-Bsymbolic"]
    subprocess.run(
        [compiler, "-shared", *linking, *map(str, objects), "-o", str(built), "-lm"],
        capture_output=True,
        timeout=_PATIENCE,
        check=True,
    )
