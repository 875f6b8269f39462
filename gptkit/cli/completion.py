"""What the shell offers when TAB is pressed: files, runs, names, keys.

In: what was typed so far. Out: words. It must be quick, so it loads no torch and no plugin, and reads names
only; and it must be silent, so whatever goes wrong offers nothing. Typer completes commands and flags, and
`gptkit --install-completion` tells the shell.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import typer

MOST = 200  # words that are offered

Completer = Callable[[typer.Context, str], list[str]]
_TEXTS = (".txt", ".md", ".jsonl", ".csv", ".gz")  # endings of what a data folder may hold
_VARIABLE = "_GPTKIT_COMPLETE"


def _completer(words: Callable[[typer.Context, str], Iterable[str]]) -> Completer:
    """Those of the words that begin as typed, and nothing where they cannot be had."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        try:
            found = [word for word in words(context, incomplete) if word.startswith(incomplete)]
        except (Exception, SystemExit):
            return []
        return list(dict.fromkeys(found))[:MOST]

    return complete


def choice(*words: str) -> Completer:
    """One of these."""
    return _completer(lambda context, incomplete: words)


@contextmanager
def for_a_shell(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Around the reading of a command line. Where it is a shell that asks, whatever goes wrong is silent.

    It puts right how bash cuts a line, at '=' too: `--set model.position=ro` comes as four words, and what is
    offered replaces the last of them.
    """
    asked = environ.get(_VARIABLE, "")
    if not asked.startswith("complete_"):
        yield
        return
    before = _rejoin(environ) if asked == "complete_bash" else ""
    offered = io.StringIO()
    try:
        with redirect_stdout(offered), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            yield
    except Exception as error:
        raise SystemExit(0) from error
    finally:
        for line in offered.getvalue().splitlines():
            print(line.removeprefix(before))


def _rejoin(environ: MutableMapping[str, str]) -> str:
    """Joins the words around each '='; what stands before the last word of the one that is completed."""
    try:
        words = environ["COMP_WORDS"].split("\n")
        typed = words[: int(environ["COMP_CWORD"]) + 1]
    except (KeyError, ValueError):  # it is not a shell that asks
        return ""
    before = ""
    while "=" in typed[2:]:
        at = typed.index("=", 2)
        if at + 2 >= len(typed):
            before = f"{typed[at - 1]}="
        typed[at - 1 : at + 2] = ["".join(typed[at - 1 : at + 2])]
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(typed), str(len(typed) - 1)
    return before


def _experiments(context: typer.Context, incomplete: str) -> Iterable[str]:
    folder = os.path.dirname(incomplete)
    here = [Path(folder)] if folder else [Path(), Path("experiments")]
    for path in here:
        yield from (str(file) for file in sorted(path.glob("*.toml")) if file.name != "pyproject.toml")
    if folder:
        yield from (f"{path}/" for path in sorted(Path(folder).iterdir()) if path.is_dir())


def _runs(context: typer.Context, incomplete: str) -> Iterable[str]:
    ids = _run_ids(context)
    return ["latest", *reversed(ids)] if ids else []


def _run_ids(context: typer.Context) -> list[str]:
    from gptkit.runs import run_ids

    return run_ids(_runs_folder(context))


def _runs_folder(context: typer.Context) -> Path:
    """As --runs-dir says here or before the command, as in `gptkit runs --runs-dir FOLDER verify`."""
    at: Any = context
    while at is not None:
        if said := at.params.get("runs_dir"):
            return Path(said)
        at = at.parent
    return Path("runs")


def _checkpoints(context: typer.Context, incomplete: str) -> Iterable[str]:
    from gptkit.runs import find_run

    yield from ("best", "last")
    run = find_run(context.params.get("run") or "latest", _runs_folder(context))
    steps = (entry.name.removeprefix("step-") for entry in run.checkpoints.glob("step-*"))
    yield from (str(step) for step in sorted(int(digits) for digits in steps if digits.isdigit()))


def _plugins(context: typer.Context, incomplete: str) -> Iterable[str]:
    from gptkit.plugins import registry

    return sorted(name for family in registry.KINDS for name in registry.names(family))


def _datasets(context: typer.Context, incomplete: str) -> Iterable[str]:
    """The registered ones, then the texts in the data folders by their names."""
    from gptkit.plugins import registry

    yield from registry.names(registry.DATASETS)
    said = context.params.get("data_dir") or os.environ.get("GPTKIT_DATA_DIR")
    for folder in [Path(said)] if said else [Path("data")]:
        names = sorted(file.name for file in folder.iterdir() if file.suffix in _TEXTS)
        yield from (name for name in names if name != "README.md")


def _settings(context: typer.Context, incomplete: str) -> Iterable[str]:
    """Keys with an '=', and behind it what there is to choose from."""
    from gptkit.experiment.fields import choices, fields

    key, said, _ = incomplete.partition("=")
    if not said:
        found = list(dict.fromkeys(field.key for field in fields() if field.key.startswith(incomplete)))
        if len(found) != 1:
            return [f"{name}=" for name in found]
        key = found[0]  # with more than one word the shell adds no space behind the '='
        return [f"{key}=", *(f"{key}={word}" for word in choices(key))]
    if key == "data.dataset":
        return [f"{key}={name}" for name in _datasets(context, "")]
    return [f"{key}={word}" for word in choices(key)]


experiments = _completer(_experiments)
runs = _completer(_runs)
checkpoints = _completer(_checkpoints)
plugins = _completer(_plugins)
datasets = _completer(_datasets)
settings = _completer(_settings)
backends = choice("auto", "cpu", "cuda", "mps")
