"""What all checks of a plugin share: a line each, and care that nothing a plugin does ends the checking.

In: checks, which are functions of what is being checked. Out: lines. A check says what it saw; or it raises
`DefectError`, or `SkippedError`; or what it called raises something, which is a defect too. Knows nothing of
what a plugin is.
"""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

Verdict = Literal["ok", "bad", "skipped", "note"]
Subject = TypeVar("Subject")

LIMIT = 60.0  # seconds that one check may take: many times what an honest plugin needs


@dataclass(frozen=True)
class Line:
    """What one check came to."""

    check: str
    verdict: Verdict
    said: str  # what was seen; for "bad": what is wrong, with the input that shows it


@dataclass(frozen=True)
class Note:
    """Seen, and neither right nor wrong."""

    said: str


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """`needs` are names of earlier checks: where one is bad or skipped, this one would say nothing."""

    name: str
    run: Callable[[Subject], str | Note]
    needs: tuple[str, ...] = ()


class DefectError(Exception):
    """The plugin breaks its contract; the message says how."""


class SkippedError(Exception):
    """The check cannot be made here; the message says why."""


class _TimeUpError(BaseException):
    """Not an Exception, so that a plugin that swallows those is stopped too."""


def run_checks(checks: Iterable[Check[Subject]], subject: Subject) -> Iterator[Line]:
    """A line for each check, in order."""
    stopped: dict[str, str] = {}  # check that came to nothing -> why those that need it are skipped
    for check in checks:
        missing = [name for name in check.needs if name in stopped]
        line = Line(check.name, "skipped", stopped[missing[0]]) if missing else _line(check, subject)
        if line.verdict == "bad":
            stopped[check.name] = f"until {check.name!r} is right"
        elif line.verdict == "skipped":
            stopped[check.name] = line.said
        yield line


def _line(check: Check[Subject], subject: Subject) -> Line:
    try:
        with _time_limit(LIMIT):
            seen = check.run(subject)
    except KeyboardInterrupt:
        raise
    except DefectError as error:
        return Line(check.name, "bad", str(error))
    except SkippedError as error:
        return Line(check.name, "skipped", str(error))
    except _TimeUpError:
        return Line(check.name, "bad", f"took more than {LIMIT:.0f} seconds and was stopped")
    except BaseException as error:  # SystemExit, and the panic of a Rust extension, which is no Exception
        return Line(check.name, "bad", raised(error))
    if isinstance(seen, Note):
        return Line(check.name, "note", seen.said)
    return Line(check.name, "ok", seen)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stops Python code that does not end, where there are alarms and nobody else has set one.

    Code in C that does not come back cannot be stopped from within its process.
    """
    alone = threading.current_thread() is threading.main_thread()
    if not alone or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def ring(*_: object) -> None:
        raise _TimeUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again and again, for who catches BaseException
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Turns whatever is raised into a DefectError that begins with `what` was asked of the plugin."""
    try:
        yield
    except (KeyboardInterrupt, _TimeUpError, DefectError, SkippedError):
        raise
    except BaseException as error:
        raise DefectError(f"{what} {raised(error)}") from error


def raised(error: BaseException) -> str:
    """ "raised ValueError: why (file.py:12)", in one line."""
    try:
        why = shortened(" ".join(str(error).split()), 160)
    except Exception:
        why = "its message cannot be had"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"raised {type(error).__name__}{f': {why}' if why else ''}{where}"


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def shown(text: object, longest: int = 40) -> str:
    """Text for a message, in ASCII: what is odd in it could not be seen, or would upset the terminal."""
    if not isinstance(text, str):
        return shortened(ascii(text), longest)
    more = f" (and {len(text) - longest:,} characters more)" if len(text) > longest else ""
    return ascii(text[:longest]) + more


def require(right: object, otherwise: str) -> None:
    """Raises DefectError with what to say otherwise."""
    if not right:
        raise DefectError(otherwise)
