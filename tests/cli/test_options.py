"""The options that set a field of an experiment, as typer has them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from gptkit.cli.app import app
from gptkit.errors import UsageError
from gptkit.experiment.overrides import FLAGS
from tests.support import Command


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


def commands_of(group: Any) -> Iterator[Any]:
    """The commands of a group, at any depth, and the groups among them."""
    for command in group.commands.values():
        yield command
        yield from commands_of(command) if hasattr(command, "commands") else ()


def test_no_option_silently_takes_the_last_of_two_values() -> None:
    """As --dataset a --dataset b did."""
    checked = 0
    for command in commands_of(typer.main.get_command(app)):
        required = [one for one in command.params if one.required]
        for option in command.params:
            if option.param_type_name != "option" or option.multiple:
                continue
            needed: list[str] = []
            for one in required:
                if one is not option:
                    needed += ["x"] if one.param_type_name == "argument" else [one.opts[0], "x"]
            name = option.opts[0]
            twice, shown = [name, "1", name, "2"], f"{name} 1 and {name} 2 are two answers"
            if option.secondary_opts:
                twice, shown = (
                    [name, option.secondary_opts[0]],
                    f"{name} and {option.secondary_opts[0]} are both",
                )
            elif option.is_flag:
                continue
            with pytest.raises(UsageError, match=shown):
                command.make_context(command.name, [*needed, *twice])
            checked += 1
    assert checked > 60


def test_the_same_value_twice_is_one_answer(workspace: Path, gptkit_command: Command) -> None:
    assert gptkit_command("datasets", "list", "--data-dir", "data", "--data-dir=data").code == 0
    assert gptkit_command("runs", "--reverse", "--reverse").code == 0


def test_two_answers_before_and_after_a_command_are_refused(workspace: Path, gptkit_command: Command) -> None:
    refused = gptkit_command("runs", "--runs-dir", "a", "list", "--runs-dir", "b")
    assert refused.code == 2
    assert "--runs-dir b and --runs-dir a are two answers" in refused.err
    assert gptkit_command("runs", "--runs-dir", "runs", "list", "--runs-dir", "runs").code == 0
    assert gptkit_command("runs", "--runs-dir", "runs", "list").code == 0


def test_several_texts_are_given_as_the_message_says(tiny_experiment: Path, gptkit_command: Command) -> None:
    Path("b.txt").write_text("b")
    refused = gptkit_command("train", tiny_experiment, "--dataset", "data/mine.txt", "--dataset", "b.txt")
    assert refused.code == 2
    words = shlex.split(refused.err.splitlines()[1].partition(": ")[2].replace("a.txt", "data/mine.txt"))
    done = gptkit_command("train", tiny_experiment, *words, "--steps", 1, "--no-save")
    assert done.code == 0, done.err


def test_an_option_of_a_plugin_is_set_once(gptkit_command: Command) -> None:
    refused = gptkit_command("plugins", "check", "text", "--set", "path=a", "--set", "path=b")
    assert refused.code == 2
    assert "--set path=a and --set path=b both set path" in refused.err


def test_the_home_folder_is_found_where_no_shell_replaces_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, gptkit_command: Command
) -> None:
    monkeypatch.setenv("HOME", str(workspace))
    assert "~" not in gptkit_command("datasets", "list", "--data-dir=~/data").out
    assert str(workspace / "data" / "mine.txt") in gptkit_command("datasets", "--data-dir=~/data").out
