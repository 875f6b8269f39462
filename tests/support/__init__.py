"""What the tests and the tools share: a small text, a very small experiment, the outcome of a command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass

from gptkit.runs import Run

SENTENCES = (
    "the old lamp hummed while rain fell over every narrow street and someone quietly read aloud "
    "about ships, storms and far harbours. Nobody asked why; it was enough to listen"
)

TINY = """\
seed = 7

[data]
dataset = "data/mine.txt"

[model]
context_length = 16
n_embd = 32
n_layer = 2
n_head = 2

[training]
max_steps = 20
batch_size = 4
backend = "cpu"
threads = 1

[sampling]
sample_interval = 0
"""


def answer_interrupts() -> None:
    """SIGINT as in a terminal, also where a shell began this in the background and had it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]
Install = Callable[..., None]


def small_text(words: int = 3600) -> str:
    """About 20 kB of words and punctuation in an order that is always the same."""
    known = SENTENCES.split()
    drawn = [known[(number * number + 7 * (number // 5)) % len(known)] for number in range(words)]
    return "".join(" ".join(drawn[start : start + 11]) + "\n" for start in range(0, words, 11))


def write_record(run: Run, record: object) -> None:
    """Replaces run.json by any JSON, as another program might."""
    (run.path / "run.json").write_text(json.dumps(record))
