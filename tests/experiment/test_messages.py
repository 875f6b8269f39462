"""The place of a problem in its file: found in any TOML, shown in a line that fits, and quickly."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from gptkit.errors import DataError, ExperimentError, PluginError
from gptkit.experiment.load import experiment_from_dict, load_experiment, read_experiment
from gptkit.experiment.messages import add_place
from gptkit.experiment.overrides import parse_overrides
from gptkit.experiment.source import find, show_line

KEYS = st.sampled_from(["a", "b-c", "model", "1", "with space", "q'", 'd"q', "é", "#", "[x]", "a.b", "\\"])
VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 1e30]) | st.text(max_size=6)
    | st.sampled_from(["#", "]", '"""', "'''", "a\nb", "x = 1", "{", ","]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value that is neither a table nor a list, by its path."""
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = ((str(number), item) for number, item in enumerate(value))
    else:
        return {path: value}
    return {place: leaf for key, item in inner for place, leaf in leaves(item, (*path, key)).items()}


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.booleans())
def test_every_value_of_a_file_is_found_at_its_position(data: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(data, multiline_strings=multiline)
    wanted = {path: leaf for path, leaf in leaves(data).items() if len(path) < 8}
    found = find(text, wanted)
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        span = found[path].value
        assert span is not None
        assert tomllib.loads(f"x = {text[slice(*span)]}")["x"] == leaf


@pytest.mark.parametrize(
    ("text", "path", "key", "value"),
    [
        ("a.b . 'c' = 1 # no", ("a", "b", "c"), "'c'", "1"),
        ("[model] # here\n\t n_head=4", ("model", "n_head"), "n_head", "4"),
        ("[ 'a b' . c ]\nd = 1979-05-27 07:32:00 # x", ("a b", "c", "d"), "d", "1979-05-27 07:32:00"),
        ("[[t]]\nk=1\n[[t]]\nk=2\n[t.u]\nv=3", ("t", "1", "u", "v"), "v", "3"),
        ('x = """\ny = 1\n"""\ny = 2', ("y",), "y", "2"),
        ("x = '''\n\\'''\ny = 2", ("y",), "y", "2"),
        ('x = [ # ]\n "]", [1, 2], { y = 3 } ]', ("x", "2", "y"), "y", "3"),
        ('"\\u0061" = """a""b"""""', ("a",), '"\\u0061"', '"""a""b"""""'),
        ("a = {}\nb = []\nc = 1", ("c",), "c", "1"),
    ],
)
def test_the_ways_of_writing_a_key(text: str, path: tuple[str, ...], key: str, value: str) -> None:
    tomllib.loads(text)
    entry = find(text, [path])[path]
    assert entry.value is not None
    assert (text[slice(*entry.key)], text[slice(*entry.value)]) == (key, value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="ab=.[]{}\"'#,\n \\", max_size=40))
def test_any_text_is_scanned_without_error(text: str) -> None:
    for entry in find(text, [("a",), ("b",), ("a", "b"), ("a", "0")]).values():
        assert show_line(text, entry.value or entry.key, "here").count("\n") == 1


def test_a_line_is_cut_around_the_place_and_harmless_to_a_terminal() -> None:
    text = "x = 1\nprompt = '" + "ab\x1b[31m\u202e日本" * 50 + "', here = 5, " + "z" * 500
    at = text.index("here")
    line, below = show_line(text, (at, at + 4), "message").split("\n")
    assert line.startswith("  line 2: …")
    assert line.endswith("…")
    assert "\\x1b[31m\\u202e" in line
    assert line.isprintable()
    assert len(line) < 200
    cells = line[: line.index("here")]
    wide = sum(character in "日本" for character in cells)
    assert below == " " * (len(cells) + wide) + "^^^^ message"


def message_of(path: Path, text: str, *words: tuple[str, Any], pairs: list[str] | None = None) -> str:
    path.write_text(text)
    with pytest.raises((ExperimentError, PluginError)) as caught:
        load_experiment(path, parse_overrides(pairs or (), dict(words)))
    return str(caught.value).replace(str(path), "my.toml")


def test_all_problems_are_shown_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = '# mine\n[optimizer]\ntype = "mun"\n\n[model]\nn_hed = 4  # heads\n'
    assert message_of(tmp_path / "my.toml", text) == (
        "my.toml has 2 problems:\n"
        '  line 3: type = "mun"\n'
        "                 ^^^^^ optimizer.type = \"mun\": should be 'adamw' or 'muon'; did you mean 'muon'?\n"
        "  line 6: n_hed = 4  # heads\n"
        "          ^^^^^ model.n_hed: unknown key; did you mean 'n_head'?"
    )


def test_the_words_of_the_command_line_are_shown_instead_of_a_line(tmp_path: Path) -> None:
    path, good = tmp_path / "my.toml", "[model]\nn_head = 4\n"
    heads = "--heads 3: model.n_head = 3 does not divide n_embd = 128; n_head = 2 or 4 would"
    assert message_of(path, good, ("model.n_head", 3)) == heads
    assert message_of(path, good, pairs=["model.n_hed=3"]) == (
        "--set model.n_hed=3: model.n_hed: unknown key; did you mean 'n_head'?"
    )
    both = message_of(path, "seeed = 1\n" + good, ("model.n_head", 3))
    assert both.startswith("my.toml has 2 problems:\n  line 1: seeed = 1\n")
    assert both.endswith(f"\n  {heads}")
    alone = message_of(path, good, ("model.n_head", 3), pairs=["nothing=1"])
    assert alone.startswith("the command line has 2 problems:\n  --heads 3: ")
    plugin = message_of(path, "tokenizer = 'byte'\n", pairs=["tokenizer=chra"])
    assert plugin.startswith("--set tokenizer=chra: no tokenizer is called 'chra'; did you mean 'char'?")


def test_an_experiment_of_python_keeps_the_plain_form() -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment_from_dict({"model": {"n_hed": 4}})
    assert str(caught.value) == "the experiment: model.n_hed: unknown key; did you mean 'n_head'?"
    assert list(caught.value.problems) == ["model.n_hed: unknown key; did you mean 'n_head'?"]


def test_a_mark_of_windows_at_the_beginning_of_a_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n[model]\r\nn_head = 2\r\n")
    assert load_experiment(tmp_path / "my.toml").seed == 3
    assert message_of(tmp_path / "my.toml", "seed = 3\r\n[model]\r\nn_hed = 2\r\n").startswith(
        "my.toml has a problem:\n  line 3: n_hed = 2\n          ^^^^^ "
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"a{number} = 1" for number in range(70_000)),
        "x" * 900_000 + " = 1",
        "[model]\nn_layer =" + " " * 900_000 + '"4"',
        "model = [" + "[]," * 200_000 + "]",
        "[[a]]\n" * 100_000,
        "a = " + "[" * 300 + "]" * 300,
        "tokenizer = '" + "\u202e" * 300_000 + "'",
    ],
    ids=["keys", "long key", "long line", "array", "tables", "deep", "odd characters"],
)
def test_a_hostile_file_is_answered_shortly_and_soon(text: str, tmp_path: Path) -> None:
    began = time.process_time()
    message = message_of(tmp_path / "my.toml", text)
    assert time.process_time() - began < 20  # seconds of this process; a second or two on a quiet machine
    assert len(message) < 10_000
    assert message.replace("\n", "").isprintable()


def test_a_later_error_about_a_field_gets_the_line_or_the_flag_that_sets_it(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("[data]\ndataset = 'nowhere'\n")
    loaded = read_experiment(path, parse_overrides(["training.backend=mps"], {}))
    notes = []
    for field in ("data.dataset", "training.backend", "model.n_head", ""):
        error = DataError("it is not here", field=field)
        add_place(error, loaded.source)
        notes.append("\n".join(getattr(error, "__notes__", [])).replace(str(path), "my.toml"))
    assert notes == [
        "  line 2: dataset = 'nowhere'\n                    ^^^^^^^^^ in my.toml",
        "It is set by --set training.backend=mps.",
        "",
        "",
    ]
