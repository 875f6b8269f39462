"""The contract of a positional encoding: how a model knows where a token stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gptkit.plugins.options import API_VERSION, PluginOptions


@dataclass(frozen=True)
class ModelShape:
    """What a positional encoding may know of the model that it serves."""

    context_length: int
    n_embd: int
    n_head: int

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


class PositionalEncoding(nn.Module):
    """Three seams, each of which does nothing unless overridden.

    Positions are given, never counted: with a key-value cache the first query does not stand at 0.
    All positions are in [0, context_length). A module that needs tables registers them as buffers with
    `persistent=False`; parameters are trained and saved with the model.

    Raise ValueError in `__init__` for a shape that it cannot serve.

    Attributes:
        summary: one line for listings.
        Options: the options of its table in an experiment file.
        api_version: the version of this surface that it was written for.
        needs: modules that it imports only when it is used. Where one is missing, gptkit refuses the plugin
            and says which extra of its package brings it.
    """

    summary: ClassVar[str] = ""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    api_version: ClassVar[int] = API_VERSION
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, shape: ModelShape) -> None:
        super().__init__()
        self.options = options
        self.shape = shape

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds to the embeddings: x (B, T, C), positions (T,) -> (B, T, C)."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Turns queries and keys: q and k (B, H, T, D), positions (T,) -> the same shapes."""
        return q, k

    def rotation(self) -> tuple[Tensor, Tensor] | None:
        """What `rotate` does, as tables, where it is a plain turning of the pairs (i, i + D/2) of a head.

        (cos, cos) and (-sin, sin) of each position and pair, (context_length, D) each, in fp32: x becomes
        x (cos, cos) + (second half, first half of x) (-sin, sin). Generation is faster for it. None, which is
        always right, has `rotate` called.
        """
        return None

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor | None:
        """Added to the attention scores: (Tq,), (Tk,) -> (H, Tq, Tk), or None for nothing.

        Keys behind the query count; those ahead of it are masked by the model, whatever stands there.
        """
        return None
