"""The options that set a field of an experiment, as typer has them."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from gptkit.cli.app import app
from gptkit.experiment.overrides import FLAGS


def options_of(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {name: option for option in group.commands[command].params for name in option.opts}


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_train_has_an_option_for_every_flag(flag: Any) -> None:
    options = options_of("train")
    for name in flag.names:
        option = options[name]
        assert option.metavar == (flag.metavar or None)
        assert option.is_flag == (flag.type is bool)
        assert option.help.endswith(f"\\[{flag.key}]")
        assert (option.rich_help_panel or "") == flag.panel


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_other_commands_take_the_backend_by_the_same_flag(command: str) -> None:
    option = options_of(command)["--device"]
    assert option.opts == options_of("train")["--device"].opts
    assert option.metavar == "NAME"
