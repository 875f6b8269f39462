"""Experiment files: what they may contain, how they are overridden, and the messages about bad ones."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gptkit.errors import ExperimentError, GptkitError, PluginError, UsageError
from gptkit.experiment.load import experiment_from_dict, load_experiment, to_toml
from gptkit.experiment.overrides import parse_override
from gptkit.experiment.schema import AdamWSettings, Experiment, MuonSettings


def problems_of(data: dict[str, Any], *overrides: tuple[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ExperimentError) as caught:
        experiment_from_dict(data, overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def problems_of_file(path: Path) -> tuple[str, ...]:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path)
    assert str(path) in str(caught.value)
    return caught.value.problems


def sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every table of the schema with its dotted place."""
    yield "", model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for place, inner in sections(field.annotation):
                yield f"{name}.{place}".strip("."), inner
    if model is Experiment:
        yield "optimizer", AdamWSettings
        yield "optimizer", MuonSettings


# Valid files


def test_an_empty_file_is_an_experiment_of_defaults_named_after_the_file(tmp_path: Path) -> None:
    path = tmp_path / "first_try.toml"
    path.write_text("")
    experiment = load_experiment(path)
    assert experiment.name == "first_try"
    assert experiment == Experiment().model_copy(
        update={"name": "first_try", "model": experiment.model, "data": experiment.data}
    )
    assert experiment.model.position.options == {"base": 10000.0}  # the plugin's own default, explicit


def test_a_name_in_the_file_comes_before_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "first_try.toml"
    path.write_text('name = "second"')
    assert load_experiment(path).name == "second"


@pytest.mark.parametrize("stem", ["my novel", "v1.2", "-dash", "con", "x" * 65])
def test_a_file_may_be_called_what_a_run_may_not(stem: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.toml"
    path.write_text("")
    assert load_experiment(path).name == Experiment().name


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"optimizer": {"type": "adamw"}, "seed": 3},
        {"data": {"dataset": "text/of mine.txt", "fallback": "python-docs"}},
        {"training": {"epochs": 0.5}, "sampling": {"stop": ["\n\n", '"""'], "prompt": "é\0\u2028'"}},
        {"model": {"position": "alibi", "dropout": 0}, "tokenizer": {"type": "bigram", "max_pairs": 10}},
        {"data": {"dataset": {"type": "markov", "order": 1}}},
    ],
    ids=["defaults", "adamw", "own text", "odd strings", "plugins", "markov"],
)
def test_the_resolved_file_gives_the_same_experiment_and_the_same_file(data: dict[str, Any]) -> None:
    experiment = experiment_from_dict(data)
    text = to_toml(experiment)
    again = experiment_from_dict(tomllib.loads(text))
    assert again == experiment
    assert to_toml(again) == text


def test_the_resolved_file_has_every_field() -> None:
    file = tomllib.loads(to_toml(experiment_from_dict({})))
    for place, model in sections(Experiment):
        if place == "optimizer" and model is AdamWSettings:
            continue  # the default is muon
        table = file
        for name in place.split(".") if place else ():
            table = table.get(name, {})
        missing = model.model_fields.keys() - table.keys()
        unset = {"epochs", "minutes", "fallback", "val", "adamw_learning_rate"}
        assert missing <= unset or place in ("data.fallback", "data.val", "init_from"), (place, missing)


def test_every_field_has_a_description() -> None:
    bare = [
        f"{place}.{name}"
        for place, model in sections(Experiment)
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert not bare


def test_the_options_of_a_plugin_are_explicit_in_the_resolved_file() -> None:
    short = experiment_from_dict({"tokenizer": "bigram", "model": {"position": "rope"}})
    table = experiment_from_dict(
        {"tokenizer": {"type": "bigram"}, "model": {"position": {"type": "rope", "base": 10_000}}}
    )
    assert short == table
    file = tomllib.loads(to_toml(short))
    assert file["tokenizer"] == {"type": "bigram", "max_pairs": 4096}
    assert file["model"]["position"] == {"type": "rope", "base": 10_000.0}


def test_an_option_alone_is_of_the_default_plugin() -> None:
    assert experiment_from_dict({}, [("model.position.base", 500)]).model.position.options == {"base": 500}


def test_an_unregistered_dataset_is_left_to_be_looked_for() -> None:
    experiment = experiment_from_dict({"data": {"dataset": "novels/mine.txt"}})
    assert (experiment.data.dataset.type, experiment.data.dataset.options) == ("novels/mine.txt", {})


def test_zero_is_a_value() -> None:
    experiment = experiment_from_dict(
        {"model": {"dropout": 0}, "optimizer": {"weight_decay": 0, "learning_rate": 0}, "seed": 0}
    )
    assert (experiment.model.dropout, experiment.optimizer.weight_decay, experiment.seed) == (0, 0, 0)


# Messages about a bad one


def test_every_problem_is_reported_at_once_with_its_dotted_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        """
        seeed = 1
        seed = -1
        [model]
        n_layer = "4"
        dropout = 1.0
        position = { type = "rope", bse = 3 }
        [training]
        batch_size = nan
        max_steps = true
        [optimizer]
        type = "sgd"
        [data]
        val_fraction = inf
        """
    )
    problems = problems_of_file(path)
    for beginning in (
        "seeed: unknown key; did you mean 'seed'?",
        "seed = -1: should be 'random' or greater than or equal to 0",
        'model.n_layer = "4": should be an integer',
        "model.dropout = 1.0: should be less than 1",
        "model.position.bse: unknown key; did you mean 'base'?",
        "training.batch_size = nan: should be",
        "training.max_steps = true: should be an integer",
        "optimizer.type = \"sgd\": should be 'adamw' or 'muon'",
        "data.val_fraction = inf: should be a finite number",
    ):
        assert [line for line in problems if line.startswith(beginning)], (beginning, problems)
    assert len(problems) == 9


def test_a_missing_plugin_is_reported_along_with_the_other_problems() -> None:
    problems = problems_of({"tokenizer": "chars", "model": {"position": "roep"}, "seed": -1})
    assert len(problems) == 3
    assert [line for line in problems if "no tokenizer is called 'chars'; did you mean 'char'?" in line]
    assert [
        line for line in problems if "no positional encoding is called 'roep'; did you mean 'rope'?" in line
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"modle": {}}, "modle: unknown key; did you mean 'model'?"),
        ({"model": {"n_layers": 2}}, "model.n_layers: unknown key; did you mean 'n_layer'?"),
        ({"max_steps": 2}, "max_steps: unknown key; it belongs in [training]"),
        ({"model": {"learning_rate": 1}}, "model.learning_rate: unknown key; it belongs in [optimizer]"),
        ({"bool": 1}, "bool: unknown key; known here: checkpoints, data,"),  # so pydantic calls a type
        ({"optimizer": {"muon": 1}}, "optimizer.muon: unknown key; known here: adamw_learning_rate,"),
        (
            {"optimizer": {"adamw_learning_rate": 0.1, "adamw_learning_rate_ratio": 0.5}},
            "optimizer.adamw_learning_rate or adamw_learning_rate_ratio sets the rate of AdamW; keep one",
        ),
        ({"training": {"zzz": 1}}, "training.zzz: unknown key; known here: backend, batch_size,"),
        (
            {"optimizer": {"type": "adamw", "momentum": 0.9}},
            "optimizer.momentum: unknown key; only type 'muon'",
        ),
        ({"tokenizer": {"type": "char", "x": 1}}, "tokenizer.x: unknown key; it takes no options"),
        ({"model": 5}, "model = 5: should be a table"),
        ({"model": {"qk_norm": "yes"}}, 'model.qk_norm = "yes": should be true or false'),
        ({"model": {"n_head": 3}}, "model.n_head = 3 does not divide n_embd = 128; n_head = 2 or 4 would"),
        ({"training": {"max_steps": 0}}, "training.max_steps = 0: should be greater than or equal to 1"),
        ({"training": {"max_steps": 1e3}}, "training.max_steps = 1000.0: should be an integer"),
        ({"training": {"max_steps": 10**5000}}, "training.max_steps = a number of thousands of digits: "),
        ({"training": {"max_steps": 2**31}}, "training.max_steps = 2147483648: should be less than or equal"),
        ({"training": {"backend": "tpu"}}, "training.backend = \"tpu\": should be 'auto', 'cpu', 'cuda' or"),
        ({"sampling": {"prompt": ""}}, 'sampling.prompt = "": should have at least 1 character'),
        ({"sampling": {"stop": ["a", ""]}}, 'sampling.stop.1 = "": should have at least 1 character'),
        ({"sampling": {"stop": "a"}}, 'sampling.stop = "a": should be a list'),
        ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate = nan: should be a finite"),
        ({"optimizer": {"learning_rate": -0.1}}, "optimizer.learning_rate = -0.1: should be greater than or"),
        ({"data": {"dataset": {"type": "text"}}}, "data.dataset.path: is required"),
        ({"data": {"dataset": {"type": "markov", "order": 9}}}, "data.dataset.order = 9: should be less"),
        (
            {"data": {"dataset": {"type": "a.txt", "x": 1}}},
            "data.dataset.x: unknown key; known here: field, path, separator; no dataset",
        ),
        ({"data": {"fallback": {"type": "markov", "lenth": 9}}}, "data.fallback.lenth: unknown key; did you"),
        ({"name": "../evil"}, "name = \"../evil\": should be letters, digits, '_' and '-'"),
        ({"name": "/etc/passwd"}, 'name = "/etc/passwd": should be letters'),
        ({"name": "a\0b"}, 'name = "a\\u0000b": should be letters'),
        ({"name": "a\\b"}, 'name = "a\\\\b": should be letters'),
        ({"name": "line\n"}, 'name = "line\\n": should be letters'),
        ({"name": "CON"}, 'name = "CON": is a name that Windows reserves'),
        ({"name": "lpt1"}, 'name = "lpt1": is a name that Windows reserves'),
        ({"name": ""}, 'name = "": should be 1 to 64 characters'),
        ({"name": "x" * 65}, 'name = "xxxxx'),
        (
            {"name": "日" * 43},
            'name = "' + "日" * 43 + '": should be 1 to 64 characters, and at most 128 bytes',
        ),
        ({"name": "my run"}, 'name = "my run": should be letters'),
        ({"name": "v1."}, 'name = "v1.": should be letters'),
        ({"name": "-x"}, 'name = "-x": should be letters'),
        ({"name": "\u0301x"}, 'name = "\u0301x": should be letters'),  # a mark without a letter
        ({"name": "a\u202eb"}, 'name = "a\\u202eb": should be letters'),  # turns the direction of the text
        ({"name": "a\u3164"}, 'name = "a\u3164": should be letters'),  # a letter that looks like nothing
        ({"name": "a\ufe0f"}, 'name = "a\ufe0f": should be letters'),
        ({"name": "¹"}, 'name = "¹": should be letters'),  # Windows takes COM¹ for a device too
    ],
)
def test_a_problem_names_the_key_and_what_would_be_right(data: dict[str, Any], message: str) -> None:
    problems = problems_of(data)
    assert len(problems) == 1
    assert problems[0].startswith(message), problems[0]
    assert len(problems[0]) < 300
    assert "\n" not in problems[0]


@pytest.mark.parametrize(
    "name", ["шекспир", "日本語", "हिन्दी-2", "שייקספיר", "Zoë_1", "٣", "x" * 64, "я" * 64]
)
def test_a_name_has_letters_of_any_script(name: str) -> None:
    assert experiment_from_dict({"name": name}).name == name


def test_a_name_is_stored_with_its_letters_composed(tmp_path: Path) -> None:
    assert experiment_from_dict({"name": "cafe\u0301"}).name == "café"
    (tmp_path / "cafe\u0301.toml").write_text("")  # as some systems store the name of a file
    assert load_experiment(tmp_path / "cafe\u0301.toml").name == "café"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = ", "not valid TOML: Invalid value"),
        (b"seed = 1\nseed = 2", "not valid TOML: Cannot overwrite a value"),
        (b"[model]\n[model]", "not valid TOML: Cannot declare ('model',) twice"),
        (b"\xff\xfea\0", "not UTF-8 at byte 0, so not TOML"),
        (b"# caf\xe9", "not UTF-8 at byte 5, so not TOML"),
        (b"#" * 1_000_001, "larger than 1 MB, so not an experiment file"),
        (b"a = " + b"[" * 20_000 + b"]" * 20_000, "not usable TOML: nested too deeply"),
        (b"a = " + b"{a=" * 20_000 + b"1" + b"}" * 20_000, "not usable TOML: nested too deeply"),
        (b"a." * 400_000 + b"a = 1", "not usable TOML: nested too deeply"),
        (b"model." + b"'a'. " * 100_000 + b"a = 1", "not usable TOML: nested too deeply"),
        (b"[" + b"a." * 40_000 + b"a]", "not usable TOML: nested too deeply"),
        (b"x = { " + b"a." * 40_000 + b"a = 1 }", "not usable TOML: nested too deeply"),
        (b"seed = " + b"9" * 6000, "not usable TOML: a number in it has thousands of digits"),
        (b"seed = 0x" + b"f" * 6000, "seed = a number of thousands of digits: "),
        (b"model.n_layer = 2020-01-01", "model.n_layer = datetime.date(2020, 1, 1): should be an integer"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else "",
)
def test_a_file_that_is_not_an_experiment_is_refused_with_the_reason(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    problems = problems_of_file(path)
    assert len(problems) == 1
    assert problems[0].startswith(message)


def test_tables_nested_without_end_in_a_dict_are_an_experiment_error() -> None:
    nested: dict[str, Any] = {}
    for _ in range(5000):
        nested = {"model": nested}
    assert problems_of(nested) == ("tables are nested too deeply",)


def test_a_missing_file_lists_those_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    Path("experiments/good.toml").write_text("")
    Path("pyproject.toml").write_text("")  # beside it, but not an experiment
    with pytest.raises(
        UsageError, match=r"no experiment file goood\.toml; did you mean experiments/good\.toml\?"
    ):
        load_experiment("goood.toml")
    with pytest.raises(UsageError, match=r"no experiment file experiments/goood\.toml; did you mean exper"):
        load_experiment("experiments/goood.toml")


def test_for_a_folder_the_experiments_in_it_are_listed(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text("")
    with pytest.raises(UsageError, match=r"is a folder, not an experiment file\. There are: .*good\.toml"):
        load_experiment(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "good.toml/inside", ""])
def test_an_impossible_path_is_a_usage_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.toml").write_text("")
    with pytest.raises(UsageError):
        load_experiment(name)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a file without end")
def test_a_file_without_end_is_not_read_to_its_end() -> None:
    assert problems_of_file(Path("/dev/zero")) == ("larger than 1 MB, so not an experiment file",)


# Overrides


def test_overrides_come_after_the_file_and_the_last_of_a_key_counts() -> None:
    experiment = experiment_from_dict(
        {"model": {"n_layer": 1, "position": {"type": "rope", "base": 3}}},
        [("model.n_layer", 2), ("model.n_layer", 3), ("model.position", "alibi")],
    )
    assert (experiment.model.n_layer, experiment.model.position.type) == (3, "alibi")
    assert experiment.model.position.options == {}


def test_an_option_of_a_plugin_named_in_short_form_can_be_overridden() -> None:
    experiment = experiment_from_dict({"model": {"position": "rope"}}, [("model.position.base", 7)])
    assert (experiment.model.position.type, experiment.model.position.options) == ("rope", {"base": 7.0})


@pytest.mark.parametrize(
    ("file", "override", "peak"),
    [
        ({}, ("learning_rate", 0.0), 0.0),
        ({"adamw_learning_rate_ratio": 0.5}, ("learning_rate", 0.1), 0.05),
        ({"adamw_learning_rate": 0.3}, ("learning_rate", 0.1), 0.3),
        ({"adamw_learning_rate": 0.3}, ("adamw_learning_rate_ratio", 0.5), 0.01),
        ({"adamw_learning_rate_ratio": 0.5}, ("adamw_learning_rate", 0.3), 0.3),
    ],
)
def test_the_rate_of_adamw_follows_learning_rate_unless_it_is_set(
    file: dict[str, float], override: tuple[str, float], peak: float
) -> None:
    """Also when the resolved file, with every field explicit, is read again."""
    name, value = override
    experiment = experiment_from_dict({"optimizer": file}, [(f"optimizer.{name}", value)])
    for again in (experiment, experiment_from_dict(tomllib.loads(to_toml(experiment)))):
        assert isinstance(again.optimizer, MuonSettings)
        assert again.optimizer.adamw_peak == pytest.approx(peak)
    assert again == experiment


def test_steps_override_the_epochs_of_a_file() -> None:
    experiment = experiment_from_dict({"training": {"epochs": 2}}, [("training.max_steps", 9)])
    assert (experiment.training.epochs, experiment.training.max_steps) == (None, 9)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("training.max_step", "training.max_step: unknown key; did you mean 'max_steps'?"),
        ("model.n_layer.x", "model.n_layer.x: model.n_layer is not a table"),
        ("", ": unknown key"),
        ("..", ": unknown key"),
        (".".join(["model"] * 2000), "tables are nested too deeply"),
    ],
)
def test_an_override_of_no_field_is_a_problem(key: str, message: str) -> None:
    problems = problems_of({"model": {"n_layer": 1}}, (key, 1))
    assert [line for line in problems if message in line], problems


# Plugins


def test_an_unknown_plugin_is_a_plugin_error_with_the_nearest_and_all_installed() -> None:
    with pytest.raises(PluginError) as caught:
        experiment_from_dict({"tokenizer": "chra"})
    assert caught.value.exit_code == 3
    assert "no tokenizer is called 'chra'; did you mean 'char'?" in str(caught.value)
    assert "Installed: bigram, bpe, byte, char, hf." in str(caught.value)
    with pytest.raises(PluginError, match=r"'zzz'\. Installed: alibi, learned, none, rope, sinusoidal\."):
        experiment_from_dict({"model": {"position": "zzz"}})


def test_options_that_fail_in_a_way_of_their_own_are_a_plugin_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def model_validate(options: object) -> None:
            raise ZeroDivisionError("by 0")

    monkeypatch.setattr("gptkit.tokenizers.char.CharTokenizer.Options", Broken)
    with pytest.raises(PluginError, match="tokenizer: the options of 'char' failed: ZeroDivisionError: by 0"):
        experiment_from_dict({"tokenizer": "char"})


# Whatever it contains

KEYS = sorted({name for _, model in sections(Experiment) for name in model.model_fields} | {"base", "path"})
WORDS = st.sampled_from(["random", "auto", "muon", "adamw", "rope", "char", "markov", "text", "a.txt", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
TABLES = st.dictionaries(st.sampled_from(list(Experiment.model_fields)) | st.text(max_size=4), VALUES)
PIECES = [
    *(f"[{name}]\n" for name in Experiment.model_fields),
    *(f"{key} = " for key in KEYS),
    *('"char"\n', "nan\n", "-1\n", "0.5\n", "true\n", "1e999\n", "0x_f", "1979-05-27T07:32:00Z\n"),
    *("{ type = 'rope', ", "}\n", "[", "]", ".", '"""', "'''", "\\u0000", "#", "\n"),
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)


def refusal(call: Callable[[], object]) -> GptkitError | None:
    """The GptkitError that a call raises; any other error fails the test."""
    try:
        call()
    except GptkitError as error:
        return error
    return None


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=True)
@given(TABLES, st.lists(st.tuples(st.text(max_size=12) | st.sampled_from(KEYS), VALUES), max_size=2))
def test_no_table_whatever_raises_anything_but_a_gptkit_error(
    data: dict[str, Any], overrides: list[tuple[str, Any]]
) -> None:
    error = refusal(lambda: experiment_from_dict(data, overrides))
    assert error is None or error.exit_code in (2, 3)


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes the file anew
)
@given(st.binary(max_size=60) | TEXTS.map(str.encode))
def test_no_file_whatever_raises_anything_but_a_gptkit_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    error = refusal(lambda: load_experiment(path))
    assert error is None or error.exit_code in (2, 3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=20) | st.builds("{}={}".format, st.sampled_from(KEYS), st.text(max_size=12)))
def test_no_override_whatever_raises_anything_but_a_gptkit_error(text: str) -> None:
    error = refusal(lambda: experiment_from_dict({}, [parse_override(text)]))
    assert error is None or error.exit_code in (2, 3)
