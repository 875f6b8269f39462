"""Registers functions as commands: the docstring is the help, and every command takes --debug."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer

from gptkit.cli.signals import interrupts_raise

Command = Callable[..., None]

_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")],
)


def command(app: typer.Typer, name: str | None = None, *, short_help: str) -> Callable[[Command], Command]:
    """Registers a function as a command of `app`."""
    return lambda function: app.command(name, short_help=short_help, help=_help(function))(_run(function))


def group(app: typer.Typer, *, short_help: str) -> Callable[[Command], Command]:
    """Registers a function as what `app` does before one of its commands, or without one."""
    return lambda function: app.callback(short_help=short_help, help=_help(function))(_run(function))


def _run(function: Command) -> Command:
    """The function with a --debug flag, which `run_command` reads: an error may come before it is parsed."""

    @functools.wraps(function)
    def run(*arguments: Any, debug: bool, **named: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # the only one that may set signal handlers
            interrupts_raise()
        function(*arguments, **named)

    signature = inspect.signature(function, eval_str=True)
    parameters = [*signature.parameters.values(), _DEBUG]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _help(function: Command) -> str:
    """The docstring with each paragraph on one line, which wraps to the width of any terminal."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    lines = [" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs]
    return "\n\n".join(line for line in lines if line)
