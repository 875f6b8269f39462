"""What the tests share: the types of fixtures in tests/conftest.py, a small text, a very small experiment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from gptkit.runs import Run
from tools.support import TINY, small_text

__all__ = ["TINY", "Command", "Install", "Result", "small_text", "write_record"]


@dataclass(frozen=True)
class Result:
    """The outcome of a command line."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]
Install = Callable[..., None]


def write_record(run: Run, record: object) -> None:
    """Replaces run.json by any JSON, as another program might."""
    (run.path / "run.json").write_text(json.dumps(record))
