"""Rows about whole commands: training from start to end, the first update, the help."""

from __future__ import annotations

import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tools.speed.contest import Options, environment, timed
from tools.speed.report import Finding, SkippedError
from tools.speed.runs import find_text, record, train, train_command

# The CPU recipe of nanoGPT's README
_RECIPE = [
    *("train.py", "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20"),
    *("--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"),
    *("--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
_CONTEXT = 64
_VAL = 0.1  # the last tenth of the text


def whole_command(options: Options) -> list[Finding]:
    """shakespeare_quick.toml and nanoGPT's command: one run before it, one after it."""
    text, source = find_text(), options.nanogpt_folder()
    ours: list[tuple[float, float]] = []  # seconds, loss
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ours.append(_ours(folder / "first", seed=1, text=text))
        seconds, loss = _nanogpt(folder / "nanoGPT", source, text)
        ours.append(_ours(folder / "second", seed=2, text=text))
    mean = statistics.mean(wall for wall, _ in ours)
    worst = max(found for _, found in ours)
    return [
        Finding(
            "whole command, shakespeare_quick.toml",
            "≤ 1/10 of nanoGPT's, at no higher loss",
            f"1/{seconds / mean:.1f}: {' and '.join(f'{wall:.1f}' for wall, _ in ours)} s, loss "
            f"{' and '.join(f'{found:.4f}' for _, found in ours)}; nanoGPT {seconds:.1f} s, loss {loss:.4f}",
            "wall seconds of both processes, two seeds of gptkit around nanoGPT's CPU recipe; losses of the "
            f"saved models, context {_CONTEXT}, consecutive windows over the last tenth of the text",
            mean <= seconds / 10 and worst <= loss,
            {"gptkit_seconds": mean, "gptkit_loss": worst, "nanogpt_seconds": seconds, "nanogpt_loss": loss},
        )
    ]


def _ours(folder: Path, *, seed: int, text: Path) -> tuple[float, float]:
    import gptkit

    folder.mkdir()
    path, seconds = train("shakespeare_quick", folder, seed=seed)
    model, tokenizer = gptkit.open_run(path).load()
    words = text.read_text(encoding="utf-8")
    ids = tokenizer.encode(words[int(len(words) * (1 - _VAL)) :])
    return seconds, full_loss(lambda inputs, targets: model(inputs), ids)


def _nanogpt(folder: Path, source: Path, text: Path) -> tuple[float, float]:
    """nanoGPT's whole command in a copy of its folder: wall seconds, and the loss of the saved model."""
    import torch

    from gptkit.experiment.load import experiment_from_dict
    from tools.speed.contestants import nanogpt_model

    if not (source / "train.py").is_file():
        raise SkippedError(f"{source} is not a checkout of nanoGPT: it has no train.py")
    ignored = shutil.ignore_patterns(".git", "out-*", "*.bin", "*.pkl")
    shutil.copytree(source, folder, ignore=ignored)
    val = _prepare(folder / "data" / "shakespeare_char", text.read_text(encoding="utf-8"))
    seconds = timed([sys.executable, *_RECIPE], folder)
    kept = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", map_location="cpu", weights_only=True)
    shape = kept["model_args"]
    experiment = experiment_from_dict(
        {
            "model": {
                "context_length": shape["block_size"],
                **{key: shape[key] for key in ("n_layer", "n_head", "n_embd", "dropout", "bias")},
            }
        }
    )
    model = nanogpt_model(str(folder), experiment, shape["vocab_size"]).eval()
    model.load_state_dict(kept["model"])
    return seconds, full_loss(lambda inputs, targets: model(inputs, targets)[0], val)


def _prepare(folder: Path, text: str) -> np.ndarray[Any, Any]:
    """Writes the files of nanoGPT's prepare.py for this text; returns the ids of the val split."""
    characters = sorted(set(text))
    numbers = {character: number for number, character in enumerate(characters)}
    ids = np.array([numbers[character] for character in text], dtype=np.uint16)
    cut = int(len(text) * (1 - _VAL))
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(characters), "stoi": numbers, "itos": dict(enumerate(characters))}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))  # nanoGPT's own format
    return ids[cut:]


def full_loss(logits_of: Callable[[Any, Any], Any], ids: np.ndarray[Any, Any]) -> float:
    """Mean nats per token over all whole windows of the context, without overlap."""
    import torch
    import torch.nn.functional as F

    windows = (len(ids) - 1) // _CONTEXT
    tokens = torch.from_numpy(ids[: windows * _CONTEXT + 1].astype(np.int64))
    inputs, targets = (tokens[shift:][: windows * _CONTEXT].view(windows, _CONTEXT) for shift in (0, 1))
    total = 0.0
    with torch.no_grad():
        for part, wanted in zip(inputs.split(128), targets.split(128), strict=True):
            logits = logits_of(part, wanted).float()
            total += F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").item()
    return total / (windows * _CONTEXT)


def shakespeare(options: Options) -> list[Finding]:
    return [_experiment("shakespeare", loss=1.55, seconds=60, options=options)]


def shakespeare_best(options: Options) -> list[Finding]:
    return [_experiment("shakespeare_best", loss=1.4697, seconds=180, options=options)]


def _experiment(name: str, *, loss: float, seconds: float, options: Options) -> Finding:
    losses, times = [], []
    for seed in range(1, options.seeds + 1):
        with tempfile.TemporaryDirectory() as place:
            run, _ = train(name, Path(place), seed=seed)
            found = record(run)
        losses.append(float(found["best_val_loss"]))
        times.append(float(found["seconds"]))
    numbers: dict[str, float | str] = {f"loss {seed}": found for seed, found in enumerate(losses, 1)}
    numbers |= {f"seconds {seed}": found for seed, found in enumerate(times, 1)}
    return Finding(
        f"{name}.toml",
        f"loss ≤ {loss:g} in ≤ {seconds:g} s of training",
        f"loss {_range(losses, 4)} in {_range(times, 1)} s",
        f"run.json, {options.seeds} seed(s): best loss over the whole val split, seconds of training",
        max(losses) <= loss and max(times) <= seconds,
        numbers,
    )


def _range(numbers: list[float], digits: int) -> str:
    low, high = f"{min(numbers):.{digits}f}", f"{max(numbers):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def first_update(options: Options) -> list[Finding]:
    """From the start of the process to the line that records step 1, compared with the import of torch."""
    find_text()
    command, torch = [], []
    for _ in range(options.blocks):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            settings = {"training.log_interval": 1, "checkpoints.save": "false"}
            line = train_command("shakespeare", folder, seed=1, settings=settings, stop_at=1)
            started = time.time_ns()
            timed(line, folder)
            (metrics,) = (folder / "runs").glob("*/metrics.jsonl")
            command.append((metrics.stat().st_mtime_ns - started) / 1e9)
        torch.append(_import_torch())
    ours, theirs = statistics.median(command), statistics.median(torch)
    return [
        Finding(
            "from the command to the first update, shakespeare.toml",
            "≤ `import torch` + 1.5 s",
            f"`import torch` + {ours - theirs:.2f} s ({ours:.2f} s, of which torch {theirs:.2f} s)",
            "from the start of the process, interpreter included, until metrics.jsonl has step 1 on disk, "
            f"no terminal; `import torch` timed inside an interpreter; in turn, medians of {options.blocks}",
            ours <= theirs + 1.5,
            {"command": ours, "import_torch": theirs},
        )
    ]


def _import_torch() -> float:
    code = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def light_commands(options: Options) -> list[Finding]:
    """The commands that need no torch."""
    return [_light(words, options) for words in (["--help"], ["datasets", "list"])]


def _light(words: list[str], options: Options) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gptkit", *words]
        seconds = statistics.median(timed(command, Path(folder)) for _ in range(options.blocks))
        traced = [sys.executable, "-X", "importtime", *command[1:]]
        done = subprocess.run(
            traced, cwd=folder, env=environment(), capture_output=True, text=True, check=True
        )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    torch = "torch imported" if "torch" in imported else "no torch imported"
    return Finding(
        f"`gptkit {' '.join(words)}`",
        "≤ 0.3 s, no torch imported",
        f"{seconds:.2f} s, {torch}",
        f"wall seconds of the process, median of {options.blocks}; -X importtime",
        seconds <= 0.3 and "torch" not in imported,
        {"seconds": seconds},
    )
