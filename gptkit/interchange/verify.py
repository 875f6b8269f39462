"""Opens an exported model with the program that it is for, and compares it with gptkit's own.

Input: an exported folder or file, gptkit's model and tokenizer, a text. Output: a `Verification`: the largest
difference of logits over the text, whether the greedy text agrees, and whether the tokenizer gives the same
ids. Knows nothing of terminals.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptkit.data.catalog import read_dataset, resolve_dataset
from gptkit.data.source import split_text
from gptkit.errors import CheckpointError, GptkitError
from gptkit.events import RunStatus
from gptkit.experiment.schema import SamplingSettings
from gptkit.generation import generate_tokens
from gptkit.interchange.export import Exported, Precision
from gptkit.interchange.mappings import Target
from gptkit.model import GPT
from gptkit.plugins import DataFolders, Tokenizer
from gptkit.runs import Run

GREEDY_TOKENS = 200
_MAX_WINDOWS = 4  # of the context's length, whose logits are compared
_MAX_TOKENS = 4096  # compared in all
_MAX_TEXT = 4 * _MAX_TOKENS  # characters
# Largest difference of logits that is rounding, relative to the largest logit: transformers computes the same
# sums in another order, llama.cpp has its own exponential and half-precision tables
_TOLERANCE = {Target.HUGGING_FACE: 1e-4, Target.GGUF: 2e-2}
_PACKAGES = {
    Target.HUGGING_FACE: ("transformers", "transformers"),
    Target.GGUF: ("llama_cpp", "llama-cpp-python"),
}

Logits = Callable[[list[int]], Tensor]
"""The logits (T, V) in fp32 of another program for T tokens."""


@dataclass(frozen=True)
class Verification:
    """What the comparison found."""

    program: str  # with its version
    tokens: int  # whose logits were compared
    largest_difference: float
    largest_logit: float
    greedy_tokens: int
    greedy_equal: int
    same_ids: bool  # of the text by both tokenizers, and the same text of the ids
    target: Target

    @property
    def agrees(self) -> bool:
        """Whether logits differ by rounding only, and greedy tokens only where two are equally likely."""
        return self.same_ids and self.logits_agree and self.greedy_equal == self.greedy_tokens

    @property
    def logits_agree(self) -> bool:
        return self.largest_difference <= _TOLERANCE[self.target] * max(1.0, self.largest_logit)


def missing_program(target: Target) -> str | None:
    """The package to install to verify an export; None if it is here."""
    module, package = _PACKAGES[target]
    return None if find_spec(module) else package


@dataclass(frozen=True)
class Tokens:
    """Tokens to compare logits on, and what they are."""

    ids: list[int]
    origin: str


def tokens_to_compare(run: Run, tokenizer: Tokenizer, folders: DataFolders) -> Tokens:
    """The beginning of the val split of the run's text, if that is here; otherwise random tokens."""
    experiment = run.experiment()
    if run.read_record_or_empty().status is not RunStatus.IMPORTED:
        with suppress(GptkitError):
            dataset, table = resolve_dataset(experiment.data.val or experiment.data.dataset, folders)
            if dataset.is_here(folders):
                text = read_dataset(table.type, dataset, folders)
                own = experiment.data.val is not None
                held_out = (text if own else split_text(text, experiment.data.val_fraction)[1])[:_MAX_TEXT]
                unknown = tokenizer.unknown_characters(held_out)
                held_out = "".join(letter for letter in held_out if letter not in unknown)
                if ids := [int(token) for token in tokenizer.encode(held_out)][:_MAX_TOKENS]:
                    return Tokens(ids, "the val split")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(tokenizer.vocab_size, (_MAX_TOKENS,), generator=generator)
    return Tokens(drawn.tolist(), "random text")


def verify_export(
    exported: Exported, model: GPT, tokenizer: Tokenizer, ids: Sequence[int], prompt: str
) -> Verification:
    """Compares the exported files with `model`, on the tokens `ids` and on what follows `prompt`.

    With weights in bf16 the model that it is compared with has its weights rounded likewise. Raises
    CheckpointError if the other program does not open the files.
    """
    if exported.precision is Precision.BF16:
        model = _rounded(model)
    prompt_ids = [int(token) for token in tokenizer.encode(prompt)]
    open_model = _open_hugging_face if exported.target is Target.HUGGING_FACE else _open_gguf
    with open_model(exported.path) as (logits_of, encode, decode):
        largest_difference = largest_logit = 0.0
        compared = 0
        for window in _windows(ids, model.settings.context_length):
            ours, theirs = _logits(model, window), logits_of(window)
            if theirs.shape != ours.shape:
                raise CheckpointError(
                    f"{exported.path} has logits of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}."
                )
            largest_difference = max(largest_difference, _largest(theirs - ours))
            largest_logit = max(largest_logit, _largest(ours))
            compared += len(window)
        greedy = list(_greedy(model, prompt_ids))
        context, rounding = model.settings.context_length, 2 * largest_difference
        equal = sum(_follow_greedily(logits_of, prompt_ids, greedy, context, rounding))
        part = tokenizer.decode(ids[: model.settings.context_length])
        part_ids = [int(token) for token in tokenizer.encode(part)]
        same_ids = encode(part) == part_ids and decode(part_ids) == tokenizer.decode(part_ids)
    return Verification(
        program=_program(exported.target),
        tokens=compared,
        largest_difference=largest_difference,
        largest_logit=largest_logit,
        greedy_tokens=len(greedy),
        greedy_equal=equal,
        same_ids=same_ids,
        target=exported.target,
    )


def _program(target: Target) -> str:
    package = _PACKAGES[target][1]
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _rounded(model: GPT) -> GPT:
    """A copy of the model with its matrices rounded to bf16, as they are exported."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and not name.startswith("position."):
                parameter.copy_(parameter.bfloat16())
    return model


def _windows(ids: Sequence[int], context: int) -> Iterator[list[int]]:
    for number in range(min(_MAX_WINDOWS, -(-len(ids) // context))):
        yield list(ids[number * context : (number + 1) * context])


def _logits(model: GPT, window: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([window]))[0].float()
    return logits


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if bool(values.isfinite().all()) else float("inf")


def _greedy(model: GPT, prompt_ids: Sequence[int]) -> Iterator[int]:
    settings = SamplingSettings(temperature=0.0, max_new_tokens=GREEDY_TOKENS)
    prompt = torch.tensor([list(prompt_ids)])
    for tokens in generate_tokens(model, prompt, settings, seed=0):
        yield int(tokens[0])


def _follow_greedily(
    logits_of: Logits, prompt: Sequence[int], written: Sequence[int], context: int, rounding: float
) -> Iterator[bool]:
    """For each token that gptkit wrote, whether the other program would have written it too.

    It reads the same windows as gptkit: when the context is full, the last half of it. A token whose logit is
    within `rounding` of the largest is as likely as the first.
    """
    seen = list(prompt)[-context:]
    done = 0
    while done < len(written):
        fits = min(len(written) - done, context - len(seen) + 1)  # tokens that can be chosen in this window
        window = [*seen, *written[done : done + fits - 1]]
        rows = logits_of(window)[-fits:]
        for row, token in zip(rows, written[done : done + fits], strict=True):
            yield bool(row[token] >= row.max() - rounding)
        seen = [*seen, *written[done : done + fits]]
        seen = seen[-max(1, context // 2) :]
        done += fits


_Opened = tuple[Logits, Callable[[str], list[int]], Callable[[list[int]], str]]


@contextmanager
def _open_hugging_face(path: Path) -> Iterator[_Opened]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # The keyword was renamed in version 5
    dtype = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    options = {dtype: torch.float32, "local_files_only": True}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"transformers does not open {path}: {_first_line(error)}") from error

    def logits_of(ids: list[int]) -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0].float()
        return found

    yield (
        logits_of,
        lambda text: list(tokenizer.encode(text, add_special_tokens=False)),
        lambda ids: str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)),
    )


@contextmanager
def _open_gguf(path: Path) -> Iterator[_Opened]:
    import llama_cpp
    import numpy as np

    # llama.cpp logs to standard error; its errors are raised, too
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    try:
        context = _gguf_context(path)
        model = llama_cpp.Llama(
            model_path=str(path),
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"llama.cpp does not open {path}: {_first_line(error)}") from error

    def logits_of(ids: list[int]) -> Tensor:
        model.reset()
        model.eval(ids)
        return torch.from_numpy(np.array(model.scores[: len(ids)], dtype=np.float32))

    try:
        yield (
            logits_of,
            lambda text: list(model.tokenize(text.encode(), add_bos=False, special=False)),
            lambda ids: model.detokenize(ids).decode("utf-8", "replace"),
        )
    finally:
        model.close()


def _gguf_context(path: Path) -> int:
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    return int(reader.fields[f"{architecture}.context_length"].parts[-1][0])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
