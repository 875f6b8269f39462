"""Wrong inputs of newcomers, listed in tools/wrong_turns.py: the message names the right command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.wrong_turns import TURNS, Turn, prepare, take


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("turns")
    prepare(root)
    return root


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_a_wrong_input_is_answered_with_the_right_one(turn: Turn, place: Path) -> None:
    before = {path for path in place.rglob("*") if path.name != ".lock"}
    code, out, err = take(turn, place)
    printed = out + err
    assert code == turn.code, printed
    for phrase in turn.phrases:
        assert phrase in printed
    assert "Traceback" not in printed
    if turn.words:
        lines = [line for line in err.splitlines() if not line.startswith("downloading ")]
        assert lines[0].startswith("gptkit: ")
        own = [line for line in lines if not line.startswith("  line ")]  # and one that the file has
        assert len(own) <= 3
    assert {path for path in place.rglob("*") if path.name != ".lock"} == before
