"""The documentation that ships with Python.

Input: nothing but this Python. Output: its language reference as one text. Needs no network and no file.
"""

from __future__ import annotations

import importlib.util

from gptkit.errors import DataError
from gptkit.plugins.dataset import DataFolders, Dataset


class PythonDocsDataset(Dataset):
    """The topics of Python's language reference, which CPython ships for `help()`."""

    summary = "Python's language reference; needs no network"
    source = "pydoc_data.topics of this Python"

    def read(self, folders: DataFolders) -> str:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise DataError(
                "this Python has no pydoc_data.topics, so python-docs is not available here.\n"
                "Use a Python from python.org or conda, or another dataset: gptkit datasets list"
            ) from None
        # Some topics have two names; a text that occurs twice would be memorized
        texts = dict.fromkeys(topics[name].strip("\n") for name in sorted(topics))
        return "\n\n".join(texts) + "\n"

    def is_here(self, folders: DataFolders) -> bool:
        try:
            return importlib.util.find_spec("pydoc_data.topics") is not None
        except ImportError:
            return False

    def size(self, folders: DataFolders) -> int | None:
        return len(self.read(folders).encode()) if self.is_here(folders) else None
