"""`gptkit plugins` (list, show, check, new) and `gptkit schema`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from gptkit.experiment.fields import json_schema
from gptkit.plugins.registry import list_plugins
from tests.support import Command, Install
from tests.support.third_party import TOKENIZER, TRACKER

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


def row(out: str, name: str) -> list[str]:
    """The first words of the line of a plugin."""
    (line,) = [line for line in out.splitlines() if line.split()[1:2] == [name]]
    return line.split(maxsplit=5)


def test_all_that_is_installed_is_listed_with_where_it_comes_from(
    gptkit_command: Command, install: Install
) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    listed = gptkit_command("plugins")
    assert listed.code == 0, listed.err
    assert row(listed.out, "rope")[:2] == ["position", "rope"]
    assert row(listed.out, "markov")[0] == "dataset"
    assert row(listed.out, "tensorboard")[:2] == ["tracker", "tensorboard"]
    assert row(listed.out, "upper") == ["tokenizer", "upper", "fancy", "1.2", "yes", "capitals"]
    assert gptkit_command("plugins", "list").out == listed.out


def test_one_that_does_not_load_is_listed_with_the_reason_and_harms_none(
    gptkit_command: Command, install: Install
) -> None:
    install("broken", "[gptkit.datasets]\nbroken = broken_code:Thing\n", "raise RuntimeError('no\\nlicence')")
    install("old", "[gptkit.positions]\nold = old_code:Old\n", "class Old:\n    api_version = 7\n")
    install("taker", "[gptkit.tokenizers]\nchar = taker_code:UpperTokenizer\n", TOKENIZER)
    listed = gptkit_command("plugins")
    assert listed.code == 0
    assert row(listed.out, "broken")[2:5] == ["broken", "1.2", "no"]
    assert "RuntimeError: no" in row(listed.out, "broken")[5]
    assert "was written for plugin API 7; this gptkit has 1" in row(listed.out, "old")[5]
    both = [line for line in listed.out.splitlines() if line.split()[1] == "char"]
    assert [line.split()[2] for line in both] == ["gptkit", "taker"]
    assert all("claimed by gptkit and taker" in line for line in both)
    assert row(listed.out, "byte")[4] == "yes"


def test_those_that_are_not_allowed_are_listed_as_such(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", "raise RuntimeError")
    monkeypatch.setenv("GPTKIT_PLUGINS", "")
    (found,) = [row for row in list_plugins() if row.plugin.name == "upper"]
    assert found.problem == "not allowed: GPTKIT_PLUGINS does not list it"  # and it was not loaded


def test_a_plugin_is_shown_with_its_options_and_how_a_file_names_it(
    gptkit_command: Command, install: Install
) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    shown = gptkit_command("plugins", "show", "rope").out
    assert "positional encoding rope: rotates queries and keys (RoPE)" in shown
    assert "gptkit.model.positions:RotaryPosition, plugin API 1" in shown
    assert "Su et al. 2021" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("base ")]
    assert line.split(maxsplit=5)[1:5] == ["number,", ">", "1", "10000.0"]
    assert shown.endswith('[model]\nposition = { type = "rope", base = 10000.0 }\n')
    assert gptkit_command("plugins", "show", "upper").out.endswith(
        'tokenizer = { type = "upper", shout = false }\n'
    )
    text = gptkit_command("plugins", "show", "text").out
    assert "(must be given)" in text
    assert "path = …" in text
    assert "It takes no options." in gptkit_command("plugins", "show", "alibi").out
    tracker = gptkit_command("plugins", "show", "tensorboard").out
    assert tracker.endswith("In an experiment file:\n\n[tracking.tensorboard]\nsamples = true\n")


def test_a_tracker_without_options_is_named_as_a_switch(gptkit_command: Command, install: Install) -> None:
    code = TRACKER.replace("    Options = Options\n", "")
    install("fancy", "[gptkit.trackers]\nmy.diary = fancy_code:DiaryTracker\n", code)
    shown = gptkit_command("plugins", "show", "my.diary").out
    assert shown.endswith('In an experiment file:\n\n[tracking]\n"my.diary" = true\n')


def test_a_name_that_two_families_have_is_shown_for_both_or_for_the_one_asked_for(
    gptkit_command: Command, install: Install
) -> None:
    install("fancy", "[gptkit.tokenizers]\nrope = fancy_code:UpperTokenizer\n", TOKENIZER)
    both = gptkit_command("plugins", "show", "rope").out
    assert "tokenizer rope: capitals" in both
    assert "positional encoding rope: " in both
    one = gptkit_command("plugins", "show", "rope", "--family", "tokenizer").out
    assert "positional encoding" not in one


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show", "rop"), 3, "no plugin is called 'rop'; did you mean 'rope'? Installed: alibi, "),
        (("show", "rope", "--family", "dataset"), 3, "no dataset is called 'rope'"),
        (
            ("show", "rope", "--family", "datasets"),
            2,
            "did you mean 'dataset'? There are: tokenizer, position",
        ),
        (("check", "rope", "nosuch"), 3, "no plugin is called 'nosuch'"),
        (("check", "rope", "--set", "bas=1"), 2, "rope.bas: unknown key; did you mean 'base'?"),
        (("check", "rope", "--set", "base=0.5"), 2, "rope.base = 0.5: should be greater than 1"),
        (("check", "rope", "--set", "base"), 2, "expected KEY=VALUE"),
        (("new", "tokeniser", "x"), 2, "did you mean 'tokenizer'?"),
        (("new", "tokenizer", "../x"), 2, "'../x' cannot be a plugin's name"),
        (("new", "tokenizer", "char"), 2, "'char' is a tokenizer of gptkit"),
        (("new", "tokenizer", "Demo"), 2, "lower-case"),
        (("new", "tokenizer", "x" * 41), 2, "up to 40"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "",
)
def test_errors_name_what_can_be_done_instead(
    words: tuple[str, ...], code: int, message: str, workspace: Path, gptkit_command: Command
) -> None:
    done = gptkit_command("plugins", *words)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert sorted(path.name for path in workspace.iterdir()) == ["data", "runs"]


@pytest.mark.slow
def test_a_check_prints_a_line_each_and_its_exit_code_is_3_if_one_fails(
    workspace: Path, gptkit_command: Command, install: Install
) -> None:
    good = gptkit_command("plugins", "check", "byte", "text", "--family", "tokenizer")
    assert good.code == 3  # there is no tokenizer `text`
    assert "no tokenizer is called 'text'" in good.err
    good = gptkit_command("plugins", "check", "byte")
    assert good.code == 0, good.out
    assert "tokenizer byte\n  ok       base class" in good.out
    assert "  ok       round trip" in good.out
    # Lower case is lost in it, ASCII is all it takes, and it saves nothing: it is no tokenizer to rely on
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    bad = gptkit_command("plugins", "check", "upper")
    assert bad.code == 3
    assert "\n  bad      " in bad.out
    assert "of the checks above" in bad.err
    assert ": upper." in bad.err


def test_a_check_takes_the_options_it_is_given(workspace: Path, gptkit_command: Command) -> None:
    checked = gptkit_command("plugins", "check", "text", "--set", "path=data/mine.txt")
    assert checked.code == 0, checked.out
    assert f"{(workspace / 'data' / 'mine.txt').stat().st_size:,} bytes" in checked.out


def test_a_new_package_is_created_in_the_folder_and_replaces_nothing(
    workspace: Path, gptkit_command: Command
) -> None:
    made = gptkit_command("plugins", "new", "position", "my-slopes", "--folder", "packages")
    assert made.code == 0, made.err
    assert "pip install -e './packages/gptkit-my-slopes[dev]'" in made.out
    package = workspace / "packages" / "gptkit-my-slopes"
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"gptkit.positions": {"my-slopes": "gptkit_my_slopes:MySlopesPosition"}}
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    assert files == {
        *("pyproject.toml", "README.md", "gptkit_my_slopes/__init__.py", "gptkit_my_slopes/py.typed"),
        "tests/test_my_slopes.py",
    }
    again = gptkit_command("plugins", "new", "position", "my-slopes", "--folder", "packages")
    assert again.code == 2
    assert "exists already" in again.err


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_experiment_of_the_repository(
    path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    assert list(validator.iter_errors(tomllib.loads(path.read_text()))) == []


def test_the_schema_accepts_a_resolved_experiment(
    tiny_experiment: Path, gptkit_command: Command, validator: jsonschema.Draft202012Validator
) -> None:
    trained = gptkit_command("train", tiny_experiment, "--steps", 1, "--quiet")
    resolved = tomllib.loads((Path(trained.out.strip()) / "experiment.toml").read_text())
    assert list(validator.iter_errors(resolved)) == []


@pytest.mark.parametrize(
    ("experiment", "right"),
    [
        ({}, True),
        ({"tokenizer": "byte"}, True),
        ({"tokenizer": "bite"}, False),
        ({"tokenizer": {"type": "bigram", "max_pairs": 9}}, True),
        ({"tokenizer": {"type": "bigram", "max_pairs": -9}}, False),
        ({"tokenizer": {"type": "byte", "max_pairs": 9}}, False),
        ({"model": {"position": {"base": 500.0}}}, True),  # of rope, the default
        ({"model": {"position": {"type": "alibi", "base": 500.0}}}, False),
        ({"data": {"dataset": "any/text.txt"}}, True),
        ({"data": {"dataset": {"type": "text"}}}, False),  # needs a path
        ({"data": {"dataset": {"type": "markov", "order": 3}}}, True),
        ({"optimizer": "adamw"}, True),
        ({"optimizer": {"learning_rate": 0.01, "momentum": 0.9}}, True),  # of muon, the default
        ({"optimizer": {"type": "adamw", "momentum": 0.9}}, False),
        ({"modle": {}}, False),
        ({"tracking": {"tensorboard": True}}, True),
        ({"tracking": {"tensorboard": {"samples": False}}}, True),
        ({"tracking": {"tensorboard": {"samples": "few"}}}, False),
        ({"tracking": {"tensorboard": 5}}, False),
        ({"tracking": {"tensorbord": True}}, False),
    ],
    ids=str,
)
def test_the_schema_refuses_invalid_values(
    experiment: dict[str, object], right: bool, validator: jsonschema.Draft202012Validator
) -> None:
    assert validator.is_valid(experiment) is right


def test_the_schema_has_the_options_of_other_plugins_and_survives_a_broken_one(
    gptkit_command: Command, install: Install
) -> None:
    install("fancy", "[gptkit.tokenizers]\nupper = fancy_code:UpperTokenizer\n", TOKENIZER)
    install("broken", "[gptkit.tokenizers]\nbroken = broken_code:Thing\n", "raise RuntimeError")
    printed = gptkit_command("schema")
    assert printed.code == 0, printed.err
    schema = jsonschema.Draft202012Validator(json.loads(printed.out))
    assert schema.is_valid({"tokenizer": {"type": "upper", "shout": True}})
    assert not schema.is_valid({"tokenizer": {"type": "upper", "shout": "loud"}})
    assert schema.is_valid({"tokenizer": {"type": "broken", "anything": 1}})
