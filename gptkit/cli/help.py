"""Help texts from docstrings: a paragraph is one line, so that it wraps to whatever terminal there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer

Command = Callable[..., None]


def command(app: typer.Typer, name: str | None = None, *, short_help: str) -> Callable[[Command], Command]:
    """Registers a function as a command, with its docstring as the help."""

    def register(function: Command) -> Command:
        text = paragraphs(inspect.getdoc(function) or "")
        registered: Any = app.command(name, short_help=short_help, help=text)(function)
        return registered  # type: ignore[no-any-return]

    return register


def paragraphs(text: str) -> str:
    """Each paragraph in one line, without its indentation."""
    parts = [" ".join(line.strip() for line in part.splitlines()) for part in text.split("\n\n")]
    return "\n\n".join(part for part in parts if part)
