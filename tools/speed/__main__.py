"""python -m tools.speed: measures the rows and prints the table."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.speed import commands, sampling, text, training
from tools.speed.contest import Options
from tools.speed.report import Finding, SkippedError, as_json, machine, table

# Name on the command line -> the function that measures it, and its title if it is skipped
ROWS: dict[str, tuple[Callable[[Options], list[Finding]], str]] = {
    "train": (training.nanogpt_shape, "training, nanoGPT's CPU shape"),
    "baseline": (training.baseline, "training, baseline.toml"),
    "precision": (training.precision, "val loss in bf16 and fp32"),
    "whole": (commands.whole_command, "whole command, shakespeare_quick.toml beside nanoGPT's"),
    "shakespeare": (commands.shakespeare, "shakespeare.toml"),
    "best": (commands.shakespeare_best, "shakespeare_best.toml"),
    "sample": (sampling.one_stream, "sampling one stream"),
    "streams": (sampling.many_streams, "sampling 64 streams at once"),
    "long": (sampling.past_the_context, "sampling past the context"),
    "start": (commands.first_update, "from the command to the first update"),
    "tokenizer": (text.tokenizer, "char tokenizer"),
    "light": (commands.light_commands, "`gptkit --help`, `datasets list`"),
    "gpu": (training.gpu, "training, GPT-2 124M on a GPU"),
}


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, whether targets are met or not; 1 if a row failed, 2 for a row that does not exist."""
    parsed = _parser().parse_args(arguments)
    rows = parsed.only.split(",") if parsed.only else list(ROWS)
    if unknown := [row for row in rows if row not in ROWS]:
        print(f"no row {', '.join(unknown)}; the rows are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    options = Options(parsed.nanogpt, parsed.seconds, parsed.blocks, parsed.seeds, parsed.gpu_batch)
    found: dict[str, Sequence[Finding]] = {}
    failed = False
    for row in rows:
        print(f"measuring {row} ...", file=sys.stderr)
        measure, what = ROWS[row]
        try:
            found[row] = measure(options)
        except SkippedError as reason:
            found[row] = [Finding(what, "-", f"skipped: {reason}")]
        except Exception:
            traceback.print_exc()
            found[row] = [Finding(what, "-", "failed: see the traceback")]
            failed = True
    if parsed.json:
        print(as_json(found))
    else:
        print(machine(), end="\n\n")
        print(
            table([finding for findings in found.values() for finding in findings], markdown=parsed.markdown)
        )
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.speed",
        description="Measures gptkit's speed against its targets. The machine should be idle.",
        epilog=f"Rows: {', '.join(ROWS)}.",
    )
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a checkout of nanoGPT")
    parser.add_argument("--only", default="", metavar="ROW,ROW", help="measure only these rows")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="seconds per block (4)")
    parser.add_argument("--blocks", type=int, default=5, metavar="N", help="blocks per contestant (5)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="seeds of the rows that train to the end (1)"
    )
    parser.add_argument("--gpu-batch", type=int, default=32, metavar="N", help="sequences on the GPU (32)")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--markdown", action="store_true", help="print a Markdown table")
    formats.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
