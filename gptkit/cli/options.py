"""The options that several commands take, each described once.

Those that set a field of an experiment come from `gptkit.experiment.overrides`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gptkit.cli import completion
from gptkit.errors import UsageError
from gptkit.experiment.overrides import FLAGS, Flag

RunsDir = Annotated[
    Path, typer.Option("--runs-dir", metavar="FOLDER", help="Where runs are kept.", rich_help_panel="Where")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Where texts are looked for first. Then: $GPTKIT_DATA_DIR, data/.",
        rich_help_panel="Where",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print the run's folder on standard output, and nothing else.")
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print what happens as JSON lines on standard output, and nothing else. Not with --quiet.",
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, its id, a unique beginning of it, or 'latest'.",
        autocompletion=completion.runs,
    ),
]
StopAt = Annotated[
    int | None,
    typer.Option(
        "--stop-at",
        metavar="N",
        min=1,
        help="Stop after step N, saved, as if interrupted; continue with resume.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override any field, as in training.max_steps=200. Repeatable.",
        autocompletion=completion.settings,
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        max=4096,
        help="Train with N processes on this machine, which share each batch: one for each GPU.",
        rich_help_panel="Processes",
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        metavar="N",
        min=0,
        max=1_000_000,
        help="If a process is killed, continue from the last checkpoint, at most N times.",
        rich_help_panel="Processes",
    ),
]
GenerateAfter = Annotated[
    int | None,
    typer.Option(
        "--generate", "-g", metavar="N", min=0, max=2**31 - 1, help="Write N tokens when training ends."
    ),
]


Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="best|last|STEP",
        help="Which weights.",
        autocompletion=completion.checkpoints,
    ),
]
Unknown = Annotated[
    str,
    typer.Option(
        "--unknown",
        metavar="error|skip",
        help="What to do with characters that the model has never seen.",
        autocompletion=completion.choice("error", "skip"),
    ),
]


def skips_unknown(unknown: str) -> bool:
    """Whether --unknown is "skip". Raises UsageError for what it cannot be."""
    if unknown not in ("error", "skip"):
        raise UsageError(f"--unknown {unknown!r}: expected error or skip.")
    return unknown == "skip"


def check_json(as_json: bool, others: dict[str, bool]) -> None:
    """Raises UsageError if --json is given with a flag that also writes to standard output."""
    for flag, given in others.items():
        if as_json and given:
            raise UsageError(f"--json and {flag} both write to standard output; use one of them.")


Flags = Mapping[str, Any] | None
"""The values of FLAGS by the key of the field, None if a flag is not given."""


def takes_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter `flags` of a command by an option for each of FLAGS.

    The function receives their values as `Flags`, for `parse_overrides`.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "flags":
            parameters += [
                parameter.replace(
                    name=_name(flag), annotation=Annotated[flag.type | None, _option(flag)], default=None
                )
                for flag in FLAGS
            ]
        else:
            parameters.append(parameter)

    @functools.wraps(function)
    def command(**given: Any) -> None:
        flags = {flag.key: given.pop(_name(flag)) for flag in FLAGS}
        function(flags=flags, **given)

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _name(flag: Flag) -> str:
    """The parameter that a flag's value arrives in."""
    return flag.key.replace(".", "_")


def _option(flag: Flag) -> Any:
    return typer.Option(
        *flag.names,
        metavar=flag.metavar or None,
        help=f"{flag.help} \\[{flag.key}]",  # escaped brackets: not markup
        rich_help_panel=flag.panel or None,
        autocompletion=_COMPLETERS.get(flag.key),
    )


_COMPLETERS = {
    "data.dataset": completion.datasets,
    "training.backend": completion.backends,
    "init_from.run": completion.runs,
}
_BACKEND = next(flag for flag in FLAGS if flag.key == "training.backend")
Backend = Annotated[str | None, _option(_BACKEND)]
