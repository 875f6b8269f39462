"""Plugins by name: where they come from, and that a bad one harms only who names it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command

from gptkit.errors import PluginError
from gptkit.experiment import experiment_from_dict
from gptkit.plugins import registry

TOKENIZER = """
import numpy as np
from gptkit.plugins import PluginOptions, Tokenizer

class Options(PluginOptions):
    shout: bool = False

class UpperTokenizer(Tokenizer):
    "Code points of the text in capitals."
    summary = "capitals"
    Options = Options
    vocab_size = 128

    @classmethod
    def train(cls, options, splits):
        return cls()

    def encode(self, text):
        return np.frombuffer(text.upper().encode("ascii"), dtype=np.uint8)

    def decode(self, ids):
        return bytes(ids).decode("ascii", "replace")

    def to_json(self):
        return {"type": "upper"}

    @classmethod
    def from_json(cls, data):
        return cls()
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on sys.path: `entries` is its entry_points.txt, `module` one file of code."""
    before = set(sys.modules)

    def put(name: str, entries: str, module: str = "", version: str = "1.2", under: str = "site") -> None:
        site = tmp_path / under
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entries)
        (site / f"{name}_code.py").write_text(module)
        monkeypatch.syspath_prepend(str(site))
        registry._claims.cache_clear()

    yield put
    monkeypatch.undo()
    for name in set(sys.modules) - before:
        if name.endswith("_code"):
            del sys.modules[name]
    importlib.invalidate_caches()
    registry._claims.cache_clear()


def plugin_error(family: str, name: str) -> str:
    with pytest.raises(PluginError) as caught:
        registry.load(family, name)
    assert caught.value.exit_code == 3
    assert str(caught.value).count("\n") <= 2
    return str(caught.value)


def test_the_built_in_plugins_come_through_entry_points() -> None:
    assert registry.names(registry.TOKENIZERS) == ["bigram", "bpe", "byte", "char", "hf"]
    assert {"sinusoidal", "learned", "rope", "alibi", "none"} <= set(registry.names(registry.POSITIONS))
    assert {"shakespeare", "python-docs", "text", "markov"} <= set(registry.names(registry.DATASETS))
    for family in (registry.TOKENIZERS, registry.POSITIONS, registry.DATASETS):
        for name in registry.names(family):
            assert registry.load(family, name).provenance.distribution == "gptkit"


def test_a_plugin_of_another_distribution_loads_with_its_provenance(install: Install) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    assert "upper" in registry.names(registry.TOKENIZERS)
    assert registry.provenance(registry.TOKENIZERS, "upper") == registry.Provenance(
        "gptkit.tokenizers", "upper", "fancy", "1.2"
    )
    assert "fancy_code" not in sys.modules  # neither listing nor provenance imports it
    loaded = registry.load(registry.TOKENIZERS, "upper")
    assert loaded.cls.__name__ == "UpperTokenizer"
    assert loaded.provenance == registry.provenance(registry.TOKENIZERS, "upper")


def test_only_the_plugin_that_is_named_is_imported(install: Install) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    experiment_from_dict({"tokenizer": "char"})
    assert "fancy_code" not in sys.modules
    assert experiment_from_dict({"tokenizer": "upper"}).tokenizer.options == {"shout": False}
    assert "fancy_code" in sys.modules


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise RuntimeError('no licence\\nfound')", "RuntimeError: no licence"),
        ("import sys; sys.exit('give me a terminal')", "SystemExit: give me a terminal"),
        ("raise SystemExit", "SystemExit: (no message)"),
        ("import a_module_that_is_not_here", "ModuleNotFoundError: No module named"),
        ("def (", "SyntaxError"),
        ("", "AttributeError: module 'broken_code' has no attribute 'Thing'"),
    ],
    ids=["raises", "exits", "exits silently", "lacks a module", "is not Python", "lacks the class"],
)
def test_a_plugin_that_does_not_load_harms_only_who_names_it(
    module: str, reason: str, install: Install
) -> None:
    install("broken", "[gptkit.tokenizers]\nbroken = broken_code:Thing\n", module)
    assert "broken" in registry.names(registry.TOKENIZERS)
    assert registry.load(registry.TOKENIZERS, "char").cls.__name__ == "CharTokenizer"
    assert registry.provenance(registry.TOKENIZERS, "broken").distribution == "broken"
    said = plugin_error(registry.TOKENIZERS, "broken")
    assert said.startswith("tokenizer 'broken' (broken_code:Thing, from broken) does not load: ")
    assert reason in said


def test_a_malformed_entry_point_harms_only_who_names_it(install: Install) -> None:
    install("broken", "[gptkit.tokenizers]\nbroken = ???\n")
    assert "does not load" in plugin_error(registry.TOKENIZERS, "broken")
    registry.load(registry.TOKENIZERS, "char")


def test_a_name_that_two_distributions_claim_is_an_error_naming_both(install: Install) -> None:
    install("one", "[gptkit.tokenizers]\nupper = one_code:UpperTokenizer\n", TOKENIZER)
    install("two", "[gptkit.tokenizers]\nupper = two_code:UpperTokenizer\n", TOKENIZER, under="other")
    said = plugin_error(registry.TOKENIZERS, "upper")
    assert said == "tokenizer 'upper' is claimed by one and two; uninstall one of them."
    assert not {"one_code", "two_code"} & set(sys.modules)
    registry.load(registry.TOKENIZERS, "char")  # others are as they were


def test_a_built_in_name_cannot_be_taken_over_silently(install: Install) -> None:
    install("taker", "[gptkit.tokenizers]\nchar = taker_code:UpperTokenizer\n", TOKENIZER)
    assert "'char' is claimed by gptkit and taker" in plugin_error(registry.TOKENIZERS, "char")
    registry.load(registry.TOKENIZERS, "byte")


def test_a_distribution_found_twice_counts_once(install: Install) -> None:
    entries = "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n"
    install("fancy", entries, TOKENIZER)
    install("fancy", entries, TOKENIZER, under="again")
    assert registry.load(registry.TOKENIZERS, "upper").cls.__name__ == "UpperTokenizer"


@pytest.mark.parametrize("version", ["2", "None", "'1'"])
def test_a_plugin_of_another_api_version_is_refused_with_both_versions(
    version: str, install: Install
) -> None:
    module = f"class Old:\n    api_version = {version}\n"
    install("old", "[gptkit.positions]\nold = old_code:Old\n", module)
    said = plugin_error(registry.POSITIONS, "old")
    assert "was written for plugin API" in said
    assert said.endswith("this gptkit has 1. Install a version of old that matches.")


def test_a_thing_that_states_no_api_version_is_refused(install: Install) -> None:
    install("odd", "[gptkit.datasets]\nodd = odd_code:thing\n", "thing = 5\n")
    assert "was written for plugin API None" in plugin_error(registry.DATASETS, "odd")


@pytest.mark.parametrize("name", ["", "rope ", "../rope", "ROPE", "x" * 300])
def test_an_unknown_name_lists_those_installed(name: str) -> None:
    said = plugin_error(registry.POSITIONS, name)
    assert said.startswith(f"no positional encoding is called {name!r}")
    assert "Installed: alibi, learned, none, rope, sinusoidal." in said
    with pytest.raises(PluginError):
        registry.provenance(registry.POSITIONS, name)


def test_a_run_goes_on_with_the_plugin_it_had_and_says_what_to_install_when_that_is_gone(
    tiny_experiment: Path,
    gptkit_command: Command,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    trained = gptkit_command("train", tiny_experiment, "--set", "tokenizer=upper", "--steps", 2, "--quiet")
    assert trained.code == 0, trained.err
    written = gptkit_command("generate", "latest", "--prompt", "rain", "-n", 5)
    assert written.out.startswith("rain")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not place.endswith("site")])
    importlib.invalidate_caches()
    registry._claims.cache_clear()
    for command in ("generate", "resume"):
        refused = gptkit_command(command, "latest")
        assert refused.code == 3
        assert "no tokenizer is called 'upper'" in refused.err
        assert refused.err.endswith("The run had it from fancy 1.2: pip install fancy==1.2\n")
