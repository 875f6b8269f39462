"""The packages that `gptkit plugins new` writes: complete, and nothing is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptkit.errors import UsageError
from gptkit.plugins import registry
from gptkit.plugins.scaffold import new_package


@pytest.mark.parametrize("family", list(registry.KINDS))
def test_a_new_package_leaves_no_placeholder_and_is_neatly_written(family: str, tmp_path: Path) -> None:
    package = new_package(family, "demo", tmp_path)
    for path in package.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "$" not in text
            assert not [line for line in text.splitlines() if len(line) > 100]
    with pytest.raises(UsageError):
        new_package(family, "demo", tmp_path)
