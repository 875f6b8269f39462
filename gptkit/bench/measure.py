"""How fast this machine trains and samples an experiment's model, and what the whole experiment will take.

In: an experiment. Out: a `Benchmark` of plain numbers. Rates are medians over blocks of work, each block long
enough to be timed; with a rival the blocks alternate (A B A B), so that a drift of the machine hits both.
Nothing is recorded and no text is needed: tokens are random, which changes no speed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from gptkit.backend import Backend, choose_backend, computing
from gptkit.bench.baseline import Transformers, quiet_transformers
from gptkit.errors import UsageError
from gptkit.experiment import Experiment, SamplingSettings
from gptkit.generation import generate_tokens
from gptkit.model import GPT
from gptkit.model.build import build_new_model
from gptkit.training.budget import TrainingBudget, TrainingProgress
from gptkit.training.setup import build_trainer, check_memory, training_flops
from gptkit.training.trainer import Trainer

_STREAMS = 64  # sampled at once, beside one alone


@dataclass(frozen=True)
class Rate:
    """What was measured of one thing, for one stream of work or several together."""

    tokens: float  # a second
    precision: str  # of the matrix products
    flops: float  # a second: the model's own multiplications and additions
    utilisation: float  # their share of the measured peak at this precision


@dataclass(frozen=True)
class Benchmark:
    """Rates of an experiment's model on this machine; with a rival, those of the same shape there."""

    experiment: str  # its name
    shape: str  # for a person
    device: str
    threads: int
    parameters: int
    training: Rate
    generation: Rate  # one stream
    generation_streams: Rate  # all of `streams` together
    streams: int
    peaks: dict[str, float]  # precision -> FLOP/s of a large matrix product
    experiment_seconds: float  # of training, by its max_steps
    rival: str  # "" for none; each of its rates is the better of fp32 and, where the processor has it, bf16
    rival_training: RivalRate | None = None
    rival_generation: RivalRate | None = None
    rival_generation_streams: RivalRate | None = None


@dataclass(frozen=True)
class RivalRate:
    tokens: float  # a second
    precision: str  # the one that was faster there


def benchmark(
    experiment: Experiment, *, vocab_size: int = 65, against: str = "", seconds: float = 2.0, blocks: int = 3
) -> Benchmark:
    """Measures `blocks` blocks of about `seconds` each, for each thing measured.

    Raises UsageError for an unknown rival, PluginError where it is not installed.
    """
    if against not in ("", "transformers"):
        raise UsageError(f"--against {against!r}: expected transformers.")
    backend = choose_backend(experiment.training, training_flops(experiment, vocab_size))
    with computing(backend), quiet_transformers() if against else nullcontext():
        check_memory(experiment, vocab_size)
        bench = _Bench(experiment, backend, vocab_size, against, seconds, blocks)
        return bench.run()


@dataclass(frozen=True)
class _Bench:
    """One benchmark while it runs."""

    experiment: Experiment
    backend: Backend
    vocab_size: int
    against: str
    seconds: float
    blocks: int

    def run(self) -> Benchmark:
        experiment, backend = self.experiment, self.backend
        model, training, theirs_training = self._training()
        reader = build_new_model(experiment, self.vocab_size, seed=0).to(backend.device)
        reading = "bf16" if reader.token_embedding.weight.dtype == torch.bfloat16 else "fp32"
        # A rival with learned positions ends with the context, and so does the count here
        count = max(1, min(257, experiment.model.context_length) - 1)
        one, theirs_one = self._writing(reader, 1, count)
        many, theirs_many = self._writing(reader, _STREAMS, count)
        peaks = {
            precision: measure_peak(backend.device, dtype)
            for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
            if precision in (backend.precision, reading)
        }

        def rate(tokens: float, precision: str, flops_per_token: float) -> Rate:
            flops = tokens * flops_per_token
            return Rate(tokens, precision, flops, flops / peaks[precision])

        per_written = flops_per_token_written(model, count)
        return Benchmark(
            experiment=experiment.name,
            shape=_describe(experiment),
            device=backend.device,
            threads=backend.threads,
            parameters=model.parameter_count,
            training=rate(training, backend.precision, flops_per_token(model)),
            generation=rate(one, reading, per_written),
            generation_streams=rate(many, reading, per_written),
            streams=_STREAMS,
            peaks=peaks,
            experiment_seconds=experiment.training.max_steps * experiment.tokens_per_step / training,
            rival=self.against,
            rival_training=theirs_training,
            rival_generation=theirs_one,
            rival_generation_streams=theirs_many,
        )

    def _training(self) -> tuple[GPT, float, RivalRate | None]:
        trainer, model = random_trainer(self.experiment, self.backend, self.vocab_size)
        works = {precision: waiting(rival.step, self.backend) for precision, rival in self._rivals()}
        ours, theirs = self._compare(stepper(trainer, self.backend), works, self.experiment.tokens_per_step)
        return model, ours, theirs

    def _writing(self, reader: GPT, streams: int, count: int) -> tuple[float, RivalRate | None]:
        sampling = self.experiment.sampling
        works = {
            precision: waiting(lambda rival=rival: rival.write(streams, count, sampling), self.backend)  # type: ignore[misc]
            for precision, rival in self._rivals()
        }
        return self._compare(lambda: write(reader, streams, count, sampling), works, streams * count)

    def _rivals(self) -> list[tuple[str, Transformers]]:
        precisions = ("fp32", "bf16") if self.backend.precision == "bf16" else ("fp32",)
        return [
            (precision, Transformers(self.experiment, self.backend, self.vocab_size, precision))
            for precision in (precisions if self.against else ())
        ]

    def _compare(
        self, ours: Callable[[], None], rivals: dict[str, Callable[[], None]], tokens: int
    ) -> tuple[float, RivalRate | None]:
        """Tokens a second of ours, and of the rival in the precision that a short trial found faster."""
        if not rivals:
            return alternate([ours], self.seconds, self.blocks)[0] * tokens, None
        trial = dict(zip(rivals, alternate(list(rivals.values()), self.seconds / 4, 1), strict=True))
        best = max(trial, key=trial.__getitem__)
        mine, theirs = alternate([ours, rivals[best]], self.seconds, self.blocks)
        return mine * tokens, RivalRate(theirs * tokens, best)


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
    """Of a training step: 6 for each weight of a matrix product, 12 L C T for attention.

    Chowdhery et al. 2022 (PaLM), appendix B. The embedding is a look-up and does not count; where it is tied
    it does, as the output projection.
    """
    settings = model.settings
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 6.0 * matrices + 12.0 * settings.n_layer * settings.n_embd * settings.context_length


def flops_per_token_written(model: GPT, count: int) -> float:
    """Of one token in a text of `count`, with a cache: 2 a weight, and attention to half of it."""
    settings = model.settings
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 2.0 * matrices + 4.0 * settings.n_layer * settings.n_embd * (count + 1) / 2


def measure_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: the best of some."""
    size, repeats = (8192, 4) if device == "cuda" else (1024, 1)  # few waits where a wait costs something
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    rates = []
    for _ in range(20):
        wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        wait(device)
        rates.append(repeats * 2 * size**3 / (time.perf_counter() - started))
    return max(rates)


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def waiting(work: Callable[[], object], backend: Backend) -> Callable[[], None]:
    def waited() -> None:
        work()
        wait(backend.device)

    return waited


def alternate(works: list[Callable[[], None]], seconds: float, blocks: int) -> list[float]:
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


def random_trainer(experiment: Experiment, backend: Backend, vocab_size: int) -> tuple[Trainer, GPT]:
    """A trainer of random tokens, and its model as it is before compilation."""
    model = build_new_model(experiment, vocab_size, seed=0).to(backend.device)
    ids = (
        np.random.default_rng(0)
        .integers(0, vocab_size, max(100_000, 4 * experiment.model.context_length))
        .astype(np.min_scalar_type(vocab_size - 1))
    )
    budget = TrainingBudget.of(experiment.training)
    trainer = build_trainer(experiment, backend, model, ids, TrainingProgress(), seed=0, budget=budget)
    if backend.compile:
        trainer.model = torch.compile(model)  # type: ignore[assignment]
    return trainer, model


def stepper(trainer: Trainer, backend: Backend) -> Callable[[], None]:
    """One update of the trainer at each call, the batch gathered as in a run."""

    return waiting(trainer.step, backend)


def write(model: GPT, streams: int, count: int, sampling: SamplingSettings) -> None:
    """`count` tokens after one token, in each of `streams`."""
    prompt = torch.zeros(streams, 1, dtype=torch.int64)
    settings = sampling.model_copy(update={"max_new_tokens": count})
    for _ in generate_tokens(model, prompt, settings, seed=0):
        pass
