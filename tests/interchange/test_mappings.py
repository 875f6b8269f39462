"""Each combination of options: equal logits in transformers, or refused with the option to change."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gptkit.errors import UsageError
from gptkit.experiment.load import experiment_from_dict
from gptkit.experiment.schema import Experiment
from gptkit.interchange.layouts import config_of, hugging_face_tensors, shape_of
from gptkit.interchange.mappings import MAPPINGS, Layout, Target, all_options, find_mapping
from gptkit.interchange.parts import parts_of
from gptkit.model import GPT
from gptkit.model.build import build_model

VOCABULARY = 31


def experiment(options: dict[str, object], heads: int = 2) -> Experiment:
    """A model of two heads of 4, or of as many as are wanted."""
    shape = {"context_length": 12, "n_embd": 4 * heads, "n_head": heads, "n_layer": 2}
    return experiment_from_dict({"model": {**shape, **options}})


def random_model(settings: Experiment) -> GPT:
    """A model whose weights, biases and gains are all random."""
    torch.manual_seed(0)
    model = build_model(settings, VOCABULARY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.5)
    return model


def combinations(layout: Layout) -> Iterator[dict[str, object]]:
    """The options that go to an architecture of transformers."""
    for options in all_options():
        try:
            mapping = find_mapping(experiment(options).model, Target.HUGGING_FACE)
        except UsageError:
            continue
        if mapping.hugging_face is layout:
            yield options


def logits_in_transformers(settings: Experiment, model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    mapping = find_mapping(settings.model, Target.HUGGING_FACE)
    parts = parts_of(model)
    shape = shape_of(settings.model, VOCABULARY, parts)
    config: dict[str, Any] = config_of(mapping, shape)
    kind = config.pop("model_type")
    architecture = getattr(transformers, config["architectures"][0])
    loaded = architecture.from_pretrained(
        None,
        config=transformers.AutoConfig.for_model(kind, **config),
        state_dict={
            name: tensor.contiguous() for name, tensor in hugging_face_tensors(mapping, shape, parts).items()
        },
    )
    with torch.inference_mode():
        found: torch.Tensor = loaded.eval()(tokens).logits
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", Layout)
def test_transformers_computes_the_same_logits(layout: Layout) -> None:
    pytest.importorskip("transformers")
    tokens = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    tried = 0
    for options in combinations(layout):
        settings = experiment(options)
        model = random_model(settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers
            theirs = logits_in_transformers(settings, model, tokens)
        with torch.inference_mode():
            ours = model(tokens)
        torch.testing.assert_close(
            theirs, ours, rtol=0, atol=2e-5 * float(ours.abs().max()), msg=str(options)
        )
        tried += 1
    assert tried > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "position": "alibi"}, 3),
        ({"mlp": "swiglu", "mlp_hidden": 20}, 2),
        ({"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "position": "learned", "mlp_hidden": 10}, 2),
        ({"position": {"type": "rope", "base": 500.0}}, 2),
    ],
)
def test_other_shapes_are_equal_too(options: dict[str, object], heads: int) -> None:
    pytest.importorskip("transformers")
    settings = experiment(options, heads)
    model = random_model(settings)
    tokens = torch.randint(VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        theirs = logits_in_transformers(settings, model, tokens)
        ours = model(tokens)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-5 * float(ours.abs().max()))


@pytest.mark.parametrize("target", Target)
def test_each_combination_is_mapped_or_refused_with_what_to_change(target: Target) -> None:
    served = 0
    for options in all_options():
        settings = experiment(options).model
        try:
            mapping = find_mapping(settings, target)
        except UsageError as error:
            remedy = str(error).splitlines()[1]
            changes = re.findall(r"model\.(\w+) = (\S+)", remedy)
            repaired = {key: _value(text) for key, text in changes}
            find_mapping(experiment({**options, **repaired}).model, target)
        else:
            served += 1
            assert mapping.layout(target) is not None
            assert all(options[key] in values for key, values in mapping.options().items())
    assert served == {Target.HUGGING_FACE: 94, Target.GGUF: 70}[target]


def _value(text: str) -> object:
    return {"true": True, "false": False}.get(text, text.strip('"'))


def test_a_position_of_a_plugin_is_refused_by_name() -> None:
    settings = experiment({}).model
    settings = settings.model_copy(
        update={"position": settings.position.model_copy(update={"type": "my-position"})}
    )
    with pytest.raises(UsageError, match='position = "my-position"'):
        find_mapping(settings, Target.HUGGING_FACE)


def test_mpt_with_another_hidden_width_is_refused() -> None:
    options = {"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "position": "alibi", "mlp_hidden": 24}
    with pytest.raises(UsageError, match="mlp_hidden"):
        find_mapping(experiment(options).model, Target.HUGGING_FACE)


def test_every_row_of_the_table_is_reached() -> None:
    reached = set()
    for options in all_options():
        for target in Target:
            try:
                reached.add(find_mapping(experiment(options).model, target))
            except UsageError:
                continue
    assert reached == set(MAPPINGS)
