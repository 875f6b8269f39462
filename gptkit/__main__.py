"""`python -m gptkit`, which is what torchrun starts, and the `gptkit` command."""

from __future__ import annotations

import os
import sys
import warnings

from gptkit.cli.signals import interrupts_end
from gptkit.cli.streams import prepare, show_warning


def main() -> None:
    # How long a thread of torch's CPU pool spins at a barrier before it sleeps; read when torch is loaded.
    # The default is milliseconds, and another busy process on the machine then makes training many times
    # slower. On a quiet machine this is as fast.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    interrupts_end()
    prepare()
    warnings.showwarning = show_warning
    try:
        from gptkit.cli.app import run_command
        from gptkit.cli.launch import end_failed_rank
    except Exception as error:  # a package that gptkit needs is broken
        from gptkit.cli.failures import fail, unexpected

        sys.exit(fail(*unexpected(error), debug="--debug" in sys.argv))
    code = run_command(sys.argv[1:])
    end_failed_rank(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
