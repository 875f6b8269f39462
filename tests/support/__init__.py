"""Shared by the tests: the types of fixtures in tests/conftest.py, a small text, a very small experiment."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptkit.runs import Run
from tools.support import TINY, small_text

__all__ = ["TINY", "Command", "Install", "Result", "resolved", "run_of", "small_text", "write_record"]


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


def run_of(result: Result) -> Run:
    """The run whose folder `--quiet` printed."""
    assert result.code == 0, result.err
    assert result.out.endswith("\n")
    path = Path(result.out.removesuffix("\n"))
    assert path.is_dir()
    return Run(path)


def resolved(run: Run) -> dict[str, Any]:
    """The experiment file of a run."""
    return tomllib.loads(run.experiment_file.read_text())
