"""The contract of a positional encoding: how a model knows the position of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gptkit.plugins.options import API_VERSION, PluginOptions


@dataclass(frozen=True)
class ModelShape:
    """The sizes of the model that a positional encoding is part of."""

    context_length: int
    n_embd: int
    n_head: int

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


class PositionalEncoding(nn.Module):
    """Three hooks, `embed`, `rotate` and `bias`, each a no-op unless overridden.

    Positions are arguments, never counted from 0: with a key-value cache the first query is at a later one.
    All positions are in [0, context_length). Register tables as buffers with `persistent=False`; parameters
    are trained and saved with the model.

    Raise ValueError in `__init__` for a shape that is not supported.

    Attributes:
        summary: one line for listings.
        Options: the options of its table in an experiment file.
        api_version: the version of the plugin API that it was written for.
        needs: modules that it imports only when it is used. If one is missing, gptkit refuses the plugin and
            names the extra of its package that installs it.
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
        """Returns the embeddings with positions added: x (B, T, C), positions (T,) -> (B, T, C)."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns queries and keys rotated: q and k (B, H, T, D), positions (T,) -> the same shapes."""
        return q, k

    def rotation(self) -> tuple[Tensor, Tensor] | None:
        """The tables of `rotate`, if it only rotates the pairs (i, i + D/2) of each head; else None.

        (cos, cos) and (-sin, sin) of each position and pair, (context_length, D) each, in fp32: x becomes
        x (cos, cos) + (second half, first half of x) (-sin, sin). Optional: with tables, generation and
        training on a CPU are faster; without, `rotate` is called.
        """
        return None

    def bias(self, query_positions: Tensor, key_positions: Tensor) -> Tensor | None:
        """Added to the attention scores: (Tq,), (Tk,) -> (H, Tq, Tk), or None for nothing.

        The model masks keys after the query, so the values for those do not matter.
        """
        return None

    # For the implementations of gptkit; not to be overridden

    def overrides(self, hook: str) -> bool:
        """Whether the class overrides a hook: "embed", "rotate" or "bias"."""
        return getattr(type(self), hook) is not getattr(PositionalEncoding, hook)

    def rotation_tables(self) -> tuple[Tensor, Tensor] | None:
        """The tables of `rotation`, contiguous and in fp32; None if there are none that can be trusted.

        They are ignored if a subclass overrides `rotate` but not `rotation`, or if their shapes are wrong.
        """
        order = type(self).__mro__
        rotate, rotation = (
            next(number for number, cls in enumerate(order) if hook in vars(cls))
            for hook in ("rotate", "rotation")
        )
        tables = self.rotation() if rotation <= rotate and self.overrides("rotate") else None
        shape = (self.shape.context_length, self.shape.head_size)
        if tables is None or shape[1] % 2 or any(table.shape != shape for table in tables):
            return None  # C would read past the end of smaller tables
        return tables[0].float().contiguous(), tables[1].float().contiguous()

    def only_rotates_by_tables(self) -> bool:
        """Whether `rotate` does nothing but what `rotation_tables` holds."""
        return not self.overrides("rotate") or self.rotation_tables() is not None
