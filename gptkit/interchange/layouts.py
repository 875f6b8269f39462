"""The configuration and the tensors of each architecture in transformers and llama.cpp.

Input: a model's settings and `ModelParts`. Output: a config.json as a dict, and tensors by the names that the
other program expects. Knows nothing of files, tokenizers or runs.

Facts that the layouts rest on: gptkit rotates the pairs (i, i + D/2) as `rotate_half` of transformers does;
its RMSNorm has eps 1e-6 and no gain, its LayerNorm eps 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gptkit.experiment.schema import ModelSettings
from gptkit.interchange.mappings import Form, Layout, Mapping
from gptkit.interchange.parts import Affine, BlockParts, ModelParts, join_rows, silu_form
from gptkit.model.gpt import LAYER_NORM_EPS
from gptkit.model.ops import RMS_EPS

NO_ROTATION = 1e9  # positions divided by this leave every angle below rounding
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu2": "relu2", "swiglu": "silu"}

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """What a layout has to know of a model."""

    settings: ModelSettings
    vocab_size: int
    hidden: int  # width of the MLP

    @property
    def heads(self) -> int:
        return self.settings.n_head

    @property
    def head_size(self) -> int:
        return self.settings.n_embd // self.settings.n_head

    @property
    def rotates(self) -> bool:
        return self.settings.position.type == "rope"

    @property
    def rope_base(self) -> float:
        return float(self.settings.position.options.get("base", 10000.0))


def shape_of(settings: ModelSettings, vocab_size: int, parts: ModelParts) -> Shape:
    return Shape(settings, vocab_size, parts.blocks[0].up.weight.size(0))


def in_form(parts: ModelParts, form: Form) -> ModelParts:
    """The parts with the MLP written as the mapping asks for."""
    if form is Form.SILU:
        return parts.map_blocks(silu_form)
    if form is Form.GATED:
        return parts.map_blocks(_gated)
    return parts


def _gated(block: BlockParts) -> BlockParts:
    """activation(h) as activation(gate) up, with up = 0 x + 1."""
    ones = torch.ones(block.up.weight.size(0))
    up = Affine(torch.zeros_like(block.up.weight), ones)
    return replace(block, gate=block.up.with_bias(), up=up, down=block.down.with_bias())


# Hugging Face


def config_of(mapping: Mapping, shape: Shape) -> dict[str, Any]:
    """config.json for transformers."""
    layout = mapping.hugging_face
    assert layout is not None
    architecture, describe, _ = _HUGGING_FACE[layout]
    config = {
        "architectures": [architecture],
        "model_type": layout.value,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.settings.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "use_cache": True,
    }
    return config | describe(shape, mapping)


def hugging_face_tensors(mapping: Mapping, shape: Shape, parts: ModelParts) -> Tensors:
    """model.safetensors for transformers."""
    assert mapping.hugging_face is not None
    name_tensors = _HUGGING_FACE[mapping.hugging_face][2]
    return name_tensors(shape, in_form(parts, mapping.form))


def _sizes(shape: Shape) -> dict[str, Any]:
    settings = shape.settings
    return {
        "hidden_size": settings.n_embd,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": settings.n_layer,
        "num_attention_heads": settings.n_head,
        "max_position_embeddings": settings.context_length,
    }


def _rotation(shape: Shape, **more: Any) -> dict[str, Any]:
    """The rotary settings, for transformers from version 5 on and, in the other keys, before."""
    scaling = None if shape.rotates else {"rope_type": "linear", "factor": NO_ROTATION}
    parameters = {"rope_theta": shape.rope_base, **(scaling or {"rope_type": "default"}), **more}
    return {"rope_theta": shape.rope_base, "rope_scaling": scaling, "rope_parameters": parameters, **more}


def _llama_config(shape: Shape, mapping: Mapping) -> dict[str, Any]:
    """The family of llama: Qwen3, Llama and Arcee."""
    silu = mapping.form is Form.SILU or shape.settings.mlp == "swiglu"
    layout = mapping.hugging_face
    config = _sizes(shape) | {
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu" if silu else _ACTIVATIONS[shape.settings.mlp],
        "rms_norm_eps": RMS_EPS,
        "attention_bias": shape.settings.bias,
        "attention_dropout": 0.0,
    }
    if layout is not Layout.QWEN3:
        config["mlp_bias"] = shape.settings.bias or mapping.form is Form.GATED
    return config | _rotation(shape)


def _stablelm_config(shape: Shape, mapping: Mapping) -> dict[str, Any]:
    return (
        _sizes(shape)
        | {
            "num_key_value_heads": shape.heads,
            "hidden_act": "silu",
            "layer_norm_eps": LAYER_NORM_EPS,
            "use_qkv_bias": False,
            "qk_layernorm": False,
            "use_parallel_residual": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        }
        | _rotation(shape, partial_rotary_factor=1.0)
    )


def _nemotron_config(shape: Shape, mapping: Mapping) -> dict[str, Any]:
    return (
        _sizes(shape)
        | {
            "num_key_value_heads": shape.heads,
            "head_dim": shape.head_size,
            "hidden_act": "relu2",
            "norm_eps": LAYER_NORM_EPS,
            "attention_bias": shape.settings.bias,
            "mlp_bias": shape.settings.bias,
            "attention_dropout": 0.0,
        }
        | _rotation(shape, partial_rotary_factor=1.0)
    )


def _gpt_neox_config(shape: Shape, mapping: Mapping) -> dict[str, Any]:
    return (
        _sizes(shape)
        | {
            "hidden_act": _ACTIVATIONS[shape.settings.mlp],
            "layer_norm_eps": LAYER_NORM_EPS,
            "use_parallel_residual": False,
            "attention_bias": True,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "rotary_pct": 1.0,
            "rotary_emb_base": shape.rope_base,
        }
        | _rotation(shape, partial_rotary_factor=1.0)
    )


def _gpt2_config(shape: Shape, mapping: Mapping) -> dict[str, Any]:
    settings = shape.settings
    return {
        "n_positions": settings.context_length,
        "n_ctx": settings.context_length,
        "n_embd": settings.n_embd,
        "n_layer": settings.n_layer,
        "n_head": settings.n_head,
        "n_inner": shape.hidden,
        "activation_function": _ACTIVATIONS[settings.mlp],
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _mpt_config(shape: Shape, mapping: Mapping) -> dict[str, Any]:
    settings = shape.settings
    return {
        "d_model": settings.n_embd,
        "n_heads": settings.n_head,
        "n_layers": settings.n_layer,
        "expansion_ratio": shape.hidden // settings.n_embd,
        "max_seq_len": settings.context_length,
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "learned_pos_emb": False,
        "no_bias": True,
        "resid_pdrop": 0.0,
        "emb_pdrop": 0.0,
        "attn_config": {"attn_type": "multihead_attention", "alibi": True, "alibi_bias_max": 8},
    }


class _Names:
    """Collects tensors under the names of a format."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}

    def put(self, name: str, layer: Affine, *, bias: bool = False) -> None:
        """`bias`: write one of zeros where there is none."""
        layer = layer.with_bias() if bias else layer
        self.tensors[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            self.tensors[f"{name}.bias"] = layer.bias


def _llama_tensors(shape: Shape, parts: ModelParts) -> Tensors:
    """Qwen3, Llama, Arcee, StableLM and Nemotron name their tensors alike."""
    return _llama_like(shape, parts, norm=lambda norm: norm)


def _stablelm_tensors(shape: Shape, parts: ModelParts) -> Tensors:
    return _llama_like(shape, parts, norm=Affine.with_bias)


def _nemotron_tensors(shape: Shape, parts: ModelParts) -> Tensors:
    """Nemotron stores a norm's gain without the one that it adds."""
    return _llama_like(shape, parts, norm=lambda norm: Affine(norm.weight - 1, norm.with_bias().bias))


def _llama_like(shape: Shape, parts: ModelParts, norm: Callable[[Affine], Affine]) -> Tensors:
    names = _Names()
    names.tensors["model.embed_tokens.weight"] = parts.embedding
    for number, block in enumerate(parts.blocks):
        name = f"model.layers.{number}"
        names.put(f"{name}.input_layernorm", norm(block.attention_norm))
        for letter, layer in (("q", block.q), ("k", block.k), ("v", block.v), ("o", block.output)):
            names.put(f"{name}.self_attn.{letter}_proj", layer)
        if shape.settings.qk_norm:
            names.put(f"{name}.self_attn.q_norm", Affine(torch.ones(shape.head_size)))
            names.put(f"{name}.self_attn.k_norm", Affine(torch.ones(shape.head_size)))
        names.put(f"{name}.post_attention_layernorm", norm(block.mlp_norm))
        if block.gate is not None:
            names.put(f"{name}.mlp.gate_proj", block.gate)
        names.put(f"{name}.mlp.up_proj", block.up)
        names.put(f"{name}.mlp.down_proj", block.down)
    names.put("model.norm", norm(parts.final_norm))
    if parts.head is not None:
        names.tensors["lm_head.weight"] = parts.head
    return names.tensors


def _gpt2_tensors(shape: Shape, parts: ModelParts) -> Tensors:
    """GPT-2 keeps its linear layers as (inputs, outputs)."""

    def turned(layer: Affine) -> Affine:
        return Affine(layer.weight.t(), layer.bias)

    names = _Names()
    names.tensors["transformer.wte.weight"] = parts.embedding
    names.tensors["transformer.wpe.weight"] = added_positions(shape, parts)
    for number, block in enumerate(parts.blocks):
        name = f"transformer.h.{number}"
        names.put(f"{name}.ln_1", block.attention_norm, bias=True)
        names.put(f"{name}.attn.c_attn", turned(join_rows(block.q, block.k, block.v).with_bias()))
        names.put(f"{name}.attn.c_proj", turned(block.output.with_bias()))
        names.put(f"{name}.ln_2", block.mlp_norm, bias=True)
        names.put(f"{name}.mlp.c_fc", turned(block.up.with_bias()))
        names.put(f"{name}.mlp.c_proj", turned(block.down.with_bias()))
    names.put("transformer.ln_f", parts.final_norm, bias=True)
    if parts.head is not None:
        names.tensors["lm_head.weight"] = parts.head
    return names.tensors


def added_positions(shape: Shape, parts: ModelParts) -> Tensor:
    """The table that is added to the embeddings, (T, C): zeros where there is none."""
    if parts.positions is not None:
        return parts.positions
    return torch.zeros(shape.settings.context_length, shape.settings.n_embd)


def _gpt_neox_tensors(shape: Shape, parts: ModelParts) -> Tensors:
    """GPT-NeoX stacks query, key and value of each head."""
    H, D = shape.heads, shape.head_size

    def by_head(layer: Affine) -> Affine:
        return layer.map(
            lambda rows: (
                rows.view(3, H, D, *rows.shape[1:]).transpose(0, 1).reshape(3 * H * D, *rows.shape[1:])
            )
        )

    names = _Names()
    names.tensors["gpt_neox.embed_in.weight"] = parts.embedding
    for number, block in enumerate(parts.blocks):
        name = f"gpt_neox.layers.{number}"
        names.put(f"{name}.input_layernorm", block.attention_norm, bias=True)
        names.put(
            f"{name}.attention.query_key_value", by_head(join_rows(block.q, block.k, block.v).with_bias())
        )
        names.put(f"{name}.attention.dense", block.output, bias=True)
        names.put(f"{name}.post_attention_layernorm", block.mlp_norm, bias=True)
        names.put(f"{name}.mlp.dense_h_to_4h", block.up, bias=True)
        names.put(f"{name}.mlp.dense_4h_to_h", block.down, bias=True)
    names.put("gpt_neox.final_layer_norm", parts.final_norm, bias=True)
    names.tensors["embed_out.weight"] = parts.embedding if parts.head is None else parts.head
    return names.tensors


def _mpt_tensors(shape: Shape, parts: ModelParts) -> Tensors:
    names = _Names()
    names.tensors["transformer.wte.weight"] = parts.embedding
    for number, block in enumerate(parts.blocks):
        name = f"transformer.blocks.{number}"
        names.put(f"{name}.norm_1", block.attention_norm)
        names.put(f"{name}.attn.Wqkv", join_rows(block.q, block.k, block.v))
        names.put(f"{name}.attn.out_proj", block.output)
        names.put(f"{name}.norm_2", block.mlp_norm)
        names.put(f"{name}.ffn.up_proj", block.up)
        names.put(f"{name}.ffn.down_proj", block.down)
    names.put("transformer.norm_f", parts.final_norm)
    if parts.head is not None:
        names.tensors["lm_head.weight"] = parts.head
    return names.tensors


_Describe = Callable[[Shape, Mapping], dict[str, Any]]
_NameTensors = Callable[[Shape, ModelParts], Tensors]
_HUGGING_FACE: dict[Layout, tuple[str, _Describe, _NameTensors]] = {
    Layout.QWEN3: ("Qwen3ForCausalLM", _llama_config, _llama_tensors),
    Layout.LLAMA: ("LlamaForCausalLM", _llama_config, _llama_tensors),
    Layout.ARCEE: ("ArceeForCausalLM", _llama_config, _llama_tensors),
    Layout.STABLELM: ("StableLmForCausalLM", _stablelm_config, _stablelm_tensors),
    Layout.NEMOTRON: ("NemotronForCausalLM", _nemotron_config, _nemotron_tensors),
    Layout.GPT_NEOX: ("GPTNeoXForCausalLM", _gpt_neox_config, _gpt_neox_tensors),
    Layout.GPT2: ("GPT2LMHeadModel", _gpt2_config, _gpt2_tensors),
    Layout.MPT: ("MptForCausalLM", _mpt_config, _mpt_tensors),
}
