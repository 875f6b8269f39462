"""How fast this machine trains and samples an experiment's model, and what the whole experiment will take.

In: an experiment. Out: a `Benchmark` of plain numbers. Rates are medians over blocks of work, each block long
enough to be timed; with a rival the blocks alternate (A B A B), so that a drift of the machine hits both.
Nothing is recorded and no text is needed: tokens are random, which changes no speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gptkit.backend import Backend, choose_backend, computing
from gptkit.errors import PluginError, UsageError
from gptkit.experiment import Experiment, SamplingSettings
from gptkit.generation import generate_tokens
from gptkit.model import GPT
from gptkit.text.batches import BatchSampler
from gptkit.training.loop import Progress, Trainer
from gptkit.training.optim import Optimizer, weights_for
from gptkit.workflows.building import build_new_model

_STREAMS = 64  # sampled at once, beside one alone


@dataclass(frozen=True)
class Benchmark:
    """Rates are tokens a second; FLOP/s count the model's own multiplications, twice, as is usual."""

    device: str
    precision: str
    threads: int
    parameters: int
    training: float
    generation: float  # one stream
    generation_streams: float  # all of `streams` together
    streams: int
    flops_per_token: float  # of a training step
    peak_flops: float  # of a large matrix product at this precision, measured
    experiment_seconds: float  # of training, by its max_steps
    rival: str  # "" for none
    rival_training: float
    rival_generation: float

    @property
    def utilisation(self) -> float:
        """Share of the measured peak that training reaches."""
        return self.training * self.flops_per_token / self.peak_flops


def benchmark(
    experiment: Experiment, *, vocab_size: int = 65, against: str = "", seconds: float = 3.0, blocks: int = 3
) -> Benchmark:
    """Measures `blocks` blocks of about `seconds` each, for each thing measured.

    Raises UsageError for an unknown rival, PluginError where it is not installed.
    """
    if against not in ("", "transformers"):
        raise UsageError(f"--against {against!r}: expected transformers.")
    backend = choose_backend(experiment.training)
    with computing(backend):
        trainer, model = _trainer(experiment, backend, vocab_size)
        train = _stepper(trainer)
        rival = _Transformers(experiment, backend, vocab_size) if against else None
        rates = _alternate([train, rival.step] if rival else [train], seconds, blocks)
        per_step = experiment.tokens_per_step
        reader = build_new_model(experiment, vocab_size, seed=0).to(backend.device)
        count = min(256, model.settings.context_length)
        write = [lambda: _write(reader, 1, count), lambda: _write(reader, _STREAMS, count)]
        written = _alternate([*write, rival.write] if rival else write, seconds, blocks)
        return Benchmark(
            device=backend.device,
            precision=backend.precision,
            threads=backend.threads,
            parameters=model.parameter_count,
            training=rates[0] * per_step,
            generation=written[0] * count,
            generation_streams=written[1] * count * _STREAMS,
            streams=_STREAMS,
            flops_per_token=flops_per_token(model),
            peak_flops=measure_peak(backend),
            experiment_seconds=experiment.training.max_steps / rates[0],
            rival=against,
            rival_training=rates[1] * per_step if rival else 0.0,
            rival_generation=written[2] * rival.written if rival else 0.0,
        )


def flops_per_token(model: GPT) -> float:
    """Of a training step: 6 for each weight of a matrix product, 12 L C T for attention.

    Chowdhery et al. 2022 (PaLM), appendix B. The embedding is a look-up and does not count; where it is tied
    it does, as the output projection.
    """
    settings = model.settings
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 6.0 * matrices + 12.0 * settings.n_layer * settings.n_embd * settings.context_length


def measure_peak(backend: Backend) -> float:
    """FLOP/s of a large square matrix product in the backend's precision: the best of a few."""
    size = 4096 if backend.device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=backend.device).to(backend.dtype) for _ in range(2))
    a @ b
    rates = []
    for _ in range(20):
        _wait(backend.device)
        started = time.perf_counter()
        a @ b
        _wait(backend.device)
        rates.append(2 * size**3 / (time.perf_counter() - started))
    return max(rates)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _alternate(works: list[Callable[[], None]], seconds: float, blocks: int) -> list[float]:
    """Calls of each a second: the median over blocks taken in turn, after a warm-up."""
    repeats = []
    for work in works:
        work()
        started = time.perf_counter()
        work()
        repeats.append(max(1, round(seconds / (time.perf_counter() - started))))
    rates: list[list[float]] = [[] for _ in works]
    for _ in range(blocks):
        for work, repeat, found in zip(works, repeats, rates, strict=True):
            started = time.perf_counter()
            for _ in range(repeat):
                work()
            found.append(repeat / (time.perf_counter() - started))
    return [statistics.median(found) for found in rates]


def _trainer(experiment: Experiment, backend: Backend, vocab_size: int) -> tuple[Trainer, GPT]:
    model = build_new_model(experiment, vocab_size, seed=0).to(backend.device)
    context = experiment.model.context_length
    weights = weights_for(model, backend.dtype, experiment.optimizer)
    ids = np.random.default_rng(0).integers(0, vocab_size, max(100_000, 4 * context))
    sampler = BatchSampler(
        ids.astype(np.uint8 if vocab_size <= 256 else np.uint32),
        context_length=context,
        batch_size=experiment.training.batch_size,
        seed=0,
    )
    trainer = Trainer(
        experiment=experiment,
        model=torch.compile(model) if backend.compile else model,  # type: ignore[arg-type]
        weights=weights,
        optimizer=Optimizer(weights, experiment.optimizer),
        sampler=sampler,
        seed=0,
        progress=Progress(),
    )
    return trainer, model


def _stepper(trainer: Trainer) -> Callable[[], None]:
    device = trainer.weights.master.device.type

    def step() -> None:
        trainer.progress.step += 1
        trainer.update(trainer.progress.step)
        _wait(device)

    return step


def _write(model: GPT, streams: int, count: int) -> None:
    prompt = torch.zeros(streams, 1, dtype=torch.int64)
    for _ in generate_tokens(model, prompt, SamplingSettings(max_new_tokens=count), seed=0):
        pass


class _Transformers:
    """The same shape as GPT-2 in Hugging Face transformers, with torch's AdamW and its own cache."""

    def __init__(self, experiment: Experiment, backend: Backend, vocab_size: int) -> None:
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError:
            raise PluginError("transformers is not installed here; pip install transformers") from None
        model, training = experiment.model, experiment.training
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=model.context_length,
            n_embd=model.n_embd,
            n_layer=model.n_layer,
            n_head=model.n_head,
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=model.dropout,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
        self._device = backend.device
        self._model: Any = GPT2LMHeadModel(config)
        self._model.to(backend.device)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        shape = (training.batch_size, model.context_length)
        self._accumulation = training.gradient_accumulation_steps
        self._tokens = torch.randint(vocab_size, shape, device=backend.device)
        self.written = min(256, model.context_length) - 1

    def step(self) -> None:
        self._model.train()
        for _ in range(self._accumulation):
            loss = self._model(self._tokens, labels=self._tokens).loss / self._accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        _wait(self._device)

    def write(self) -> None:
        self._model.eval()
        with torch.inference_mode():
            self._model.generate(
                self._tokens[:1, :1], max_new_tokens=self.written, min_new_tokens=self.written, do_sample=True
            )
        _wait(self._device)
