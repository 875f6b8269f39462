"""TAB: what the shell is offered, by the variables that its completion scripts set."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest

from gptkit.cli.app import run_command
from gptkit.plugins import registry

RUNS = ("first-20260101-000000", "second-20260102-000000")


@pytest.fixture
def place(workspace: Path) -> Path:
    """A folder with experiments, two runs with a checkpoint each, and a text."""
    (workspace / "experiments").mkdir()
    for name in ("own.toml", "pyproject.toml", "experiments/alpha.toml", "experiments/beta.toml"):
        (workspace / name).write_text("")
    for name in RUNS:
        (workspace / "runs" / name / "checkpoints" / "step-000000000020").mkdir(parents=True)
        (workspace / "runs" / name / "experiment.toml").write_text("")
    return workspace


def ask(shell: str, words: list[str], **variables: str) -> str:
    """What gptkit prints for a shell; the last word is the one that is being typed."""
    asked = {"_GPTKIT_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        asked |= {"COMP_WORDS": "\n".join(["gptkit", *words]), "COMP_CWORD": str(len(words))}
    else:
        asked |= {
            "_TYPER_COMPLETE_ARGS": " ".join(["gptkit", *words]),
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in (asked | variables).items():
            patch.setenv(name, value)
        with suppress(SystemExit):
            run_command([])
    assert err.getvalue() == ""
    return out.getvalue()


def offered(shell: str, *words: str, **variables: str) -> list[str]:
    printed = ask(shell, list(words), **variables)
    if shell == "bash":
        return printed.split()
    if shell == "fish":
        return [line.partition("\t")[0] for line in printed.splitlines()]
    return re.findall(r'^(?:_arguments [^"]*)?"([^"]*)"', printed, re.MULTILINE)


def test_the_words_of_every_kind_are_offered(place: Path) -> None:
    asked = {
        ("tr",): ["train"],
        ("train", ""): ["own.toml", "experiments/alpha.toml", "experiments/beta.toml"],
        ("train", "experiments/b"): ["experiments/beta.toml"],
        ("resume", ""): ["latest", *reversed(RUNS)],
        ("generate", "fi"): [RUNS[0]],
        ("generate", RUNS[0], "--checkpoint", ""): ["best", "last", "20"],
        ("runs", "--runs-dir", "nowhere", "verify", ""): [],
        ("train", "own.toml", "--load", "sec"): [RUNS[1]],
        ("train", "own.toml", "--dataset", "mi"): ["mine.txt"],
        ("datasets", "show", "sh"): ["shakespeare"],
        ("datasets", "fetch", "sh"): ["shakespeare"],
        ("plugins", "show", "ro"): ["rope"],
        ("plugins", "check", "char", "ro"): ["rope"],
        ("train", "own.toml", "--backend", "c"): ["cpu", "cuda"],
        ("train", "own.toml", "--set", "model.n_he"): ["model.n_head=", "model.n_head=4"],
    }
    for words, right in asked.items():
        assert offered("bash", *words) == right, words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_the_same(shell: str, place: Path) -> None:
    assert offered(shell, "tr") == ["train"]
    assert offered(shell, "train", "experiments/b") == ["experiments/beta.toml"]
    whole = offered(shell, "train", "own.toml", "--set", "model.position=ro")
    assert whole == ["model.position=rope"]


def test_bash_cuts_at_the_equals_sign_and_is_offered_what_replaces_the_last_part(place: Path) -> None:
    setting = ("train", "own.toml", "--set", "model.position", "=")
    assert offered("bash", *setting, "ro") == ["rope"]
    assert offered("bash", *setting) == registry.names(registry.POSITIONS)
    assert offered("bash", "train", "own.toml", "--dataset", "=", "sh") == ["shakespeare"]
    earlier = (*setting, "rope", "--set", "model.norm", "=", "la")
    assert offered("bash", *earlier) == ["layernorm"]


@pytest.mark.parametrize(
    "words", [["'"], ["train", '"'], ["nosuch", ""], ["train", "a\\"], ["="], ["train", "nowhere/"], ["\x1b"]]
)
def test_completion_in_a_shell_is_silent_about_errors(words: list[str], place: Path) -> None:
    ask("bash", words)
    for odd in ("many", "-3", "99", ""):
        ask("bash", words, COMP_CWORD=odd)
    (place / "runs").rename(place / "away")
    (place / "runs").write_text("")
    assert offered("bash", "resume", "") == []


def test_what_is_offered_loads_no_torch_and_no_plugin(place: Path) -> None:
    code = (
        "import sys\nfrom gptkit.cli.app import run_command\n"
        "try: run_command([])\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "print([name for name in sys.modules if name.startswith('gptkit.model')], file=sys.stderr)"
    )
    words = "gptkit\ntrain\nown.toml\n--set\nmodel.position\n=\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_GPTKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "6"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rope" in done.stdout
    assert not {"torch", "numpy", "safetensors", "transformers"} & set(re.findall(r"\w+", done.stderr))
    assert done.stderr.endswith("[]\n")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_itself_completes_with_the_script_that_gptkit_shows(place: Path) -> None:
    """As readline does it: the function that `complete` registered, called with COMP_WORDS set."""
    command = place / "gptkit"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gptkit "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(gptkit --show-completion bash)"; complete -p gptkit\n'
        'try() { COMP_WORDS=(gptkit "$@"); COMP_CWORD=$#; _gptkit_completion gptkit; '
        'echo "${COMPREPLY[@]}"; }\n'
        "try tra\ntry train experiments/\ntry train own.toml --set model.position = ro\n"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    registered, *replies = done.stdout.splitlines()
    assert "_gptkit_completion gptkit" in registered, done.stderr
    assert replies == ["train", "experiments/alpha.toml experiments/beta.toml", "rope"]
