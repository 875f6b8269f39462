"""The contracts as test classes of pytest: the verdicts of the command, and what an author may override."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from gptkit.plugins.registry import DATASETS, POSITIONS, TOKENIZERS, TRACKERS
from gptkit.testing import PluginContract, TokenizerContract, check_plugin, contract_for
from tests.testing import wrong_datasets, wrong_positions, wrong_tokenizers, wrong_trackers

PLUGINS = [
    (TOKENIZERS, wrong_tokenizers.Lowers),
    (TOKENIZERS, wrong_tokenizers.NoExample),
    (TOKENIZERS, wrong_tokenizers.FloatVocabulary),
    (TOKENIZERS, wrong_tokenizers.Exits),
    (TOKENIZERS, wrong_tokenizers.Panics),
    (TOKENIZERS, wrong_tokenizers.ShowsHalves),
    (DATASETS, wrong_datasets.Right),
    (DATASETS, wrong_datasets.Far),
    (DATASETS, wrong_datasets.SetOrder),
    (TRACKERS, wrong_trackers.KnowsOneEnd),
    (POSITIONS, wrong_positions.BiasCounts),
]
OUTCOMES = {"ok": "passed", "note": "passed", "bad": "failed", "skipped": "skipped"}


class Recorder:
    """A plugin of pytest: collects given classes from any file, and keeps what became of their tests."""

    def __init__(self, classes: Sequence[type]) -> None:
        self.classes = {f"Test{number}": cls for number, cls in enumerate(classes)}
        self.outcomes: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in self.classes}

    def pytest_pycollect_makemodule(self, module_path: Path, parent: pytest.Collector) -> pytest.Module:
        module: pytest.Module = pytest.Module.from_parent(parent, path=module_path)
        for name, cls in self.classes.items():
            setattr(module.obj, name, cls)
        return module

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            cls, test = report.nodeid.split("::")[-2:]
            self.outcomes[cls][test] = (report.outcome, report.longreprtext)


def under_pytest(folder: Path, classes: Sequence[type], *arguments: str) -> list[dict[str, tuple[str, str]]]:
    """For each class the outcome and the text of each of its tests."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_plugins.py").touch()
    recorder = Recorder(classes)
    unwanted = ("cacheprovider", "xdist", "hypothesispytest")
    without = [word for name in unwanted for word in ("-p", f"no:{name}")]
    options = ["-q", "--import-mode=importlib", *without, "-W", "error", *arguments]
    pytest.main([*options, *arguments, "-c", str(folder / "pytest.ini"), str(folder)], plugins=[recorder])
    return list(recorder.outcomes.values())


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.slow
def test_pytest_and_the_command_reach_the_same_verdicts(tmp_path: Path) -> None:
    """Also in another order, where a check is run as what another needs."""
    wanted = [
        {
            f"test_{result.check.replace(' ', '_')}": OUTCOMES[result.verdict]
            for result in check_plugin(family, cls)
        }
        for family, cls in PLUGINS
    ]
    found = under_pytest(tmp_path, [contract_for(family, cls) for family, cls in PLUGINS])
    for (_, cls), outcomes, verdicts in zip(PLUGINS, found, wanted, strict=True):
        assert {test: outcome for test, (outcome, _) in outcomes.items()} == verdicts, cls
        assert list(outcomes) == list(verdicts)
    (halves,) = under_pytest(
        tmp_path, [contract_for(TOKENIZERS, wrong_tokenizers.ShowsHalves)], "-k", "stream"
    )
    assert {test: outcome for test, (outcome, _) in halves.items()} == {
        "test_stream": "failed",
        "test_streams_apart": "skipped",
    }


@pytest.mark.slow
def test_a_failure_shows_the_rule_the_fix_and_the_code_of_the_plugin(tmp_path: Path) -> None:
    (found,) = under_pytest(tmp_path, [contract_for(TOKENIZERS, wrong_tokenizers.Raises)])
    outcome, text = found["test_learns"]
    assert outcome == "failed"
    assert "train() raised ZeroDivisionError: no text is long enough" in text
    assert "Fix: make `train` work on any text" in text
    assert "wrong_tokenizers.py" in text
    assert "in _run" not in text  # of what is between pytest and the check


@pytest.mark.slow
def test_an_author_adds_checks_and_texts_changes_some_and_leaves_some_out(tmp_path: Path) -> None:
    class Mine(TokenizerContract):
        plugin = wrong_tokenizers.Strips
        texts: ClassVar[dict[str, str]] = {"of mine": "q  "}

        test_speed = None  # type: ignore[assignment]

        @pytest.mark.xfail(reason="white space is lost, on purpose", strict=True)
        def test_round_trip(self) -> None:
            super().test_round_trip()

        def test_of_mine(self) -> None:
            assert "of mine" in self.known
            assert self.tokenizer.vocab_size == 256

        def test_wrong(self) -> None:
            raise AssertionError("of mine")

    (found,) = under_pytest(tmp_path, [Mine])
    outcomes = {test: outcome for test, (outcome, _) in found.items()}
    assert "test_speed" not in outcomes
    assert outcomes["test_round_trip"] == "skipped"  # so pytest reports an expected failure
    assert outcomes["test_unseen_characters"] == "skipped"
    assert outcomes["test_of_mine"] == "passed"
    assert outcomes["test_wrong"] == "failed"
    assert outcomes["test_ids"] == "passed"


@pytest.mark.parametrize("family", [TOKENIZERS, POSITIONS, DATASETS, TRACKERS])
def test_every_check_has_a_rule_a_fix_and_needs_only_earlier_ones(family: str) -> None:
    contract: type[PluginContract] = contract_for(family, object)
    order = [name for base in reversed(contract.__mro__) for name in vars(base) if name.startswith("test_")]
    assert len(order) >= 14
    for place, name in enumerate(order):
        method = getattr(contract, name)
        rule, *rest = method.__doc__.split("\n\n")
        assert rule.endswith("."), name
        notes = ("test_hash", "test_split", "test_time")
        assert name in notes or any(part.lstrip().startswith("Fix: ") for part in rest), name
        assert {f"test_{need.replace(' ', '_')}" for need in method.needs} <= set(order[:place]), name
