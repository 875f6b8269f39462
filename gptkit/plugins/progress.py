"""How far a long piece of a plugin's work has come, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all (0 where unknown), both in the same unit."""


def no_progress(done: int, total: int) -> None:
    """For work that nobody watches."""
