"""Rows about training: tokens per second against baselines, equal losses, the GPU."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tools.speed.contest import Baseline, Contestant, Options, compare, nanogpt, transformers
from tools.speed.report import Finding, SkippedError, count
from tools.speed.runs import find_text, train


def nanogpt_shape(options: Options) -> list[Finding]:
    """The same architecture, batch and optimizer as nanoGPT's CPU recipe."""
    shape = {"experiment": "nanogpt"}
    others = [
        nanogpt(options, "nanogpt_training", 3.0, **shape),
        transformers("transformers_training", 2.5, **shape),
    ]
    return compare("training, nanoGPT's CPU shape", Contestant("gptkit_training", shape), others, options)[1]


def baseline(options: Options) -> list[Finding]:
    """The classic small script, at its own defaults."""
    shape = {"experiment": "baseline"}
    classic = Baseline("the classic script", 5.0, lambda: [Contestant("classic_training", shape)])
    return compare("training, baseline.toml", Contestant("gptkit_training", shape), [classic], options)[1]


def precision(options: Options) -> list[Finding]:
    """nanoGPT's shape in bf16 and in fp32, from the same weights and batches."""
    from gptkit.backend import choose_backend
    from gptkit.experiment.schema import TrainingSettings

    if choose_backend(TrainingSettings(backend="cpu")).precision != "bf16":
        raise SkippedError("this processor has no fast bf16")
    find_text()
    steps = (200, 400, 600)
    differences: dict[int, list[float]] = {step: [] for step in steps}
    for seed in range(1, options.seeds + 1):
        losses = [_losses(precision, seed, steps) for precision in ("bf16", "fp32")]
        for step in steps:
            differences[step].append(losses[0][step] - losses[1][step])
    means = {step: sum(found) / len(found) for step, found in differences.items()}
    return [
        Finding(
            "val loss in bf16 less that in fp32, nanoGPT's CPU shape",
            "within 0.01 at the same step",
            ", ".join(f"{mean:+.4f} at step {step}" for step, mean in means.items()),
            f"`gptkit train experiments/nanogpt.toml --set training.precision=...`, {options.seeds} seed(s), "
            "whole val split",
            all(abs(mean) <= 0.01 for mean in means.values()),
            {f"difference at {step}": mean for step, mean in means.items()},
        )
    ]


def gpu(options: Options) -> list[Finding]:
    """GPT-2 124M on a CUDA device, random tokens; needs no text and no network."""
    import torch

    if not torch.cuda.is_available():
        raise SkippedError("no CUDA device")
    batch = options.gpu_batch
    what = f"training, GPT-2 124M, context 1024, batch {batch}, {torch.cuda.get_device_name()}"
    shape = {"experiment": "gpt2", "vocab_size": 50304, "batch_size": batch, "peak": True}
    other = nanogpt(options, "nanogpt_gpu_training", 1.2, note="compiled, bf16 autocast", batch_size=batch)
    ours, lines = compare(what, Contestant("gptkit_training", shape), [other], options)
    share = ours.tokens * ours.details["flops_per_token"] / ours.details["peak"]
    return [
        Finding(
            what,
            "≥ 45 % of the bf16 peak",
            f"{share:.1%} of {ours.details['peak'] / 1e12:,.0f} TFLOP/s ({count(ours.tokens)} tokens/s)",
            "peak: the best of large matrix products in bf16",
            share >= 0.45,
            {"tokens_per_second": ours.tokens, "utilisation": share},
        ),
        *lines,
    ]


def _losses(precision: str, seed: int, steps: tuple[int, ...]) -> dict[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "training.precision": precision,
            "evaluation.eval_interval": steps[0],
            "checkpoints.save": "false",
        }
        run, _ = train("nanogpt", Path(folder), seed=seed, settings=settings, stop_at=steps[-1])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
