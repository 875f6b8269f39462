"""`python -m gptkit`, which is what torchrun starts, and the `gptkit` command."""

from __future__ import annotations

import sys


def main() -> None:
    from gptkit.cli.app import run_command

    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
