"""What is printed when a command fails, and its exit code.

Input: an exception: a GptkitError, a command line that typer cannot parse, or anything else. Output: one to
three lines on standard error that say what, where and what to do.
"""

from __future__ import annotations

import errno
import re
import shlex
import sys
import traceback
from collections.abc import Sequence

from gptkit.cli.launch import explain_failure
from gptkit.cli.streams import discard, log
from gptkit.errors import DiskError, GptkitError, OutOfMemoryError, PluginError
from gptkit.files import DISK_FULL
from gptkit.words import printable

# Refusals by the operating system, which may occur in any code
_REFUSED = (
    *(*DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENXIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOTCONN),
)
# An example for the message about a missing argument
_EXAMPLES = {
    "gptkit train": "gptkit train experiments/shakespeare.toml",
    "gptkit resume": "gptkit resume latest",
    "gptkit runs verify": "gptkit runs verify latest",
    "gptkit datasets show": "gptkit datasets show shakespeare",
    "gptkit datasets fetch": "gptkit datasets fetch shakespeare",
    "gptkit datasets add": "gptkit datasets add my_text novel.txt",
    "gptkit plugins show": "gptkit plugins show rope",
    "gptkit plugins new": "gptkit plugins new tokenizer my_tokenizer",
}
_NUMBERS = {  # of pydantic, and of click before it
    r"(Input should be|'.*' is not) a valid (integer|int)\b.*": "should be a whole number, as in 200",
    r"(Input should be|'.*' is not) a valid (number|float)\b.*": "should be a number, as in 0.5",
}


def fail(message: str, code: int, *, debug: bool = False) -> int:
    """Prints the message, after the traceback of the current exception if `debug`, and returns the code.

    Control characters, which a name in it may have, are escaped.
    """
    if debug:
        log(traceback.format_exc().rstrip())
    if message := explain_failure(message, code):
        log("\n".join(map(printable, f"gptkit: {message}".split("\n"))))
    return code


def explain_usage(message: str, command: str, arguments: Sequence[str]) -> str:
    """Typer's message about the `arguments` of `command`, with a remedy."""
    for pattern, words in _NUMBERS.items():
        message = re.sub(pattern, words, message)
    message = message.rstrip(".") if message.startswith("Missing argument") else message
    if message.startswith("Missing argument") and command in _EXAMPLES:
        message += f"; as in: {_EXAMPLES[command]}"
    if message.startswith("No such command") and arguments and arguments[0].endswith(".toml"):
        message += f" To train it: gptkit train {shlex.join(arguments)}"
    return f"{message}\nSee '{command} --help'."


def unexpected(error: Exception) -> tuple[str, int]:
    """Message and exit code of an exception that was not turned into a GptkitError.

    In this order the cause is memory, a package, a plugin, the disk, and only then a defect of gptkit.
    """
    if isinstance(error, MemoryError):
        return "out of memory; use smaller sizes.", OutOfMemoryError.exit_code
    # Modules from the innermost frame outward, and whether each was just being imported
    frames = [
        (str(frame.f_globals.get("__name__", "")), frame.f_code.co_name == "<module>")
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__)))
    ]
    if package := _not_importable(error, frames):
        return (
            f"the package {package} cannot be imported: {type(error).__name__}: {error}\n"
            f"Install it again, or another version of it, until python -c 'import {package}' works."
        ), PluginError.exit_code
    from gptkit.plugins import registry

    if plugin := next(filter(None, (registry.plugin_in(module) for module, _ in frames)), None):
        return (
            f"{registry.KINDS[plugin.family]} {plugin.name!r} failed: {type(error).__name__}: {error}\n"
            f"It comes from {plugin.distribution} {plugin.version}: report it to its author, with the output "
            "of --debug."
        ), PluginError.exit_code
    if isinstance(error, OSError) and error.errno in _REFUSED:
        if error.filename:
            return f"cannot use {printable(str(error.filename))}: {error.strerror}.", DiskError.exit_code
        discard(sys.stdout)  # files are written elsewhere, with an error of their own
        what = "write standard output" if error.errno in DISK_FULL else "go on"
        return f"cannot {what}: {error.strerror}.", DiskError.exit_code
    advice = "This is a defect of gptkit. Please report it, with what --debug shows."
    return f"{type(error).__name__}: {error}\n{advice}", GptkitError.exit_code


def _not_importable(error: Exception, frames: Sequence[tuple[str, bool]]) -> str:
    """The package, none of gptkit's own, that failed while it was being imported; "" for another failure."""
    for module, importing in frames:
        package = module.partition(".")[0]
        if package == "gptkit":
            break
        if importing and package != "importlib":
            return package
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return "" if name == "gptkit" else name
