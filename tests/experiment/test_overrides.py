"""Overrides: what --set and the flags of a command line set, and which of them contradict each other."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from gptkit.errors import UsageError
from gptkit.experiment.load import experiment_from_dict
from gptkit.experiment.overrides import Override, parse_override, parse_overrides


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.max_steps=200", "training.max_steps", 200),
        ("optimizer.learning_rate = 1e-3", "optimizer.learning_rate", 0.001),
        ("model.qk_norm=false", "model.qk_norm", False),
        ("model.position=rope", "model.position", "rope"),
        ("model.position = rope", "model.position", "rope"),
        ('model.position={type="rope", base=5}', "model.position", {"type": "rope", "base": 5}),
        ('sampling.stop=["a", "b"]', "sampling.stop", ["a", "b"]),
        ("data.dataset=novels/a=b.txt", "data.dataset", "novels/a=b.txt"),
        ("data.dataset.separator= ", "data.dataset.separator", " "),
        ("sampling.prompt=1\nseed = 2", "sampling.prompt", "1\nseed = 2"),
        ('name="123"', "name", "123"),
        ("sampling.prompt=", "sampling.prompt", ""),
        ("seed=[[", "seed", "[["),
        ("seed=" + "[" * 20_000, "seed", "[" * 20_000),
        ("seed={" + "a." * 40_000 + "a=1}", "seed", "{" + "a." * 40_000 + "a=1}"),
    ],
)
def test_a_value_is_toml_or_else_the_text_itself(text: str, key: str, value: object) -> None:
    parsed = parse_override(text)
    assert (parsed.key, parsed.value) == (key, value)
    assert type(parsed.value) is type(value)


@pytest.mark.parametrize("text", ["", "=", "=5", "training.max_steps", " = 5"])
def test_an_override_without_key_or_value_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected KEY=VALUE, as in --set training\.max_steps=200"):
        parse_override(text)


def test_flags_become_overrides_of_their_fields_and_those_not_given_none() -> None:
    flags = {"model.n_embd": 64, "checkpoints.save": True, "seed": None, "model.dropout": 0.0}
    assert parse_overrides([], flags) == [
        Override("model.n_embd", 64, "--emb 64"),
        Override("model.dropout", 0.0, "--drop 0.0"),
        Override("checkpoints.save", False, "--no-save"),
    ]


def test_a_table_comes_before_its_fields_in_whatever_order_they_are_given() -> None:
    pairs = ["data.dataset.separator=;", "optimizer.beta1=0.5", "optimizer=adamw"]
    experiment = experiment_from_dict({}, parse_overrides(pairs, {"data.dataset": "novel.txt"}))
    assert (experiment.optimizer.type, experiment.optimizer.beta1) == ("adamw", 0.5)
    assert experiment.data.dataset.type == "novel.txt"
    assert experiment.data.dataset.options == {"separator": ";"}


def test_a_dataset_named_by_the_flag_has_no_fallback_unless_one_is_set() -> None:
    file = {"data": {"dataset": "shakespeare", "fallback": "python-docs"}}
    flag = {"data.dataset": "novel.txt"}
    assert experiment_from_dict(file, parse_overrides([], flag)).data.fallback is None
    kept = experiment_from_dict(file, parse_overrides(["data.fallback=markov"], flag)).data.fallback
    assert kept is not None
    assert kept.type == "markov"


@pytest.mark.parametrize(
    ("pairs", "flags", "message"),
    [
        (
            ["model.n_embd=64"],
            {"model.n_embd": 32},
            "--set model.n_embd=64 and --emb 32 both set model.n_embd",
        ),
        (["model={n_embd=64}"], {"model.n_embd": 32}, "--set model={n_embd=64} and --emb 32 both set"),
        (["seed=1", "seed=2"], {}, "--set seed=1 and --set seed=2 both set seed; keep one of them"),
        (["data.dataset.type=markov"], {"data.dataset": "a.txt"}, "both set data.dataset; keep"),
        (
            ["training.epochs=2"],
            {"training.max_steps": 5},
            "--set training.epochs=2 and --steps 5 both set the length of training",
        ),
        ([], {"training.max_steps": 5, "training.minutes": 1.0}, "--steps 5 and --minutes 1.0 both set"),
        (
            ["optimizer.adamw_learning_rate=0.1", "optimizer.adamw_learning_rate_ratio=0.5"],
            {},
            "--set optimizer.adamw_learning_rate_ratio=0.5 both set AdamW's learning rate; keep one",
        ),
    ],
)
def test_contradicting_overrides_are_an_error_that_names_both(
    pairs: list[str], flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_overrides(pairs, flags)
    assert message in str(caught.value)


def test_help_needs_the_flags_but_not_the_schema() -> None:
    """The schema takes long to import. Typer itself imports pydantic, but only to parse a command line."""
    code = (
        "import sys\nfrom gptkit.cli.app import run_command\n"
        "assert not {'pydantic', 'rich', 'torch', 'numpy'} & set(sys.modules)\n"
        "run_command(['train', '--help'])\n"
        "assert not {'gptkit.experiment.schema', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--learning-rate" in done.stdout
