"""Registers functions as commands: the docstring is the help, and every command takes --debug.

A flag that is given two values is an error, where click would take the last; ~ at the beginning of a path is
the home folder also where no shell replaces it, as in --data-dir=~/texts.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from gptkit.cli.signals import interrupts_raise
from gptkit.errors import UsageError

Command = Callable[..., None]

_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")],
)


def command(app: typer.Typer, name: str | None = None, *, short_help: str) -> Callable[[Command], Command]:
    """Registers a function as a command of `app`."""
    return lambda function: app.command(name, cls=_Command, short_help=short_help, help=_help(function))(
        _run(function)
    )


def group(app: typer.Typer, *, short_help: str) -> Callable[[Command], Command]:
    """Registers a function as what `app` does before one of its commands, or without one."""
    return lambda function: app.callback(cls=_Group, short_help=short_help, help=_help(function))(
        _run(function)
    )


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _refuse_two_answers(self, ctx, given)
        return rest


class _Group(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        _refuse_two_answers(self, ctx, given)
        return rest


def _refuse_two_answers(command: TyperCommand | TyperGroup, context: Any, arguments: Sequence[str]) -> None:
    """Raises UsageError if an option that takes one value has two, one perhaps before the command's name."""
    if context.resilient_parsing:  # for completion
        return
    parser = command.make_parser(context)
    single = [
        option
        for option in command.get_params(context)
        if isinstance(option, TyperOption) and not option.multiple and not option.count
    ]
    for option in single:
        if not option.is_flag:
            parser.add_option(option, option.opts, option.name, action="append", nargs=option.nargs)
        for names in (option.opts, option.secondary_opts) if option.secondary_opts else ():
            parser.add_option(option, names, option.name, action="append_const", const=names[0])
    values, _, _ = parser.parse_args(list(arguments))
    for option in single:
        name, given = option.opts[0], values.get(option.name)
        different = list(dict.fromkeys(given)) if isinstance(given, list) else []
        if len(different) > 1 and option.is_flag:
            raise UsageError(f"{' and '.join(different)} are both given; keep one of them.")
        if len(different) == 1 and _is_typed(context.parent, option.name):
            different += [context.parent.params[option.name]]
            different = list(dict.fromkeys(map(str, different)))
        if len(different) > 1:
            shown = " and ".join(f"{name} {value}" for value in different)
            raise UsageError(f"{shown} are two answers; keep one of them.{_SEVERAL.get(name, '')}")


_SEVERAL = {
    "--dataset": '\nTo train on several texts: --dataset text --set \'data.dataset.path=["a.txt", "b.txt"]\'',
}
"""What to do instead of giving an option twice, where that is not plain."""


def _is_typed(context: Any, name: str | None) -> bool:
    """Whether an option of that name was given to the group that a command belongs to."""
    if context is None or name not in context.params:
        return False
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _run(function: Command) -> Command:
    """The function with a --debug flag, which `run_command` reads: an error may come before it is parsed."""

    @functools.wraps(function)
    def run(*arguments: Any, debug: bool, **named: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # the only one that may set signal handlers
            interrupts_raise()
        function(*arguments, **{name: _expanded(value) for name, value in named.items()})

    signature = inspect.signature(function, eval_str=True)
    parameters = [*signature.parameters.values(), _DEBUG]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _expanded(value: Any) -> Any:
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _help(function: Command) -> str:
    """The docstring with each paragraph on one line, which wraps to the width of any terminal."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    lines = [" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs]
    return "\n\n".join(line for line in lines if line)
