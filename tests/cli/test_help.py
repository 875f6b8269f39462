"""The help of every command begins with an example of it; help and version, and what they import."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import gptkit
from gptkit.cli.app import app
from tests.support import Command, Result


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
    assert not words or "--debug" in shown.out
    assert re.search(rf"Examples?:\s+gptkit {' '.join(words)}\b", first), shown.out


def test_the_first_help_lists_every_command(gptkit_command: Command) -> None:
    shown = gptkit_command("--help")
    assert shown.err == ""
    assert "gptkit train experiments/shakespeare.toml" in shown.out
    for (name,) in (words for words in ALL if len(words) == 1):
        assert re.search(rf"^. {name} +\w", shown.out, re.MULTILINE), name


def test_the_version_is_that_of_the_package(gptkit_command: Command) -> None:
    assert gptkit_command("--version") == Result(0, f"gptkit {gptkit.__version__}\n", "")


def test_no_command_at_all_shows_the_help(gptkit_command: Command) -> None:
    shown = gptkit_command()
    assert "Usage: gptkit" in shown.out + shown.err
    assert "Traceback" not in shown.err


def test_what_needs_no_model_imports_no_torch(workspace: Path) -> None:
    code = (
        "import sys; from gptkit.cli.app import run_command\n"
        "assert not run_command(['--help'])\n"
        "assert 'pydantic' not in sys.modules\n"
        "assert not any(map(run_command, (['train', '--help'], ['datasets', 'list'], ['runs'])))\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "safetensors", "pooch", "transformers"} & set(re.findall(r"\w+", done.stderr))
