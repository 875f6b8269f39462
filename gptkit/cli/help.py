"""Commands from functions. A paragraph of a docstring is one line of help, which wraps to any terminal."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import typer

from gptkit.cli.signals import interrupts_raise

Command = Callable[..., None]


def command(app: typer.Typer, name: str | None = None, *, short_help: str) -> Callable[[Command], Command]:
    """Registers a function as a command, with its docstring as the help."""

    def register(function: Command) -> Command:
        text = paragraphs(inspect.getdoc(function) or "")

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> None:
            if threading.current_thread() is threading.main_thread():  # where alone signals may be set
                interrupts_raise()
            function(*arguments, **named)

        registered: Any = app.command(name, short_help=short_help, help=text)(run)
        return registered  # type: ignore[no-any-return]

    return register


def paragraphs(text: str) -> str:
    """Each paragraph in one line, without its indentation."""
    parts = [" ".join(line.strip() for line in part.splitlines()) for part in text.split("\n\n")]
    return "\n\n".join(part for part in parts if part)
