"""The identity of an experiment: the same however it is written, and another where a field is another."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from gptkit.experiment import identity
from gptkit.experiment.fields import fields_of
from gptkit.experiment.identity import (
    Change,
    changes_recorded_losses,
    changes_weights,
    differences,
    experiment_hash,
    hash_of,
    is_set_by,
    values_of,
    with_values,
)
from gptkit.experiment.load import experiment_from_dict, load_recorded, to_toml
from gptkit.experiment.schema import AdamWSettings, Experiment

# Of the first version that records hashes. A new default of a field changes it, as it changes what a file
# trains; a new field must not: it belongs in identity.ADDED_LATER.
OF_THE_DEFAULTS = "5a67e9ac511237458c7cb15d93ea7da2c74bb2c38876393e5235703aaf7adbfe"

BASE = Experiment(seed=1)
# Another value of each field that has no number as its default
OTHER: dict[str, Any] = {
    "name": "other",
    "seed": 2,
    "tokenizer": "byte",
    "data.dataset": "alphabet",
    "data.fallback": "markov",
    "data.val": "markov",
    "init_from.run": "mine",
    "init_from.checkpoint": "last",
    "init_from.sha256": "0" * 64,
    "model.attention_dropout": 0.5,
    "model.position": "alibi",
    "model.norm": "layernorm",
    "model.mlp": "swiglu",
    "model.init": "gpt2",
    "model.mlp_hidden": 96,
    "optimizer.adamw_learning_rate": 0.003,
    "training.freeze": ["blocks.0"],
    "training.epochs": 0.5,
    "training.minutes": 0.5,
    "training.backend": "cpu",
    "training.precision": "fp32",
    "training.compile": False,
    "training.threads": 1,
    "optimizer.type": "adamw",
    "schedule.type": "cosine",
    "sampling.prompt": "x",
    "sampling.stop": ["x"],
    "tracking": {"tensorboard": True},
}
NO_WEIGHT = {
    *("init_from.run", "init_from.checkpoint", "init_from.sha256"),
    *("name", "tokenizer", "data.dataset", "data.fallback", "training.log_interval", "tracking"),
    *("evaluation.eval_interval", "evaluation.eval_tokens", "evaluation.stop_after_bad_evals"),
    *(
        "checkpoints.save",
        "checkpoints.checkpoint_interval",
        "checkpoints.keep_last",
        "checkpoints.keep_every",
    ),
    *("sampling.prompt", "sampling.max_new_tokens", "sampling.temperature", "sampling.top_k"),
    *("sampling.top_p", "sampling.min_p", "sampling.stop", "sampling.sample_interval"),
    "distributed.timeout",
}
ONE_VALUE = {"distributed.strategy"}  # there is no other value yet
KEYS = sorted({*fields_of("muon"), *fields_of("adamw")} - ONE_VALUE)


def other_value(key: str) -> Any:
    field = fields_of("muon").get(key)
    if key in OTHER or field is None:
        return OTHER.get(key)
    if isinstance(field.default, bool):
        return not field.default
    if key in ("model.n_embd", "model.n_head"):
        return field.default * 2
    return field.default + 1 if isinstance(field.default, int) else field.default / 2 or 0.25


@pytest.mark.parametrize("key", KEYS)
def test_another_value_of_any_field_is_another_hash_and_is_named(key: str) -> None:
    value, before = other_value(key), values_of(BASE)
    if key == "optimizer.type":
        other = BASE.model_copy(update={"optimizer": AdamWSettings()})
    else:
        assert value is not None, "a field of this type needs a line in OTHER"
        table = (
            {"type": value}
            if key in ("tokenizer", "model.position", "data.dataset", "data.fallback", "data.val")
            else value
        )
        start = before
        if key.startswith("init_from."):
            start = before = with_values(before, {"init_from.run": "other"})
        if key == "optimizer.adamw_learning_rate":  # instead of the ratio
            start = with_values(before, {"optimizer.adamw_learning_rate_ratio": None})
        other = Experiment.model_validate(nested(start, key, table))
    now = values_of(other)
    assert experiment_hash(other) != experiment_hash(BASE)
    names = {change.key for change in differences(before, now)}
    assert any(name == key.removesuffix(".type") or name.startswith(key) for name in names)
    assert len(names) == 1 or key in ("optimizer.type", "optimizer.adamw_learning_rate")
    weights = [change for change in differences(before, now) if changes_weights(change, now)]
    assert bool(weights) == (key not in NO_WEIGHT)


def nested(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = {name: dict(one) if isinstance(one, dict) else one for name, one in values.items()}
    *tables, last = key.split(".")
    place = copy
    for name in tables:
        place = place[name]
    place[last] = value
    return copy


def test_every_name_of_the_tables_of_identity_is_a_field() -> None:
    known = {part for key in KEYS for part in (key, key.rpartition(".")[0])}
    for names in (identity.CHANGE_NO_WEIGHT, identity.CHANGE_RECORDED_LOSSES, identity.BACKEND):
        assert set(names) <= known
    assert {key for key in KEYS if changes_recorded_losses(Change(key, 1, 2))} <= NO_WEIGHT


def test_the_hash_is_that_of_the_values_and_not_of_how_a_file_writes_them(tmp_path: Any) -> None:
    text = to_toml(experiment_from_dict({"seed": 1, "optimizer": {"learning_rate": 1}}))
    plain, other = tmp_path / "plain.toml", tmp_path / "other.toml"
    plain.write_text(text)
    tables = text.split("\n\n")
    top, rest = tables[0], tables[1:]
    random.Random(1).shuffle(rest)
    moved = "\n\n# a comment\n".join([top, *rest])
    moved = moved.replace("n_layer = 4", "n_layer   = 0x4 # layers").replace(
        "eps = 1e-08", "eps = 0.000_000_01"
    )
    other.write_text(moved.replace("learning_rate = 1.0", "learning_rate = 1"))
    assert other.read_text() != text
    assert experiment_hash(load_recorded(plain)) == experiment_hash(load_recorded(other))
    short = {"seed": 1, "optimizer": {"type": "muon", "learning_rate": 1.0}, "model": {"position": "rope"}}
    assert experiment_hash(experiment_from_dict(short)) == experiment_hash(load_recorded(plain))


def test_the_hash_of_an_experiment_is_that_of_earlier_versions() -> None:
    """A change of it makes every recorded hash invalid: a new field belongs in ADDED_LATER."""
    assert experiment_hash(experiment_from_dict({"seed": 1})) == OF_THE_DEFAULTS


def test_a_field_of_a_later_version_changes_no_hash_while_it_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Later(Experiment):
        label_smoothing: float = 0.0

    later, before = Later(seed=1), values_of(BASE)
    assert experiment_hash(later) != experiment_hash(BASE)
    monkeypatch.setitem(identity.ADDED_LATER, "label_smoothing", 0.0)
    assert experiment_hash(later) == experiment_hash(BASE)
    (change,) = differences(before, values_of(Later(seed=1, label_smoothing=0.5)))
    assert (change.key, change.old, change.new) == ("label_smoothing", None, 0.5)
    assert changes_weights(change, before)  # also one that nobody has classified


def test_a_default_that_a_later_version_of_a_plugin_adds_is_no_difference() -> None:
    before = {"model": {"position": {"type": "rope", "base": 10000.0}}}
    now = with_values(before, {"model.position.scale": 2.0})
    assert differences(before, now, stated={"model.position.type", "model.position.base"}) == ()
    assert [str(one) for one in differences(before, now)] == ["model.position.scale not set -> 2.0"]


def test_true_is_not_one_and_values_are_put_back() -> None:
    before = {"a": {"b": True}, "optimizer": {"type": "muon"}}
    changed = with_values(before, {"a.b": 1, "optimizer": "adamw", "new.key": "x"})
    assert [str(one) for one in differences(before, changed)] == [
        "a.b true -> 1",
        "optimizer muon -> adamw",
        "new.key not set -> x",
    ]
    back = with_values(changed, {one.key: one.old for one in differences(before, changed)})
    assert hash_of(back | {"new": {}}) == hash_of(before)
    assert before == {"a": {"b": True}, "optimizer": {"type": "muon"}}


@pytest.mark.parametrize(
    ("key", "keys", "expected"),
    [
        ("model.n_embd", {"model.n_embd"}, True),
        ("model.n_embd", {"model.n_head"}, False),
        ("model.position.base", {"model.position"}, True),
        ("optimizer.momentum", {"optimizer.type"}, True),
        ("training.minutes", {"training.max_steps"}, True),
        ("seed", {"training.max_steps"}, False),
    ],
)
def test_which_changes_follow_from_setting_a_field(key: str, keys: set[str], expected: bool) -> None:
    assert is_set_by(Change(key, 1, 2), keys) == expected


def test_where_a_constant_schedule_ends_changes_no_weight() -> None:
    change = Change("training.max_steps", 10, 20)
    assert changes_weights(change, {"schedule": {"type": "linear"}})
    assert not changes_weights(change, {"schedule": {"type": "constant"}})
