"""`python -m tools.speed` measures, skips with a reason, and prints; how fast it is here, is not tested."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def speed(python: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    hidden = {key: value for key, value in os.environ.items() if key != "GPTKIT_DATA_DIR"}
    return subprocess.run(
        [*python, "-m", "tools.speed", *words],
        cwd=ROOT,
        env={**hidden, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
def test_what_needs_no_baseline_is_measured_and_the_rest_has_the_reason_why_not(python: list[str]) -> None:
    only = "streams,tokenizer,light,whole"
    done = speed(python, "--only", only, "--seconds", "0.01", "--blocks", "1", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert "torch" in printed["machine"]
    rows = {row["what"]: row for row in printed["rows"]}
    assert [row["row"] for row in printed["rows"]] == ["streams", "tokenizer", "light", "light", "whole"]
    for row in rows.values():
        assert set(row) == {"row", "what", "target", "measured", "how", "met", "numbers"}
        assert (row["met"] is None) == row["measured"].startswith("skipped: ")
    assert rows["char tokenizer, ASCII text"]["numbers"]["encode"] > 0
    assert "no torch imported" in rows["`gptkit --help`"]["measured"]
    assert "--nanogpt FOLDER" in printed["rows"][0]["measured"]
    assert "gptkit alone" in printed["rows"][0]["measured"]


@pytest.mark.slow
def test_the_table_is_markdown_where_it_is_wanted_and_a_row_that_is_unknown_is_named(
    python: list[str],
) -> None:
    done = speed(python, "--only", "whole", "--markdown")
    assert done.returncode == 0, done.stderr
    header, line, *rows = done.stdout.splitlines()[-3:]
    assert header == "| what | target | measured | met | how |"
    assert line == "|---|---|---|---|---|"
    assert len(rows) == 1
    wrong = speed(python, "--only", "train,nothing")
    assert wrong.returncode == 2
    assert "no row nothing" in wrong.stderr
