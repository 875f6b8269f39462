"""The C computes the same formulas on 64-bit ARM: compiled by a cross-compiler, run under an emulator.

Skipped where Debian's gcc-aarch64-linux-gnu or qemu-user is missing. Only the results count, not the speed.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptkit.native import build
from gptkit.native import ops as native
from gptkit.native.ops import ACTIVATIONS
from tests.native.test_attention import exact_attention, near
from tests.native.test_elementwise import (
    FORMULAS,
    close,
    exact_layer_norm,
    exact_rms_norm,
    exact_rotate,
    off_zero,
    random,
    tables,
)

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
FUNCTIONS = [
    *("norm", "norm_backward", "activation", "gated", "cross_entropy", "rotate"),
    *("attention", "attention_backward", "dropout"),
]
ARRAYS = 12
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which(COMPILER) or not shutil.which(EMULATOR), reason="no cross-compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("aarch64") / "emulated"
    sources = [Path(__file__).with_name("emulated.c"), *sorted(build.SOURCES.glob("*.c"))]
    flags = [*build._FLAGS, "-march=armv8-a", "-static", f"-I{build.SOURCES}"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(program), "-lm"], check=True)
    return program


class Emulated:
    """Calls functions of the library: arrays that it stores in are changed in place."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def __call__(self, name: str, ints: list[int], arrays: list[Tensor | None], number: float = 0.0) -> None:
        ints = [FUNCTIONS.index(name), *ints]
        data = struct.pack("=16q2f", *ints, *[0] * (16 - len(ints)), number, 0.0)
        for one in [*arrays, *[None] * (ARRAYS - len(arrays))]:
            raw = b"" if one is None else one.contiguous().view(torch.uint8).numpy().tobytes()
            data += struct.pack("=q", len(raw)) + raw
        out = subprocess.run(
            [EMULATOR, self._program], input=data, capture_output=True, check=True, timeout=60
        ).stdout
        for one in arrays:
            (size,) = struct.unpack_from("=q", out)
            if one is not None and size:
                read = torch.frombuffer(bytearray(out[8 : 8 + size]), dtype=one.dtype)
                one.copy_(read.view(one.shape))
            out = out[8 + size :]


@pytest.fixture
def arm(program: Path) -> Emulated:
    return Emulated(program)


def gradients(formula: object, inputs: list[Tensor], change: Tensor) -> tuple[Tensor, list[Tensor]]:
    exact = [x.double().requires_grad_() for x in inputs]
    out = formula(*exact)  # type: ignore[operator]
    return out.detach(), list(torch.autograd.grad(out, exact, change.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [1, 7, 16, 37])
def test_norms(arm: Emulated, C: int, dtype: torch.dtype) -> None:
    bf16, rows = int(dtype is torch.bfloat16), 5
    x, dy = off_zero(random(rows, C, dtype=dtype)), random(rows, C, seed=9, dtype=dtype)
    weight, bias = (random(C, seed=seed, dtype=dtype) for seed in (1, 2))
    for centered, formula, parameters in (
        (0, exact_rms_norm, []),
        (1, exact_layer_norm, [weight, bias]),
    ):
        ints = [bf16, 1, 1, rows, C, centered]
        y, stats, dx = torch.zeros_like(x), torch.zeros(rows, 2), torch.zeros_like(x)
        changes = [torch.zeros_like(one) for one in parameters]
        arm("norm", ints, [x, *(parameters or [None, None]), y, stats], 1e-5 if centered else 1e-6)
        arm("norm_backward", ints, [x, dy, parameters[0] if parameters else None, stats, dx, *changes])
        wanted, exact = gradients(formula, [x, *parameters], dy)
        close(y, wanted, dtype)
        for mine, theirs in zip([dx, *changes], exact, strict=True):
            close(mine, theirs, dtype, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(arm: Emulated, dtype: torch.dtype) -> None:
    bf16 = int(dtype is torch.bfloat16)
    for kind, formula in FORMULAS.items():
        h = random(7, 46, dtype=dtype)
        gated = kind == "swiglu"
        dy = random(7, 23 if gated else 46, seed=9, dtype=dtype)
        out, dh = torch.zeros_like(dy), torch.zeros_like(h)
        for gradient, to in ((None, out), (dy, dh)):
            if gated:
                arm("gated", [bf16, 7, 23], [h, gradient, to])
            else:
                arm("activation", [bf16, ACTIVATIONS[kind], h.numel()], [h, gradient, to])
        wanted, (exact,) = gradients(formula, [h], dy)
        atol = 4e-5 if bf16 and kind.startswith("gelu") else 1e-6
        close(out, wanted, dtype, atol=atol)
        close(dh, exact, dtype, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "V"), [(1, 1), (3, 2), (5, 65)])
def test_cross_entropy(arm: Emulated, N: int, V: int, dtype: torch.dtype) -> None:
    logits, targets = random(N, V, dtype=dtype), torch.arange(N) % V
    losses, dlogits = torch.zeros(N), torch.zeros_like(logits)
    arm("cross_entropy", [int(dtype is torch.bfloat16), N, V], [logits, targets, losses, dlogits], 1 / N)
    wanted, (exact,) = gradients(lambda x: F.cross_entropy(x, targets), [logits], torch.ones(()))
    close(losses.mean(), wanted, torch.float32)
    close(dlogits, exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation(arm: Emulated, dtype: torch.dtype) -> None:
    for T, D in [(3, 2), (7, 34)]:
        x, (cosine, sine) = random(2, 3, T, D, dtype=dtype), tables(T, D)
        y = torch.zeros_like(x)
        arm("rotate", [int(dtype is torch.bfloat16), 2, 3, T, D, 0], [x, cosine, sine, y])
        close(y, exact_rotate(x.double(), cosine.double(), sine.double()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 33, 16), (1, 2, 70, 40), (1, 1, 19, 125)]
)
def test_attention(arm: Emulated, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    B, H, T, _ = shape
    bias = random(H, T, T, seed=4)
    q, k, v, dout = (random(*shape, seed=seed, dtype=dtype) for seed in (0, 1, 2, 9))
    out, dq, dk, dv = (torch.zeros_like(q) for _ in range(4))
    lse, dbias = torch.zeros(B, H, T), torch.zeros_like(bias)
    arrays = [q, k, v, bias, out, lse, dout, dq, dk, dv, dbias]
    ints = [int(dtype is torch.bfloat16), *shape, T * T]
    arm("attention", ints, arrays)
    arm("attention_backward", ints, arrays)
    wanted, exact = gradients(lambda *all_: exact_attention(*all_, None), [q, k, v, bias], dout)
    near(out, wanted, dtype)
    for mine, theirs in zip((dq, dk, dv), exact, strict=False):
        near(mine, theirs, dtype)
    if dtype == torch.float32:
        near(dbias, exact[3], dtype)


def test_dropout_drops_the_same_elements_as_here(arm: Emulated) -> None:
    x = torch.ones(4099)
    out = torch.zeros_like(x)
    arm("dropout", [0, 4099, 12345], [x, out], 0.25)
    if build.usable():
        assert torch.equal(out, native.Dropout.run(x, 0.25, 12345))
    assert 0.7 < (out != 0).float().mean() < 0.8
