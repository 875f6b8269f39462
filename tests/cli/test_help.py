"""The help of every command, however deep, begins with an example of that command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from gptkit.cli.app import app
from tests.support import Command


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


ALL = list(commands(typer.main.get_command(app)))


def test_the_walk_finds_commands_of_commands() -> None:
    assert {("train",), ("schema",), ("plugins", "check"), ("datasets", "fetch"), ("runs", "verify")} < set(
        ALL
    )


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_an_example_comes_first(
    words: tuple[str, ...], gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = gptkit_command(*words, "--help")
    assert shown.code == 0
    usage, *lines = [line.strip() for line in shown.out.splitlines() if line.strip()]
    assert usage.startswith("Usage: gptkit")
    first = " ".join(lines[:2]) if words else " ".join(lines[:4])
    assert re.search(rf"Examples?:\s+gptkit {' '.join(words)}\b", first), shown.out


def test_the_first_help_lists_every_command(gptkit_command: Command) -> None:
    shown = gptkit_command("--help")
    assert shown.err == ""
    assert "gptkit train experiments/shakespeare.toml" in shown.out
    for (name,) in (words for words in ALL if len(words) == 1):
        assert re.search(rf"^. {name} +\w", shown.out, re.MULTILINE), name
