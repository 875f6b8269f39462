"""The built-in positional encodings, registered through entry points like any plugin.

Input: the model's shape. Output: a module with the three hooks of `PositionalEncoding`; each class overrides
the hook that it needs. Knows nothing of the rest of the model.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from gptkit.model import ops
from gptkit.plugins import ModelShape, PluginOptions, PositionalEncoding


class NoPosition(PositionalEncoding):
    """No encoding: order enters through the causal mask only (Kazemnejad et al. 2023)."""

    summary = "nothing; order enters through the causal mask only"


class SinusoidalPosition(PositionalEncoding):
    """Sines and cosines of geometrically spaced wavelengths, added once (Vaswani et al. 2017, section 3.5).

    PE(t, 2i) = sin(t / 10000^(2i/C)) and PE(t, 2i+1) = cos(t / 10000^(2i/C)).
    """

    summary = "fixed sines and cosines, added to the embeddings"

    def __init__(self, options: PluginOptions, shape: ModelShape) -> None:
        super().__init__(options, shape)
        C = shape.n_embd
        t = torch.arange(shape.context_length, dtype=torch.float64).unsqueeze(1)
        angles = t / 10000.0 ** (torch.arange(0, C, 2, dtype=torch.float64) / C)  # (context, ceil(C/2))
        table = torch.empty(shape.context_length, C, dtype=torch.float64)
        table[:, 0::2] = angles.sin()
        table[:, 1::2] = angles.cos()[:, : C // 2]
        self.register_buffer("table", table.float(), persistent=False)
        self.table: Tensor

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.table[positions]


class LearnedPosition(PositionalEncoding):
    """A trained vector per position, added once (Gehring et al. 2017; GPT-2)."""

    summary = "a trained vector per position, added to the embeddings"

    def __init__(self, options: PluginOptions, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.embedding = nn.Embedding(shape.context_length, shape.n_embd)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = x + self.embedding(positions)
        return out


class RotaryPosition(PositionalEncoding):
    """Rotates queries and keys by an angle proportional to the position (Su et al. 2021, RoFormer, eq. 34).

    The pairs that are rotated are (i, i + D/2), not (2i, 2i + 1) as in the paper: the same up to the order of
    a head's channels, and two slices instead of a gather.
    """

    class Options(PluginOptions):
        base: float = Field(default=10000.0, gt=1, description="Wavelengths go from 2 pi to 2 pi times base.")

    summary = "rotates queries and keys (RoPE)"

    def __init__(self, options: Options, shape: ModelShape) -> None:
        super().__init__(options, shape)
        D = shape.head_size
        if D % 2:
            raise ValueError(f"rope rotates pairs, so n_embd / n_head must be even; it is {D}")
        t = torch.arange(shape.context_length, dtype=torch.float64).unsqueeze(1)
        angles = t * options.base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)  # (context, D/2)
        # For both halves of a head: the rotation is (x1, x2) (cos, cos) + (x2, x1) (-sin, sin)
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), 1).float(), persistent=False)
        self.register_buffer("sin", torch.cat((-angles.sin(), angles.sin()), 1).float(), persistent=False)
        self.cos: Tensor
        self.sin: Tensor

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos[positions], self.sin[positions]  # (T, D)
        return ops.rotate(q, cos, sin), ops.rotate(k, cos, sin)

    def rotation(self) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


class AlibiPosition(PositionalEncoding):
    """A penalty on attention scores, linear in the distance, with one slope per head (Press et al. 2022).

    For H a power of two the slopes are 2^(-8/H), 2^(-16/H), …; otherwise those of the power of two below H,
    then every other slope of the next power of two, as in the paper's code.
    """

    summary = "attention falls off linearly with distance (ALiBi)"

    def __init__(self, options: PluginOptions, shape: ModelShape) -> None:
        super().__init__(options, shape)
        self.register_buffer("slopes", torch.tensor(_slopes(shape.n_head)), persistent=False)
        self.slopes: Tensor

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = query_positions.unsqueeze(1) - key_positions.unsqueeze(0)  # (Tq, Tk)
        return -self.slopes.view(-1, 1, 1) * distance


def _slopes(n_head: int) -> list[float]:
    below = 2 ** math.floor(math.log2(n_head))
    slopes = [2.0 ** (-8.0 * (head + 1) / below) for head in range(below)]
    between = [2.0 ** (-8.0 * (head + 1) / (2 * below)) for head in range(0, 2 * below, 2)]
    return slopes + between[: n_head - below]
