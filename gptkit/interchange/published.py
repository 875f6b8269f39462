"""Reads published weights: a folder of Hugging Face's layout, or nanoGPT's ckpt.pt.

Input: a path, which may hold anything. Output: a `Source`: the weights by their role, and the [model] table
that computes the same with them; or a CheckpointError that says what is wrong and where. No code of the other
side runs, and memory is bounded by the sizes that the files really have. Knows nothing of tokenizers or runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gptkit.errors import CheckpointError
from gptkit.interchange.parts import (
    SILU_SCALE,
    Affine,
    BlockParts,
    ModelParts,
    fold_gains,
    scale_residual,
    split_rows,
)
from gptkit.model.gpt import LAYER_NORM_EPS
from gptkit.model.ops import RMS_EPS
from gptkit.pickles import PickleError, TorchFile, tensors_in
from gptkit.runs.record import read_json_object

_MAX_CONFIG = 1_000_000  # bytes
_MAX_INDEX = 100_000_000  # bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Weights as they were found, and the [model] table that computes the same with them."""

    kind: str  # "gpt2", "llama", "nanoGPT", …
    model: dict[str, Any]
    parts: ModelParts
    notes: tuple[str, ...] = ()  # what differs from the original


def read_weights(path: Path) -> Source:
    """The weights at a path. Raises CheckpointError."""
    return _read_folder(path) if path.is_dir() else _read_nanogpt(path)


# Hugging Face


class _Config:
    """config.json, whose values may be anything."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        if not self.path.is_file():
            raise CheckpointError(f"{folder} is not a model of Hugging Face's layout: it has no config.json.")
        self._values = read_json_object(self.path, max_bytes=_MAX_CONFIG)

    def size(self, key: str, default: int | None = None, most: int = 2**24) -> int:
        value = self._values.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= most:
            raise self.error(f"{key} = {_shown(value)} is not a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._values.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e9:
            raise self.error(f"{key} = {_shown(value)} is not a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(f"{key} = {_shown(value)} is not true or false")
        return value

    def choice(self, key: str, default: str, known: Mapping[str, T]) -> T:
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.error(f"{key} = {_shown(value)} is not supported; it should be {' or '.join(known)}")
        return known[value]

    def require(self, key: str, wanted: object) -> None:
        """Refuses a value that changes what the model computes; a missing one is the usual."""
        value = self._values.get(key, wanted)
        if value is not None and value != wanted:
            raise self.error(f"{key} = {_shown(value)} is not supported")

    def table(self, key: str) -> dict[str, Any]:
        value = self._values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{key} = {_shown(value)} is not a table")
        return value or {}

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}.")


def _shown(value: object) -> str:
    return repr(value)[:60]


class _Weights:
    """The tensors of model.safetensors, or of several such files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.is_file():
            weight_map = read_json_object(index, max_bytes=_MAX_INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{index} has no weight_map.")
            for name, file in weight_map.items():
                if not isinstance(file, str) or file != Path(file).name:
                    raise CheckpointError(f"{index} names a file outside its folder: {_shown(file)}.")
                self._files[name] = folder / file
        elif single.is_file():
            try:
                with safe_open(single, "pt") as opened:
                    self._files = dict.fromkeys(opened.keys(), single)
            except (SafetensorError, OSError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{single} cannot be read: {_first_line(error)}") from error
        elif any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise CheckpointError(
                f"{folder} has its weights as a pickle, which may run any code, so gptkit does not open it.\n"
                "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER)"
                ".save_pretrained(NEW_FOLDER)"
            )
        else:
            raise CheckpointError(f"{folder} has no model.safetensors.")
        # Some writers leave the model's own name away
        prefixed = any(name.startswith(("transformer.", "model.")) for name in self._files)
        self._prefixes = ("",) if prefixed else ("", "transformer.", "model.")

    def has(self, name: str) -> bool:
        return self._name(name) is not None

    def _name(self, name: str) -> str | None:
        shortened = (name.removeprefix(prefix) for prefix in self._prefixes)
        return next((each for each in shortened if each in self._files), None)

    def __call__(self, name: str, *shape: int) -> Tensor:
        """The tensor of that name in fp32. Raises CheckpointError if it is missing or has another shape."""
        found = self._name(name)
        if found is None:
            raise CheckpointError(f"{self._folder} has no tensor {name}, which its config.json calls for.")
        try:
            with safe_open(self._files[found], "pt") as opened:
                there = tuple(opened.get_slice(found).get_shape())
                if there != shape:
                    raise CheckpointError(
                        f"{self._files[found]}: {name} has shape {there}; by its config.json it has {shape}."
                    )
                tensor: Tensor = opened.get_tensor(found)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self._files[found]} cannot be read: {_first_line(error)}") from error
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self._files[found]}: {name} has numbers of type {tensor.dtype}.")
        return tensor.float()

    def affine(self, name: str, *shape: int, bias: bool) -> Affine:
        return Affine(self(f"{name}.weight", *shape), self(f"{name}.bias", shape[0]) if bias else None)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _read_folder(folder: Path) -> Source:
    config = _Config(folder)
    readers: dict[str, Callable[[_Config, _Weights], Source]] = {
        "gpt2": _read_gpt2,
        "llama": _read_llama,
        "arcee": _read_llama,
        "qwen3": _read_llama,
    }
    reader = config.choice("model_type", "", readers)
    return reader(config, _Weights(folder))


def _read_gpt2(config: _Config, weights: _Weights) -> Source:
    """GPT-2 of any size; its linear layers are stored as (inputs, outputs)."""
    C, layers, T = config.size("n_embd"), config.size("n_layer", most=1000), config.size("n_positions")
    V, F = config.size("vocab_size"), config.size("n_inner", 4 * C)
    activation = config.choice(
        "activation_function",
        "gelu_new",
        {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"},
    )
    for key, wanted in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        config.require(key, wanted)
    eps = config.number("layer_norm_epsilon", LAYER_NORM_EPS)
    if eps != LAYER_NORM_EPS:
        raise config.error(f"layer_norm_epsilon = {eps:g} is not supported; gptkit has {LAYER_NORM_EPS:g}")
    tied = config.flag("tie_word_embeddings", True)

    def turned(name: str, inputs: int, outputs: int) -> Affine:
        weight = weights(f"{name}.weight", inputs, outputs)
        return Affine(weight.t().contiguous(), weights(f"{name}.bias", outputs))

    def block(number: int) -> BlockParts:
        name = f"transformer.h.{number}"
        q, k, v = split_rows(turned(f"{name}.attn.c_attn", C, 3 * C), 3)
        return BlockParts(
            weights.affine(f"{name}.ln_1", C, bias=True),
            *(q, k, v),
            turned(f"{name}.attn.c_proj", C, C),
            weights.affine(f"{name}.ln_2", C, bias=True),
            None,
            turned(f"{name}.mlp.c_fc", C, F),
            turned(f"{name}.mlp.c_proj", F, C),
        )

    parts = ModelParts(
        weights("transformer.wte.weight", V, C),
        weights("transformer.wpe.weight", T, C),
        tuple(block(number) for number in range(layers)),
        weights.affine("transformer.ln_f", C, bias=True),
        None if tied else weights("lm_head.weight", V, C),
    )
    model = {
        "context_length": T,
        "n_layer": layers,
        "n_head": config.size("n_head", most=4096),
        "n_embd": C,
        "mlp_hidden": F,
        "position": "learned",
        "norm": "layernorm",
        "mlp": activation,
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": tied,
        "init": "gpt2",
    }
    return Source("GPT-2", model, parts)


def _read_llama(config: _Config, weights: _Weights) -> Source:
    """Llama and those shaped like it. Shared heads are repeated, gains folded into the layers."""
    kind = config.choice("model_type", "llama", {"llama": "Llama", "arcee": "Arcee", "qwen3": "Qwen3"})
    C, layers, T = (
        config.size("hidden_size"),
        config.size("num_hidden_layers", most=1000),
        config.size("max_position_embeddings"),
    )
    V, F, H = config.size("vocab_size"), config.size("intermediate_size"), config.size("num_attention_heads")
    shared = config.size("num_key_value_heads", H)
    D = config.size("head_dim", max(1, C // H))
    if D * H != C or H % shared:
        raise config.error(f"{H} heads of {D}, {shared} of them for keys, do not divide a width of {C}")
    gated = config.choice("hidden_act", "silu", {"silu": True, "relu2": False})
    if gated is (kind == "Arcee"):
        raise config.error(f"hidden_act does not belong to {kind}")
    rope = config.table("rope_parameters") or config.table("rope_scaling")
    no_rotation = _check_rope(config, rope)
    base = rope.get("rope_theta", config.number("rope_theta", 10000.0))
    biased, mlp_biased = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    for key, wanted in (("use_sliding_window", False), ("pretraining_tp", 1)):
        config.require(key, wanted)
    tied = config.flag("tie_word_embeddings", False)
    eps = config.number("rms_norm_eps", RMS_EPS)
    notes = []
    if shared != H:
        notes.append(f"its {shared} key and value heads were repeated for the {H} query heads")

    def repeated(layer: Affine) -> Affine:
        return layer.map(
            lambda rows: (
                rows.view(shared, D, *rows.shape[1:])
                .repeat_interleave(H // shared, dim=0)
                .reshape(C, *rows.shape[1:])
            )
        )

    def block(number: int) -> BlockParts:
        name = f"model.layers.{number}"
        if kind == "Qwen3":
            for norm in ("q_norm", "k_norm"):
                if not bool((weights(f"{name}.self_attn.{norm}.weight", D) == 1).all()):
                    raise config.error(
                        f"the gains of {norm} are not 1, which gptkit's qk_norm has no place for; "
                        "Qwen3 as gptkit exports it can be imported"
                    )
        key_size = shared * D
        return BlockParts(
            Affine(weights(f"{name}.input_layernorm.weight", C)),
            weights.affine(f"{name}.self_attn.q_proj", C, C, bias=biased),
            repeated(weights.affine(f"{name}.self_attn.k_proj", key_size, C, bias=biased)),
            repeated(weights.affine(f"{name}.self_attn.v_proj", key_size, C, bias=biased)),
            weights.affine(f"{name}.self_attn.o_proj", C, C, bias=biased),
            Affine(weights(f"{name}.post_attention_layernorm.weight", C)),
            weights.affine(f"{name}.mlp.gate_proj", F, C, bias=mlp_biased) if gated else None,
            weights.affine(f"{name}.mlp.up_proj", F, C, bias=mlp_biased),
            weights.affine(f"{name}.mlp.down_proj", C, F, bias=mlp_biased),
        )

    parts = ModelParts(
        weights("model.embed_tokens.weight", V, C),
        None,
        tuple(block(number) for number in range(layers)),
        Affine(weights("model.norm.weight", C)),
        None if tied else weights("lm_head.weight", V, C),
    )
    activation = "swiglu" if gated else "relu2"
    if gated and all(_is_silu_form(block) for block in parts.blocks):
        parts, activation = parts.map_blocks(_without_silu_form), "relu2"
    folded = fold_gains(parts)
    if eps != RMS_EPS:
        folded = scale_residual(folded, (RMS_EPS / eps) ** 0.5)
        notes.append(f"its RMSNorm's eps of {eps:g} became {RMS_EPS:g} by scaling the weights around it")
    if tied and folded.head is not None:
        notes.append("its tied embeddings became two matrices, as its norm's gains or eps required")
    model = {
        "context_length": T,
        "n_layer": layers,
        "n_head": H,
        "n_embd": C,
        "mlp_hidden": F,
        "position": "none" if no_rotation else {"type": "rope", "base": base},
        "norm": "rmsnorm",
        "mlp": activation,
        "qk_norm": kind == "Qwen3",
        "bias": biased or mlp_biased,
        "tie_embeddings": folded.head is None,
    }
    return Source(kind, model, folded, tuple(notes))


def _check_rope(config: _Config, rope: Mapping[str, Any]) -> bool:
    """Whether the rotation is switched off. Raises CheckpointError for scalings that gptkit does not have."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear" and isinstance(rope.get("factor"), float | int) and rope["factor"] >= 1e9:
        return True
    if kind != "default":
        raise config.error(f"rope_scaling = {_shown(dict(rope))} is not supported")
    base = rope.get("rope_theta", 10000.0)
    if type(base) not in (int, float) or not 1 < base < 1e12:
        raise config.error(f"rope_theta = {_shown(base)} is not a number above 1")
    return False


def _is_silu_form(block: BlockParts) -> bool:
    gate = block.gate
    return gate is not None and gate.weight.equal(block.up.weight * SILU_SCALE)


def _without_silu_form(block: BlockParts) -> BlockParts:
    """The inverse of `parts.silu_form`: exact, as the scale is a power of two."""
    down = Affine(block.down.weight * SILU_SCALE, block.down.bias)
    return replace(block, gate=None, down=down)


# nanoGPT


def _read_nanogpt(path: Path) -> Source:
    """nanoGPT's ckpt.pt: a pickle, read without running it."""
    try:
        with TorchFile(path) as file:
            value = file.value
            if not isinstance(value, dict) or not {"model", "model_args"} <= value.keys():
                raise PickleError("it has no 'model' and 'model_args', as nanoGPT's checkpoints have")
            stored = {name.removeprefix("_orig_mod."): one for name, one in tensors_in(value["model"])}

            def tensor(name: str, *shape: int) -> Tensor:
                if name not in stored:
                    raise PickleError(f"it has no tensor {name}")
                if stored[name].shape != shape:
                    raise PickleError(f"{name} has shape {stored[name].shape}, not {shape}")
                return file.tensor(stored[name]).float()

            return _nanogpt_source(value["model_args"], tensor)
    except (PickleError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of nanoGPT: {_first_line(error)}.\n"
            "Other weights are imported from a folder with config.json and safetensors files."
        ) from error


def _nanogpt_source(arguments: Any, tensor: Callable[..., Tensor]) -> Source:
    if not isinstance(arguments, dict):
        raise PickleError("its model_args are not a dict")

    def size(key: str, most: int = 2**24) -> int:
        value = arguments.get(key)
        if type(value) is not int or not 0 < value <= most:
            raise PickleError(f"its model_args have {key} = {_shown(value)}")
        return value

    C, T, V = size("n_embd"), size("block_size"), size("vocab_size")
    bias = arguments.get("bias", True)
    if not isinstance(bias, bool):
        raise PickleError(f"its model_args have bias = {_shown(bias)}")

    def affine(name: str, *shape: int) -> Affine:
        return Affine(tensor(f"{name}.weight", *shape), tensor(f"{name}.bias", shape[0]) if bias else None)

    def block(number: int) -> BlockParts:
        name = f"transformer.h.{number}"
        q, k, v = split_rows(affine(f"{name}.attn.c_attn", 3 * C, C), 3)
        return BlockParts(
            affine(f"{name}.ln_1", C),
            *(q, k, v),
            affine(f"{name}.attn.c_proj", C, C),
            affine(f"{name}.ln_2", C),
            None,
            affine(f"{name}.mlp.c_fc", 4 * C, C),
            affine(f"{name}.mlp.c_proj", C, 4 * C),
        )

    layers = size("n_layer", 1000)
    parts = ModelParts(
        tensor("transformer.wte.weight", V, C),
        tensor("transformer.wpe.weight", T, C),
        tuple(block(number) for number in range(layers)),
        affine("transformer.ln_f", C),
        None,  # nanoGPT ties them
    )
    model = {
        "context_length": T,
        "n_layer": layers,
        "n_head": size("n_head", 4096),
        "n_embd": C,
        "position": "learned",
        "norm": "layernorm",
        "mlp": "gelu",
        "qk_norm": False,
        "bias": bias,
        "tie_embeddings": True,
        "init": "gpt2",
    }
    return Source("nanoGPT", model, parts)
