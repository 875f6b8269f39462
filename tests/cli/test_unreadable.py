"""A run with an unreadable file or folder: a message and the documented exit code."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gptkit
from tests.support import TINY, Command, small_text

STEP = "checkpoints/step-000000000006"
PLACES = (
    *("", "run.json", "experiment.toml", "metrics.jsonl", "tokenizer.json", "samples", "checkpoints", STEP),
    *(
        f"{STEP}/{name}"
        for name in ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
    ),
)
COMMANDS = (
    *("runs", "runs show mine", "runs verify mine", "runs report mine", "runs compare mine other"),
    *("runs clean", "generate mine -n 3", "resume mine --stop-at 6", "resume mine --verify", "rerun mine"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished run, twice."""
    root = tmp_path_factory.mktemp("unreadable")
    (root / "data").mkdir()
    (root / "data" / "mine.txt").write_text(small_text())
    (root / "tiny.toml").write_text(
        TINY.replace("max_steps = 20", "max_steps = 6").replace("sample_interval = 0", "sample_interval = 3")
    )
    run = gptkit.train(root / "tiny.toml", runs_folder=root / "runs", data_dir=root)
    shutil.copytree(run.path, root / "runs" / "other")
    run.path.rename(root / "runs" / "mine")
    return root


@pytest.fixture
def closed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A copy of that workspace to work in, and what makes a place of the run `mine` unreadable."""
    work = tmp_path / "work"
    shutil.copytree(made, work)
    monkeypatch.chdir(work)

    def close(place: str) -> None:
        victim = work / "runs" / "mine" / place

        def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
            def refuse(path: Any = ".", *arguments: Any, **named: Any) -> Any:
                if not isinstance(path, int) and os.path.abspath(os.fsdecode(path)) == str(victim):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
                return real(path, *arguments, **named)

            return refuse

        for module, name in ((io, "open"), (os, "listdir"), (os, "scandir")):
            monkeypatch.setattr(module, name, refusing(getattr(module, name)))

    yield close
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_an_unreadable_file_or_folder_is_never_a_defect(
    place: str, closed: Callable[[str], None], gptkit_command: Command
) -> None:
    closed(place)
    codes = {}
    for command in COMMANDS:
        done = gptkit_command(*command.split())
        assert done.code in (0, 2, 5, 6), f"{command}: {done.err}"
        codes[command] = done.code
        if done.code:
            assert done.err.startswith("gptkit: ")
    assert codes["runs"] == codes["runs clean"] == 0
    if place:  # the folder of the run itself can be passed through, if not listed
        assert codes["runs verify mine"] == 5


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_named(closed: Callable[[str], None], gptkit_command: Command) -> None:
    closed("metrics.jsonl")
    message = gptkit_command("resume", "mine", "--stop-at", 6).err
    assert "cannot use runs/mine/metrics.jsonl: Permission denied." in message
    assert (
        "bad   metrics.jsonl: it cannot be read: Permission denied"
        in gptkit_command("runs", "verify", "mine").out
    )
    assert gptkit_command("runs", "show", "mine").code == 0
