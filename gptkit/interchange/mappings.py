"""Which architecture of another program computes what a GPT of gptkit computes.

Input: the [model] table of an experiment. Output: a `Mapping`, the first row of the table below that has all
its options; or an error that names the option to change. Knows no tensors.

The rows come from reading the sources of transformers and llama.cpp, and the tests hold each to equal logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from gptkit.errors import UsageError
from gptkit.experiment.schema import ModelSettings


class Target(StrEnum):
    """A format to export to."""

    HUGGING_FACE = "hf"
    GGUF = "gguf"


class Layout(StrEnum):
    """An architecture, by its name in transformers (`model_type`)."""

    QWEN3 = "qwen3"
    LLAMA = "llama"
    ARCEE = "arcee"
    GPT2 = "gpt2"
    GPT_NEOX = "gpt_neox"
    STABLELM = "stablelm"
    NEMOTRON = "nemotron"
    MPT = "mpt"


class Form(StrEnum):
    """How the MLP is written."""

    AS_IT_IS = "as it is"
    SILU = "relu2 as a SwiGLU"  # parts.silu_form
    GATED = "gate, and up = 1"  # a gated MLP whose second factor is a bias of ones


@dataclass(frozen=True)
class Mapping:
    """A row: the options of a model, and what serves them. `None` serves no format."""

    norm: str
    mlp: tuple[str, ...]
    qk_norm: tuple[bool, ...]
    bias: tuple[bool, ...]
    position: tuple[str, ...]
    hugging_face: Layout | None
    gguf: Layout | None
    form: Form = Form.AS_IT_IS

    def layout(self, target: Target) -> Layout | None:
        return self.hugging_face if target is Target.HUGGING_FACE else self.gguf

    def options(self) -> dict[str, tuple[object, ...]]:
        """The values of each option that the row serves."""
        return {
            "norm": (self.norm,),
            "mlp": self.mlp,
            "qk_norm": self.qk_norm,
            "bias": self.bias,
            "position": self.position,
        }


_NO, _ANY = (False,), (False, True)
# Without positions: a rotation by angles of 1e-9 of the usual, which is none
_ROTARY = ("rope", "none")
# A table that is added: learned, computed, or zeros
_ADDED = ("learned", "sinusoidal", "none")
_GELU = ("gelu", "gelu_tanh")

# fmt: off
MAPPINGS = (
    #       norm         mlp           qk_norm  bias  position  Hugging Face       GGUF
    Mapping("rmsnorm",   ("swiglu",),  (True,), _NO,  _ROTARY,  Layout.QWEN3,      Layout.QWEN3),
    Mapping("rmsnorm",   ("relu2",),   (True,), _NO,  _ROTARY,  Layout.QWEN3,      Layout.QWEN3, Form.SILU),
    Mapping("rmsnorm",   ("swiglu",),  _NO,     _ANY, _ROTARY,  Layout.LLAMA,      Layout.LLAMA),
    Mapping("rmsnorm",   ("relu2",),   _NO,     _NO,  _ROTARY,  Layout.ARCEE,      Layout.ARCEE),
    Mapping("rmsnorm",   ("relu2",),   _NO,     _ANY, _ROTARY,  Layout.ARCEE,      None),
    Mapping("rmsnorm",   ("relu2",),   _NO,     _ANY, _ROTARY,  None,              Layout.LLAMA, Form.SILU),
    Mapping("rmsnorm",   _GELU,        _NO,     _ANY, _ROTARY,  Layout.LLAMA,      None,         Form.GATED),
    Mapping("layernorm", _GELU,        _NO,     _ANY, _ADDED,   Layout.GPT2,       Layout.GPT2),
    Mapping("layernorm", ("relu2",),   _NO,     _ANY, _ADDED,   Layout.GPT2,       None),
    Mapping("layernorm", _GELU,        _NO,     _ANY, ("rope",), Layout.GPT_NEOX,  Layout.GPT_NEOX),
    Mapping("layernorm", ("swiglu",),  _NO,     _NO,  _ROTARY,  Layout.STABLELM,   Layout.STABLELM),
    Mapping("layernorm", ("relu2",),   _NO,     _ANY, _ROTARY,  Layout.NEMOTRON,   Layout.NEMOTRON),
    Mapping("layernorm", ("gelu",),    _NO,     _NO,  ("alibi",), Layout.MPT,      Layout.MPT),
)
# fmt: on


def find_mapping(settings: ModelSettings, target: Target) -> Mapping:
    """The row for these settings.

    Raises UsageError if there is none, with the options that would have to differ: the fewest.
    """
    values = _values(settings)
    rows = [row for row in MAPPINGS if row.layout(target) is not None]
    differing = [
        [(key, options) for key, options in row.options().items() if values[key] not in options]
        for row in rows
    ]
    for row, different in zip(rows, differing, strict=True):
        if not different:
            _refuse_hidden_width(settings, row.layout(target))
            return row
    nearest = min(differing, key=len)
    needed = [f"model.{key} = {_toml(options[0])}" for key, options in nearest]
    whose = "transformers" if target is Target.HUGGING_FACE else "llama.cpp"
    having = ", ".join(f"{key} = {_toml(values[key])}" for key, _ in nearest)
    kept = ", ".join(f"{key} = {_toml(value)}" for key, value in values.items() if key not in dict(nearest))
    raise UsageError(
        f"no architecture of {whose} has {having} beside {kept}, so this model cannot be exported to it.\n"
        f"A model trained with {' and '.join(needed)} can."
    )


def _refuse_hidden_width(settings: ModelSettings, layout: Layout | None) -> None:
    """Raises UsageError for a hidden width that the architecture cannot have."""
    if layout is Layout.MPT and settings.hidden_width != 4 * settings.n_embd:
        raise UsageError(
            f"MPT has a hidden width of 4 n_embd, and this model one of {settings.hidden_width}, so it "
            'cannot be exported.\nA model trained with model.mlp_hidden = "auto" can.'
        )


def all_options() -> Iterator[dict[str, object]]:
    """Every combination of the options that decide, for tests and tables."""
    values: dict[str, tuple[object, ...]] = {
        "norm": ("rmsnorm", "layernorm"),
        "mlp": ("relu2", "swiglu", "gelu", "gelu_tanh"),
        "qk_norm": _ANY,
        "bias": _ANY,
        "tie_embeddings": _ANY,
        "position": ("rope", "learned", "sinusoidal", "alibi", "none"),
    }
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _values(settings: ModelSettings) -> dict[str, object]:
    return {
        "norm": settings.norm,
        "mlp": settings.mlp,
        "qk_norm": settings.qk_norm,
        "bias": settings.bias,
        "position": settings.position.type,
    }


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'
