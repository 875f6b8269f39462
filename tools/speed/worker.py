"""Runs one contestant in a process: python -m tools.speed.worker NAME ARGUMENTS

Reads a number of seconds from each line of standard input, works that long, and prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

from tools.speed import contestants
from tools.speed.report import SkippedError


def main(name: str, arguments: str) -> None:
    # Output of the contestant goes to standard error: standard output is for the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        with getattr(contestants, name)(**json.loads(arguments)) as work:
            work()
            work()
            print(json.dumps({"ready": 1}), file=answers)
            for line in sys.stdin:
                print(json.dumps(_measure(work, float(line))), file=answers)
    except SkippedError as reason:
        print(json.dumps({"skipped": str(reason)}), file=answers)


def _measure(work: contestants.Work, seconds: float) -> dict[str, float]:
    tokens, details = 0, {}
    started = time.perf_counter()
    while True:
        done = work()
        tokens += done.tokens
        details = done.details
        passed = time.perf_counter() - started
        if passed >= seconds:
            return {"rate": tokens / passed, **details}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
