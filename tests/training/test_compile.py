"""torch.compile: when it is used, what happens if it fails, and one small model that is really compiled."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gptkit
from gptkit import backend, events
from gptkit.errors import PluginError
from gptkit.experiment.load import experiment_from_dict
from gptkit.experiment.schema import EvaluationSettings, TrainingSettings
from gptkit.model.build import build_new_model
from gptkit.training import session, setup
from gptkit.training.context import RunContext
from gptkit.training.cost import training_flops
from gptkit.training.session import resume_run, train_run
from tests.support import write_record


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder; what a test sets in the environment is undone after it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unset below")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "cache" / "gptkit"))
    return tmp_path / "cache"


def experiment(compiled: Any, **training_table: Any) -> gptkit.Experiment:
    return experiment_from_dict(
        {
            "name": "t",
            "seed": 5,
            "data": {"dataset": "sums.txt"},
            "model": {"context_length": 8, "n_embd": 16, "n_layer": 1, "n_head": 2},
            "training": {
                **{"max_steps": 6, "batch_size": 3, "threads": 1, "log_interval": 1, "compile": compiled},
                **training_table,
            },
            "sampling": {"sample_interval": 0},
        }
    )


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the choice goes."""
    monkeypatch.setattr(backend, "choose_device", lambda wanted: "cuda" if wanted == "auto" else wanted)
    monkeypatch.setattr(backend, "no_compiler", lambda device: "")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


@pytest.mark.usefixtures("on_a_gpu")
def test_auto_compiles_long_runs_on_a_gpu_only() -> None:
    settings = TrainingSettings()
    assert not backend.choose_backend(settings, 1e14).compile
    assert backend.choose_backend(settings, 1e18).compile
    assert not backend.choose_backend(settings.model_copy(update={"backend": "cpu"}), 1e18).compile
    assert backend.choose_backend(settings.model_copy(update={"compile": True}), 1.0).compile
    assert not backend.choose_backend(settings.model_copy(update={"compile": False}), 1e18).compile


def test_what_a_run_computes_is_counted_from_the_model() -> None:
    """6 FLOP for each weight of a matrix product, which here is all but the embedding."""
    recipe = experiment("auto", max_steps=10)
    model = build_new_model(recipe, 30, seed=0)
    weights = model.parameter_count - model.token_embedding.weight.numel()
    per_token = 6 * weights + 12 * 1 * 16 * 8
    assert training_flops(recipe, 30) == 10 * 3 * 8 * per_token


def test_compile_true_without_a_compiler_is_an_error_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend.shutil, "which", lambda name: None)
    with pytest.raises(PluginError, match=r"training\.compile = true, but there is no C\+\+ compiler"):
        backend.choose_backend(TrainingSettings(compile=True, backend="cpu"))
    assert not backend.choose_backend(TrainingSettings(compile="auto", backend="cpu")).compile


def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile returns a model that fails when called, as with a broken compiler."""

    def failing(model: torch.nn.Module, **_: Any) -> torch.nn.Module:
        class Failing(torch.nn.Module):
            def forward(self, *arguments: Any) -> Any:
                raise RuntimeError("ld: cannot find -lgomp\nand more")

        return Failing()

    monkeypatch.setattr(torch, "compile", failing)


def test_compile_true_that_fails_is_an_error_and_ends_the_run(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_compiler(monkeypatch)
    monkeypatch.setattr(backend, "no_compiler", lambda device: "")
    with pytest.raises(
        PluginError, match=r"torch\.compile failed here: RuntimeError: ld: cannot find -lgomp\nSet"
    ):
        train_run(experiment(True), context)
    run = gptkit.open_run("latest", runs_folder=context.runs_folder)
    assert run.record()["status"] == "failed"


def test_auto_that_fails_warns_and_trains_without(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_compiler(monkeypatch)
    chosen = setup.choose_backend
    monkeypatch.setattr(
        setup, "choose_backend", lambda *arguments, **more: replace(chosen(*arguments, **more), compile=True)
    )
    seen: list[events.Event] = []
    run = train_run(experiment("auto"), RunContext(context.runs_folder, context.folders, seen.append)).run
    warned = [event.message for event in seen if isinstance(event, events.Warned)]
    assert len(warned) == 1
    assert "cannot find -lgomp" in warned[0]
    assert run.record()["environment"]["compile"] is False
    monkeypatch.undo()
    plain = train_run(experiment(False), context).run
    assert [row["train_loss"] for row in run.metrics()] == [row["train_loss"] for row in plain.metrics()]


def test_a_compiled_run_resumes_without_a_compiler_and_reports_the_difference(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_run(experiment("auto"), context, stop_at=3).run
    write_record(run, {**run.record(), "environment": {**run.record()["environment"], "compile": True}})
    monkeypatch.setattr(backend, "no_compiler", lambda device: "there is none")
    seen: list[events.Event] = []
    resume_run(run, RunContext(context.runs_folder, context.folders, seen.append))
    checked = next(event for event in seen if isinstance(event, events.ResumeChecked))
    assert checked.differences == ("compile True -> False",)


@pytest.mark.slow
@pytest.mark.skipif(bool(backend.no_compiler("cpu")), reason=backend.no_compiler("cpu") or "-")
def test_a_compiled_run_resumes_to_the_same_bytes_and_keeps_its_cache(
    context: RunContext, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU; evaluating twice, with a last batch of its own size, compiles nothing more."""
    recipe = experiment(True).model_copy(update={"evaluation": EvaluationSettings(eval_interval=3)})
    from torch._dynamo.utils import counters  # a second of imports, which collecting the tests need not spend

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # which the import has set
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes, which would import torch again
    monkeypatch.setenv(
        "TORCHINDUCTOR_VEC_ISA_OK", "0"
    )  # no compilations that find out the vector instructions
    before = counters["stats"]["unique_graphs"]
    seen: list[events.Event] = []
    listening = RunContext(context.runs_folder, context.folders, seen.append)
    straight = train_run(recipe, listening).run
    assert next(event for event in seen if isinstance(event, events.RunStarted)).compiled
    assert not [event for event in seen if isinstance(event, events.Warned)]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "gptkit" / "torch_compile")
    assert any((cache / "gptkit" / "torch_compile").rglob("*.so"))
    assert counters["stats"]["unique_graphs"] - before == 1
    broken = train_run(recipe, context, stop_at=4).run
    resume_run(broken, context)
    newest = [max(run.checkpoints.glob("step-*")) for run in (straight, broken)]
    assert newest[0].name == newest[1].name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes()


def test_a_cache_folder_of_the_users_choice_stays(
    context: RunContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    broken_compiler(monkeypatch)
    monkeypatch.setattr(session, "fingerprint", lambda backend: {})
    with pytest.raises(PluginError):
        train_run(experiment(True), context)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")
