"""`gptkit bench` measures what it claims to; the speed of this machine is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gptkit import measurements
from gptkit.bench import measure as module
from gptkit.bench.baseline import quiet_transformers
from gptkit.bench.measure import benchmark, flops_per_token, flops_per_token_sampled
from gptkit.cli.display.tables import show_benchmark
from gptkit.errors import UsageError
from gptkit.experiment.load import experiment_from_dict
from gptkit.model.build import build_model
from tests.support import Command

TINY = {
    "model": {"context_length": 16, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "training": {"batch_size": 4, "max_steps": 100, "threads": 1},
}


def test_the_flops_of_a_trained_token_are_six_per_weight_and_attention() -> None:
    model = build_model(experiment_from_dict(TINY), vocab_size=65)
    matrices = 2 * (3 * 32 * 32 + 32 * 32 + 2 * 4 * 32 * 32) + 65 * 32
    assert flops_per_token(model) == 6 * matrices + 12 * 2 * 32 * 16


@pytest.mark.slow
def test_rates_are_consistent_and_shown_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = experiment_from_dict(TINY)
    result = benchmark(experiment, against="transformers", seconds=0.02, blocks=1)
    trained, rival = result.training, result.rival_training
    assert rival is not None
    assert result.experiment_seconds == pytest.approx(100 * experiment.tokens_per_step / trained.tokens)
    assert 0 < trained.utilisation < 1
    assert trained.utilisation == pytest.approx(trained.flops / result.peaks[trained.precision])
    assert result.streams == 64
    assert result.generation_streams.tokens > result.generation.tokens > 0
    show_benchmark(result, as_json=False)
    table, noise = capsys.readouterr()
    assert noise == ""
    assert "2 layers, 2 heads, width 32, batches of 4 x 16 tokens, muon" in table
    assert "sampling, 64 streams" in table
    assert f"{trained.tokens / rival.tokens:.2f}x" in table
    assert rival.precision in result.peaks
    show_benchmark(result, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["training"]["tokens"] == trained.tokens
    assert printed["rival_training"]["precision"] == rival.precision


def test_the_table_of_operations_shows_each_implementation_and_the_one_that_is_used(
    gptkit_command: Command, tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "cache_folder", lambda: None)
    monkeypatch.setattr(measurements, "_SECONDS_PER_CALL", 0.0)
    refused = gptkit_command("bench", tiny_experiment, "--operations")
    assert (refused.code, "GPTKIT_MEASURE=0" in refused.err) == (2, True)
    monkeypatch.setenv("GPTKIT_MEASURE", "1")
    options = ["bench", tiny_experiment, "--operations", "--set", "training.precision=fp32"]
    table = gptkit_command(*options)
    assert table.code == 0, table.err
    for expected in ("attend", "blocks of queries", "it is for", "yes", "relu2 4 x 16 x 128"):
        assert expected in table.out
    printed = json.loads(gptkit_command(*options, "--json").out)
    assert printed["precision"] == "fp32"
    for operation in printed["operations"]:
        names = {one["name"]: one["milliseconds"] for one in operation["candidates"]}
        assert not names or names[operation["chosen"]] > 0
    assert gptkit_command(*options, "--against", "transformers").code == 2


def test_the_flops_of_a_sampled_token_are_two_per_weight_and_attention() -> None:
    model = build_model(experiment_from_dict(TINY), vocab_size=65)
    training = flops_per_token(model) - 12 * 2 * 32 * 16
    assert flops_per_token_sampled(model, 15) == training / 3 + 4 * 2 * 32 * 8


def test_the_library_is_silent_only_while_it_is_measured() -> None:
    logging = pytest.importorskip("transformers.utils.logging")
    before = logging.get_verbosity()
    with quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
    assert logging.get_verbosity() == before


def test_blocks_alternate_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def work(name: str, costs: list[float]) -> None:
        order.append(name)
        now[0] += costs.pop(0)

    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    a, b = [1.0, 1.0, 1.0, 5.0, 1.0], [2.0, 2.0, 2.0, 2.0, 8.0]
    rates = module.alternate([lambda: work("a", a), lambda: work("b", b)], seconds=1.0, blocks=3)
    assert order == ["a", "a", "b", "b", "a", "b", "a", "b", "a", "b"]
    assert rates == [1.0, 0.5]


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(UsageError, match="somebody"):
        benchmark(experiment_from_dict(TINY), against="somebody")


@pytest.mark.slow
def test_benchmarking_leaves_torch_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    benchmark(experiment_from_dict(TINY), seconds=0.01, blocks=1)
    assert torch.equal(torch.rand(2), expected)
