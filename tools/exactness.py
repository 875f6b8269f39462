"""Prints SHA-256 of the results of twelve small trainings: weights, optimizer, losses, samples, text.

    python -m tools.exactness [--json FILE] [--against FILE]

Uses only the command line of gptkit, so that two versions can be compared: write a file with one, compare
with the other. Exit code 1 if any hash differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TEXT = "".join(f"{n} times {n + 3} makes {n * (n + 3)}; so it goes.\n" for n in range(700))

BASE = """seed = 11
[data]
dataset = "sums.txt"
[model]
context_length = 24
n_embd = 32
n_layer = 2
n_head = 2
[training]
max_steps = 24
batch_size = 3
threads = 1
backend = "cpu"
log_interval = 1
[evaluation]
eval_interval = 6
[checkpoints]
checkpoint_interval = 12
[sampling]
sample_interval = 12
max_new_tokens = 60
"""

ADAMW = ("optimizer=adamw",)
GPT2 = ("model.norm=layernorm", "model.mlp=gelu", "model.bias=true", "model.init=gpt2", "model.qk_norm=false")
# name -> settings, and whether the C kernels of gptkit/native are used
RUNS: dict[str, tuple[tuple[str, ...], bool]] = {
    "muon-bf16-rope": (("training.precision=bf16",), True),
    "muon-fp32-rope": (("training.precision=fp32",), True),
    "muon-bf16-torch": (("training.precision=bf16",), False),
    "muon-fp32-torch": (("training.precision=fp32",), False),
    "adamw-bf16-learned": ((*ADAMW, *GPT2, "training.precision=bf16", "model.position=learned"), True),
    "adamw-fp32-sinusoidal-tied": (
        (
            *ADAMW,
            "training.precision=fp32",
            "model.position=sinusoidal",
            "model.tie_embeddings=true",
            "model.mlp=swiglu",
        ),
        True,
    ),
    "adamw-fp32-learned-torch": ((*ADAMW, *GPT2, "training.precision=fp32", "model.position=learned"), False),
    "muon-bf16-alibi-dropout": (
        ("training.precision=bf16", "model.position=alibi", "model.dropout=0.1"),
        True,
    ),
    "muon-bf16-alibi-dropout-torch": (
        ("training.precision=bf16", "model.position=alibi", "model.dropout=0.1"),
        False,
    ),
    "adamw-fp32-none-accumulation-dropout": (
        (
            *ADAMW,
            "training.precision=fp32",
            "model.position=none",
            "training.gradient_accumulation_steps=3",
            "model.dropout=0.2",
            "model.attention_dropout=0.1",
            "model.mlp=gelu_tanh",
        ),
        True,
    ),
    "muon-bf16-accumulation-threads": (
        ("training.precision=bf16", "training.gradient_accumulation_steps=2", "training.threads=2"),
        True,
    ),
    "adamw-bf16-bigram-clip": (
        (
            *ADAMW,
            "training.precision=bf16",
            "tokenizer=bigram",
            "training.grad_clip=0.1",
            "schedule.type=cosine",
            "schedule.warmup_steps=4",
            "model.mlp=swiglu",
        ),
        True,
    ),
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def gptkit(folder: Path, *words: str, native: bool) -> bytes:
    environment = {
        **os.environ,
        "GPTKIT_NATIVE": "1" if native else "0",
        "GPTKIT_MEASURE": "0",
        "GPTKIT_DATA_DIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-m", "gptkit", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"gptkit {' '.join(words)}: exit {done.returncode}\n{done.stderr.decode()}")
    return done.stdout


def outcome(folder: Path, name: str, settings: tuple[str, ...], native: bool) -> dict[str, str]:
    """Trains a run partly, resumes it to the end, generates from it, and hashes the results."""
    words = [word for setting in settings for word in ("--set", setting)]
    gptkit(folder, "train", "base.toml", "--name", name, "--stop-at", "15", "--quiet", *words, native=native)
    (run,) = (folder / "runs").glob(f"{name}.*")
    gptkit(folder, "resume", str(run), "--quiet", native=native)
    newest = max((run / "checkpoints").glob("step-*"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "train_loss", "val_loss", "bits_per_byte", "grad_norm", "learning_rate", "tokens")
    losses = [[row.get(key) for key in keys] for row in rows]
    text = gptkit(
        folder, "generate", str(run), "-n", "80", "--seed", "3", "--num-samples", "2", native=native
    )
    return {
        "model": sha((newest / "model.safetensors").read_bytes()),
        "optimizer": sha((newest / "optimizer.safetensors").read_bytes()),
        "losses": sha(json.dumps(losses).encode()),
        "sample": sha(max((run / "samples").glob("step-*.txt")).read_bytes()),
        "generated": sha(text),
    }


def main() -> None:
    parser = argparse.ArgumentParser(  # without tools.support, so that it runs with any version of gptkit
        prog="python -m tools.exactness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the hashes to a file")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with the hashes in a file")
    options = parser.parse_args()
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "sums.txt").write_text(TEXT)
        (folder / "base.toml").write_text(BASE)
        for name, (settings, native) in RUNS.items():
            found[name] = outcome(folder, name, settings, native)
            print(name, *(f"{key} {value[:12]}" for key, value in found[name].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.against:
        before = json.loads(options.against.read_text())
        different = [
            f"{name}: {key}"
            for name, hashes in found.items()
            for key, value in hashes.items()
            if before.get(name, {}).get(key) != value
        ]
        print("identical" if not different else "different: " + "; ".join(different))
        raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
