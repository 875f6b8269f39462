"""Everything that a plugin author imports.

A package adds a tokenizer, a positional encoding, a dataset or a tracker: it subclasses `Tokenizer`,
`PositionalEncoding`, `Dataset` or `Tracker`, and registers the class in its pyproject.toml under the
entry-point group `gptkit.tokenizers`, `gptkit.positions`, `gptkit.datasets` or `gptkit.trackers`. The
built-in ones are registered in the same way. `gptkit plugins new` writes such a package, and `gptkit.testing`
has the tests for it.

`PositionalEncoding` is a torch module, so it is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptkit.errors import DataError
from gptkit.plugins.dataset import DataFolders, Dataset
from gptkit.plugins.options import API_VERSION, PluginOptions
from gptkit.plugins.tokenizer import Splits, StreamDecoder, Tokenizer
from gptkit.plugins.tracker import TrackedRun, Tracker

if TYPE_CHECKING:
    from gptkit.plugins.position import ModelShape, PositionalEncoding

__all__ = [
    "API_VERSION",
    "DataError",
    "DataFolders",
    "Dataset",
    "ModelShape",
    "PluginOptions",
    "PositionalEncoding",
    "Splits",
    "StreamDecoder",
    "Tokenizer",
    "TrackedRun",
    "Tracker",
]


def __getattr__(name: str) -> object:
    if name in ("PositionalEncoding", "ModelShape"):
        from gptkit.plugins import position

        return getattr(position, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
