"""Runs `gptkit train` as a process, for the rows about whole runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.speed.contest import ROOT, timed
from tools.speed.report import SkippedError


def find_text() -> Path:
    """Tiny Shakespeare, in a data folder. Raises SkippedError; nothing is downloaded."""
    folders = [Path(os.environ["GPTKIT_DATA_DIR"])] if "GPTKIT_DATA_DIR" in os.environ else []
    for folder in (*folders, ROOT / "data"):
        path = folder / "tiny_shakespeare.txt"
        if path.is_file():
            return path.resolve()
    raise SkippedError(
        "Tiny Shakespeare is missing: run `gptkit datasets fetch shakespeare`, or set GPTKIT_DATA_DIR to the "
        "folder that contains it"
    )


def train_command(
    experiment: str,
    folder: Path,
    *,
    seed: int,
    settings: Mapping[str, object] | None = None,
    stop_at: int | None = None,
) -> list[str]:
    """The command line that trains an experiment on Tiny Shakespeare, on the CPU, into `folder`."""
    words = [*("train", str(ROOT / "experiments" / f"{experiment}.toml"), "--seed", str(seed))]
    words += [
        "--data-dir",
        str(find_text().parent),
        "--runs-dir",
        str(folder / "runs"),
        "--backend",
        "cpu",
    ]
    for key, value in (settings or {}).items():
        words += ["--set", f"{key}={value}"]
    if stop_at is not None:
        words += ["--stop-at", str(stop_at)]
    return [sys.executable, "-m", "gptkit", *words]


def train(experiment: str, folder: Path, **options: Any) -> tuple[Path, float]:
    """Trains in an empty folder: the run's folder, and the wall seconds of the whole command."""
    seconds = timed(train_command(experiment, folder, **options), folder)
    (run,) = (path for path in (folder / "runs").iterdir() if (path / "run.json").is_file())
    return run, seconds


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found
