"""Shared by the tools and the tests: a small text, a very small experiment, signals as in a terminal."""

from __future__ import annotations

import argparse
import signal

_SENTENCES = (
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


def small_text(words: int = 3600) -> str:
    """About 20 kB of words and punctuation, always the same."""
    vocabulary = _SENTENCES.split()
    drawn = [vocabulary[(number**2 + 7 * (number // 5)) % len(vocabulary)] for number in range(words)]
    return "".join(" ".join(drawn[start : start + 11]) + "\n" for start in range(0, words, 11))


def restore_sigint() -> None:
    """Makes SIGINT raise KeyboardInterrupt, also in a process that a shell started in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def argument_parser(tool: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the docstring of the module `tools.TOOL`."""
    return argparse.ArgumentParser(
        prog=f"python -m tools.{tool}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
