"""Trackers: their calls, that TensorBoard reads the event files, and that no tracker harms a run."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gptkit import events
from gptkit.errors import PluginError
from gptkit.experiment.load import load_experiment
from gptkit.experiment.schema import Experiment
from gptkit.plugins import TrackedRun, registry
from gptkit.runs import Run
from gptkit.tracking import choose_tracker
from gptkit.tracking.tensorboard import TensorBoardTracker
from gptkit.training.context import RunContext
from gptkit.training.session import train_run
from tests.support import Command, Install
from tests.support.third_party import TRACKER

NAMES = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "bits_per_byte/val": "bits_per_byte",
    "learning_rate": "learning_rate",
    "adamw_learning_rate": "adamw_learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_second": "tokens_per_second",
}
BUSY = """
[evaluation]
eval_interval = 10

[checkpoints]
checkpoint_interval = 10

[tracking]
"""
Train = Callable[..., Run]


@pytest.fixture
def diary(install: Install) -> None:
    install("fancy", "[gptkit.trackers]\ndiary = fancy_code:DiaryTracker\n", TRACKER)


@pytest.fixture
def train(tiny_experiment: Path, gptkit_command: Command) -> Train:
    """Trains 20 steps, with two logs, evaluations, samples and checkpoints, and the trackers given."""

    def run(tracking: str, *more: str) -> Run:
        text = tiny_experiment.read_text().replace("sample_interval = 0", "sample_interval = 10")
        Path("busy.toml").write_text(text + "max_new_tokens = 9\n" + BUSY + tracking)
        done = gptkit_command("train", "busy.toml", "--quiet", *more)
        assert done.code == 0, done.err
        run.err = done.err  # type: ignore[attr-defined]
        return Run(Path(done.out.strip()))  # nothing else is on standard output

    return run


def shown(run: Run) -> EventAccumulator:
    """What TensorBoard reads of a run."""
    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    read.Reload()
    return read


def assert_shows_the_metrics(run: Run) -> None:
    """Every number of metrics.jsonl, once, in order, as the 32 bits that TensorBoard keeps."""
    read, rows = shown(run), run.metrics()
    assert set(read.Tags()["scalars"]) == set(NAMES)
    for name, key in NAMES.items():
        want = [(row["step"], np.float32(row[key])) for row in rows if key in row]
        assert len(want) >= 2
        assert [(event.step, np.float32(event.value)) for event in read.Scalars(name)] == want, name


def texts(run: Run, name: str) -> dict[int, str]:
    """Texts by step, as they were before they were indented for Markdown."""
    found = {}
    for event in shown(run).Tensors(name):
        (value,) = event.tensor_proto.string_val
        lines = value.decode().splitlines()
        assert all(line.startswith("    ") for line in lines)
        found[event.step] = "\n".join(line[4:] for line in lines)
    return found


def weights(run: Run) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.checkpoints.glob("*/*.safetensors")}


def calls(run: Run) -> list[list[Any]]:
    return [json.loads(line) for line in (run.path / "diary" / "calls.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_tensorboard_reads_the_numbers_of_metrics_the_samples_and_the_experiment(train: Train) -> None:
    run = train("tensorboard = true")
    assert_shows_the_metrics(run)
    samples = {int(path.stem.removeprefix("step-")): path.read_text() for path in run.samples.iterdir()}
    assert sorted(samples) == [10, 20]
    assert texts(run, "sample") == samples
    assert texts(run, "experiment") == {0: run.experiment_file.read_text()}


def test_samples_may_be_left_out(train: Train) -> None:
    run = train("[tracking.tensorboard]\nsamples = false")
    assert shown(run).Tags()["tensors"] == ["experiment"]
    assert_shows_the_metrics(run)


@pytest.mark.slow
def test_a_resumed_run_continues_where_steps_were_lost_and_shows_none_twice(
    train: Train, gptkit_command: Command
) -> None:
    """Also where the clock went back: TensorBoard reads the files by name."""
    run = train("tensorboard = true", "--stop-at", "20", "--steps", "40")
    shutil.rmtree(run.checkpoints / "step-000000000020")
    (old,) = (run.path / "tensorboard").iterdir()
    old.rename(old.with_name(f"events.out.tfevents.{int(time.time()) + 1000}.gptkit"))
    first = shown(run).Scalars("loss/train")
    resumed = gptkit_command("resume", run.path)
    assert resumed.code == 0, resumed.err
    assert "exact, from step 10" in resumed.out
    assert [row["step"] for row in run.metrics()] == [10, 20, 30, 40]
    assert_shows_the_metrics(run)
    assert sorted(texts(run, "sample")) == [10, 20, 30, 40]
    assert list(texts(run, "experiment")) == [0]
    again = shown(run).Scalars("loss/train")
    assert again[0] == first[0]  # of the first session; the lost step is of the second
    assert again[1].wall_time > first[1].wall_time


@pytest.mark.slow
def test_every_run_has_its_own_name_under_the_runs_folder(train: Train) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    one, other = train("tensorboard = true"), train("tensorboard = true")
    read = EventMultiplexer().AddRunsFromDirectory("runs")
    assert sorted(read.Runs()) == sorted(f"{run.id}/tensorboard" for run in (one, other))


@pytest.mark.slow
def test_a_tracker_of_another_package_gets_every_call_in_order(
    train: Train, diary: None, gptkit_command: Command
) -> None:
    run = train("diary = true", "--stop-at", "10")
    assert "warning" not in train.err  # type: ignore[attr-defined]
    assert gptkit_command("resume", run.path).code == 0
    made, rows = calls(run), run.metrics()
    assert [call[:2] for call in made] == [
        *(["start", run.id], ["scalars", 10], ["scalars", 10], ["text", 10], ["finish", "stopped"]),
        *(["start", run.id], ["scalars", 20], ["scalars", 20], ["text", 20], ["finish", "finished"]),
    ]
    table = {"diary": {"raises": "", "exits": False}}
    assert [call[2:] for call in made if call[0] == "start"] == [[run.id, 0, table], [run.id, 10, table]]
    numbers = [call for call in made if call[0] == "scalars"]
    for (_, _, trained, seconds), (_, _, evaluated, _), row in zip(
        numbers[::2], numbers[1::2], rows, strict=True
    ):
        assert {NAMES[name] for name in trained | evaluated} == set(NAMES.values())
        assert all(row[NAMES[name]] == value for name, value in (trained | evaluated).items())
        assert round(seconds, 3) == row["seconds"]
    samples = [call[2:] for call in made if call[0] == "text"]
    assert samples == [["sample", path.read_text()] for path in sorted(run.samples.iterdir())]


@pytest.mark.slow
def test_several_trackers_do_not_affect_one_another(train: Train, diary: None) -> None:
    """That of the other package empties every mapping that it gets."""
    run = train("diary = true\ntensorboard = true")
    assert_shows_the_metrics(run)
    assert texts(run, "experiment") == {0: run.experiment_file.read_text()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "exits"),
    [("__init__", True), ("start", False), ("scalars", False), ("text", True), ("finish", False)],
)
def test_one_that_fails_is_warned_of_once_and_harms_nothing(
    method: str, exits: bool, train: Train, diary: None
) -> None:
    plain = train("")
    options = f"raises = '{method}', exits = {str(exits).lower()}"
    run = train(f"diary = {{ {options} }}\ntensorboard = true")
    warnings = [line for line in train.err.splitlines() if "warning" in line]  # type: ignore[attr-defined]
    message = "SystemExit: good bye" if exits else "ValueError: no?[2J room"
    where = "start" if method == "__init__" else method
    assert warnings == [f"gptkit: warning: tracker 'diary' failed in {where}(): {message}"]
    assert weights(run) == weights(plain)
    assert len(weights(run)) >= 2
    assert run.record()["status"] == "finished"
    assert_shows_the_metrics(run)
    if method != "__init__":
        made = [call[0] for call in calls(run)]
        assert made[-1] == method  # and nothing after it
        assert made.count(method) == 1


def test_an_interrupt_while_a_tracker_works_is_not_its_failure(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorBoardTracker, "scalars", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_run(load_experiment(tiny_experiment, [("tracking.tensorboard", True)]), RunContext())
    (run,) = map(Run, Path("runs").glob("tiny*"))
    assert run.record()["status"] == "interrupted"


@pytest.mark.slow
def test_a_run_that_fails_finishes_its_trackers_once(tiny_experiment: Path, diary: None) -> None:
    """Also where it fails before its first step."""
    for kind in (events.RunStarted, events.StepFinished, events.RunFinished):

        def fail(event: events.Event, kind: type = kind) -> None:
            if isinstance(event, kind):
                raise RuntimeError("of a listener")

        context = RunContext(listener=fail)
        with pytest.raises(RuntimeError, match="of a listener"):
            train_run(load_experiment(tiny_experiment, [("tracking.diary", True)]), context)
        (run,) = map(Run, Path("runs").glob("tiny*"))
        ends = [call for call in calls(run) if call[0] == "finish"]
        assert ends == [["finish", "finished" if kind is events.RunFinished else "failed"]]
        shutil.rmtree(run.path)


def test_without_its_package_a_run_does_not_begin_and_the_message_names_it(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = gptkit_command("train", tiny_experiment, "--set", "tracking.tensorboard=true")
    assert done.code == 3
    assert "pip install 'gptkit[tensorboard]'" in done.err
    assert list(Path("runs").iterdir()) == []
    off = gptkit_command("train", tiny_experiment, "--set", "tracking.tensorboard=false", "--steps", 1)
    assert off.code == 0, off.err


@pytest.mark.slow
def test_a_run_resumes_without_the_packages_of_its_trackers(
    train: Train, diary: None, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train("", "--steps", "30")
    run = train("diary = true\ntensorboard = true", "--steps", "30", "--stop-at", "20")
    plugins = {(plugin["family"], plugin["name"]): plugin for plugin in run.record()["plugins"]}
    assert plugins[registry.TRACKERS, "diary"]["distribution"] == "fancy"
    shutil.rmtree("site/fancy-1.2.dist-info")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    registry.installed.cache_clear()
    resumed = gptkit_command("resume", run.path, "--require-exact")
    assert resumed.code == 0, resumed.err
    assert "resume: exact, from step 20" in resumed.out
    assert "no tracker is called 'diary'" in resumed.err
    assert "continues without it. The run had it from fancy 1.2: pip install fancy==1.2" in resumed.err
    assert "pip install 'gptkit[tensorboard]'" in resumed.err
    assert calls(run)[-1] == ["finish", "stopped"]
    assert weights(run)["step-000000000030"] == weights(plain)["step-000000000030"]
    for command in (("generate", run.path, "-n", 5), ("runs", "verify", run.path), ("resume", run.path)):
        done = gptkit_command(*command)
        assert done.code == 0, done.err
    written = gptkit_command("generate", run.path, "-n", 5)
    assert "tracker" not in written.err


@pytest.mark.slow
def test_a_recorded_run_may_have_options_that_its_tracker_no_longer_accepts(
    train: Train, diary: None, gptkit_command: Command
) -> None:
    run = train("diary = true", "--stop-at", "10")
    text = run.experiment_file.read_text().replace('raises = ""', 'raised = ""')
    run.experiment_file.write_text(text)
    resumed = gptkit_command("resume", run.path)
    assert resumed.code == 0, resumed.err
    assert "tracker 'diary' takes other options: tracking.diary.raised: unknown key" in resumed.err
    assert calls(run)[-1] == ["finish", "stopped"]


@pytest.mark.slow
def test_files_of_trackers_are_a_known_part_of_a_run_and_a_replay_is_not_tracked(
    train: Train, diary: None, gptkit_command: Command
) -> None:
    run = train("diary = true\ntensorboard = true")
    verified = gptkit_command("runs", "verify", run.path)
    assert verified.code == 0, verified.out
    assert "ok    tensorboard: 1 file of the tracker of that name" in verified.out
    assert "ok    diary: 1 file of the tracker of that name" in verified.out
    made = calls(run)
    replayed = gptkit_command("resume", run.path, "--verify")
    assert replayed.code == 0, replayed.err
    assert "identical" in replayed.out
    assert calls(run) == made


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("tracking.tensorbord=true", 3, "no tracker is called 'tensorbord'; did you mean 'tensorboard'?"),
        ("tracking.tensorboard=5", 2, "tracking.tensorboard: should be true, false or a table"),
        ("tracking.tensorboard.sample=true", 2, "tracking.tensorboard.sample: unknown key; did you mean"),
        (
            "tracking.tensorboard.samples='x'",
            2,
            'tracking.tensorboard.samples = "x": should be true or false',
        ),
        ("tracking=true", 2, "tracking = true: should be a table"),
        ("tracking.tensorboard.samples.x=1", 2, "tracking.tensorboard.samples: should be true or false"),
    ],
)
def test_what_cannot_be_in_a_file_is_answered_with_its_place(
    setting: str, code: int, message: str, tiny_experiment: Path, gptkit_command: Command
) -> None:
    done = gptkit_command("train", tiny_experiment, "--set", setting)
    assert done.code == code, done.err
    assert message in done.err
    assert list(Path("runs").iterdir()) == []


def test_a_tracker_is_off_unless_asked_for_and_its_options_are_made_explicit(tiny_experiment: Path) -> None:
    def tracking(*overrides: tuple[str, Any]) -> dict[str, Any]:
        return load_experiment(tiny_experiment, overrides).tracking

    on, off = ("tracking.tensorboard", True), ("tracking.tensorboard", False)
    assert tracking() == tracking(off) == tracking(on, off) == {}
    assert tracking(on) == tracking(off, on) == {"tensorboard": {"samples": True}}
    option = ("tracking.tensorboard.samples", False)
    assert tracking(option) == tracking(on, option) == {"tensorboard": {"samples": False}}


def test_an_experiment_made_in_python_may_leave_options_to_the_tracker(workspace: Path) -> None:
    given = Experiment.model_validate(
        {
            "data": {"dataset": "data/mine.txt"},
            "training": {"max_steps": 1, "backend": "cpu"},
            "model": {"n_embd": 16},
            "tracking": {"tensorboard": True, "not-installed": False},
        }
    )
    assert texts(train_run(given, RunContext()).run, "experiment")


def test_a_tracker_whose_folder_a_run_needs_itself_is_refused(install: Install) -> None:
    names = ("checkpoints", "Samples", "run.json", "..", "x/y")
    lines = "".join(f"{name} = fancy_code:DiaryTracker\n" for name in (*names, "diary"))
    install("fancy", f"[gptkit.trackers]\n{lines}", TRACKER)
    assert choose_tracker("diary", True).name == "diary"
    for name in names:
        with pytest.raises(PluginError, match="cannot have a folder of that name"):
            choose_tracker(name, True)


def test_an_event_file_is_always_new(tmp_path: Path) -> None:
    """A link in somebody else's run is not followed."""
    (tmp_path / "elsewhere").write_text("mine")
    place = tmp_path / "tensorboard"
    place.mkdir()
    for second in range(int(time.time()), int(time.time()) + 60):
        (place / f"events.out.tfevents.{second}.gptkit").symlink_to(tmp_path / "elsewhere")
    tracker = TensorBoardTracker(TensorBoardTracker.Options())
    tracker.start(TrackedRun("a-run", tmp_path, place, {}))
    tracker.scalars(10, {"loss/train": 2.5}, 1.0)
    tracker.finish("finished")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert len(list(place.iterdir())) == 61
    for number in (999_999_999_999, 1_000_000_000_000):  # the last that is known as one, and the next
        (place / f"events.out.tfevents.{number}.gptkit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        tracker.start(TrackedRun("a-run", tmp_path, place, {}))
    assert (tmp_path / "elsewhere").read_text() == "mine"


@pytest.mark.slow
def test_a_hostile_tracker_name_in_a_run_is_never_used_as_a_path(
    train: Train, gptkit_command: Command
) -> None:
    run = train("", "--stop-at", "10")
    names = ("é" * 200, "../..", ".", "x/y", "\\u0000")
    text = "".join(f'[tracking."{name}"]\n' for name in names)
    run.experiment_file.write_text(run.experiment_file.read_text().replace("[tracking]\n", text))
    verified = gptkit_command("runs", "verify", run.path)
    assert verified.code == 0, verified.out + verified.err
    assert "of the tracker" not in verified.out
    resumed = gptkit_command("resume", run.path)
    assert resumed.code == 0, resumed.err
    assert resumed.err.count("no tracker is called") == len(names)
