"""What a positional encoding does, as far as its class tells: which seams it has, and its rotation as tables.

In: a PositionalEncoding. Out: plain answers, by which the ways in C see whether they can serve it.
"""

from __future__ import annotations

from torch import Tensor

from gptkit.plugins import PositionalEncoding


def overrides(position: PositionalEncoding, seam: str) -> bool:
    """Whether it does anything at this seam: "embed", "rotate" or "bias"."""
    return getattr(type(position), seam) is not getattr(PositionalEncoding, seam)


def turns_by_tables(position: PositionalEncoding) -> bool:
    """Whether `rotation_of` says all that its `rotate` does."""
    return not overrides(position, "rotate") or rotation_of(position) is not None


def rotation_of(position: PositionalEncoding) -> tuple[Tensor, Tensor] | None:
    """Its tables, (context_length, D) each in fp32, or None where there are none.

    They count only where they were written with `rotate` or after it: a subclass may have changed just that.
    """
    order = type(position).__mro__
    rotate, rotation = (
        next(number for number, cls in enumerate(order) if seam in vars(cls))
        for seam in ("rotate", "rotation")
    )
    tables = position.rotation() if rotation <= rotate and overrides(position, "rotate") else None
    wanted = (position.shape.context_length, position.shape.head_size)
    if tables is None or wanted[1] % 2 or any(table.shape != wanted for table in tables):
        return None  # C would read past the end of smaller ones
    return tables[0].float().contiguous(), tables[1].float().contiguous()
