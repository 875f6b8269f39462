"""What every plugin is, whatever its family: the checks that come first.

In: a class and its options. Out: checks, and the options that the other checks use.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from gptkit import plugins
from gptkit.plugins import DataFolders, PluginOptions
from gptkit.plugins.registry import BASES
from gptkit.testing.runner import Check, DefectError, asked, require, shown

_NOT_AN_OPTION = "no_plugin_has_this_option"


@dataclass
class PluginSubject:
    """The plugin that is checked. `options` are set by the check of that name."""

    family: str
    cls: Any
    given: PluginOptions | None
    folder: Path
    folders: DataFolders
    options: Any = field(init=False, default=None)

    def option_values(self) -> dict[str, Any]:
        """The options as an experiment file has them."""
        values: dict[str, Any] = self.options.model_dump(mode="json", exclude_none=True)
        return values


def check_base(subject: PluginSubject) -> str:
    base = getattr(plugins, BASES[subject.family])
    what = shown(subject.cls, 80)
    require(isinstance(subject.cls, type), f"{what} is no class; name a subclass of {base.__name__}")
    require(issubclass(subject.cls, base), f"{what} does not subclass gptkit.plugins.{base.__name__}")
    missing = sorted(getattr(subject.cls, "__abstractmethods__", ()))
    require(not inspect.isabstract(subject.cls), f"it lacks {', '.join(missing)}")
    return f"a {base.__name__}"


def check_summary(subject: PluginSubject) -> str:
    summary = subject.cls.summary
    require(isinstance(summary, str), f"summary is {shown(summary)}, not a string")
    require(summary.strip(), "summary is empty; listings show it beside the name")
    require(len(summary.splitlines()) == 1, f"summary has several lines: {shown(summary)}")
    return str(summary)


def check_options(subject: PluginSubject) -> str:
    cls = subject.cls.Options
    right = isinstance(cls, type) and issubclass(cls, PluginOptions)
    require(right, f"Options is {shown(cls, 80)}, not a subclass of gptkit.plugins.PluginOptions")
    if subject.given is None:
        with asked("Options.example(), which is to give options that work,"):
            subject.options = cls.example(subject.folder)
    else:
        subject.options = subject.given
    wrong = f"options are of {type(subject.options).__name__}, not of Options of the plugin"
    require(isinstance(subject.options, cls), wrong)
    values = ", ".join(f"{key} = {shown(value)}" for key, value in subject.options)
    return values or "none"


def check_unknown_option(subject: PluginSubject) -> str:
    try:
        subject.cls.Options.model_validate({**subject.option_values(), _NOT_AN_OPTION: 1})
    except ValueError as error:
        require(_NOT_AN_OPTION in str(error), f"its error does not name the key: {shown(str(error), 80)}")
        return "refused, by name"
    raise DefectError(f"Options takes {_NOT_AN_OPTION} = 1: leave extra = 'forbid' as PluginOptions has it")


def check_options_in_a_file(subject: PluginSubject) -> str:
    """A run keeps its experiment, and training from that file again must mean the same."""
    with asked("options as JSON values:"):
        values = subject.option_values()
        written = json.loads(json.dumps(values, allow_nan=False))
    with asked("options as TOML:"):
        read = tomllib.loads(tomli_w.dumps({"options": written}))["options"]
        again = subject.cls.Options.model_validate(read)
    require(again == subject.options, f"written as {shown(values, 80)}, read back as {shown(again, 80)}")
    return "the same when read back"


COMMON: tuple[Check[Any], ...] = (
    Check("base class", check_base),
    Check("summary", check_summary, ("base class",)),
    Check("options", check_options, ("base class",)),
    Check("unknown option", check_unknown_option, ("options",)),
    Check("options in a file", check_options_in_a_file, ("options",)),
)
