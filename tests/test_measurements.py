"""The operations of a run are measured once per machine and shape; a run keeps to what it began with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gptkit import measurements
from gptkit.backend import Backend, choose_backend, fingerprint
from gptkit.errors import UsageError
from gptkit.experiment.load import experiment_from_dict
from gptkit.measurements import measure_operations, with_fastest
from tests.support import Command, run_of

SMALL = experiment_from_dict(
    {
        "model": {"context_length": 8, "n_embd": 16, "n_layer": 3, "n_head": 2},
        "training": {"batch_size": 2, "threads": 1, "backend": "cpu", "precision": "fp32"},
    }
)
V = 11


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and measurements that take no time."""
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(measurements, "cache_folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(measurements, "_SECONDS_PER_CALL", 0.0)
    monkeypatch.setenv("GPTKIT_MEASURE", "1")
    yield tmp_path / "kept"
    assert [path.name for path in (tmp_path / "kept").iterdir()] in ([], ["operations.json"])


def test_measured_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = choose_backend(SMALL.training)
    first = with_fastest(backend, SMALL, V)
    assert first.operations is not None
    assert first.operations["attend"]
    assert replace(first, operations=None) == backend
    monkeypatch.setattr(measurements, "measure", lambda *_: pytest.fail("measured again"))
    assert with_fastest(backend, SMALL, V) == first
    assert with_fastest(backend, SMALL.model_copy(update={"seed": 5}), V) == first
    monkeypatch.setattr(measurements, "measure", lambda *_: [])
    for changed in (with_fastest(replace(backend, threads=7), SMALL, V), with_fastest(backend, SMALL, V + 1)):
        assert changed.operations == {}
    assert len(json.loads((cache / "operations.json").read_text())) == 3


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"KEY": 5}', '{"KEY": {"precision": "x"}}', "\0" * 9])
def test_what_is_kept_but_damaged_is_measured_again(damaged: str, cache: Path) -> None:
    backend = choose_backend(SMALL.training)
    key = measurements._measurement_key(backend, SMALL, V)
    (cache / "operations.json").write_text(damaged.replace("KEY", key))
    found = with_fastest(backend, SMALL, V).operations
    assert found
    assert json.loads((cache / "operations.json").read_text())[key]["operations"] == found


def test_without_a_cache_it_is_measured_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "cache_folder", lambda: None)
    assert with_fastest(choose_backend(SMALL.training), SMALL, V).operations


def test_nothing_is_measured_where_nothing_is_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = choose_backend(SMALL.training)
    wide = SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"n_embd": 2**14})})
    for other in (replace(backend, device="cuda"), replace(backend, compile=True)):
        assert with_fastest(other, SMALL, V) is other
    assert with_fastest(backend, wide, V) is backend
    monkeypatch.setenv("GPTKIT_MEASURE", "0")
    assert with_fastest(backend, SMALL, V) is backend
    with pytest.raises(UsageError, match="GPTKIT_MEASURE=0"):
        measure_operations(backend, SMALL, V)


def test_an_operation_that_fails_leaves_the_default_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("of a plugin")

    backend = choose_backend(SMALL.training)
    monkeypatch.setattr(measurements, "measure", fail)
    assert with_fastest(backend, SMALL, V) is backend


def test_precision_auto_becomes_the_one_whose_blocks_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"bf16": 2.0, "fp32": 1.0}
    monkeypatch.setattr(measurements, "_measure", lambda backend, *_: [backend.precision])
    monkeypatch.setattr(measurements, "_blocks_seconds", lambda found: times[found[0]])
    monkeypatch.setattr(measurements, "choices", lambda found: {"of": found[0]})
    auto = SMALL.model_copy(update={"training": SMALL.training.model_copy(update={"precision": "auto"})})
    backend = Backend("cpu", "bf16", 1, False)
    assert with_fastest(backend, auto, V) == replace(backend, precision="fp32", operations={"of": "fp32"})
    asked = SMALL.model_copy(update={"training": SMALL.training.model_copy(update={"precision": "bf16"})})
    assert with_fastest(backend, asked, V).precision == "bf16"
    times["fp32"] = 1.99  # not clearly faster
    assert with_fastest(backend, auto, V + 1).precision == "bf16"


def test_default_operations_are_not_recorded_so_that_old_runs_look_the_same() -> None:
    backend = choose_backend(SMALL.training)
    assert "operations" not in fingerprint(backend)
    assert fingerprint(replace(backend, operations={"attend": "C"}))["operations"] == {"attend": "C"}


def test_a_run_keeps_to_its_operations_although_others_are_faster_now(
    gptkit_command: Command, tiny_experiment: Path, cache: Path
) -> None:
    """Half of it, then the rest, is the whole run; a rerun too, and a new run has the new choice."""
    options = ["--quiet", "--set", "training.threads=1", "--set", "training.precision=fp32"]
    whole = run_of(gptkit_command("train", tiny_experiment, "--steps", "4", *options))
    chosen = whole.record()["environment"]["operations"]
    assert chosen["attend"]
    half = run_of(gptkit_command("train", tiny_experiment, "--steps", "4", "--stop-at", "2", *options))
    assert half.record()["environment"]["operations"] == chosen
    kept = json.loads((cache / "operations.json").read_text())
    others = {name: "torch" if one != "torch" else "C" for name, one in chosen.items()}
    for one in kept.values():
        one["operations"] = others
    (cache / "operations.json").write_text(json.dumps(kept))
    again = gptkit_command("resume", half.path)
    assert again.code == 0, again.err
    assert "resume: exact" in again.out + again.err
    assert half.checkpoint("last").model.keys() == whole.checkpoint("last").model.keys()
    for name, tensor in whole.checkpoint("last").model.items():
        assert (half.checkpoint("last").model[name] == tensor).all(), name
    repeated = gptkit_command("rerun", whole.path)
    assert repeated.code == 0, repeated.err
    assert "identical" in repeated.out
    new = run_of(gptkit_command("train", tiny_experiment, "--steps", "1", *options))
    assert new.record()["environment"]["operations"] == others
