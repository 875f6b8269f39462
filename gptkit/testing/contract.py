"""What the contracts of all families share: how a check runs, and the checks that every plugin must pass.

Input: a subclass of `PluginContract` with a plugin class. Output: a `CheckResult` for each of its methods
`test_...`, under pytest or without it. Whatever a plugin raises, including SystemExit, is a bad result and
never ends the checking. Knows nothing of what a family's plugins do.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar
from unittest import SkipTest  # pytest reports it as a skipped test

import tomli_w

from gptkit import plugins
from gptkit.data.catalog import data_folders
from gptkit.plugins import DataFolders, PluginOptions
from gptkit.plugins.registry import BASES

TIME_LIMIT = 60.0  # seconds for one check: many times what a correct plugin needs
DIGEST = "digest: "  # begins the line of the other process that counts; a plugin may print others
NOT_IMPORTABLE = 3  # exit code of the other process: it cannot import the class
_UNKNOWN_OPTION = "no_plugin_has_this_option"


class Verdict(StrEnum):
    OK = "ok"
    BAD = "bad"
    SKIPPED = "skipped"
    NOTE = "note"  # a measurement, neither right nor wrong


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of a plugin."""

    check: str  # the name of the method without `test_`, in words
    verdict: Verdict
    said: str  # what was found; where it is bad, what is wrong and how to fix it; one line
    error: BaseException | None = field(default=None, repr=False, compare=False)  # where bad or skipped


class ContractError(AssertionError):
    """The plugin breaks a rule of its contract. The message names the input that shows it, and the fix."""


class _TimeUpError(BaseException):
    """Not an Exception, so that a plugin that swallows those is stopped too."""


Contract = TypeVar("Contract", bound="PluginContract")
Method = Callable[[Contract], None]


def check(*needs: str) -> Callable[[Method[Contract]], Method[Contract]]:
    """Makes a method a check. `needs` are names of earlier checks: unless they are ok, it is skipped.

    So one defect is one bad result. A check runs at most once for a contract class; its result is kept for
    the checks that need it. The paragraph of the docstring that begins with "Fix:" ends each bad result.
    """

    def decorate(method: Method[Contract]) -> Method[Contract]:
        name = _in_words(method.__name__)

        @functools.wraps(method)
        def run(self: Contract) -> None:
            __tracebackhide__ = True  # pytest shows the method itself
            if name not in self.results:
                self.results[name] = _run(self, name, method, needs)
            error = self.results[name].error
            if error is not None:
                raise error

        run.needs = needs  # type: ignore[attr-defined]
        return run

    return decorate


def _in_words(method_name: str) -> str:
    return method_name.removeprefix("test_").replace("_", " ")


def _run(contract: Contract, name: str, method: Method[Contract], needs: tuple[str, ...]) -> CheckResult:
    try:
        for need in needs:
            if getattr(contract, f"test_{need.replace(' ', '_')}", None):
                earlier = run_check(contract, need)
                if earlier.verdict is Verdict.BAD:
                    raise SkipTest(f"until {need!r} is right")
                if earlier.verdict is Verdict.SKIPPED:
                    raise SkipTest(earlier.said)
        contract.reported = ("", Verdict.OK)
        with _time_limit(TIME_LIMIT):
            method(contract)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and panics of Rust extensions, which are no Exceptions
        return _failed(name, error, _fix(method))
    text, verdict = contract.reported
    return CheckResult(name, verdict, text)


def _failed(name: str, error: BaseException, fix: str = "") -> CheckResult:
    if isinstance(error, SkipTest):
        return CheckResult(name, Verdict.SKIPPED, str(error), error)
    if isinstance(error, _TimeUpError):
        text = f"took more than {TIME_LIMIT:.0f} seconds and was stopped"
    else:
        text = str(error) if isinstance(error, ContractError) else describe(error)
    text = f"{text}. {fix}" if fix else text
    wrong = ContractError(text).with_traceback(error.__traceback__)
    wrong.__cause__ = error.__cause__ if isinstance(error, ContractError) else error
    return CheckResult(name, Verdict.BAD, text, wrong)


def _fix(method: Callable[..., None]) -> str:
    paragraphs = (method.__doc__ or "").split("\n\n")
    return next((" ".join(part.split()) for part in paragraphs if part.lstrip().startswith("Fix:")), "")


def run_check(contract: PluginContract, name: str) -> CheckResult:
    """The result of the check of that name."""
    try:
        getattr(contract, f"test_{name.replace(' ', '_')}")()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kept = contract.results.get(name)
        return kept if kept and kept.error is error else _failed(name, error)  # an overridden method's own
    return contract.results.get(name, CheckResult(name, Verdict.OK, ""))


def run_contract(cls: type[PluginContract]) -> Iterator[CheckResult]:
    """The results of all checks of a contract, without pytest, in the order in which pytest runs them."""
    names: dict[str, None] = {}
    for base in reversed(cls.__mro__):
        names |= dict.fromkeys(name for name in vars(base) if name.startswith("test_"))
    cls.setup_class()
    try:
        contract = cls()
        for name in names:
            if callable(getattr(contract, name)):
                yield run_check(contract, _in_words(name))
    finally:
        cls.teardown_class()


class PluginContract:
    """The checks that every plugin must pass, whatever its family; subclass the contract of a family.

    pytest makes a new object of a test class for each test, so what one check finds for later ones is stored
    on the class. To leave a check out set it to None; to add one write a method `test_...`.

    Attributes:
        plugin: the plugin class. Set it.
        options: options of the plugin to check it with; by default those of `plugin.Options.example`.
        folders: where a dataset looks for its text; by default as for the command, GPTKIT_DATA_DIR or data/.
        family: the entry-point group; set by the contract of each family.
    """

    family: ClassVar[str]
    plugin: ClassVar[Any]
    options: ClassVar[PluginOptions | None] = None
    folders: ClassVar[DataFolders | None] = None

    results: ClassVar[dict[str, CheckResult]]  # by name of the check
    folder: ClassVar[Path]  # one that may be written to, removed at the end
    example: ClassVar[Any]  # the options that the checks use, set by test_options
    reported: tuple[str, Verdict] = ("", Verdict.OK)
    _temporary: ClassVar[TemporaryDirectory[str]]

    @classmethod
    def setup_class(cls) -> None:
        """pytest calls it before the first check."""
        cls.results = {}
        cls._temporary = TemporaryDirectory(prefix="gptkit-check-", ignore_cleanup_errors=True)
        cls.folder = Path(cls._temporary.name)

    @classmethod
    def teardown_class(cls) -> None:
        """pytest calls it after the last check."""
        cls._temporary.cleanup()

    @classmethod
    def fingerprint(cls) -> str:
        """SHA-256 of what the plugin makes of `example`, which another process must reproduce."""
        raise NotImplementedError

    def report(self, text: str, verdict: Verdict = Verdict.OK) -> None:
        """What a check found, for `gptkit plugins check` to show beside its name."""
        self.reported = text, verdict

    def option_values(self) -> dict[str, Any]:
        """The options as an experiment file has them."""
        values: dict[str, Any] = self.example.model_dump(mode="json", exclude_none=True)
        return values

    @check()
    def test_base_class(self) -> None:
        """The plugin is a class that subclasses its family's base in `gptkit.plugins` and lacks no method.

        Fix: subclass Tokenizer, PositionalEncoding, Dataset or Tracker of gptkit.plugins, and define each
        abstract method.
        """
        cls, base = type(self).plugin, getattr(plugins, BASES[self.family])
        what = quote(cls, 80)
        require(isinstance(cls, type), f"{what} is not a class")
        require(issubclass(cls, base), f"{what} does not subclass gptkit.plugins.{base.__name__}")
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        require(not inspect.isabstract(cls), f"it lacks {', '.join(missing)}")
        self.report(f"a {base.__name__}")

    @check("base class")
    def test_summary(self) -> None:
        """`summary` is one line of text, which listings show beside the name.

        Fix: set the class attribute `summary` to a short line that describes the plugin.
        """
        summary = self.plugin.summary
        require(isinstance(summary, str), f"summary is {quote(summary)}, not a string")
        require(summary.strip(), "summary is empty")
        require(len(summary.splitlines()) == 1, f"summary has several lines: {quote(summary)}")
        self.report(str(summary))

    @check("base class")
    def test_options(self) -> None:
        """`Options` subclasses `PluginOptions`, and `Options.example(folder)` returns options that work.

        Fix: give every option a default, or override `Options.example`.
        """
        cls = self.plugin.Options
        right = isinstance(cls, type) and issubclass(cls, PluginOptions)
        require(right, f"Options is {quote(cls, 80)}, not a subclass of gptkit.plugins.PluginOptions")
        options = type(self).options
        if options is None:
            with calling("Options.example(folder)"):
                options = cls.example(self.folder)
        wrong = f"options are of type {type(options).__name__}, not of the plugin's Options"
        require(isinstance(options, cls), wrong)
        type(self).example = options
        self.report(", ".join(f"{key} = {quote(value)}" for key, value in options) or "none")

    @check("options")
    def test_unknown_option(self) -> None:
        """An unknown option is refused with its name, so that a typing error in a file is found.

        Fix: leave `extra="forbid"` in `model_config`, as PluginOptions has it.
        """
        try:
            self.plugin.Options.model_validate({**self.option_values(), _UNKNOWN_OPTION: 1})
        except ValueError as error:
            require(_UNKNOWN_OPTION in str(error), f"its error does not name it: {quote(str(error), 80)}")
            self.report("refused, by name")
            return
        raise ContractError(f"Options accepts {_UNKNOWN_OPTION} = 1")

    @check("options")
    def test_options_in_a_file(self) -> None:
        """Options written to an experiment file are the same when read back: a run keeps its experiment.

        Fix: use types that TOML has, and let None be the default of each option that may be None.
        """
        with calling("options as JSON values:"):
            values = self.option_values()
            written = json.loads(json.dumps(values, allow_nan=False))
        with calling("options as TOML:"):
            read = tomllib.loads(tomli_w.dumps({"options": written}))["options"]
            again = self.plugin.Options.model_validate(read)
        require(again == self.example, f"written as {quote(values, 80)}, read back as {quote(again, 80)}")
        self.report("the same when read back")

    def subprocess_fingerprint(self) -> str:
        """`fingerprint` in another process, whose strings hash differently: a set has another order there.

        Raises SkipTest if no process can be started or the class cannot be imported there.
        """
        folders = self.folders or data_folders(None)
        job = {
            "family": self.family,
            "class": self._address(),
            "options": self.option_values(),
            "search": [str(folder) for folder in folders.search],
            "downloads": str(folders.downloads),
        }
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2",
            "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
            "PYTHONIOENCODING": "utf-8",
        }
        limit = TIME_LIMIT - 5
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "gptkit.testing"],
                input=json.dumps(job),
                env=environment,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ContractError(f"another process needed more than {limit:.0f} seconds") from None
        except OSError as error:
            raise SkipTest(f"no other process can be started: {error}") from None
        found = [line for line in done.stdout.splitlines() if line.startswith(DIGEST)]
        if done.returncode == 0 and found:
            return found[-1].removeprefix(DIGEST)
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if done.returncode == NOT_IMPORTABLE:
            raise SkipTest(f"another process cannot import it: {shorten(last, 160)}")
        raise ContractError(f"in another process it fails: {shorten(last, 160)}")

    def _address(self) -> str:
        """The `module:class` by which another process imports the plugin. Raises SkipTest."""
        cls: Any = self.plugin
        address, found = f"{cls.__module__}:{cls.__qualname__}", sys.modules.get(cls.__module__)
        for part in cls.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not cls or cls.__module__ == "__main__":
            raise SkipTest(f"another process cannot import {address}")
        return address


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stops Python code that does not end, where there are alarm signals and no other code has set one.

    Code in C that does not return cannot be stopped from within its process.
    """
    alone = threading.current_thread() is threading.main_thread()
    if not alone or not hasattr(signal, "setitimer") or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def ring(*_: object) -> None:
        raise _TimeUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second, for code that catches it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Turns whatever a plugin raises into a ContractError whose message begins with what was called."""
    try:
        yield
    except (KeyboardInterrupt, _TimeUpError, ContractError, SkipTest):
        raise
    except BaseException as error:
        raise ContractError(f"{what} {describe(error)}") from error


def require(condition: object, message: str) -> None:
    """An assert that python -O keeps. Raises ContractError with the message."""
    __tracebackhide__ = True
    if not condition:
        raise ContractError(message)


def describe(error: BaseException) -> str:
    """ "raised ValueError: message (file.py:12)", in one line."""
    try:
        message = shorten(" ".join(str(error).split()), 160)
    except Exception:
        message = "its message cannot be read"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"raised {type(error).__name__}{f': {message}' if message else ''}{where}"


def shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def quote(value: object, longest: int = 40) -> str:
    """A value for a message, in ASCII: other characters might be invisible, or control the terminal."""
    if not isinstance(value, str):
        return shorten(ascii(value), longest)
    more = f" (and {len(value) - longest:,} characters more)" if len(value) > longest else ""
    return ascii(value[:longest]) + more
