"""The same plugin in another process, whose strings hash differently: a set has another order there.

In: a plugin. Out: the digest that it comes to there. The other half is `python -m gptkit.testing`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gptkit.testing.runner import DefectError, SkippedError, shortened
from gptkit.testing.subject import PluginSubject

MARK = "digest: "  # begins the line that counts; a plugin may print others
NOT_FOUND = 3  # exit code: the class is not to be found there
_PATIENCE = 55.0  # seconds


def digest_elsewhere(subject: PluginSubject) -> str:
    """What `digest` of the family's checks gives there. Raises SkippedError, DefectError."""
    module, name = _address(subject.cls)
    job = {
        "family": subject.family,
        "module": module,
        "name": name,
        "options": subject.option_values(),
        "search": [str(folder) for folder in subject.folders.search],
        "downloads": str(subject.folders.downloads),
    }
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2",
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
        "PYTHONIOENCODING": "utf-8",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "gptkit.testing"],
            input=json.dumps(job),
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DefectError(f"another process needed more than {_PATIENCE:.0f} seconds") from None
    except OSError as error:
        raise SkippedError(f"no other process can be started: {error}") from None
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode == 0 and found:
        return found[-1].removeprefix(MARK)
    last = shortened((done.stderr.strip().splitlines() or ["no message"])[-1], 160)
    if done.returncode == NOT_FOUND:
        raise SkippedError(f"another process does not find the class: {last}")
    raise DefectError(f"in another process it fails: {last} (exit code {done.returncode})")


def _address(cls: type) -> tuple[str, str]:
    """Module and name by which the class is to be found. Raises SkippedError."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not cls or cls.__module__ == "__main__":
        raise SkippedError(f"another process cannot import {cls.__module__}:{cls.__qualname__}")
    return cls.__module__, cls.__qualname__
