"""The fields of the schema: every one with its default, its flag and its plugins."""

from __future__ import annotations

import tomllib
from typing import Annotated, Literal

import jsonschema
from pydantic import BaseModel, Field

from gptkit.experiment.fields import choices, fields, fields_of, json_schema, option_fields
from gptkit.experiment.load import experiment_from_dict, to_toml
from gptkit.experiment.overrides import FLAGS
from gptkit.experiment.schema import Experiment
from gptkit.plugins import registry


def test_every_field_of_the_resolved_file_is_described_with_its_default() -> None:
    for optimizer in ("adamw", "muon"):
        file = tomllib.loads(to_toml(experiment_from_dict({"optimizer": optimizer})))
        known = fields_of(optimizer)
        assert all(field.description and field.type for field in known.values())
        for key, field in known.items():
            value = file
            for name in key.split("."):
                value = value.get(name) if isinstance(value, dict) else None
            if field.family and value is not None:
                value = value["type"]
            if key != "optimizer.type":  # its default is muon, whatever a file has
                assert value == field.default, key


def test_a_field_knows_its_table_its_unit_its_words_and_its_plugins() -> None:
    known = {field.key: field for field in fields()}
    assert {field.table.partition(".")[0] or key for key, field in known.items()} == set(
        Experiment.model_fields
    )
    assert (known["model.context_length"].unit, known["training.minutes"].unit) == ("tokens", "minutes")
    assert known["training.threads"].type == '"auto" or integer, >= 1, <= 4,096'
    assert known["sampling.stop"].type == "list of strings"
    assert known["sampling.top_k"].type == "integer, >= 0"  # and a limit that keeps absurd numbers out
    assert known["optimizer.momentum"].optimizer == "muon"
    assert {key: field.family for key, field in known.items() if field.family} == {
        "tokenizer": registry.TOKENIZERS,
        "model.position": registry.POSITIONS,
        "data.dataset": registry.DATASETS,
        "data.fallback": registry.DATASETS,
        "data.val": registry.DATASETS,
    }


def test_every_flag_belongs_to_a_field_and_no_name_is_used_twice() -> None:
    assert {field.flag for field in fields() if field.flag} == set(FLAGS)
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


def test_the_words_to_choose_from() -> None:
    assert choices("model.norm") == ["layernorm", "rmsnorm"]
    assert choices("model.qk_norm") == ["true", "false"]
    assert choices("optimizer") == choices("optimizer.type") == ["adamw", "muon"]
    assert choices("model.position") == choices("model.position.type") == registry.names(registry.POSITIONS)
    assert choices("optimizer.beta1") == ["0.9", "0.8"]
    assert choices("nothing") == []


def test_the_options_of_a_plugin_are_fields_of_its_table() -> None:
    rope = registry.load(registry.POSITIONS, "rope")
    (base,) = option_fields(rope.Options, "model.position")
    assert (base.key, base.default, base.required) == ("model.position.base", 10000.0, False)
    text = registry.load(registry.DATASETS, "text")
    assert {field.key: field.required for field in option_fields(text.Options, "data.dataset")}[
        "data.dataset.path"
    ]


def test_the_json_schema_takes_the_resolved_file_and_refuses_an_unknown_key() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    file = tomllib.loads(to_toml(experiment_from_dict({"optimizer": "adamw"})))
    validator.validate(file)
    file["model"]["n_hed"] = 4
    assert not validator.is_valid(file)


def test_options_of_any_shape_are_described() -> None:
    class Cat(BaseModel):
        kind: Literal["cat"] = "cat"

    class Dog(BaseModel):
        kind: Literal["dog"] = "dog"

    class Options(BaseModel):
        pet: Annotated[Cat | Dog, Field(discriminator="kind")]
        home: Cat = Cat()
        names: list[str] = []

    described = {field.key: field for field in option_fields(Options, "tokenizer")}
    assert described["tokenizer.pet"].required
    assert described["tokenizer.home.kind"].choices == ("cat",)
    assert described["tokenizer.names"].type == "list of strings"
