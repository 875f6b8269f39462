"""Measures how fast this machine trains and samples an experiment's model.

Input: an experiment. Output: a `Benchmark` of plain numbers. Rates are medians over blocks of work long
enough to be timed; against a baseline the blocks alternate (A B A B), so that a drift of the machine affects
both. Nothing is recorded and no text is needed: tokens are random, which does not change the speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from gptkit.backend import DTYPES, Backend, choose_backend, computing
from gptkit.bench.baseline import Transformers, quiet_transformers
from gptkit.errors import UsageError
from gptkit.experiment.schema import Experiment, SamplingSettings
from gptkit.generation import generate_tokens
from gptkit.measurements import measure_operations, with_fastest
from gptkit.model import GPT
from gptkit.model.build import build_new_model
from gptkit.model.measured import Measurement
from gptkit.training.cost import check_memory, training_flops
from gptkit.training.setup import build_trainer
from gptkit.training.trainer import Trainer

_STREAMS = 64  # sequences sampled as one batch


@dataclass(frozen=True)
class Rate:
    """Throughput of training, or of sampling one or several streams."""

    tokens: float  # per second
    precision: str  # of the matrix products
    flops: float  # per second, of the model's forward and backward pass
    utilisation: float  # flops as a fraction of the measured peak at this precision


@dataclass(frozen=True)
class Benchmark:
    """Rates of an experiment's model on this machine, and those of a baseline of the same shape."""

    experiment: str  # its name
    shape: str  # layers, heads, width, batch and optimizer, as text
    device: str
    threads: int
    parameters: int
    training: Rate
    generation: Rate  # one stream
    generation_streams: Rate  # the sum over `streams`
    streams: int
    peaks: dict[str, float]  # precision -> FLOP/s of a large matrix product
    experiment_seconds: float  # of training for max_steps
    rival: str  # name of the baseline, or ""; its rates are those of the faster precision
    rival_training: BaselineRate | None = None
    rival_generation: BaselineRate | None = None
    rival_generation_streams: BaselineRate | None = None


@dataclass(frozen=True)
class BaselineRate:
    tokens: float  # per second
    precision: str  # the faster one of fp32 and, where the processor has it, bf16


def benchmark(
    experiment: Experiment, *, vocab_size: int = 65, against: str = "", seconds: float = 2.0, blocks: int = 3
) -> Benchmark:
    """Takes each rate from `blocks` blocks of about `seconds` each.

    Raises UsageError for an unknown baseline, PluginError if it is not installed.
    """
    if against not in ("", "transformers"):
        raise UsageError(f"--against {against!r}: expected transformers.")
    backend = choose_backend(experiment.training, training_flops(experiment, vocab_size))
    backend = with_fastest(backend, experiment, vocab_size)
    with computing(backend), quiet_transformers() if against else nullcontext():
        check_memory(experiment, vocab_size)
        bench = _Bench(experiment, backend, vocab_size, against, seconds, blocks)
        return bench.run()


@dataclass(frozen=True)
class OperationTable:
    """The implementations of an experiment's operations, and which of them a run on this machine uses."""

    experiment: str  # its name
    device: str
    precision: str
    threads: int  # of a run; the measurement takes one
    native: str  # the build of the operations in C; "": none
    operations: list[Measurement]


def benchmark_operations(experiment: Experiment, *, vocab_size: int = 65) -> OperationTable:
    """Measures the operations anew, and keeps the result for the next runs.

    Raises UsageError where nothing can be measured.
    """
    backend = choose_backend(experiment.training, training_flops(experiment, vocab_size))
    precision, found = measure_operations(backend, experiment, vocab_size)
    return OperationTable(experiment.name, backend.device, precision, backend.threads, backend.native, found)


@dataclass(frozen=True)
class _Bench:
    """The settings of a benchmark, and its measurements."""

    experiment: Experiment
    backend: Backend
    vocab_size: int
    against: str
    seconds: float
    blocks: int

    def run(self) -> Benchmark:
        experiment, backend = self.experiment, self.backend
        model, training, theirs_training = self._training()
        sampler = build_new_model(experiment, self.vocab_size, seed=0).to(backend.device)
        reading = "bf16" if sampler.token_embedding.weight.dtype == torch.bfloat16 else "fp32"
        # GPT-2 has learned positions and cannot sample past its context, so neither does gptkit here
        count = max(1, min(257, experiment.model.context_length) - 1)
        one, theirs_one = self._sampling(sampler, 1, count)
        many, theirs_many = self._sampling(sampler, _STREAMS, count)
        peaks = {
            precision: measure_peak(backend.device, dtype)
            for precision, dtype in DTYPES.items()
            if precision in (backend.precision, reading)
        }

        def rate(tokens: float, precision: str, flops_per_token: float) -> Rate:
            flops = tokens * flops_per_token
            return Rate(tokens, precision, flops, flops / peaks[precision])

        per_sampled = flops_per_token_sampled(model, count)
        return Benchmark(
            experiment=experiment.name,
            shape=_describe(experiment),
            device=backend.device,
            threads=backend.threads,
            parameters=model.parameter_count,
            training=rate(training, backend.precision, flops_per_token(model)),
            generation=rate(one, reading, per_sampled),
            generation_streams=rate(many, reading, per_sampled),
            streams=_STREAMS,
            peaks=peaks,
            experiment_seconds=experiment.training.max_steps * experiment.tokens_per_step / training,
            rival=self.against,
            rival_training=theirs_training,
            rival_generation=theirs_one,
            rival_generation_streams=theirs_many,
        )

    def _training(self) -> tuple[GPT, float, BaselineRate | None]:
        trainer, model = random_trainer(self.experiment, self.backend, self.vocab_size)
        works = {precision: synchronized(gpt2.step, self.backend) for precision, gpt2 in self._baselines()}
        step = synchronized(trainer.step, self.backend)
        ours, theirs = self._compare(step, works, self.experiment.tokens_per_step)
        return model, ours, theirs

    def _sampling(self, sampler: GPT, streams: int, count: int) -> tuple[float, BaselineRate | None]:
        sampling = self.experiment.sampling
        works = {
            precision: synchronized(partial(gpt2.sample, streams, count, sampling), self.backend)
            for precision, gpt2 in self._baselines()
        }
        return self._compare(lambda: sample(sampler, streams, count, sampling), works, streams * count)

    def _baselines(self) -> list[tuple[str, Transformers]]:
        precisions = ("fp32", "bf16") if self.backend.precision == "bf16" else ("fp32",)
        return [
            (precision, Transformers(self.experiment, self.backend, self.vocab_size, precision))
            for precision in (precisions if self.against else ())
        ]

    def _compare(
        self, ours: Callable[[], None], baselines: dict[str, Callable[[], None]], tokens: int
    ) -> tuple[float, BaselineRate | None]:
        """Tokens per second of ours, and of the baseline in the precision that is faster in a short trial."""
        if not baselines:
            return alternate([ours], self.seconds, self.blocks)[0] * tokens, None
        trial = dict(zip(baselines, alternate(list(baselines.values()), self.seconds / 4, 1), strict=True))
        best = max(trial, key=trial.__getitem__)
        mine, theirs = alternate([ours, baselines[best]], self.seconds, self.blocks)
        return mine * tokens, BaselineRate(theirs * tokens, best)


def _describe(experiment: Experiment) -> str:
    model, training = experiment.model, experiment.training
    batch = f"{training.batch_size} x {model.context_length}"
    if training.gradient_accumulation_steps > 1:
        batch = f"{training.gradient_accumulation_steps} x {batch}"
    return (
        f"{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, batches of {batch} tokens, "
        f"{experiment.optimizer.type}"
    )


def flops_per_token(model: GPT) -> float:
    """FLOP per token of a training step: 6 per weight of a matrix product, 12 L C T for attention.

    Chowdhery et al. 2022 (PaLM), appendix B. The embedding is a look-up and does not count, unless it is tied
    and so the output projection too.
    """
    settings = model.settings
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 6.0 * matrices + 12.0 * settings.n_layer * settings.n_embd * settings.context_length


def flops_per_token_sampled(model: GPT, count: int) -> float:
    """Mean FLOP per token of sampling `count` tokens with a cache: 2 per weight, and attention."""
    settings = model.settings
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 2.0 * matrices + 4.0 * settings.n_layer * settings.n_embd * (count + 1) / 2


def measure_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: the best of 20 runs."""
    size, repeats = (8192, 4) if device == "cuda" else (1024, 1)  # a GPU is rarely synchronized
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    rates = []
    for _ in range(20):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        synchronize(device)
        rates.append(repeats * 2 * size**3 / (time.perf_counter() - started))
    return max(rates)


def synchronize(device: str) -> None:
    """Waits until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def synchronized(work: Callable[[], object], backend: Backend) -> Callable[[], None]:
    def call() -> None:
        work()
        synchronize(backend.device)

    return call


def alternate(works: list[Callable[[], None]], seconds: float, blocks: int) -> list[float]:
    """Calls per second of each: the median over alternating blocks, after a warm-up."""
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


def random_trainer(experiment: Experiment, backend: Backend, vocab_size: int) -> tuple[Trainer, GPT]:
    """A trainer on random tokens, and its model before compilation."""
    model = build_new_model(experiment, vocab_size, seed=0)
    ids = (
        np.random.default_rng(0)
        .integers(0, vocab_size, max(100_000, 4 * experiment.model.context_length))
        .astype(np.min_scalar_type(vocab_size - 1))
    )
    trainer = build_trainer(experiment, backend, model, ids, seed=0)
    if backend.compile:
        trainer.model = torch.compile(model)  # type: ignore[assignment]
    return trainer, model


def sample(model: GPT, streams: int, count: int, sampling: SamplingSettings) -> None:
    """Samples `count` tokens after one token, in each of `streams`."""
    prompt = torch.zeros(streams, 1, dtype=torch.int64)
    settings = sampling.model_copy(update={"max_new_tokens": count})
    for _ in generate_tokens(model, prompt, settings, seed=0):
        pass
