"""A decoder in C: one token for each of several sequences per call.

Input: a GPT in fp32 on the CPU. Output: logits. `src/decode.c` documents the structures and the computation.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from gptkit.model import fast
from gptkit.model.gpt import GPT, Block, LayerNorm
from gptkit.model.ops import RMS_EPS, Implementation
from gptkit.native.build import declared
from gptkit.native.ops import ACTIVATIONS, LARGEST_HEAD, LONGEST_ROW, pointer, threads

PANEL = 64  # outputs whose weights are contiguous

# Bytes of weights above which several threads read them faster than one, and sequences that keep them busy
_LARGE = 8 * 2**20
_MANY = 4


class _Norm(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Linear(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("inputs", c_int64), ("outputs", c_int64)]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("attention_norm", "mlp_norm")),
        *((name, _Linear) for name in ("attention_qkv", "attention_projection", "mlp_up", "mlp_projection")),
        *((name, c_void_p) for name in ("keys", "values")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("n_layer", "C", "H", "D", "F", "V", "context_length", "pitch")),
        *((name, c_int32) for name in ("layer_norm", "qk_norm", "activation", "threads")),
        *((name, c_float) for name in ("norm_eps", "qk_eps")),
        *((name, c_void_p) for name in ("cosine", "sine")),
        ("final_norm", _Norm),
        ("lm_head", _Linear),
        ("blocks", ctypes.POINTER(_Block)),
    ]


@cache
def _functions() -> Any:
    return declared(
        {
            "decode_workspace": (c_int64, [c_void_p, c_int64]),
            "decode": (None, [*[c_void_p] * 4, c_int64, c_int64, c_void_p]),
            "pack": (None, [c_void_p, c_void_p, c_int64, c_int64]),
        }
    )


def unsupported(model: GPT, samples: int) -> list[str]:
    """The reasons why C cannot decode with this model."""
    settings, weight = model.settings, model.token_embedding.weight
    reasons = []
    if not weight.is_cpu or weight.dtype != torch.float32:
        reasons.append("the weights are not in fp32 on the CPU")
    if settings.n_embd > LONGEST_ROW:
        reasons.append(f"n_embd is above {LONGEST_ROW}")
    if settings.n_embd // settings.n_head > LARGEST_HEAD:
        reasons.append(f"a head has more than {LARGEST_HEAD} channels")
    if not model.position.only_rotates_by_tables():
        reasons.append("the positional encoding overrides `rotate` and has no tables for it")
    return reasons


class NativeDecoder:
    """Reads a prompt with the model, then copies its keys and values to the caches of the C code."""

    def __init__(self, model: GPT, samples: int) -> None:
        settings = model.settings
        self._model, self._samples = model, samples
        self._implementations = fast.installed()
        H, D = settings.n_head, settings.n_embd // settings.n_head
        pitch = _whole_panels(settings.context_length)
        self._keys = torch.zeros(settings.n_layer, samples, H, D, pitch)
        self._values = torch.zeros(settings.n_layer, samples, H, pitch, D)
        self._positions = torch.arange(settings.context_length)
        self._length = 0
        size = sum(parameter.numel() for parameter in model.parameters()) * 4
        self._referenced: list[Any] = []  # what the C structures point to
        self._c_model = self._fill(model, threads() if size >= _LARGE or samples >= _MANY else 1)
        self._c_model_pointer = ctypes.byref(self._c_model)
        self._decode = _functions().decode
        self._workspace = torch.empty(_functions().decode_workspace(self._c_model_pointer, samples))
        self._logits = torch.empty(samples, self._c_model.V)
        self._embeddings = model.token_embedding.weight.detach()
        self._embeds = model.position.overrides("embed")
        self._biases = model.position.overrides("bias")

    def read(self, tokens: Tensor) -> Tensor:
        cache = self._model.new_cache(self._samples)
        with fast.using(self._implementations):
            logits: Tensor = self._model(tokens, cache)[:, -1]
        T = self._length = tokens.size(1)
        for layer in range(len(self._keys)):
            keys, values = cache.filled(layer)  # (N, H, T, D)
            self._keys[layer, :, :, :, :T] = keys.mT
            self._values[layer, :, :, :T] = values
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        t = self._length
        if t >= self._model.settings.context_length:
            raise ValueError(f"the context holds {t} tokens and is full")
        x = torch.index_select(self._embeddings, 0, tokens)  # (N, C), which C overwrites
        position = self._positions[t : t + 1]
        if self._embeds:
            x = self._model.position.embed(x.unsqueeze(1), position).float().squeeze(1).contiguous()
        bias = self._bias(position, t) if self._biases else None
        self._length += 1
        self._decode(
            self._c_model_pointer,
            x.data_ptr(),
            pointer(bias),
            self._logits.data_ptr(),
            self._samples,
            t,
            self._workspace.data_ptr(),
        )
        return self._logits

    def _bias(self, position: Tensor, t: int) -> Tensor | None:
        """(H, t + 1), contiguous."""
        bias = self._model.position.bias(position, self._positions[: t + 1])
        if bias is None:
            return None
        return bias.float().reshape(-1, t + 1).expand(self._model.settings.n_head, -1).contiguous()

    def _fill(self, model: GPT, threads: int) -> _Model:
        settings, norm = model.settings, model.final_norm
        blocks = (_Block * len(model.blocks))(
            *(self._block(i, cast(Block, block)) for i, block in enumerate(model.blocks))
        )
        self._referenced.append(blocks)
        cosine, sine = model.position.rotation_tables() or (None, None)
        return _Model(
            n_layer=len(blocks),
            C=settings.n_embd,
            H=settings.n_head,
            D=settings.n_embd // settings.n_head,
            F=blocks[0].mlp_projection.inputs,
            V=model.vocab_size,
            context_length=settings.context_length,
            pitch=_whole_panels(settings.context_length),
            layer_norm=isinstance(norm, LayerNorm),
            qk_norm=settings.qk_norm,
            activation=ACTIVATIONS[settings.mlp],
            threads=threads,
            norm_eps=norm.eps,
            qk_eps=RMS_EPS,
            cosine=self._tensor(cosine),
            sine=self._tensor(sine),
            final_norm=self._norm(norm),
            lm_head=self._linear(model.lm_head),
            blocks=blocks,
        )

    def _block(self, layer: int, block: Block) -> _Block:
        layers = block.layers()
        return _Block(
            attention_norm=self._norm(layers.attention_norm),
            mlp_norm=self._norm(layers.mlp_norm),
            attention_qkv=self._linear(layers.attention_qkv),
            attention_projection=self._linear(layers.attention_projection),
            mlp_up=self._linear(layers.mlp_up),
            mlp_projection=self._linear(layers.mlp_projection),
            keys=self._keys[layer].data_ptr(),
            values=self._values[layer].data_ptr(),
        )

    def _norm(self, norm: Any) -> _Norm:
        return _Norm(self._tensor(norm.weight), self._tensor(norm.bias))

    def _linear(self, linear: torch.nn.Linear) -> _Linear:
        weight = linear.weight.detach().float().contiguous()
        outputs, inputs = weight.shape
        packed = torch.empty(_whole_panels(outputs) * inputs)
        _functions().pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs)
        self._referenced.append(packed)
        return _Linear(packed.data_ptr(), self._tensor(linear.bias), inputs, outputs)

    def _tensor(self, x: Tensor | None) -> int | None:
        """The address of x in fp32, which stays alive as long as the decoder."""
        if x is None:
            return None
        x = x.detach().float().contiguous()
        self._referenced.append(x)
        return x.data_ptr()


def _whole_panels(size: int) -> int:
    return -(-size // PANEL) * PANEL


DECODER = Implementation("C", unsupported, NativeDecoder)
