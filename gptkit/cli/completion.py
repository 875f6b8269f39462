"""Completion in a shell: experiment files, runs, names of plugins and datasets, keys and values of --set.

Input: the command line so far. Output: the words that may follow. It is quick: it loads neither torch nor a
plugin, and reads names only. It is silent: an error offers nothing. Typer completes commands and flags;
`gptkit --install-completion` installs it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import typer

MOST = 200  # words offered

Completer = Callable[[typer.Context, str], list[str]]
_TEXTS = (".txt", ".md", ".jsonl", ".csv", ".gz")  # files of a data folder that are texts
_VARIABLE = "_GPTKIT_COMPLETE"


def _completer(words: Callable[[typer.Context, str], Iterable[str]]) -> Completer:
    """The words that begin as typed; none if `words` fails."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        try:
            found = [word for word in words(context, incomplete) if word.startswith(incomplete)]
        except (Exception, SystemExit):
            return []
        return list(dict.fromkeys(found))[:MOST]

    return complete


def choice(*words: str) -> Completer:
    """Completes one of these words."""
    return _completer(lambda context, incomplete: words)


@contextmanager
def for_a_shell(environ: MutableMapping[str, str]) -> Iterator[None]:
    """A context for parsing a command line in which a request for completion fails silently.

    bash splits a line at '=' too: `--set model.position=ro` arrives as four words, and what is offered
    replaces the last of them. Here they are joined first.
    """
    request = environ.get(_VARIABLE, "")
    if not request.startswith("complete_"):
        yield
        return
    before = _rejoin(environ) if request == "complete_bash" else ""
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
    """Joins the words around each '='; returns the part before '=' of the word that is completed."""
    try:
        words = environ["COMP_WORDS"].split("\n")
        typed = words[: int(environ["COMP_CWORD"]) + 1]
    except (KeyError, ValueError):  # not from a shell
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

    return [name for name in run_ids(_runs_folder(context)) if name.isprintable()]


def _runs_folder(context: typer.Context) -> Path:
    """--runs-dir of the command or of its group, as in `gptkit runs --runs-dir FOLDER verify`."""
    level: Any = context
    while level is not None:
        if folder := level.params.get("runs_dir"):
            return Path(folder)
        level = level.parent
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
    """The registered datasets, then the names of the texts in the data folder."""
    from gptkit.plugins import registry

    yield from registry.names(registry.DATASETS)
    folder = Path(context.params.get("data_dir") or os.environ.get("GPTKIT_DATA_DIR") or "data")
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _TEXTS)
    yield from (name for name in names if name != "README.md")


def _settings(context: typer.Context, incomplete: str) -> Iterable[str]:
    """Keys with an '=', then the values to choose from."""
    from gptkit.experiment.fields import choices, fields

    key, separator, _ = incomplete.partition("=")
    if not separator:
        found = list(dict.fromkeys(field.key for field in fields() if field.key.startswith(incomplete)))
        if len(found) != 1:
            return [f"{name}=" for name in found]
        key = found[0]  # if there is more than one word, the shell adds no space after the '='
        return [f"{key}=", *(f"{key}={word}" for word in choices(key))]
    if key == "data.dataset":
        return [f"{key}={name}" for name in _datasets(context, "")]
    return [f"{key}={word}" for word in choices(key)]


def _backends(context: typer.Context, incomplete: str) -> Iterable[str]:
    from gptkit.experiment.fields import choices

    return choices("training.backend")


experiments = _completer(_experiments)
runs = _completer(_runs)
checkpoints = _completer(_checkpoints)
plugins = _completer(_plugins)
datasets = _completer(_datasets)
settings = _completer(_settings)
backends = _completer(_backends)
