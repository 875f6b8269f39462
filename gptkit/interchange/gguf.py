"""Writes a GGUF file, which llama.cpp runs.

Input: the parts of a model, its mapping and vocabulary. Output: one file. Uses the package gguf, which names
the keys; the names of tensors are those that llama.cpp loads for each architecture. Knows nothing of runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptkit.errors import PluginError
from gptkit.interchange.layouts import (
    NO_ROTATION,
    Shape,
    Tensors,
    added_positions,
    in_form,
)
from gptkit.interchange.mappings import Layout, Mapping
from gptkit.interchange.parts import Affine, BlockParts, ModelParts, join_rows
from gptkit.interchange.vocabularies import GgufVocabulary
from gptkit.model.gpt import LAYER_NORM_EPS
from gptkit.model.ops import RMS_EPS

ARCHITECTURES = {Layout.GPT_NEOX: "gptneox"}  # where llama.cpp has another name
_ALIBI_BIAS = 8.0  # gptkit's slopes are 2^(-8 / H), …
_STACKED = (Layout.GPT2, Layout.GPT_NEOX, Layout.MPT)  # query, key and value in one tensor
_LAYER_NORMS = (Layout.GPT2, Layout.GPT_NEOX, Layout.STABLELM, Layout.NEMOTRON, Layout.MPT)
_UNBIASED_NORMS = (Layout.MPT,)  # where a shift of the norms may be missing
_BIASED = (Layout.GPT2, Layout.GPT_NEOX)  # linear layers must have a bias
# llama.cpp rotates pairs (2i, 2i + 1) for these, so the rows of queries and keys change places
_INTERLEAVED = (Layout.LLAMA, Layout.ARCEE)


def write_gguf(
    path: Path,
    name: str,
    mapping: Mapping,
    shape: Shape,
    parts: ModelParts,
    vocabulary: GgufVocabulary,
    *,
    bf16: bool,
) -> None:
    """Writes the file. Raises PluginError if the package gguf is not installed, OSError."""
    gguf = _import_gguf()
    layout = mapping.gguf
    assert layout is not None
    architecture = ARCHITECTURES.get(layout, layout.value)
    writer = gguf.GGUFWriter(path, architecture)
    try:
        writer.add_name(name)
        _add_sizes(writer, architecture, layout, shape)
        _add_vocabulary(writer, vocabulary)
        for tensor_name, tensor in gguf_tensors(layout, shape, in_form(parts, mapping.form)).items():
            # Norms, biases and position tables stay in fp32, as llama.cpp's own converter keeps them
            if bf16 and tensor.dim() == 2 and tensor_name != "position_embd.weight":
                bits = tensor.to(torch.bfloat16).contiguous().view(torch.uint8)
                writer.add_tensor(tensor_name, bits.numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(tensor_name, tensor.float().contiguous().numpy())
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise PluginError(
            "GGUF files are written by the package gguf, which is not installed.\n"
            "Install it with: pip install 'gptkit[export]'"
        ) from error
    return gguf


def _add_sizes(writer: Any, architecture: str, layout: Layout, shape: Shape) -> None:
    settings = shape.settings
    writer.add_context_length(settings.context_length)
    writer.add_embedding_length(settings.n_embd)
    writer.add_block_count(settings.n_layer)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(settings.n_head)
    writer.add_head_count_kv(settings.n_head)
    if layout in _LAYER_NORMS:
        writer.add_layer_norm_eps(LAYER_NORM_EPS)
    else:
        writer.add_layer_norm_rms_eps(RMS_EPS)
    if layout in (Layout.GPT_NEOX, Layout.STABLELM):
        writer.add_parallel_residual(False)
    if layout is Layout.MPT:
        writer.add_max_alibi_bias(_ALIBI_BIAS)
    elif layout is not Layout.GPT2:
        writer.add_rope_dimension_count(shape.head_size)
        writer.add_rope_freq_base(shape.rope_base)
        writer.add_key_length(shape.head_size)
        writer.add_value_length(shape.head_size)
        if not shape.rotates:
            writer.add_rope_scaling_type(_import_gguf().RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(NO_ROTATION)
    writer.add_vocab_size(shape.vocab_size)


def _add_vocabulary(writer: Any, vocabulary: GgufVocabulary) -> None:
    gguf = _import_gguf()
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    kinds = [gguf.TokenType.NORMAL] * len(vocabulary.tokens)
    for number in vocabulary.control:
        kinds[number] = gguf.TokenType.CONTROL
    writer.add_token_types(kinds)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.unknown is not None:
        writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def gguf_tensors(layout: Layout, shape: Shape, parts: ModelParts) -> Tensors:
    """The tensors of a file by llama.cpp's names; linear layers as (outputs, inputs)."""
    tensors: Tensors = {"token_embd.weight": parts.embedding}

    def put(name: str, layer: Affine, *, bias: bool) -> None:
        layer = layer.with_bias() if bias else layer
        tensors[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias

    shifted = layout in _LAYER_NORMS and layout not in _UNBIASED_NORMS
    biased = layout in _BIASED
    if layout is Layout.GPT2:
        tensors["position_embd.weight"] = added_positions(shape, parts)
    for number, block in enumerate(parts.blocks):
        name = f"blk.{number}"
        put(f"{name}.attn_norm", block.attention_norm, bias=shifted)
        for part, layer in _attention(layout, shape, block).items():
            put(f"{name}.{part}", layer, bias=biased)
        if shape.settings.qk_norm:
            put(f"{name}.attn_q_norm", Affine(torch.ones(shape.head_size)), bias=False)
            put(f"{name}.attn_k_norm", Affine(torch.ones(shape.head_size)), bias=False)
        put(f"{name}.attn_output", block.output, bias=biased)
        put(f"{name}.ffn_norm", block.mlp_norm, bias=shifted)
        if block.gate is not None:
            put(f"{name}.ffn_gate", block.gate, bias=False)
        put(f"{name}.ffn_up", block.up, bias=biased)
        put(f"{name}.ffn_down", block.down, bias=biased)
    put("output_norm", parts.final_norm, bias=shifted)
    if parts.head is not None or layout in (Layout.GPT_NEOX, Layout.NEMOTRON, Layout.STABLELM):
        tensors["output.weight"] = parts.embedding if parts.head is None else parts.head
    return tensors


def _attention(layout: Layout, shape: Shape, block: BlockParts) -> dict[str, Affine]:
    if layout in _STACKED:
        return {"attn_qkv": join_rows(block.q, block.k, block.v)}
    q, k = block.q, block.k
    if layout in _INTERLEAVED:
        q, k = (layer.map(lambda rows: _interleaved(rows, shape.heads)) for layer in (q, k))
    return {"attn_q": q, "attn_k": k, "attn_v": block.v}


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """The rows of each head from (first halves, second halves) to pairs: (H D, …) -> (H D, …)."""
    half = rows.size(0) // heads // 2
    pairs = rows.view(heads, 2, half, *rows.shape[1:]).transpose(1, 2)
    return pairs.reshape(rows.shape)
