"""`gptkit plugins new`: an installable package with one plugin that works, to start from.

Input: a family and a name. Output: a folder with pyproject.toml, code, tests and README, which are the files
in templates/ with their $names filled in. Knows nothing of what a plugin does.
"""

from __future__ import annotations

import re
from importlib.resources import files as resources
from pathlib import Path
from string import Template

from gptkit import files
from gptkit.errors import UsageError
from gptkit.plugins import registry

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")

_USAGE = {
    registry.TOKENIZERS: 'tokenizer = { type = "$name", max_words = 1000 }',
    registry.POSITIONS: '[model]\nposition = { type = "$name", first_slope = 0.25 }',
    registry.DATASETS: '[data]\ndataset = { type = "$name", largest = 9 }',
    registry.TRACKERS: '[tracking.$name]\nseparator = ";"',
}


def new_package(family: str, name: str, folder: Path) -> Path:
    """Writes the package `gptkit-NAME` into `folder` and returns its path.

    Raises UsageError for a name that is not allowed or is taken, and where the folder exists; DiskError.
    """
    _check_name(family, name)
    distribution, module = f"gptkit-{name.replace('_', '-')}", f"gptkit_{name.replace('-', '_')}"
    kind, short = registry.KINDS[family], registry.SHORT[family]
    target = folder / distribution
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target} exists already; choose another name, or another --folder.")
    words = {
        "distribution": distribution,
        "module": module,
        "family": family,
        "name": name,
        "kind": kind,
        "cls": "".join(part.capitalize() for part in re.split("[_-]", name)) + short.capitalize(),
    }
    words["usage"] = Template(_USAGE[family]).substitute(words)
    with files.disk_errors(f"writing {target}"):
        for place, template in (
            ("pyproject.toml", "pyproject.toml"),
            ("README.md", "README.md"),
            (f"{module}/__init__.py", f"{short}.py"),
            (f"tests/test_{module.removeprefix('gptkit_')}.py", f"{short}_test.py"),
        ):
            text = (resources("gptkit.plugins") / "templates" / f"{template}.template").read_text("utf-8")
            files.make_folder((target / place).parent)
            files.replace_file(target / place, Template(text).substitute(words).encode())
        files.replace_file(target / module / "py.typed", b"")
    return target


def _check_name(family: str, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise UsageError(
            f"{name!r} cannot be a plugin's name: use up to 40 lower-case letters, digits, '-' and '_', "
            "starting with a letter."
        )
    for plugin in registry.installed(family).get(name, ()):
        raise UsageError(
            f"{name!r} is a {registry.KINDS[family]} of {plugin.distribution} {plugin.version} already; "
            "choose another name."
        )
