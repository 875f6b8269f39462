"""Memory and processors: of the machine, and the limits of control groups of both versions."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

from gptkit import machine
from gptkit.backend import Backend, choose_backend, computing, default_operations
from gptkit.data import readers
from gptkit.errors import OutOfMemoryError
from gptkit.experiment.schema import TrainingSettings

LINES = {
    "version 2": "0::/a/b\n",
    "version 2, in a container": "0::/\n",
    "version 1": "7:memory:/a/b\n3:cpu,cpuacct:/a/b\n0::/x\n",
    "version 1, in a container": "7:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n",
}


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree of control groups, which the process is in."""
    monkeypatch.setattr(machine, "MOUNTED", tmp_path)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "physical_memory", lambda: 64 * 10**9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 16, raising=False)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "memory", "processors"),
    [
        ("version 2", {"a/b/memory.max": "max\n", "a/memory.max": "2000000000\n"}, 2, 16),
        ("version 2", {"a/b/cpu.max": "150000 100000\n", "a/cpu.max": "max 100000\n"}, 64, 2),
        ("version 2", {"a/b/cpu.max": "400000 100000\n", "cpu.max": "50000 100000\n"}, 64, 1),
        ("version 2", {"unified/a/b/memory.max": "3000000000"}, 3, 16),
        ("version 2, in a container", {"memory.max": "1000000000", "cpu.max": "300000 100000"}, 1, 3),
        ("version 1", {"memory/a/b/memory.limit_in_bytes": "4000000000\n"}, 4, 16),
        ("version 1", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 64, 16),
        (
            "version 1",
            {
                "cpu,cpuacct/a/b/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/a/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            64,
            3,
        ),
        (
            "version 1, in a container",
            {
                "memory/memory.limit_in_bytes": "5000000000",
                "cpu/cpu.cfs_quota_us": "100000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            5,
            1,
        ),
        (
            "version 2",
            {"a/b/memory.max": "no number", "a/b/cpu.max": "0", "elsewhere/memory.max": "1"},
            64,
            16,
        ),
    ],
)
def test_the_tightest_limit_of_the_groups_counts(
    groups: Path, own: str, files: dict[str, str], memory: int, processors: int
) -> None:
    put(groups / "own", LINES[own])
    for name, text in files.items():
        put(groups / name, text)
    assert machine.usable_memory() == memory * 10**9
    assert machine.usable_processors() == processors
    whose = "this machine has" if memory == 64 else "this container or job may use"
    assert machine.memory_here() == f"{whose} {memory}.0 GB"


def test_without_control_groups_the_machine_counts(groups: Path) -> None:
    assert (machine.usable_memory(), machine.usable_processors()) == (64 * 10**9, 16)
    put(groups / "own", "rubbish\n0::/../..\n")
    put(groups / "memory.max", "1000000000")
    assert machine.usable_memory() == 10**9


def test_processors_that_the_process_is_bound_to_count(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert machine.usable_processors() == 2


def test_a_new_run_takes_no_more_threads_than_its_share_of_processors(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    settings = TrainingSettings(backend="cpu")
    assert choose_backend(settings).threads == 8
    put(groups / "own", "0::/a\n")
    put(groups / "a/cpu.max", "200000 100000")
    assert choose_backend(settings).threads == 2
    assert choose_backend(settings.model_copy(update={"threads": 5})).threads == 5


def test_generating_takes_no_more_threads_than_its_share_and_a_run_keeps_its_own(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(groups / "own", "0::/\n")
    put(groups / "cpu.max", "100000 100000")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with default_operations("cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with computing(Backend("cpu", "fp32", 2, compile=False)), default_operations("cpu"):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_text_that_does_not_fit_is_refused_before_it_is_read(groups: Path) -> None:
    put(groups / "own", "0::/\n")
    put(groups / "memory.max", "1000")
    put(groups / "novel.txt", "x" * 400)
    put(groups / "more.txt", "x" * 200)
    assert readers.read_files([groups / "novel.txt"])
    with pytest.raises(OutOfMemoryError) as caught:
        readers.read_files([groups / "novel.txt", groups / "more.txt"])
    assert "the 2 texts together: 0.0 GB, which takes at least 0.0 GB of memory to read" in str(caught.value)
    assert "this container or job may use 0.0 GB" in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_this_process_is_known() -> None:
    before, size = machine.used_memory(), 50_000_000
    # Memory of its own: that of an earlier test, freed but kept, would do for a bytes object
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * size)
        assert before + 40_000_000 < machine.used_memory() < before + 200_000_000
