"""What a person is told when a command fails, and with which exit code.

In: a message, or an exception that nobody has turned into a GptkitError. Out: standard error.
"""

from __future__ import annotations

import errno
import sys
import traceback

from gptkit.cli.streams import lead_nowhere, tell
from gptkit.errors import DiskError, GptkitError, OutOfMemoryError, PluginError
from gptkit.words import printable

# What the operating system refuses for reasons of its own, wherever it comes up
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (
    *(*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENXIO, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOTCONN),
)


def fail(message: str, code: int, *, debug: bool = False) -> int:
    """Says what went wrong, after the traceback of the error at hand where `debug` is set."""
    if debug:
        tell(traceback.format_exc().rstrip())
    tell(f"gptkit: {message}")
    return code


def unexpected(error: Exception) -> tuple[str, int]:
    """Whose doing it is: memory's, a package's, a plugin's, the disk's, and only then gptkit's own."""
    if isinstance(error, MemoryError):
        return "out of memory; give it less at a time.", OutOfMemoryError.exit_code
    if package := _not_importable(error):
        return (
            f"the package {package} cannot be imported: {type(error).__name__}: {error}\n"
            f"Install it again, or another version of it, until python -c 'import {package}' works."
        ), PluginError.exit_code
    from gptkit.plugins import registry

    if plugin := registry.culprit(error):
        return (
            f"{registry.KINDS[plugin.family]} {plugin.name!r} failed: {type(error).__name__}: {error}\n"
            f"It comes from {plugin.distribution} {plugin.version}: tell its author, with what --debug shows."
        ), PluginError.exit_code
    if isinstance(error, OSError) and error.errno in _REFUSED:
        if error.filename:
            return f"cannot use {printable(str(error.filename))}: {error.strerror}.", DiskError.exit_code
        lead_nowhere(sys.stdout)  # files are written elsewhere, with an error of their own
        what = "write standard output" if error.errno in _FULL else "go on"
        return f"cannot {what}: {error.strerror}.", DiskError.exit_code
    advice = "This is a defect of gptkit. Please report it, with what --debug shows."
    return f"{type(error).__name__}: {error}\n{advice}", GptkitError.exit_code


def _not_importable(error: Exception) -> str:
    """The package, none of gptkit's own, that failed while it was being imported; "" where it is not that."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "gptkit":
            break
        if frame.f_code.co_name == "<module>" and package != "importlib":
            return package
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return "" if name == "gptkit" else name
