"""One more token for each of several sequences, in C: what gptkit/model/decoding.py is built on.

In: the numbers of a model, and its weights as tensors. Out: logits. `src/decode.c` says what each is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gptkit.native.build import declared
from gptkit.native.ops import KINDS, pointer

PANEL = 64  # outputs whose weights lie together


class _Linear(ctypes.Structure):
    _fields_ = [("w", c_void_p), ("bias", c_void_p), ("inputs", c_int64), ("outputs", c_int64)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("attention_gain", "attention_bias", "mlp_gain", "mlp_bias")),
        *((name, _Linear) for name in ("qkv", "projection", "up", "down")),
        *((name, c_void_p) for name in ("keys", "values")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("n_layer", "C", "H", "D", "F", "V", "context", "pitch")),
        *((name, c_int32) for name in ("centre", "qk_norm", "activation", "threads")),
        ("eps", c_float),
        *((name, c_void_p) for name in ("cosine", "sine", "final_gain", "final_bias")),
        ("head", _Linear),
        ("layers", ctypes.POINTER(_Layer)),
    ]


@cache
def _functions() -> Any:
    return declared(
        {
            "decode_room": (c_int64, [c_void_p, c_int64]),
            "decode": (None, [*[c_void_p] * 4, c_int64, c_int64, c_void_p]),
            "pack": (None, [c_void_p, c_void_p, c_int64, c_int64]),
        }
    )


@dataclass(frozen=True)
class Norm:
    """Gain and bias, where the norm has them."""

    gain: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class Matrix:
    """A linear layer: weight (outputs, inputs), bias (outputs,) or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class LayerWeights:
    attention_norm: Norm
    qkv: Matrix
    projection: Matrix
    mlp_norm: Norm
    up: Matrix
    down: Matrix
    keys: Tensor  # (N, H, D, pitch)
    values: Tensor  # (N, H, pitch, D)


@dataclass(frozen=True)
class ModelWeights:
    """All that a token needs. `rotation` is cosines and signed sines, (context, D) each, or None."""

    layers: Sequence[LayerWeights]
    final_norm: Norm
    head: Matrix
    n_head: int
    context_length: int
    layer_norm: bool  # else RMS norm
    eps: float
    qk_norm: bool
    activation: str
    rotation: tuple[Tensor, Tensor] | None


def pitch_of(context_length: int) -> int:
    """Places that a cache has: the context in whole panels."""
    return -(-context_length // PANEL) * PANEL


class Decode:
    """The C structures of a model, with the tensors that they point to kept alive."""

    def __init__(self, weights: ModelWeights, samples: int, threads: int) -> None:
        self._kept: list[Any] = [weights]
        self._samples = samples
        layers = (_Layer * len(weights.layers))(*(self._layer(layer) for layer in weights.layers))
        C = weights.layers[0].qkv.weight.size(1)
        rotation = weights.rotation or (None, None)
        self._model = _Model(
            n_layer=len(weights.layers),
            C=C,
            H=weights.n_head,
            D=C // weights.n_head,
            F=weights.layers[0].down.weight.size(1),
            V=weights.head.weight.size(0),
            context=weights.context_length,
            pitch=pitch_of(weights.context_length),
            centre=weights.layer_norm,
            qk_norm=weights.qk_norm,
            activation=KINDS[weights.activation],
            threads=threads,
            eps=weights.eps,
            cosine=self._keep(rotation[0]),
            sine=self._keep(rotation[1]),
            final_gain=self._keep(weights.final_norm.gain),
            final_bias=self._keep(weights.final_norm.bias),
            head=self._linear(weights.head),
            layers=layers,
        )
        self._kept.append(layers)
        self._here = ctypes.byref(self._model)
        self._function = _functions().decode
        room = _functions().decode_room(self._here, samples)
        self._room = torch.empty(room)
        self._logits = torch.empty(samples, self._model.V)

    def __call__(self, x: Tensor, bias: Tensor | None, place: int) -> Tensor:
        """Logits (N, V), overwritten by the next call, of embedded tokens x (N, C), which are overwritten.

        `bias` (H, place + 1) is added to the scores. The caches take the tokens in at `place`.
        """
        self._function(
            self._here,
            x.data_ptr(),
            pointer(bias),
            self._logits.data_ptr(),
            self._samples,
            place,
            self._room.data_ptr(),
        )
        return self._logits

    def _layer(self, layer: LayerWeights) -> _Layer:
        return _Layer(
            *(
                self._keep(x)
                for norm in (layer.attention_norm, layer.mlp_norm)
                for x in (norm.gain, norm.bias)
            ),
            *(self._linear(matrix) for matrix in (layer.qkv, layer.projection, layer.up, layer.down)),
            layer.keys.data_ptr(),
            layer.values.data_ptr(),
        )

    def _keep(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        x = x.detach().float().contiguous()
        self._kept.append(x)
        return x.data_ptr()

    def _linear(self, matrix: Matrix) -> _Linear:
        weight = matrix.weight.detach().float().contiguous()
        outputs, inputs = weight.shape
        packed = torch.empty(pitch_of(outputs) * inputs)
        _functions().pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs)
        self._kept.append(packed)
        return _Linear(packed.data_ptr(), self._keep(matrix.bias), inputs, outputs)
