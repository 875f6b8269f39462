"""The other process of `PluginContract.subprocess_fingerprint`.

Input: a job as JSON on standard input. Output: the plugin's fingerprint, in a marked line of standard output.
"""

from __future__ import annotations

import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

from gptkit.plugins import DataFolders
from gptkit.testing import contract_for
from gptkit.testing.contract import DIGEST, NOT_IMPORTABLE


def main() -> int:
    job = json.loads(sys.stdin.read())
    try:
        cls: Any = pkgutil.resolve_name(job["class"])
    except (ImportError, AttributeError) as error:
        sys.stderr.write(f"{error}\n")
        return NOT_IMPORTABLE
    folders = DataFolders(tuple(map(Path, job["search"])), Path(job["downloads"]))
    contract = contract_for(job["family"], cls, folders=folders)
    contract.example = cls.Options.model_validate(job["options"])
    sys.stdout.write(f"\n{DIGEST}{contract.fingerprint()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
