"""Writes a run's model in the format of another program: a folder for transformers, or a GGUF file.

Input: a run, its model and tokenizer, a path that does not exist yet. Output: the files there, whole or not
at all. Knows nothing of terminals, nor whether the other program agrees (verify.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gptkit.errors import UsageError
from gptkit.experiment.load import to_toml
from gptkit.experiment.schema import Experiment
from gptkit.files import disk, disk_errors, make_folder, temporary_beside, to_json, write_file
from gptkit.interchange.gguf import write_gguf
from gptkit.interchange.layouts import config_of, hugging_face_tensors, shape_of
from gptkit.interchange.mappings import Layout, Mapping, Target, find_mapping
from gptkit.interchange.parts import parts_of
from gptkit.interchange.vocabularies import gguf_vocabulary, hugging_face_json
from gptkit.runs import Run
from gptkit.runs.run import LoadedModel
from gptkit.words import printable


class Precision(StrEnum):
    """The number format of the weights in the exported files."""

    FP32 = "fp32"
    BF16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self is Precision.FP32 else torch.bfloat16


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    target: Target
    layout: Layout
    architecture: str  # as the other program calls it
    step: int  # of the checkpoint
    precision: Precision
    bytes: int


def export_run(
    run: Run, loaded: LoadedModel, target: Target, path: Path, precision: Precision = Precision.FP32
) -> Exported:
    """Writes the model to `path`: a folder of Hugging Face's layout, or a GGUF file.

    Raises UsageError if the format has no architecture for the model or no form of its tokenizer, or `path`
    exists; PluginError if the package gguf is not installed; DiskError. Nothing is left behind then.
    """
    experiment = run.experiment()
    mapping = find_mapping(experiment.model, target)
    check_free(path)
    layout = mapping.layout(target)
    assert layout is not None
    if target is Target.HUGGING_FACE:
        architecture, size = _write_folder(run, loaded, experiment, mapping, path, precision)
    else:
        architecture, size = layout.value, _write_gguf(run, loaded, experiment, mapping, path, precision)
    return Exported(path, target, layout, architecture, loaded.checkpoint.step, precision, size)


def check_free(path: Path) -> None:
    """Raises UsageError if something is at `path` already."""
    if path.is_symlink() or path.exists():
        raise UsageError(f"{path} exists already; remove it, or export to another path.")


def _write_folder(
    run: Run, loaded: LoadedModel, experiment: Experiment, mapping: Mapping, path: Path, precision: Precision
) -> tuple[str, int]:
    tokenizer = hugging_face_json(loaded.tokenizer)
    parts = parts_of(loaded.model)
    shape = shape_of(experiment.model, loaded.model.vocab_size, parts)
    config = config_of(mapping, shape) | {
        "dtype": _torch_name(precision),
        "torch_dtype": _torch_name(precision),
    }
    tensors = hugging_face_tensors(mapping, shape, parts)
    weights = {name: _stored(name, tensor, precision) for name, tensor in tensors.items()}
    contents = {
        "config.json": to_json(config),
        "generation_config.json": to_json(_generation_config(experiment)),
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode("utf-8", "backslashreplace"),
        "tokenizer_config.json": to_json(_tokenizer_config(experiment)),
        "README.md": model_card(run, experiment, loaded, config["architectures"][0]).encode(),
        "model.safetensors": safetensors.torch.save(weights, metadata={"format": "pt"}),
    }
    with _whole(path, f"exporting run {run.id}", sum(map(len, contents.values()))) as temporary:
        disk.make_folder(temporary)
        for name, data in contents.items():
            write_file(temporary / name, data)
        disk.fsync_folder(temporary)
    return config["architectures"][0], sum(map(len, contents.values()))


def _write_gguf(
    run: Run, loaded: LoadedModel, experiment: Experiment, mapping: Mapping, path: Path, precision: Precision
) -> int:
    vocabulary = gguf_vocabulary(loaded.tokenizer)
    parts = parts_of(loaded.model)
    shape = shape_of(experiment.model, loaded.model.vocab_size, parts)
    estimate = 4 * sum(parameter.numel() for parameter in loaded.model.parameters())
    with _whole(path, f"exporting run {run.id}", estimate) as temporary:
        write_gguf(temporary, run.id, mapping, shape, parts, vocabulary, bf16=precision is Precision.BF16)
    return path.stat().st_size


@contextmanager
def _whole(path: Path, doing: str, needed: int) -> Iterator[Path]:
    """A temporary path beside `path`, which is renamed to it at the end, or removed after an error."""
    with disk_errors(doing, needed):
        make_folder(path.absolute().parent)
        temporary = temporary_beside(path.absolute())
        try:
            yield temporary
            disk.rename(temporary, path)
        except BaseException:
            disk.remove_folder(temporary) if temporary.is_dir() else disk.remove_file(temporary)
            raise
        disk.fsync_folder(path.absolute().parent)


def _stored(name: str, tensor: Tensor, precision: Precision) -> Tensor:
    """Matrices in `precision`; norms, biases and position tables in fp32, as they are few."""
    matrix = tensor.dim() == 2 and ".wpe." not in name
    # A copy: safetensors refuses tensors that share memory, as the parts of a stacked layer do
    return tensor.to(precision.dtype if matrix else torch.float32, copy=True).contiguous()


def _torch_name(precision: Precision) -> str:
    return str(precision.dtype).removeprefix("torch.")


def _tokenizer_config(experiment: Experiment) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": experiment.model.context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
    }


def _generation_config(experiment: Experiment) -> dict[str, Any]:
    """The [sampling] table; transformers' own defaults would differ (top_k = 50, 20 tokens)."""
    sampling = experiment.sampling
    config: dict[str, Any] = {
        "do_sample": sampling.temperature > 0,
        "max_new_tokens": max(1, min(sampling.max_new_tokens, experiment.model.context_length - 1)),
    }
    if sampling.temperature > 0:
        config |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        if sampling.min_p > 0:
            config["min_p"] = sampling.min_p
    return config


# The model card of a folder for transformers


def model_card(run: Run, experiment: Experiment, loaded: LoadedModel, architecture: str) -> str:
    """What the model is, its losses, how to reproduce it: Markdown, with the front matter that Hugging Face's
    hub reads. What run.json lacks is left out.
    """
    record = run.read_record_or_empty()
    model, checkpoint = experiment.model, loaded.checkpoint
    progress = checkpoint.state.get("progress")
    loss = progress.get("val_loss") if isinstance(progress, dict) else None
    facts = [
        ("Parameters", f"{loaded.model.parameter_count:,}"),
        ("Context", f"{model.context_length} tokens"),
        ("Shape", f"{model.n_layer} blocks, width {model.n_embd}, {model.n_head} heads"),
        ("Tokenizer", f"{experiment.tokenizer.type}, {loaded.tokenizer.vocab_size:,} tokens"),
        ("Text", _code(record.dataset.title)),
        ("SHA-256 of the text", _code(record.dataset.sha256)),
        ("Trained", f"{checkpoint.step:,} steps of {experiment.tokens_per_step:,} tokens"),
        ("Validation loss", f"{loss:.4f} nats per token" if isinstance(loss, float) else None),
        ("Seed", str(experiment.seed)),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts if value)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- gptkit
---

# {printable(experiment.name)}

A small GPT, trained with gptkit {version("gptkit")} (run `{printable(run.id)}`) and exported as a
{architecture} of transformers. It continues text of the kind that it was trained on.

| | |
|---|---|
{table}

## Use

```python
from transformers import pipeline

write = pipeline("text-generation", model="path/to/this/folder")
print(write({experiment.sampling.prompt!r})[0]["generated_text"])
```

The model sees {model.context_length} tokens at once: prompt and new text together should not be longer.

## Reproduce

With this file as `experiment.toml` and the text of the hash above, `gptkit train experiment.toml` trains the
model again; on the same kind of machine, bit for bit.

```toml
{to_toml(experiment).strip()}
```
"""


def _code(text: str | None) -> str | None:
    return f"`{printable(text).replace('|', ' ')}`" if text else None
