"""Checkpoints: saved atomically, verified before use, after any disk failure."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptkit import files
from gptkit.errors import CheckpointError, DiskError, OutOfMemoryError
from gptkit.runs import Run
from gptkit.runs.checkpoint import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Checkpoint,
    clear_temporaries,
    load_checkpoint,
    newest_checkpoint,
    prune,
    replace_state,
    save_checkpoint,
    set_aside,
)
from gptkit.runs.folder import list_steps, step_folder
from tools.support.disks import disk_that_fails

RUN = "mine.c16.e32.h2.b2-20261122-104012"


def tensors(seed: int) -> dict[str, Tensor]:
    """One of each kind that a model or an optimizer may have."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(5, 4, generator=generator)
    return {
        "embedding": weights,
        "transposed": weights.T,
        "bf16": weights.bfloat16(),
        "half": weights.half(),
        "float64": weights.double() / 3,
        "steps": torch.tensor(seed),
        "ids": torch.arange(7, dtype=torch.uint8),
        "mask": weights > 0,
        "scalar": torch.tensor(0.1),
        "empty": torch.empty(0, 3),
        "special": torch.tensor([float("inf"), float("-inf"), float("nan"), -0.0, 1e-45]),
    }


def save(folder: Path, step: int, seed: int | None = None) -> Path:
    """A checkpoint of `step` whose content follows from `seed`, the step unless given."""
    seed = step if seed is None else seed
    return save_checkpoint(
        folder,
        run_id=RUN,
        step=step,
        model=tensors(seed),
        optimizer={"momentum": tensors(seed)["embedding"]},
        state={"step": step, "seed": seed},
    )


def is_as_saved(checkpoint: Checkpoint, seed: int) -> bool:
    """Whether every bit is as `save` had it."""
    wanted = tensors(seed)
    return (
        checkpoint.state == {"step": checkpoint.step, "seed": seed}
        and checkpoint.model.keys() == wanted.keys()
        and all(same_bits(checkpoint.model[name], wanted[name]) for name in wanted)
        and same_bits(checkpoint.optimizer["momentum"], wanted["embedding"])
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.contiguous().view(-1).view(torch.uint8).tolist()
        == other.contiguous().view(-1).view(torch.uint8).tolist()
    )


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path, 40)
    assert path == tmp_path / "step-000000000040"
    assert names(path) == [MANIFEST, MODEL, OPTIMIZER, STATE]
    assert is_as_saved(load_checkpoint(tmp_path, 40, run_id=RUN), seed=40)
    assert not is_as_saved(load_checkpoint(tmp_path, 40, run_id=RUN), seed=41)
    assert names(tmp_path) == ["step-000000000040"]


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    for name in names(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_steps_are_listed_by_name_alone_oldest_first(tmp_path: Path) -> None:
    assert list_steps(tmp_path / "none") == []
    for step in (300, 20, 1000):
        save(tmp_path, step)
    os.utime(tmp_path / "step-000000000020", (2**33, 2**33))  # file times mean nothing
    for name in (
        ".tmp-7-ab",
        ".bad-step-000000000009-ab",
        "step-9",
        "step-00000000000009",
        "step-00000000000x",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000000000008").write_text("a file")
    assert list_steps(tmp_path) == [20, 300, 1000]


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5, seed=1)
    save(tmp_path, 5, seed=2)
    assert is_as_saved(load_checkpoint(tmp_path, 5, run_id=RUN), seed=2)
    assert names(tmp_path) == ["step-000000000005"]


def test_a_state_is_replaced_and_the_tensors_stay(tmp_path: Path) -> None:
    path = save(tmp_path, 40)
    before = (path / MODEL).stat()
    for number in range(3):
        replace_state(tmp_path, step=40, state={"step": 40, "seed": 40, "number": "9" * number})
        loaded = load_checkpoint(tmp_path, 40, run_id=RUN)
        assert loaded.state == {"step": 40, "seed": 40, "number": "9" * number}
    assert (path / MODEL).stat().st_mtime_ns == before.st_mtime_ns
    assert names(path) == [MANIFEST, MODEL, OPTIMIZER, STATE]
    assert (path / MANIFEST).read_text().count("before") == 1
    (path / STATE).write_text('{"step": 40}')
    with pytest.raises(CheckpointError, match=r"state\.json has 12 bytes"):
        load_checkpoint(tmp_path, 40, run_id=RUN)
    (path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="is not a file"):
        replace_state(tmp_path, step=40, state={})


def test_a_step_that_was_not_saved_is_an_error_that_lists_those_that_were(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 6 in .*; there is 5\."):
        load_checkpoint(tmp_path, 6, run_id=RUN)


# Damage


def forge(path: Path, name: str, data: bytes) -> None:
    """Puts `data` in place of a file and has the manifest agree, as someone who means harm would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def change_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_bytes())
    (path / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def truncate(path: Path) -> None:
    os.truncate(path / MODEL, 100)


def empty(path: Path) -> None:
    (path / MODEL).write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / OPTIMIZER).read_bytes())
    data[-1] ^= 1
    (path / OPTIMIZER).write_bytes(data)


def swap_for_one_of_the_same_size(path: Path) -> None:
    text = (path / STATE).read_text()
    (path / STATE).write_text(text.replace("7", "8"))


def make_a_link(path: Path) -> None:
    (path / MODEL).rename(path.parent.parent / "elsewhere")
    (path / MODEL).symlink_to(path.parent.parent / "elsewhere")


def make_all_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere", target_is_directory=True)


def make_a_folder(path: Path) -> None:
    (path / STATE).unlink()
    (path / STATE).mkdir()


def make_a_pipe(path: Path) -> None:
    (path / STATE).unlink()
    os.mkfifo(path / STATE)


def make_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("no folder")


def same_key_twice(path: Path) -> None:
    forge(path, STATE, b'{"step": 7, "step": 8}')


def manifest_key_twice(path: Path) -> None:
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(text.replace("{", '{"step": 1,', 1))


def huge_manifest(path: Path) -> None:
    with (path / MANIFEST).open("ab") as file:
        file.write(b" " * 1_000_001)


def no_numbers_in_state(path: Path) -> None:
    forge(path, STATE, b'{"step": NaN}')


def nested_state(path: Path) -> None:
    forge(path, STATE, b"[" * 100_000)


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (truncate, "model.safetensors has 100 bytes, not"),
    (empty, "model.safetensors has 0 bytes, not"),
    (flip_a_bit, r"optimizer.safetensors is not what was saved \(SHA-256 differs\)"),
    (swap_for_one_of_the_same_size, r"state.json is not what was saved \(SHA-256 differs\)"),
    (lambda path: (path / MODEL).unlink(), "missing model.safetensors"),
    (lambda path: (path / MANIFEST).unlink(), "missing MANIFEST.json"),
    (lambda path: (path / "code.pkl").write_text(""), "unexpected code.pkl"),
    (make_a_link, "model.safetensors is not a file"),
    (make_all_a_link, "it is not a folder"),
    (make_a_folder, "state.json"),
    (make_a_pipe, "state.json"),
    (make_a_file, "it is not a folder"),
    (lambda path: change_manifest(path, run_id="another"), f"has run_id 'another', not '{RUN}'"),
    (lambda path: change_manifest(path, step=8), "has step 8, not 7"),
    (lambda path: change_manifest(path, format=2), "has format 2, not 1"),
    (lambda path: change_manifest(path, files={"../x": {}}), "names other files"),
    (lambda path: change_manifest(path, files=[]), "not a JSON object"),
    (lambda path: change_manifest(path, files=dict.fromkeys((MODEL, OPTIMIZER, STATE))), "not a JSON object"),
    (lambda path: (path / MANIFEST).write_text("{"), "does not verify"),
    (lambda path: (path / MANIFEST).write_bytes(b"\xff"), "does not verify"),
    (huge_manifest, "MANIFEST.json is too large"),
    (manifest_key_twice, "a key occurs twice"),
    (same_key_twice, "a key occurs twice"),
    (no_numbers_in_state, "NaN is not a number"),
    (nested_state, "nested too deeply"),
    (lambda path: forge(path, STATE, b"[]"), "not a JSON object"),
    (lambda path: forge(path, STATE, b'{"step": ' + b"9" * 6000 + b"}"), "Exceeds the limit"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[reason for _, reason in DAMAGE])
def test_a_damaged_checkpoint_does_not_verify_and_the_message_has_the_reason(
    damage: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    damage(save(folder, 7))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(folder, 7, run_id=RUN)
    assert caught.value.exit_code == 5
    assert "step-000000000007" in str(caught.value)


def test_a_checkpoint_of_another_run_does_not_verify(tmp_path: Path) -> None:
    save(tmp_path, 7)
    with pytest.raises(CheckpointError, match=f"has run_id '{RUN}', not 'another'"):
        load_checkpoint(tmp_path, 7, run_id="another")


def test_a_checkpoint_under_the_name_of_another_step_does_not_verify(tmp_path: Path) -> None:
    save(tmp_path, 7).rename(step_folder(tmp_path, 9))
    with pytest.raises(CheckpointError, match="has step 7, not 9"):
        load_checkpoint(tmp_path, 9, run_id=RUN)


def safetensors_file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(kind: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


class Harmful:
    """Unpickling it would leave a file."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


HOSTILE = {
    "a pickle": pickle.dumps(Harmful()),
    "a pickle of protocol 0": pickle.dumps(Harmful(), protocol=0),
    "a header of 4 exabytes": struct.pack("<Q", 2**62) + b"{}",
    "a header longer than the file": struct.pack("<Q", 99_000_000) + b"{}",
    "overlapping tensors": safetensors_file(
        {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 8, 24)}, bytes(24)
    ),
    "a tensor past the end": safetensors_file({"a": entry("F32", [4], 0, 16)}, bytes(8)),
    "a hole": safetensors_file({"a": entry("F32", [1], 4, 8)}, bytes(8)),
    "a shape that overflows": safetensors_file({"a": entry("F32", [2**40, 2**40], 0, 4)}, bytes(4)),
    "a shape of no numbers that overflows": safetensors_file({"a": entry("F32", [0, 2**63], 0, 0)}),
    "a type that torch lacks": safetensors_file({"a": entry("F4", [2, 4], 0, 4)}, bytes(4)),
    "an unknown type": safetensors_file({"a": entry("F33", [1], 0, 4)}, bytes(4)),
    "a header nested without end": safetensors_file(b'{"a":' + b"[" * 100_000),
    "a header that is no text": safetensors_file(b"\xff\xfe"),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_hostile_file_with_a_manifest_that_agrees_is_refused_and_nothing_runs(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints"
    forge(save(folder, 7), name, HOSTILE[kind])
    with pytest.raises(CheckpointError, match="does not verify") as caught:
        load_checkpoint(folder, 7, run_id=RUN)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["checkpoints"]


def test_the_pickle_of_these_tests_is_harmful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["a pickle"])
    assert names(tmp_path) == ["unpickled"]


def test_a_huge_sparse_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    os.truncate(path / MODEL, 2**40)  # a sparse terabyte
    with pytest.raises(CheckpointError, match="has 1099511627776 bytes, not"):
        load_checkpoint(tmp_path, 7, run_id=RUN)


# The newest that verifies


def test_the_newest_that_verifies_is_found_and_each_bad_one_is_reported(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    truncate(step_folder(tmp_path, 40))
    flip_a_bit(step_folder(tmp_path, 30))
    heard: list[tuple[int, str]] = []
    found = newest_checkpoint(
        tmp_path, run_id=RUN, on_bad=lambda step, error: heard.append((step, str(error)))
    )
    assert is_as_saved(found, seed=20)
    assert [step for step, _ in heard] == [40, 30]
    assert "step-000000000040 does not verify: model.safetensors has 100 bytes" in heard[0][1]


def test_where_none_verifies_or_none_is_there_it_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint in "):
        newest_checkpoint(tmp_path, run_id=RUN)
    truncate(save(tmp_path, 1))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        newest_checkpoint(tmp_path, run_id=RUN)


def test_a_checkpoint_that_does_not_fit_into_memory_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not killed by the system while it is read, nor set aside as damaged."""
    save(tmp_path, 7)
    size = sum((step_folder(tmp_path, 7) / name).stat().st_size for name in (MODEL, OPTIMIZER, STATE))
    monkeypatch.setattr("gptkit.runs.checkpoint.usable_memory", lambda: 2 * size)
    assert is_as_saved(load_checkpoint(tmp_path, 7, run_id=RUN), seed=7)
    monkeypatch.setattr("gptkit.runs.checkpoint.usable_memory", lambda: 2 * size - 1)
    with pytest.raises(
        OutOfMemoryError, match=r"step-000000000007 has 0\.0 GB, which takes at least 0\.0 GB"
    ):
        newest_checkpoint(tmp_path, run_id=RUN)
    truncate(step_folder(tmp_path, 7))
    with pytest.raises(CheckpointError, match="does not verify"):
        load_checkpoint(tmp_path, 7, run_id=RUN)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "run.json cannot be read: Expecting property name"),
        (None, "run.json cannot be read: there is no such file"),
        ("{}", "run.json has no id"),
        ('{"id": 3}', "run.json has no id"),
        ('{"id": "other"}', "run.json has the id 'other'"),
    ],
)
def test_a_broken_record_is_named_rather_than_the_checkpoints(
    record: str | None, words: str, tmp_path: Path
) -> None:
    run = Run(tmp_path / "renamed")
    save(run.checkpoints, 10)
    if record is not None:
        (run.path / "run.json").write_text(record)
    for which in ("best", "last", "10"):
        with pytest.raises(CheckpointError) as caught:
            run.checkpoint(which)
        assert words in str(caught.value)
        assert f"the run's checkpoints have the id {RUN}.\nPut the run's own run.json back" in str(
            caught.value
        )
    if record != '{"id": "other"}':
        assert "or rename the folder to that" in str(caught.value)
        assert Run(run.path.rename(tmp_path / RUN)).checkpoint("last").step == 10


def test_one_set_aside_is_kept_but_never_looked_at_again(tmp_path: Path) -> None:
    save(tmp_path, 10)
    truncate(save(tmp_path, 20))
    aside = set_aside(tmp_path, 20)
    assert aside.name.startswith(".bad-step-000000000020")
    assert list_steps(tmp_path) == [10]
    assert clear_temporaries(tmp_path) == 0
    assert names(aside) == [MANIFEST, MODEL, OPTIMIZER, STATE]


# What is kept


@pytest.mark.parametrize(
    ("keep", "keep_last", "keep_every", "stays"),
    [
        ([], 1, 0, [7]),
        ([], 3, 0, [5, 6, 7]),
        ([2], 2, 0, [2, 6, 7]),
        ([2, 2, 99], 1, 0, [2, 7]),
        ([], 1, 3, [3, 6, 7]),
        ([1], 1, 2, [1, 2, 4, 6, 7]),
        ([], 100, 0, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_pruning_keeps_what_is_asked_the_newest_and_the_multiples(
    keep: list[int], keep_last: int, keep_every: int, stays: list[int], tmp_path: Path
) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
    prune(tmp_path, keep=keep, keep_last=keep_last, keep_every=keep_every)
    assert list_steps(tmp_path) == stays
    assert len(names(tmp_path)) == len(stays)


def test_temporaries_of_a_save_or_a_prune_that_was_cut_off_are_cleared(tmp_path: Path) -> None:
    save(tmp_path, 10)
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "checkpoints"
    save(folder, 10)
    (folder / ".tmp-20-abcd").mkdir()
    (folder / ".tmp-20-abcd" / MODEL).write_text("half of it")
    (folder / ".tmp-file").write_text("")
    (folder / ".trash-step-000000000005-ab").mkdir()
    (folder / ".tmp-link").symlink_to(outside, target_is_directory=True)
    assert clear_temporaries(folder) == 4
    assert names(folder) == ["step-000000000010"]
    assert outside.is_dir()
    assert clear_temporaries(folder) == 0


# A disk that fails


def failure_of(
    work: Callable[[Path], object], folder: Path, at: int, *, stays_full: bool
) -> DiskError | None:
    """What `work` raises on a disk whose `at`-th operation fails."""
    try:
        with disk_that_fails(at, stays_full=stays_full):
            work(folder)
    except DiskError as error:
        return error
    return None


def failures(folder: Path, work: Callable[[Path], object], *, stays_full: bool) -> Iterator[Path]:
    """A folder with steps 10 and 20 for each operation of `work` that can fail, after it failed there."""
    for at in range(1, 1000):
        fresh = folder / str(at)
        save(fresh, 10)
        save(fresh, 20)
        failure = failure_of(work, fresh, at, stays_full=stays_full)
        if failure is None:
            assert at > 1
            return
        assert failure.exit_code == 6
        yield fresh


@pytest.mark.parametrize("stays_full", [False, True], ids=["fails once", "stays full"])
def test_a_save_on_a_failing_disk_leaves_what_was_there_and_no_temporaries(
    stays_full: bool, tmp_path: Path
) -> None:
    tried = 0
    for folder in failures(tmp_path, lambda folder: save(folder, 30), stays_full=stays_full):
        tried += 1
        assert is_as_saved(load_checkpoint(folder, 10, run_id=RUN), seed=10)
        assert is_as_saved(load_checkpoint(folder, 20, run_id=RUN), seed=20)
        newest = newest_checkpoint(folder, run_id=RUN)  # step 30 where only the last fsync failed
        assert is_as_saved(newest, seed=newest.step)
        assert not [name for name in names(folder) if name.startswith(".")]
    assert tried >= 15  # a folder, four files of three operations, two renames and fsyncs


def test_saving_a_step_again_on_a_failing_disk_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    tried = 0
    for folder in failures(tmp_path, lambda folder: save(folder, 20, seed=21), stays_full=False):
        tried += 1
        assert list_steps(folder) == [10, 20]
        found = load_checkpoint(folder, 20, run_id=RUN)
        assert is_as_saved(found, seed=20) or is_as_saved(found, seed=21)
        clear_temporaries(folder)
        assert names(folder) == ["step-000000000010", "step-000000000020"]
    assert tried >= 16


@pytest.mark.parametrize("stays_full", [False, True], ids=["fails once", "stays full"])
def test_replacing_a_state_on_a_failing_disk_leaves_the_old_or_the_new(
    stays_full: bool, tmp_path: Path
) -> None:
    """So does a kill, which leaves what a failure leaves, and a temporary file."""
    states, found = ({"step": 20, "seed": 20}, {"step": 20, "new": True}), []
    for folder in failures(
        tmp_path, lambda folder: replace_state(folder, step=20, state=states[1]), stays_full=stays_full
    ):
        found.append(load_checkpoint(folder, 20, run_id=RUN).state)
        assert names(folder) == ["step-000000000010", "step-000000000020"]
    assert len(found) >= 10  # two files of three operations, two renames and two fsyncs
    assert found[0] == states[0]
    assert found[-1] == states[1]


@pytest.mark.parametrize("stays_full", [False, True], ids=["fails once", "stays full"])
def test_pruning_on_a_failing_disk_harms_no_checkpoint(stays_full: bool, tmp_path: Path) -> None:
    def remove_first(folder: Path) -> None:
        prune(folder, keep=[], keep_last=1, keep_every=0)

    tried = 0
    for folder in failures(tmp_path, remove_first, stays_full=stays_full):
        tried += 1
        for step in list_steps(folder):
            assert is_as_saved(load_checkpoint(folder, step, run_id=RUN), seed=step)
        assert 20 in list_steps(folder)
    assert tried >= 1


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"disk full while saving step 30; last good step is 20; \d+\.\d MB needed\."),
        (errno.EDQUOT, "disk full while saving step 30"),
        (errno.EFBIG, "disk full while saving step 30"),
        (errno.EIO, "disk error while saving step 30; last good step is 20: Input/output error"),
        (errno.EROFS, "cannot write while saving step 30; last good step is 20: .* read-only or not yours"),
    ],
    ids=["full", "quota", "file size limit", "I/O error", "read-only"],
)
def test_the_message_names_the_lost_step_and_the_good_one(number: int, message: str, tmp_path: Path) -> None:
    save(tmp_path, 20)
    with disk_that_fails(3, stays_full=False, number=number), pytest.raises(DiskError, match=message):
        save(tmp_path, 30)


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fsync(file: object) -> None:
        calls.append(file)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.disk, "fsync", fsync)
    with pytest.raises(DiskError):
        save(tmp_path, 30)
    assert len(calls) == 1
    assert names(tmp_path) == []
