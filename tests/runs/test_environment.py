"""Everything that a step is a function of, beside the experiment: a change is seen when a run is resumed.

The experiment is in tests/experiment/test_identity.py; the text, the weights and the optimizer state are in
tests/cli/test_resume.py and tests/reproduce/test_verify.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptkit import backend
from gptkit.backend import RECORDED_SINCE_0_2, choose_backend, fingerprint, hash_of_code
from gptkit.data.cache import hash_of_ids
from gptkit.errors import CheckpointError
from gptkit.experiment.load import experiment_from_dict
from gptkit.native import usable
from gptkit.runs import RunRecord
from gptkit.runs.environment import check_tokens, environment_differences, plugin_origins
from gptkit.runs.record import Environment
from tests.support import Install

EXPERIMENT = experiment_from_dict({"seed": 1, "training": {"backend": "cpu", "threads": 1}})
BACKEND = choose_backend(EXPERIMENT.training)
FINGERPRINT = fingerprint(BACKEND)

POSITION = """
from gptkit.plugins import PositionalEncoding

class Nothing(PositionalEncoding):
    summary = "nothing"
"""


def record_of(environment: dict[str, object], experiment: object = EXPERIMENT) -> RunRecord:
    return RunRecord(
        environment=Environment.model_validate(environment),
        plugins=plugin_origins(experiment, []),  # type: ignore[arg-type]
    )


def differences(record: RunRecord) -> tuple[str, ...]:
    return environment_differences(record, EXPERIMENT, BACKEND)


def test_the_same_environment_is_exact() -> None:
    assert differences(record_of(dict(FINGERPRINT))) == ()


@pytest.mark.parametrize("key", FINGERPRINT)
def test_another_value_of_anything_recorded_is_named(key: str) -> None:
    value = FINGERPRINT[key]
    other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else "other"
    (found,) = differences(record_of({**FINGERPRINT, key: other}))
    assert found == f"{key} {other} -> {value if value != '' else 'none'}"


@pytest.mark.parametrize("name", backend.VARIABLES)
def test_a_variable_of_the_environment_that_changes_results_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    before = record_of(fingerprint(BACKEND))
    monkeypatch.setenv(name, "1")
    assert differences(before) == (f"{name} not set -> 1",)
    during = record_of(fingerprint(BACKEND))
    assert differences(during) == ()
    monkeypatch.delenv(name)
    assert differences(during) == (f"{name} 1 -> not set",)


def test_settings_of_torch_that_change_results_are_named() -> None:
    before = record_of(dict(FINGERPRINT))
    was = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        found = differences(before)
    finally:
        torch.set_float32_matmul_precision(was)
        torch.use_deterministic_algorithms(False)
    assert found == (f"matmul_precision {was} -> medium", "deterministic False -> True")


def test_whether_c_computes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if not usable():
        pytest.skip("no C compiler, or GPTKIT_NATIVE=0")
    record = record_of(dict(FINGERPRINT))
    monkeypatch.setenv("GPTKIT_NATIVE", "0")
    without = choose_backend(EXPERIMENT.training)
    found = environment_differences(record, EXPERIMENT, without)
    assert found == (f"native {BACKEND.native} -> none",)


def test_the_code_of_gptkit_counts_and_its_comments_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "optim.py"
    file.write_text("rate = 1\n")
    before = hash_of_code(tmp_path, ["*.py"])
    file.write_text("# a comment\nrate  =  1\n")
    assert hash_of_code(tmp_path, ["*.py"]) == before
    file.write_text("rate = 2\n")
    assert hash_of_code(tmp_path, ["*.py"]) != before
    file.rename(tmp_path / "other.py")
    assert hash_of_code(tmp_path, ["*.py"]) != before
    read = {path.name for one in backend._CODE for path in Path(backend.__file__).parent.glob(one)}
    assert {"gpt.py", "ops.py", "optim.py", "trainer.py", "sampler.py", "schedule.py", "seeds.py"} <= read


def test_another_version_or_code_of_a_positional_encoding_is_named(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fancy", "[gptkit.positions]\nnothing = fancy_code:Nothing\n", POSITION)
    experiment = experiment_from_dict({"seed": 1, "model": {"position": "nothing"}})
    record = record_of(dict(FINGERPRINT), experiment)
    assert environment_differences(record, experiment, BACKEND) == ()
    module = tmp_path / "site" / "fancy_code.py"
    module.write_text(POSITION + "SCALE = 2\n")
    changed = ("nothing of fancy 1.2 with other code -> fancy 1.2",)
    assert environment_differences(record, experiment, BACKEND) == changed
    assert record.plugins is not None
    record.plugins[1].version, record.plugins[1].code = "1.1", None
    assert environment_differences(record, experiment, BACKEND) == ("nothing of fancy 1.1 -> fancy 1.2",)


def test_other_ids_of_the_same_tokenizer_are_refused() -> None:
    ids = np.arange(9, dtype=np.uint8)
    recorded = {"tokenizer": {"type": "char", "ids_sha256": hash_of_ids(ids, "<u2")}}
    record = RunRecord.model_validate(recorded)
    check_tokens(record, hash_of_ids(ids.astype(np.int64), "<u2"))
    check_tokens(RunRecord(), "of a version that recorded none")
    for others in (ids[:8], ids[::-1]):
        with pytest.raises(CheckpointError, match="'char' encodes the text to other ids"):
            check_tokens(record, hash_of_ids(others, "<u2"))


def test_a_run_of_0_1_0_is_not_asked_for_what_it_did_not_record(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {key: FINGERPRINT[key] for key in FINGERPRINT if key not in backend.RECORDED_SINCE_0_2}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert differences(record_of(old)) == ()
    assert differences(record_of({**old, "torch": "1.0"})) == (f"torch 1.0 -> {torch.__version__}",)


def test_a_run_of_0_1_0_in_bf16_without_c_is_not_exact_any_more() -> None:
    old = {key: value for key, value in FINGERPRINT.items() if key not in RECORDED_SINCE_0_2}
    found = differences(record_of({**old, "precision": "bf16", "native": ""}))
    assert "gradients summed in bf16 -> fp32" in found
    for other in ({"precision": "fp32", "native": ""}, {"precision": "bf16", "native": "123"}):
        assert "gradients summed in bf16 -> fp32" not in differences(record_of({**old, **other}))
