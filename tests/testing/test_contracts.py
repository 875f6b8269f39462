"""The contracts of plugins: each defect fails its own check, and correct plugins pass all."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptkit.data.catalog import data_folders
from gptkit.data.datasets.markov import MarkovDataset
from gptkit.errors import PluginError
from gptkit.plugins import DataFolders, PluginOptions, registry
from gptkit.plugins.registry import DATASETS, POSITIONS, TOKENIZERS, TRACKERS
from gptkit.testing import (
    CheckResult,
    PluginContract,
    Verdict,
    check_plugin,
    contract,
    contract_for,
    edge_cases,
)
from gptkit.tokenizers.bigram import BigramTokenizer
from gptkit.tokenizers.byte import ByteTokenizer
from tests.testing import wrong_datasets, wrong_positions, wrong_tokenizers, wrong_trackers
from tests.testing.wrong_tokenizers import Endless

FAMILIES = {
    TOKENIZERS: wrong_tokenizers,
    POSITIONS: wrong_positions,
    DATASETS: wrong_datasets,
    TRACKERS: wrong_trackers,
}
WRONG = [(family, cls, check) for family, module in FAMILIES.items() for cls, check in module.WRONG]
RIGHT = [(family, cls) for family, module in FAMILIES.items() for cls in module.RIGHT]


def slow_if_it_trains(cases: Iterable[tuple[str, Any, *tuple[str, ...]]]) -> list[Any]:
    """The contract of positional encodings trains models, for half a second each."""
    return [pytest.param(*case, marks=pytest.mark.slow) if case[0] == POSITIONS else case for case in cases]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def checked(
    family: str, cls: Any, options: PluginOptions | None = None, folders: DataFolders | None = None
) -> dict[str, CheckResult]:
    """Its results by the name of the check."""
    here = DataFolders((Path("data"),), Path("data"))
    found = list(check_plugin(family, cls, options, folders or here))
    assert all("\n" not in result.said for result in found)
    by_name = {result.check: result for result in found}
    assert len(by_name) == len(found)
    return by_name


def bad(found: dict[str, CheckResult]) -> dict[str, str]:
    return {name: result.said for name, result in found.items() if result.verdict == "bad"}


def checks_of(contract: type[PluginContract]) -> set[str]:
    names = [name for name in dir(contract) if name.startswith("test_")]
    return {name.removeprefix("test_").replace("_", " ") for name in names}


def built_in() -> Iterator[tuple[str, str]]:
    """Those of gptkit whose packages are installed."""
    for family in FAMILIES:
        for name in registry.names(family):
            if registry.find(family, name).distribution != "gptkit":
                continue
            try:
                registry.load(family, name)
            except PluginError:
                continue
            yield family, name


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), slow_if_it_trains(built_in()))
def test_what_comes_with_gptkit_keeps_its_contract(family: str, name: str) -> None:
    cls = registry.load(family, name)
    options = cls.Options(length=20_000) if cls is MarkovDataset else None
    found = checked(family, cls, options, folders=data_folders(None))
    assert bad(found) == {}
    skipped = {result.said for result in found.values() if result.verdict == "skipped"}
    assert skipped <= {f"not here: gptkit datasets fetch {name}"}


@pytest.mark.parametrize(
    ("family", "cls", "check"), slow_if_it_trains(WRONG), ids=lambda value: getattr(value, "__name__", None)
)
def test_a_defect_is_found_by_its_own_check_alone(
    family: str, cls: type, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if check != "same elsewhere":  # the others do the same in another process; 0.3 s each
        monkeypatch.setattr(PluginContract, "subprocess_fingerprint", lambda self: self.fingerprint())
    found = checked(family, cls)
    assert list(bad(found)) == [check], bad(found)
    assert ". Fix: " in found[check].said


@pytest.mark.parametrize(
    ("family", "cls"), slow_if_it_trains(RIGHT), ids=lambda value: getattr(value, "__name__", None)
)
def test_odd_but_correct_plugins_pass(family: str, cls: type) -> None:
    assert bad(checked(family, cls)) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_check_has_a_plugin_that_it_finds_wrong(family: str) -> None:
    """Except for notes, which find nothing wrong, and for what one plugin shows for all families."""
    common = checks_of(PluginContract) & {check for _, check in wrong_tokenizers.WRONG}
    caught = {check for _, check in FAMILIES[family].WRONG} | common
    optional = set() if wrong_positions.usable() else {"decoded"}
    assert checks_of(contract_for(family, object)) - {"hash", "split", "time"} - optional == caught


@pytest.mark.parametrize(
    "what", [None, "a string", 5, lambda: None, dict, object()], ids=lambda what: type(what).__name__
)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_object_that_is_not_a_plugin_is_one_bad_result(family: str, what: Any) -> None:
    found = checked(family, what)
    assert list(bad(found)) == ["base class"]
    assert {result.verdict for result in found.values()} == {"bad", "skipped"}


@pytest.mark.slow
def test_a_bad_result_names_the_call_and_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PluginContract, "subprocess_fingerprint", lambda self: self.fingerprint())
    message = {cls.__name__: bad(checked(family, cls))[check] for family, cls, check in SAYING}
    assert message["Raises"].startswith("train() raised ZeroDivisionError: no text is long enough (wrong_tok")
    assert "raised SystemExit: no licence" in message["Exits"]
    assert "white space" in message["Strips"] or "comes back as" in message["Strips"]
    assert message["RefusesWithKeyError"].startswith(
        "from_json(), given {}, raised KeyError: 'type' (wrong_tok"
    )
    assert "1 validation error for Options path Field required" in message["NoExample"]
    assert "shown in halves" in message["ShowsHalves"]
    assert "bias(): keys in the future change" in message["BiasLooksAhead"]
    assert "bias(): queries at positions 5 to 7" in message["BiasCounts"]


SAYING = [
    line
    for line in WRONG
    if line[1].__name__
    in ("Raises", "NoExample", "Strips", "RefusesWithKeyError", "ShowsHalves", "BiasLooksAhead", "BiasCounts")
    or line[1] is wrong_datasets.Exits
]


def test_what_needs_a_bad_check_is_skipped_with_the_reason() -> None:
    found = checked(TOKENIZERS, wrong_tokenizers.FloatVocabulary)
    assert found["ids"] == CheckResult("ids", Verdict.SKIPPED, "until 'vocabulary' is right")
    assert found["stream"].said == "until 'vocabulary' is right"


def test_a_text_that_is_not_here_is_not_fetched_but_its_description_is_checked() -> None:
    """`Far` fails where it is read or fetched."""
    found = checked(DATASETS, wrong_datasets.Far)
    assert found["text"] == CheckResult("text", Verdict.SKIPPED, "not here: gptkit datasets fetch NAME")
    assert found["facts"].verdict == found["size"].verdict == "ok"


def test_options_that_are_given_are_those_it_is_tried_with() -> None:
    found = checked(TOKENIZERS, BigramTokenizer, BigramTokenizer.Options(max_pairs=3))
    assert found["options"].said == "max_pairs = 3"
    assert bad(found) == {}
    characters = len(set(edge_cases.TRAIN + edge_cases.VAL))
    assert found["vocabulary"].said == f"{characters + 3} ids"


def test_options_of_another_plugin_are_refused() -> None:
    assert list(bad(checked(TOKENIZERS, BigramTokenizer, PluginOptions()))) == ["options"]


def test_code_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it catches every Exception."""
    monkeypatch.setattr(contract, "TIME_LIMIT", 0.2)
    assert "took more than" in bad(checked(TOKENIZERS, Endless))["vocabulary"]


def test_an_interrupt_ends_the_checking() -> None:
    class Interrupted(ByteTokenizer):
        def encode(self, text: str) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(TOKENIZERS, Interrupted)


def test_a_class_that_another_process_cannot_import_is_not_taken_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Local(ByteTokenizer):
        pass

    module = types.ModuleType("made_up_here")
    Elsewhere = type("Elsewhere", (ByteTokenizer,), {"__module__": "made_up_here"})
    module.Elsewhere = Elsewhere  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_here", module)
    for cls in (Local, Elsewhere):
        found = checked(TOKENIZERS, cls)
        assert found["same elsewhere"].verdict == "skipped"
        assert bad(found) == {}


@pytest.mark.slow
def test_a_plugin_that_fails_only_in_another_process_is_bad() -> None:
    found = checked(DATASETS, FailsElsewhere)
    assert "fails: RuntimeError: not twice" in bad(found)["same elsewhere"]


class FailsElsewhere(wrong_datasets.Right):
    def read(self, folders: DataFolders) -> str:
        import __main__

        if "gptkit.testing" in str(getattr(__main__, "__spec__", "")):
            raise RuntimeError("not twice")
        return super().read(folders)


@pytest.mark.slow
def test_checking_leaves_torch_as_it_was() -> None:
    before, default = torch.get_rng_state(), torch.get_default_dtype()
    checked(POSITIONS, wrong_positions.LearnedBias)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_default_dtype() == default
    assert torch.is_grad_enabled()


def test_the_unseen_text_is_unseen_and_the_other_val_split_has_the_same_characters() -> None:
    seen = set(edge_cases.TRAIN + edge_cases.VAL)
    assert not set(edge_cases.UNSEEN) - {" "} & seen
    assert set(edge_cases.OTHER_VAL) == set(edge_cases.VAL)
    assert all(set(text) <= seen for text in edge_cases.all_texts().values())
