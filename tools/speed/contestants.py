"""The programs that are measured: each is a context that returns a function to call repeatedly.

A call returns the number of tokens that it processed. Tokens are random, which does not change the speed;
each program collects its batches in its own way.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gptkit.backend import choose_backend, computing
from gptkit.bench.baseline import Transformers, quiet_transformers
from gptkit.bench.measure import flops_per_token, measure_peak, random_trainer, synchronize, synchronized
from gptkit.experiment.load import experiment_from_dict, load_experiment
from gptkit.experiment.schema import Experiment, SamplingSettings
from gptkit.generation import generate, generate_tokens
from gptkit.measurements import with_fastest
from gptkit.model.build import build_new_model
from gptkit.tokenizers.char import CharTokenizer
from tools.speed.classic import ClassicGPT
from tools.speed.contest import ROOT
from tools.speed.report import SkippedError

VOCABULARY = 65  # characters of Tiny Shakespeare
SAMPLING = SamplingSettings(temperature=0.8, top_k=200)  # nanoGPT's sample.py; 200 is all of 65


@dataclass(frozen=True)
class Done:
    tokens: int
    details: dict[str, float] = field(default_factory=dict)


Work = Callable[[], Done]

GPT2 = {
    "name": "gpt2",
    "model": {
        **{"context_length": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "position": "learned"},
        **{"norm": "layernorm", "mlp": "gelu", "qk_norm": False, "tie_embeddings": True, "init": "gpt2"},
    },
    "optimizer": {"type": "adamw", "learning_rate": 6e-4, "beta2": 0.95},
    "training": {"backend": "cuda", "max_steps": 100_000},
}


def experiment_of(name: str, batch_size: int | None = None) -> Experiment:
    """One of experiments/ on the CPU, or GPT-2 of 124 M parameters on a GPU."""
    if name == "gpt2":
        return experiment_from_dict(GPT2, [("training.batch_size", batch_size)])
    return load_experiment(ROOT / "experiments" / f"{name}.toml", [("training.backend", "cpu")])


@contextmanager
def gptkit_training(
    experiment: str, vocab_size: int = VOCABULARY, batch_size: int | None = None, peak: bool = False
) -> Iterator[Work]:
    """The trainer's step, as in `gptkit train`; with `peak`, also the FLOP per token and the peak FLOP/s."""
    settings = experiment_of(experiment, batch_size)
    backend = with_fastest(choose_backend(settings.training), settings, vocab_size)
    with computing(backend):
        trainer, model = random_trainer(settings, backend, vocab_size)
        step = synchronized(trainer.step, backend)
        details = {}
        if peak:
            details["flops_per_token"] = flops_per_token(model)
            details["peak"] = measure_peak(backend.device, backend.dtype)

        def work() -> Done:
            step()
            return Done(settings.tokens_per_step, details)

        yield work


@contextmanager
def nanogpt_training(folder: str, experiment: str, vocab_size: int = VOCABULARY) -> Iterator[Work]:
    """A step of nanoGPT's train.py on a CPU: fp32, the next batch before the backward pass."""
    settings = experiment_of(experiment)
    model = nanogpt_model(folder, settings, vocab_size)
    adam = _nanogpt_optimizer(model, settings, "cpu")
    with _token_file(vocab_size) as tokens:
        size = (settings.training.batch_size, settings.model.context_length)
        batch = nanogpt_batch(tokens, *size)

        def work() -> Done:
            nonlocal batch
            for group in adam.param_groups:
                group["lr"] = 1e-3
            _, loss = model(*batch)
            batch = nanogpt_batch(tokens, *size)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.training.grad_clip)
            adam.step()
            adam.zero_grad(set_to_none=True)
            loss.item()  # its README's recipe logs every step
            return Done(settings.tokens_per_step)

        yield work


@contextmanager
def nanogpt_gpu_training(folder: str, batch_size: int) -> Iterator[Work]:
    """A step of nanoGPT's train.py on a GPU: compiled, bf16 autocast, TF32, a pinned batch ahead."""
    settings = experiment_of("gpt2", batch_size)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = nanogpt_model(folder, settings, 50304).to("cuda")
    adam = _nanogpt_optimizer(model, settings, "cuda")
    compiled = torch.compile(model)
    with _token_file(50304) as tokens:

        def ahead() -> list[torch.Tensor]:
            parts = nanogpt_batch(tokens, batch_size, settings.model.context_length)
            return [part.pin_memory().to("cuda", non_blocking=True) for part in parts]

        batch = ahead()

        def work() -> Done:
            nonlocal batch
            with torch.amp.autocast("cuda", dtype=torch.bfloat16):
                _, loss = compiled(*batch)
            batch = ahead()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.training.grad_clip)
            adam.step()
            adam.zero_grad(set_to_none=True)
            synchronize("cuda")
            return Done(settings.tokens_per_step)

        yield work


@contextmanager
def transformers_training(experiment: str, precision: str) -> Iterator[Work]:
    with _transformers(experiment, precision) as (baseline, settings):

        def work() -> Done:
            baseline.step()
            return Done(settings.tokens_per_step)

        yield work


@contextmanager
def classic_training(experiment: str) -> Iterator[Work]:
    """The classic script's step, with its loss.item(); its batches are stacked slices."""
    settings = experiment_of(experiment)
    shape, context = settings.model, settings.model.context_length
    model = ClassicGPT(VOCABULARY, shape.n_embd, shape.n_head, shape.n_layer, context, shape.dropout)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = torch.randint(VOCABULARY, (1_000_000,))

    def work() -> Done:
        starts = torch.randint(len(data) - context, (settings.training.batch_size,))
        inputs = torch.stack([data[start : start + context] for start in starts])
        targets = torch.stack([data[start + 1 : start + context + 1] for start in starts])
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()
        return Done(settings.tokens_per_step)

    yield work


@contextmanager
def gptkit_sampling(experiment: str, streams: int, count: int, text: bool = False) -> Iterator[Work]:
    """As `gptkit generate`: tokens alone, or with `text` the tokenizer too, as pieces of text."""
    settings = experiment_of(experiment)
    sampling = SAMPLING.model_copy(update={"max_new_tokens": count})
    tokenizer = CharTokenizer([chr(48 + number) for number in range(VOCABULARY)])
    model = build_new_model(settings, VOCABULARY, seed=0)
    prompt = torch.zeros(streams, 1, dtype=torch.int64)

    def work() -> Done:
        if text:
            for _ in generate(model, tokenizer, [0], sampling, seed=0, num_samples=streams):
                pass
        else:
            for _ in generate_tokens(model, prompt, sampling, seed=0):
                pass
        return Done(streams * count)

    yield work


LONG = {
    "name": "long",
    "model": {**GPT2["model"], "context_length": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
}


@contextmanager
def gptkit_long() -> Iterator[Work]:
    """2000 tokens after a prompt that fills the context of 256; the rates of two parts of them."""
    model = build_new_model(experiment_from_dict(LONG), VOCABULARY, seed=0)
    prompt = torch.zeros(1, 256, dtype=torch.int64)
    sampling = SAMPLING.model_copy(update={"max_new_tokens": 2000})

    def work() -> Done:
        times = [0.0]
        for _ in generate_tokens(model, prompt, sampling, seed=0):
            times.append(time.perf_counter())
        early, late = (800 / (times[start + 800] - times[start]) for start in (300, 1200))
        return Done(2000, {"early": early, "late": late})

    yield work


@contextmanager
def nanogpt_sampling(folder: str, experiment: str, prompt: int, count: int) -> Iterator[Work]:
    settings = experiment_from_dict(LONG) if experiment == "long" else experiment_of(experiment)
    model = nanogpt_model(folder, settings, VOCABULARY).eval()
    tokens = torch.zeros(1, prompt, dtype=torch.int64)

    def work() -> Done:
        with torch.no_grad():
            model.generate(tokens, count, temperature=SAMPLING.temperature, top_k=SAMPLING.top_k)
        return Done(count)

    yield work


@contextmanager
def transformers_sampling(experiment: str, precision: str, count: int) -> Iterator[Work]:
    with _transformers(experiment, precision) as (baseline, _):

        def work() -> Done:
            baseline.sample(1, count, SAMPLING)
            return Done(count)

        yield work


@contextmanager
def _transformers(experiment: str, precision: str) -> Iterator[tuple[Transformers, Experiment]]:
    settings = experiment_of(experiment)
    if importlib.util.find_spec("transformers") is None:
        raise SkippedError("transformers is not installed")
    with quiet_transformers():
        yield Transformers(settings, choose_backend(settings.training), VOCABULARY, precision), settings


def nanogpt_model(folder: str, experiment: Experiment, vocab_size: int) -> Any:
    """The model of nanoGPT's own model.py, in the shape of an experiment."""
    file = Path(folder) / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise SkippedError(f"{folder} is not a checkout of nanoGPT: it has no model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    shape = experiment.model
    config = module.GPTConfig(
        block_size=shape.context_length,
        vocab_size=vocab_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        dropout=shape.dropout,
        bias=shape.bias,
    )
    return module.GPT(config)


def _nanogpt_optimizer(model: Any, experiment: Experiment, device: str) -> Any:
    adam = experiment.optimizer
    betas = (adam.beta1, adam.beta2)
    return model.configure_optimizers(adam.weight_decay, adam.learning_rate, betas, device)


@contextmanager
def _token_file(vocab_size: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(0, vocab_size, 1_000_000).astype(np.uint16).tofile(path)
        yield path


def nanogpt_batch(path: Path, batch_size: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As its get_batch: maps the file anew, takes random windows, converts them one by one."""
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    starts = [int(start) for start in torch.randint(len(tokens) - context, (batch_size,))]
    inputs, targets = (
        torch.stack(
            [torch.from_numpy(tokens[s + shift : s + shift + context].astype(np.int64)) for s in starts]
        )
        for shift in (0, 1)
    )
    return inputs, targets
