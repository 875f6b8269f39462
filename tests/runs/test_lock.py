"""A run is held by one process, and its lock ends with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptkit.errors import RunInUseError
from gptkit.runs import (
    Run,
    is_locked,
    lock_run,
)
from tests.support.runs import make_empty as make


@contextmanager
def held_by_another_process(run: Run) -> Iterator[subprocess.Popen[str]]:
    """The run locked by a process of its own."""
    code = (
        "import sys, time; from pathlib import Path; from gptkit.runs import Run, lock_run\n"
        "with lock_run(Run(Path(sys.argv[1]))): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_a_second_process_is_told_who_holds_the_run_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {"process": {"pid": 4711, "host": "here"}})
    assert not is_locked(run)
    with held_by_another_process(run) as process:
        assert is_locked(run)
        before = (run.path / "run.json").read_bytes()
        with (
            pytest.raises(RunInUseError, match="run mine-1 is in use by process 4711 on here") as caught,
            lock_run(run),
        ):
            pass
        assert caught.value.exit_code == 7
        assert (run.path / "run.json").read_bytes() == before
        process.kill()
        process.wait(10)
        assert not is_locked(run)
        with lock_run(run):
            assert is_locked(run)
    assert not is_locked(run)


@pytest.mark.parametrize("record", [None, {}, {"process": None}, {"process": {}}, {"process": [1]}])
def test_a_run_in_use_is_said_to_be_whatever_its_record_says(
    record: dict[str, Any] | None, tmp_path: Path
) -> None:
    run = make(tmp_path, "mine-1", record)
    with (
        lock_run(run),
        pytest.raises(RunInUseError, match="run mine-1 is in use; wait for it"),
        lock_run(run),
    ):
        pass


def test_the_lock_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    with pytest.raises(ZeroDivisionError), lock_run(run):
        raise ZeroDivisionError
    assert not is_locked(run)
