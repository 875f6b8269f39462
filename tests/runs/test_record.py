"""run.json: written as a whole, read whatever it contains."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from gptkit import files
from gptkit.errors import CheckpointError, DiskError
from gptkit.events import RunStatus
from gptkit.runs import (
    Process,
    RunRecord,
)
from gptkit.runs.record import PluginOrigin
from tests.support.runs import make_empty as make


def test_a_record_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, "mine-1", {"status": "starting"})
    for operation in ("create", "write", "fsync", "rename"):
        with monkeypatch.context() as patched:

            def full(*arguments: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            patched.setattr(files.disk, operation, full)
            with pytest.raises(DiskError, match="disk full while recording the run mine-1"):
                run.write_record(RunRecord(status=RunStatus.RUNNING))
        assert run.record() == {"status": "starting"}
        assert sorted(entry.name for entry in run.path.iterdir()) == ["experiment.toml", "run.json"]


def test_a_command_line_with_bytes_that_are_no_text_is_recorded(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    run.write_record(RunRecord(command="gptkit train \udcff.toml"))
    assert run.record() == {"command": "gptkit train \udcff.toml"}
    (run.path / "run.json").read_bytes().decode()  # and is still UTF-8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": [-1.5e999]}',
        b'{"a": 1, "a": 2}',
        b"\xff",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 6000 + b"}",
    ],
    ids=[
        "empty",
        "a list",
        "torn",
        "NaN",
        "infinite",
        "infinite below",
        "a key twice",
        "no text",
        "nested",
        "huge number",
    ],
)
def test_a_record_that_is_no_json_object_is_a_checkpoint_error(content: bytes, tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read: "):
        run.record()


def test_a_record_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", {})
    os.truncate(run.path / "run.json", 2**40)
    with pytest.raises(CheckpointError, match="it is too large"):
        run.record()


WHOLE: dict[str, Any] = {
    "format": 1,
    "id": "mine-1",
    "status": "finished",
    "target_step": None,
    "dataset": {"title": "mine.txt", "requested": {"type": "mine.txt"}, "characters": 9, "new": [1]},
    "plugins": [{"family": "gptkit.positions", "name": "rope", "distribution": "gptkit", "version": "9"}],
    "environment": {"device": "cpu", "threads": 2, "compile": False, "native": "", "torch": "9.9"},
    "best_val_loss": 2.5,
    "of_a_later_version": {"a": [None, {"b": "\udcff"}]},
}


def test_a_record_is_written_back_as_it_was_with_what_this_version_does_not_know(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1", WHOLE)
    record = run.read_record()
    assert (record.status, record.best_val_loss, record.dataset.title) == (
        RunStatus.FINISHED,
        2.5,
        "mine.txt",
    )
    assert record.environment is not None
    assert record.environment.threads == 2
    run.write_record(record)
    assert run.record() == WHOLE
    record.step, record.process = 7, Process.current()
    run.write_record(record)
    assert run.record() == WHOLE | {"step": 7, "process": {"pid": os.getpid(), "host": record.process.host}}
    record.process = None
    run.write_record(record)
    assert run.record() == WHOLE | {"step": 7}


WILD: list[Any] = [
    *(None, True, -1, 1.5, 2**63, 10**400, 1e301, "", "x" * 200_000, "\ud800", [], [[]], {}, {"a": {}}),
]


@pytest.mark.parametrize("value", WILD, ids=range(len(WILD)))
def test_a_value_of_any_kind_is_read_as_one_of_the_right_type_or_none(value: Any, tmp_path: Path) -> None:
    nested = {"dataset": {"title": value, "characters": value}, "plugins": [value, {"name": value}]}
    for content in (dict.fromkeys(RunRecord.model_fields, value), nested):
        record = make(tmp_path, f"mine-{len(list(tmp_path.iterdir()))}", content).read_record()
        for number in (record.step, record.dataset.characters, record.parameters):
            assert number is None or (type(number) is int and 0 <= number < 2**63)
        for loss in (record.val_loss, record.seconds):
            assert loss is None or abs(loss) < 1e300
        for text in (record.id, record.command, record.dataset.title):
            assert text is None or len(text) <= 100_000
        assert record.status is None or isinstance(record.status, RunStatus)
        assert all(isinstance(plugin, PluginOrigin) for plugin in record.plugins or ())


def test_a_key_that_is_half_of_a_surrogate_pair_is_left_out(tmp_path: Path) -> None:
    run = make(tmp_path, "mine-1")
    (run.path / "run.json").write_bytes(
        rb'{"status": "stopped", "\ud800": 1, "dataset": {"title": "t", "\udfff": {}}, "new": "\ud800"}'
    )
    record = run.read_record()
    assert (record.status, record.dataset.title) == (RunStatus.STOPPED, "t")
    run.write_record(record)
    assert run.record()["new"] == "\ud800"
    assert run.record().keys() == {"status", "dataset", "new"}
