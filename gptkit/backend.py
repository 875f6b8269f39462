"""Device, precision, threads, compilation and implementations of operations; and their fingerprint.

Input: the settings of an experiment, which may be "auto". Output: a `Backend`, in which each is decided, and
context managers that install it. Knows nothing of runs.
"""

from __future__ import annotations

import ast
import ctypes
import gc
import hashlib
import importlib.util
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gptkit.errors import PluginError, UsageError
from gptkit.experiment.schema import TrainingSettings
from gptkit.machine import usable_processors
from gptkit.model import fast
from gptkit.model.fast import Implementations
from gptkit.model.measured import selected
from gptkit.native import build_key, implementations, usable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by precision
MAX_THREADS = 4096  # as in the schema of training.threads

# FLOP of a run above which torch.compile saves more time on a GPU than its warm-up costs, about a minute.
# Compiled steps take about two thirds of the time, so the run must take three minutes without; a GPU for
# which that matters does at least 2e13 FLOP/s with a small model in bf16 (a tenth of an A100's peak). Faster
# GPUs, and smaller models, which wait for launches more than for products, gain more than assumed here.
SUPPOSED_SPEED = 2e13
_WON_BACK = 3 * 60 * SUPPOSED_SPEED


@dataclass(frozen=True)
class Backend:
    device: str  # "cpu", "cuda" or "mps"
    precision: str  # of the matrix products in training, a key of DTYPES
    threads: int
    compile: bool
    native: str = ""  # the build of gptkit/native that computes; "": none
    operations: Mapping[str, str] | None = None  # name of the implementation of each; None: the default ones
    processes: int = 1  # that train together; `threads` are those of each

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def choose_backend(
    settings: TrainingSettings, training_flops: float = math.inf, *, processes: int = 1, here: int = 1
) -> Backend:
    """Decides every "auto"; `training_flops` are those of all steps of the run.

    `processes` train together, `here` of them on this machine, whose threads they share.

    Raises UsageError for a device that is not available, PluginError for `compile = true` without a compiler.
    """
    device = choose_device(settings.backend)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if _bf16_is_fast(device) else "fp32"
    # Whoever launches processes leaves each its part of the usable threads
    threads = max(1, settings.threads // here) if settings.threads != "auto" else usable_threads()
    wanted = settings.compile
    if wanted is True and (missing := no_compiler(device)):
        raise PluginError(
            f"training.compile = true, but {missing}. Install it, or set compile = false.",
            field="training.compile",
        )
    if wanted == "auto":
        wanted = device == "cuda" and training_flops >= _WON_BACK and not no_compiler(device)
    native = build_key() if device == "cpu" else ""
    return Backend(device, precision, threads, wanted, native, processes=processes)


def choose_device(wanted: str) -> str:
    """The device for "auto", "cpu", "cuda" or "mps". Raises UsageError for one that is not available."""
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if wanted == "auto":
        return here[0]
    if wanted not in here:
        raise UsageError(
            f"backend {wanted!r} is not available here; there is {' and '.join(here)}.",
            field="training.backend",
        )
    return wanted


def fast_operations(device: str, *, native: bool) -> Implementations:
    """The implementations of operations for a device, fastest first; those in C if `native` and usable."""
    if device != "cpu":
        return {}
    return fast.combined(implementations() if native else {}, fast.CPU)


@contextmanager
def default_operations(device: str) -> Iterator[None]:
    """Installs the fastest implementations of this machine, unless a run has installed its own.

    Takes no more threads than this process may run at the same time; a run has the number that it recorded.
    """
    if fast.installed() is not None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_threads())
    try:
        with fast.using(fast_operations(device, native=usable())):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def computing(backend: Backend) -> Iterator[None]:
    """Configures torch and the operations for `backend`; restores threads and random state at the end."""
    threads = torch.get_num_threads()
    keep_freed_memory()
    torch.set_num_threads(backend.threads)
    # Imported modules stay in memory: without this, the garbage collector traverses them every few steps,
    # which takes a twentieth of the time of a small model's step
    gc.collect()
    gc.freeze()
    try:
        devices = [torch.cuda.current_device()] if backend.device == "cuda" else []
        operations = fast_operations(backend.device, native=bool(backend.native))
        operations = selected(operations, backend.operations or {})
        with torch.random.fork_rng(devices=devices), fast.using(operations):
            yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next tensor instead of returning it to the system at once.

    A training step frees and allocates the same large blocks again and again; without this each is mapped
    anew, with page faults. No effect with another C library.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold, one_gigabyte = -1, -3, 1 << 30  # constants of mallopt(3)
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, one_gigabyte)
    libc.mallopt(trim_threshold, one_gigabyte)


# Variables of the environment that change what torch's libraries compute, or with how many threads
VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_DEFAULT_FPMATH_MODE", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OMP_DYNAMIC", "OMP_THREAD_LIMIT"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)
RECORDED_SINCE_0_2 = ("libc", "instructions", "matmul_precision", "deterministic", "code")
"""What the fingerprints of 0.1.0 lack."""

# What a step is computed by, beside the sources in C, which `native` identifies
_CODE = (
    *("backend.py", "seeds.py", "data/sampler.py", "model/*.py", "native/*.py"),
    *(
        f"training/{name}.py"
        for name in ("trainer", "distributed", "optim", "parameters", "schedule", "loss", "budget")
    ),
)


def fingerprint(backend: Backend) -> dict[str, Any]:
    """What can change the last bits of a result; recorded with a run, compared when it is resumed.

    A variable of `VARIABLES` is in it where it is set.
    """
    return {
        **{key: value for key, value in asdict(backend).items() if value is not None},
        "python": platform.python_version(),
        "gptkit": version("gptkit"),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(backend.device),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "instructions": " ".join(sorted(name for name, has in _capabilities().items() if has is True)),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "code": _own_code(),
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


@cache
def _own_code() -> str:
    """Of gptkit as this process has loaded it. Hashing takes as long as many steps of a small model."""
    return hash_of_code(Path(__file__).parent, _CODE)


def hash_of_code(folder: Path, patterns: Sequence[str]) -> str:
    """Identifies Python sources by their syntax trees: another comment changes nothing. "" without any."""
    digest, files = hashlib.sha256(), sorted({file for one in patterns for file in folder.glob(one)})
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
        digest.update(ast.dump(ast.parse(file.read_bytes())).encode())
    return digest.hexdigest()[:16] if files else ""


def _capabilities() -> dict[str, object]:
    """The instruction sets of the processor, by torch's names."""
    return dict(torch.cpu.get_capabilities())


def _bf16_is_fast(device: str) -> bool:
    """Whether the hardware has bf16 matrix products; emulated ones are slow."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        capabilities = _capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def no_compiler(device: str) -> str:
    """What torch.compile needs and this machine lacks; "" if nothing."""
    if device == "cpu":
        names = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")
        return "" if any(shutil.which(name) for name in names) else "there is no C++ compiler"
    if device == "cuda":
        return "" if importlib.util.find_spec("triton") else "the package triton is not installed"
    return f"torch.compile is not ready for {device}"


def usable_threads() -> int:
    """torch counts cores rather than hardware threads, but sees no limits of containers."""
    return min(usable_processors(), torch.get_num_threads())


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
