"""The display of a training on terminals of all kinds, as plain lines and as JSON lines."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from gptkit import events
from gptkit.cli.app import run_command
from gptkit.cli.commands.train import _quicker_than
from gptkit.cli.display.curve import History, letter_chart, panel_curve
from gptkit.cli.display.json import JsonView, as_object
from gptkit.cli.display.live import LiveView
from gptkit.cli.display.panel import PanelState, Viewport, panel
from gptkit.cli.display.plain import PlainView
from gptkit.experiment.load import experiment_from_dict
from gptkit.model.build import build_model
from gptkit.runs import find_run
from gptkit.training.loss import evaluate
from tests.support import TINY, Command, small_text
from tests.support.terminals import Screen, terminal

START = events.RunStarted(
    run_id="tiny.c16.e32.h2.b2-20261122-104012",
    folder=Path("runs/tiny"),
    dataset="mine",
    tokenizer="char",
    vocab_size=30,
    train_tokens=18_000,
    val_tokens=2_000,
    parameters=30_000,
    device="cpu",
    precision="fp32",
    compiled=False,
    start_step=0,
    stop_step=400,
    max_steps=400,
    tokens_per_step=64,
)
HOSTILE = "ROMEO:\n\x1b[2J\x1b]0;owned\x07\rgone\u202e [bold]not bold[/bold] \ud800\n" + "x" * 500
Run = Callable[..., str]


def here() -> dict[str, str]:
    """The environment for a process that is to import this gptkit."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def logged(step: int) -> events.StepFinished:
    loss = 1.5 + 2 * math.exp(-step / 50)
    return events.StepFinished(step, loss, 0.02, 0.5, step * 64, 41_234.0, step * 0.1)


def evaluated(step: int) -> events.EvaluationFinished:
    loss = 1.6 + 2 * math.exp(-step / 50)
    return events.EvaluationFinished(step, loss, 2.25, loss, step, step * 64, 0.02, step * 0.1)


def train(view: events.Listener, steps: int = 200, start: events.RunStarted = START) -> None:
    """The events of a run that has come so far."""
    view(start)
    for step in range(1, steps + 1):
        if step % 10 == 0:
            view(logged(step))
        if step % 100 == 0:
            view(evaluated(step))
        view(events.StepDone(step))
        if step % 100 == 0:
            view(events.SampleDrawn(step, HOSTILE))


@pytest.fixture
def state() -> PanelState:
    state = PanelState()
    train(state.update)
    return state


# The panel, in terminals of all sizes


@pytest.mark.parametrize("width", [200, 160, 100, 60, 59, 40, 39, 20, 8, 1])
@pytest.mark.parametrize("height", [60, 24, 12, 9, 4, 2, 1])
def test_the_panel_fits_any_terminal_and_shows_the_step_first(
    width: int, height: int, state: PanelState
) -> None:
    for ascii_only in (False, True):
        lines = panel(state, Viewport(width, height, ascii_only), "0:26")
        assert max(line.cell_len for line in lines) <= width
        assert len(lines) <= max(height - 1, 1)
        if width >= 20:
            assert "step 200/400" in "\n".join(line.plain for line in lines[:2])


@pytest.mark.parametrize("width", [160, 100, 60])
def test_a_large_panel_has_the_numbers_the_curve_and_the_sample(width: int, state: PanelState) -> None:
    shown = "\n".join(line.plain for line in panel(state, Viewport(width, 24, False), "0:26"))
    for words in (
        *("step 200/400", "0:26 left", "train 1.5366", "val 1.6366", "best 1.6366 @ 200"),
        *("tokens/s 41,234", "lr 0.02", "grad norm 0.5", "sample at step 200", "ROMEO:"),
    ):
        assert words in shown
    assert shown.count("●") == 3  # the mark of val in the legend, and its two evaluations
    assert len(re.findall("[\u2801-\u28ff]", shown)) > 20
    assert len({line.cell_len for line in panel(state, Viewport(width, 24, False), "")}) == 1


def test_control_characters_of_a_sample_are_escaped(state: PanelState) -> None:
    for width in (160, 60):
        for line in panel(state, Viewport(width, 40, False), ""):
            assert line.plain.isprintable()


def test_where_only_ascii_can_be_shown_all_is_ascii(state: PanelState) -> None:
    state.sample = events.SampleDrawn(200, "ca\u00e9 \u03b1\u03b2 \u65e5\u672c")
    state.start = replace(START, run_id="\u00fcbung")
    for width in (160, 60, 30):
        lines = panel(state, Viewport(width, 24, True, "ascii"), "0:26")
        assert all(line.plain.isascii() for line in lines)
    assert any("o" in line.plain and ".." in line.plain for line in lines)


def test_work_besides_training_and_a_requested_stop_are_shown(state: PanelState) -> None:
    state.working = events.Working("evaluating", 3, 12)
    assert "evaluating  25%  0:26 left" in panel(state, Viewport(80, 24, False), "0:26")[1].plain
    state.stopping = True
    assert "stopping" in panel(state, Viewport(80, 24, False), "")[1].plain


def test_before_the_training_a_bar_shows_the_work(state: PanelState) -> None:
    (line,) = panel(PanelState(working=events.Working("downloading", 30, 40)), Viewport(80, 24, False), "")
    assert line.plain == f"downloading {'━' * 30}{'─' * 10}  75%"
    (line,) = panel(PanelState(working=events.Working("tokenizing", 1234, 0)), Viewport(12, 24, False), "")
    assert line.cell_len <= 12


def test_the_curve_goes_down_where_the_loss_does() -> None:
    falling = [(step, 4 - step / 100) for step in range(300)]
    rows = panel_curve(falling, [], width=46, height=5, ascii_only=True)
    columns = [cells.index(".") for _, cells in rows]
    assert columns == sorted(columns)
    assert rows[0][0] == "3.70 "  # the loss after a tenth of the steps
    assert rows[-1][0] == "1.01 "
    letters = letter_chart([("A", falling), ("B", [(0, 1.01), (299, 1.01)])], width=40, height=6)
    rows_of_a = [line.index("A") for line in letters if "A" in line]
    assert rows_of_a == sorted(rows_of_a)
    assert letters[5].endswith("*")  # where both end
    assert letters[0].startswith("       4 |A")


def test_the_ends_of_the_axis_differ_however_flat_the_curve_is() -> None:
    flat = [(step, 2.49 + step / 1e6) for step in range(300)]
    rows = panel_curve(flat, [], width=46, height=5, ascii_only=False)
    assert rows[0][0] != rows[-1][0]


def test_the_memory_of_a_long_run_is_bounded_and_keeps_its_shape() -> None:
    history = History()
    for step in range(1, 100_001):
        history.add(step, step / 1000)
    assert len(history.points) < 1024
    assert all(abs(loss - step / 1000) < 1e-6 for step, loss in history.points)
    assert history.points[0][0] < 200
    assert history.points[-1][0] > 99_000


# Figures by the clock


def progressed(step: int, seconds_left: float | None, seconds: float = 3.0) -> events.StepProgress:
    return events.StepProgress(step, 3.25, 0.01, 0.75, step * 64, 123.0, seconds, seconds_left=seconds_left)


@pytest.mark.parametrize("width", [160, 100, 60])
def test_the_panel_has_figures_before_the_first_log(width: int) -> None:
    state = PanelState()
    state.update(START)

    def shown(time_left: str = "") -> str:
        return "\n".join(line.plain for line in panel(state, Viewport(width, 24, False), time_left))

    assert "step 0/400  first step…" in shown()
    assert "train -" in shown()
    state.update(progressed(1, None))
    for words in ("step 1/400", "train 3.2500", "tokens/s 123", "lr 0.01", "grad norm 0.75"):
        assert words in shown("0:26")
    assert "first step" not in shown()
    assert state.train.points == []  # the curve is what is recorded


def test_the_time_left_is_that_of_the_latest_figures() -> None:
    view = LiveView(Console(file=io.StringIO(), width=100, height=24))
    for event, words in (
        (START, "first step"),
        (progressed(1, None), "step 1/400 "),
        (progressed(2, 1234.5), "step 2/400  20:34 left"),
        (replace(logged(10), seconds_left=12.4), "step 10/400  12 s left"),
    ):
        view(event)
        assert words in view.lines()[1].plain


def test_plain_lines_come_at_once_and_then_by_the_log_or_after_ten_seconds(
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    view = PlainView(clock=lambda: now[0])
    view(START)
    for step in range(1, 25):
        now[0] = 2.0 * step
        view(replace(logged(step), seconds_left=99.0) if step == 15 else progressed(step, 99.0))
        view(events.StepDone(step))
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1]) for line in lines] == [1, 6, 11, 15, 20]
    assert lines[0] == (
        "step 1  train loss 3.2500  learning rate 0.01  grad norm 0.75  tokens/s 123  time left 1:39"
    )


QUICK = "gptkit train experiments/shakespeare_quick.toml"
LONG = "this run takes about 33 minutes on this machine; quicker: add --minutes 5"


@pytest.mark.parametrize(
    ("start", "first", "second", "line"),
    [
        (START, progressed(1, None), progressed(2, 1960.0, 20.0), LONG),
        (START, replace(logged(10), seconds_left=1979.0), progressed(20, 9e9), LONG),
        (START, progressed(1, 299.0, 0.5), progressed(2, 1960.0), ""),
        (START, progressed(1, 7200.0), progressed(2, 9e9), LONG.replace("33 minutes", "2.0 hours")),
        (START, progressed(1, 3e5), progressed(2, 9e9), LONG.replace("33 minutes", "3.5 days")),
        (replace(START, minutes=9.0), progressed(1, 540.0), progressed(2, 530.0), ""),
        (
            replace(START, dataset="shakespeare"),
            progressed(1, 1977.0),
            progressed(2, 9e9),
            LONG.replace("add", f"{QUICK}, or add"),
        ),
    ],
    ids=["long", "from a log", "short", "hours", "days", "a time", "shakespeare"],
)
def test_that_a_run_will_take_long_is_a_line_once(
    start: events.RunStarted,
    first: events.Event,
    second: events.Event,
    line: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = io.StringIO()
    live = LiveView(Console(file=file, width=200, height=24), quicker=QUICK)
    plain = PlainView(QUICK)
    for event in (start, first, events.StepDone(1), second, events.StepDone(2)):
        live(event)
        plain(event)
    for written in (file.getvalue(), capfd.readouterr().out):
        assert [each for each in written.splitlines() if "this run" in each] == ([line] if line else [])


def test_only_a_new_run_says_that_it_will_take_long(capfd: pytest.CaptureFixture[str]) -> None:
    view = PlainView()  # as resume and rerun have it
    for event in (START, progressed(1, 7200.0), events.StepDone(1)):
        view(event)
    assert "takes" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("experiment", "there", "quicker"),
    [
        ("slow.toml", "shakespeare_quick.toml", "gptkit train shakespeare_quick.toml"),
        ("slow.toml", "experiments/shakespeare_quick.toml", QUICK),
        ("my own/slow.toml", "my own/shakespeare_quick.toml", "gptkit train 'my own/shakespeare_quick.toml'"),
        ("slow.toml", "", ""),
        ("shakespeare_quick.toml", "shakespeare_quick.toml", ""),
    ],
)
def test_the_quick_experiment_is_named_where_it_is_there(
    experiment: str, there: str, quicker: str, workspace: Path
) -> None:
    if there:
        Path(there).parent.mkdir(exist_ok=True)
        Path(there).touch()
    assert _quicker_than(Path(experiment)) == quicker


def test_json_lines_have_the_figures_and_the_time_left(capfd: pytest.CaptureFixture[str]) -> None:
    view = JsonView()
    for event in (progressed(1, None), progressed(2, 1234.5), replace(logged(10), seconds_left=12.0)):
        view(event)
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["step_progress", "step_progress", "step_finished"]
    assert [line["seconds_left"] for line in lines] == [None, 1234.5, 12.0]
    assert lines[0].keys() == lines[2].keys()


# On a terminal


@pytest.fixture
def on_terminal(tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Trains in a pseudo-terminal, in this process, and returns what was written to it."""

    def run(*arguments: str, columns: int = 100, rows: int = 24, **environment: str) -> str:
        tiny_experiment.write_text(TINY.replace("sample_interval = 0", "sample_interval = 10"))
        with monkeypatch.context() as changed, terminal(columns, rows) as (_, theirs, read):
            changed.setattr("gptkit.training.trainer._LONGEST_SILENCE", math.inf)  # this machine may be slow
            for name in ("NO_COLOR", "FORCE_COLOR", "LC_ALL", "LC_CTYPE", "COLORTERM"):
                changed.delenv(name, raising=False)
            size = {"COLUMNS": str(columns), "LINES": str(rows)}  # rich asks the process's own streams
            for name, value in {"TERM": "xterm-256color", "LANG": "C.UTF-8", **size, **environment}.items():
                changed.setenv(name, value)
            with os.fdopen(os.dup(theirs), "w", encoding="utf-8") as out:
                changed.setattr(sys, "stdout", out)
                assert run_command(["train", "tiny.toml", *arguments]) == 0
        return read.text

    return run


@pytest.mark.slow
@pytest.mark.parametrize("columns", [160, 100, 60, 30])
def test_the_lines_remain_and_no_piece_of_the_panel_does(columns: int, on_terminal: Run) -> None:
    written = on_terminal(columns=columns)
    screen = Screen(columns)
    screen.write(written)
    shown = "\n".join(screen.lines)
    assert re.search(r"preparing.*tiny\.c16.*step 0/20", written, re.DOTALL)  # the panel was there
    assert not re.search(r"step \d+/20|grad norm", shown)
    assert shown.replace("\n", " ").startswith("run tiny.c16")
    assert shown.count("val loss") == 2  # an evaluation's line, and the best in the last one
    assert "sample at step 20" in shown
    assert "finished: step 20 of 20" in shown.replace("\n", " ")
    assert screen.cursor_shown


@pytest.mark.slow
def test_no_color_means_none(on_terminal: Run) -> None:
    colored, written = on_terminal(), on_terminal(NO_COLOR="1")
    color = re.compile(r"\x1b\[[\d;]*\b(3[0-7]|38|9[0-7])[;m]")
    assert color.search(colored)
    assert not color.search(written)
    assert "step 0/20" in written


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines(on_terminal: Run) -> None:
    written = on_terminal(TERM="dumb")
    assert "\x1b" not in written
    assert [line.split()[1] for line in written.splitlines() if line.startswith("step ")] == ["10", "20"]


@pytest.mark.slow
def test_a_c_locale_gets_ascii(on_terminal: Run) -> None:
    assert "\u2501" in on_terminal()
    assert on_terminal(LC_ALL="C").isascii()


@pytest.mark.parametrize("columns", [20, 33, 47, 60, 99])
def test_a_window_that_becomes_narrower_keeps_one_panel_and_every_line(columns: int) -> None:
    screen, file = Screen(100), io.StringIO()
    console = Console(file=file, width=100, height=30, force_terminal=True, color_system=None)
    view = LiveView(console, clock=lambda: 0.0)

    def shown() -> str:
        screen.write(file.getvalue())
        file.seek(file.truncate(0))
        return "\n".join(screen.lines)

    with view.region.shown():
        train(view, 100)
        view.region.refresh()
        assert shown().count("grad norm") == 1
        console.width = columns
        screen.narrow(columns)
        view(events.Warned("a line above it"))
        view.region.refresh()
        written = shown()
        assert written.count("step 100/400") == 1
        assert "step    100" in written.replace("\n", "")
        assert written.index("warning: a line") < written.index("step 100/400")
        assert written.count("grad norm") == 1
    assert "grad norm" not in shown()


@pytest.mark.parametrize(("takes", "most"), [(0.0, 42), (0.005, 12), (0.05, 7)])
def test_drawing_is_bounded_by_time_not_by_steps(takes: float, most: int) -> None:
    """Ten seconds of steps that take a millisecond each, on a console that takes its time."""
    now, drawn = [0.0], [0]

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            if "grad norm" in text:
                drawn[0] += 1
                now[0] += takes
            return super().write(text)

    console = Console(file=Slow(), width=80, height=24, force_terminal=True)
    view = LiveView(console, clock=lambda: now[0])
    with view.region.shown():
        view(START)
        step = 0
        while now[0] < 10:
            step += 1
            now[0] += 0.001
            view(logged(step))
            view(events.StepDone(step))
        assert 4 <= drawn[0] <= most


def test_a_resumed_run_shows_all_of_its_curve(tiny_experiment: Path, gptkit_command: Command) -> None:
    assert gptkit_command("train", tiny_experiment, "--stop-at", 15, "--quiet").code == 0
    rows = find_run("latest").metrics()
    view = LiveView(Console(file=io.StringIO()))
    view(replace(START, folder=find_run("latest").path, start_step=15, stop_step=20))
    assert view.state.train.points == [(row["step"], row["train_loss"]) for row in rows]
    view(replace(START, folder=Path("gone"), start_step=15, stop_step=20))


@pytest.mark.slow
def test_ctrl_c_leaves_a_clean_screen_and_a_saved_run(workspace: Path, python: list[str]) -> None:
    Path("tiny.toml").write_text(TINY.replace("max_steps = 20", "max_steps = 1000000"))
    environment = {**here(), "TERM": "xterm", "LANG": "C.UTF-8"}
    for name in ("NO_COLOR", "LC_ALL", "COLUMNS", "LINES"):
        environment.pop(name, None)
    with terminal(80, 24) as (ours, theirs, read):
        echo = termios.tcgetattr(theirs)[3] & termios.ECHO
        process = subprocess.Popen(
            [*python, "-c", _LEADER, "train", "tiny.toml"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        end = time.monotonic() + 60
        while (
            not re.search(r"step [1-9]\d*/", read.text) and time.monotonic() < end and process.poll() is None
        ):
            time.sleep(0.05)
        assert not termios.tcgetattr(theirs)[3] & termios.ECHO
        os.write(ours, b"\x03")
        assert process.wait(60) == 130, read.text
        assert termios.tcgetattr(theirs)[3] & termios.ECHO == echo
    screen = Screen(80)
    screen.write(read.text)
    shown = "\n".join(screen.lines)
    assert screen.cursor_shown
    assert "^C" not in shown
    assert not re.search("tokens/s|[│╭╰]", shown)
    assert "interrupted: step" in shown
    assert "gptkit resume runs/tiny" in shown
    run = find_run("latest")
    assert run.record()["status"] == "interrupted"
    assert run.record()["last_checkpoint"] == run.record()["step"]


_LEADER = """\
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv[0] = "gptkit"
from gptkit.__main__ import main
main()
"""


# Plain lines


def test_plain_lines_are_silent_about_work_between_steps(capfd: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    for event in (events.Working("reading", 1, 2), events.Working("reading", 2, 2), START):
        view(event)
    before = capfd.readouterr().out
    assert before.splitlines()[:2] == ["reading", f"run {START.run_id}"]
    view(events.Working("evaluating", 1, 2))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("adamw_rate", "plain", "live"),
    [(0.005, "0.02 (AdamW 0.005)", "lr 0.02/0.005"), (None, "0.02", "lr 0.02")],
)
def test_both_learning_rates_of_muon_are_shown(
    adamw_rate: float | None, plain: str, live: str, capfd: pytest.CaptureFixture[str]
) -> None:
    view, state = PlainView(), PanelState()
    for event in (START, replace(logged(10), adamw_learning_rate=adamw_rate), events.StepDone(10)):
        view(event)
        state.update(event)
    assert f"  learning rate {plain}  grad norm" in capfd.readouterr().out
    shown = "\n".join(line.plain for line in panel(state, Viewport(100, 24, False), ""))
    assert f"{live} " in shown


# JSON lines


@pytest.mark.slow
def test_json_lines_are_the_events_with_the_numbers_of_the_metrics(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    tiny_experiment.write_text(TINY.replace("sample_interval = 0", "sample_interval = 10"))
    done = gptkit_command("train", tiny_experiment, "--json", "--set", "training.log_interval=5")
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in done.out.splitlines()]
    run = find_run("latest")
    assert lines[0]["event"] == "run_started"
    assert lines[0]["folder"] == str(run.path)
    assert lines[-1]["event"] == "run_finished"
    assert lines[-1]["status"] == "finished"
    assert {line["event"] for line in lines[1:-1]} - {"step_progress"} == {
        *("step_finished", "evaluation_finished", "sample_drawn", "checkpoint_saved")
    }
    rows: dict[int, dict[str, object]] = {}
    for line in lines:
        if line["event"] in ("step_finished", "evaluation_finished"):
            rows.setdefault(line["step"], {}).update(line)
    recorded = run.metrics()
    assert [row["step"] for row in recorded] == list(rows) == [5, 10, 15, 20]
    for row in recorded:
        line = rows[row["step"]]
        for key, value in row.items():
            assert value == pytest.approx(line[key], abs=0.06 if key == "tokens_per_second" else 6e-4)
        assert row["train_loss"] == line["train_loss"]
        assert row.get("val_loss") == line.get("val_loss")


@pytest.mark.slow
def test_a_resumed_run_prints_events_too(tiny_experiment: Path, gptkit_command: Command) -> None:
    assert gptkit_command("train", tiny_experiment, "--stop-at", 10, "--quiet").code == 0
    done = gptkit_command("resume", "latest", "--json")
    found = [json.loads(line) for line in done.out.splitlines()]
    assert found[0] == {
        **{"event": "resume_checked", "step": 10, "differences": [], "replayed": 0},
        "schedule_end": None,
    }
    assert found[-1]["event"] == "run_finished"


def test_a_warning_is_an_event_and_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    JsonView()(events.Warned("caf\u00e9\nand more"))
    out, err = capfd.readouterr()
    assert json.loads(out) == {"event": "warned", "message": "caf\u00e9\nand more"}
    assert out.count("\n") == 1
    assert err.startswith("gptkit: warning: caf")


def test_a_number_that_is_not_finite_is_null() -> None:
    found = as_object(replace(logged(1), grad_norm=math.inf))
    assert found["grad_norm"] is None
    assert found["event"] == "step_finished"


def test_progress_of_work_is_reported_once_a_second(capfd: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    view = JsonView(clock=lambda: now[0])
    for done in range(1000):
        now[0] += 0.01
        view(events.Working("reading", done, 1000))
    assert 5 <= len(capfd.readouterr().out.splitlines()) <= 11


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "tiny.toml", "--quiet"],
        ["train", "tiny.toml", "--generate", "5"],
        ["resume", "latest", "--quiet"],
        ["resume", "latest", "--verify"],
    ],
)
def test_json_shares_standard_output_with_nothing(
    arguments: list[str], tiny_experiment: Path, gptkit_command: Command
) -> None:
    refused = gptkit_command(*arguments, "--json")
    assert (refused.code, refused.out) == (2, "")
    assert "--json and --" in refused.err
    assert not list(Path("runs").iterdir())


# Long work besides training


def test_an_evaluation_reports_its_progress_and_has_the_same_result() -> None:
    experiment = experiment_from_dict(
        {"model": {"context_length": 16, "n_embd": 16, "n_head": 2, "n_layer": 1}}
    )
    torch.manual_seed(0)
    model = build_model(experiment, 30)
    ids = np.arange(40_000) % 30
    found: list[tuple[int, int]] = []
    watched = evaluate(
        model, ids, context_length=16, eval_tokens=40_000, progress=lambda *far: found.append(far)
    )
    assert watched == evaluate(model, ids, context_length=16, eval_tokens=40_000)
    windows = math.ceil((len(ids) - 1) / 16)
    assert found[-1] == (windows, windows)
    assert found == sorted(found)
    assert len(found) > 3


@pytest.mark.slow
def test_only_a_long_evaluation_and_a_long_text_report_progress(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works() -> set[str]:
        done = gptkit_command("train", tiny_experiment, "--json")
        return {
            found["what"] for found in map(json.loads, done.out.splitlines()) if found["event"] == "working"
        }

    assert works() == set()
    monkeypatch.setattr("gptkit.training.session._LONG_EVALUATION", 1e-9)
    monkeypatch.setattr("gptkit.data.source.LARGE", len(small_text()))
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(Path("cache").absolute())
    )  # in which the ids of large texts are kept
    assert works() == {"evaluating", "tokenizing the text"}
