"""The row about the char tokenizer."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from tools.speed.contest import ROOT, Options, environment
from tools.speed.report import Finding

_MEGABYTES = 64

# Runs in its own process, so that its peak memory is that of this work alone
_PROGRAM = """
import json, resource, sys, time
import numpy as np
from gptkit.plugins import Splits
from gptkit.tokenizers.char import CharTokenizer

def peak():
    try:  # of this program alone: on Linux, getrusage includes the process that started it
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        pass
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

megabytes = int(sys.argv[1])
letters = np.frombuffer(bytes([10, *range(32, 96)]), dtype=np.uint8)
piece = letters[np.random.default_rng(0).integers(0, len(letters), 1_000_000)].tobytes().decode("ascii")
CharTokenizer.train(CharTokenizer.Options(), Splits(piece, "")).encode(piece)
before = peak()
text = piece * megabytes
started = time.perf_counter()
tokenizer = CharTokenizer.train(CharTokenizer.Options(), Splits(text, ""))
trained = time.perf_counter()
ids = tokenizer.encode(text)
encoded = time.perf_counter()
print(json.dumps({
    "encode": megabytes / (encoded - trained),
    "learn and encode": megabytes / (encoded - started),
    "memory": (peak() - before) / len(text),
}))
"""


def tokenizer(options: Options) -> list[Finding]:
    """The char tokenizer on ASCII: learning the characters, and encoding."""
    found = []
    for _ in range(options.blocks):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(_MEGABYTES)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found.append(json.loads(done.stdout))
    medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
    encode, both, memory = medians["encode"], medians["learn and encode"], medians["memory"]
    return [
        Finding(
            "char tokenizer, ASCII text",
            "≥ 200 MB/s, memory ≤ 4x the text",
            f"{encode:,.0f} MB/s, memory {memory:.1f}x ({both:,.0f} MB/s with learning the characters)",
            f"{_MEGABYTES} MB in a process of its own, median of {options.blocks}; memory: growth of the "
            "peak, including the text",
            encode >= 200 and memory <= 4,
            medians,
        )
    ]
