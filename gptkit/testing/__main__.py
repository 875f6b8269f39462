"""The other process of `gptkit.testing.subprocess_check`.

In: a job as JSON, on standard input. Out: a digest, in a marked line of standard output.
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import reduce
from pathlib import Path
from typing import Any

from gptkit.plugins import DataFolders
from gptkit.plugins.registry import TOKENIZERS
from gptkit.testing.subprocess_check import MARK, NOT_FOUND


def main() -> int:
    job = json.loads(sys.stdin.read())
    try:
        module = importlib.import_module(job["module"])  # noqa: TID251
        cls: Any = reduce(getattr, job["name"].split("."), module)
    except (ImportError, AttributeError) as error:
        sys.stderr.write(f"{error}\n")
        return NOT_FOUND
    options = cls.Options.model_validate(job["options"])
    if job["family"] == TOKENIZERS:
        from gptkit.testing.tokenizers import digest, learn

        found = digest(learn(cls, options))
    else:
        from gptkit.testing.datasets import digest_of

        folders = DataFolders(tuple(map(Path, job["search"])), Path(job["downloads"]))
        found = digest_of(cls(options).read(folders))
    sys.stdout.write(f"\n{MARK}{found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
