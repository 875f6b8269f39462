"""The report of a run: what it shows, that it is self-contained, and that no run can break it."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptkit import events, files
from gptkit.experiment.load import load_experiment
from gptkit.report.charts import Chart, Mark, Series, draw, ticks
from gptkit.report.page import chosen_samples, described_settings, run_page, write_report
from gptkit.report.render import script_json
from gptkit.runs import Run, run_ids
from gptkit.runs.metrics import MAX_POINTS
from gptkit.training.context import RunContext
from gptkit.training.session import train_run
from tests.support import Command, write_record

RECORD: dict[str, Any] = {
    "format": 1,
    "status": "finished",
    "reason": "",
    "started": "2026-01-02T03:04:05+00:00",
    "step": 20,
    "target_step": 20,
    "command": "gptkit train tiny.toml",
    "dataset": {"title": "mine.txt", "characters": 1234, "sha256": "ab" * 32, "facts": {"order": 2}},
    "tokenizer": {"type": "char", "vocab_size": 33, "train_tokens": 1111, "val_tokens": 123},
    "plugins": [
        {"family": "gptkit.positions", "name": "t5", "distribution": "gptkit-t5-bias", "version": "1.5"}
    ],
    "environment": {"torch": "2.99", "threads": 3},
    "best_val_loss": 2.0,
    "best_bits_per_byte": 3.0,
    "seconds": 75.2,
}


class Page(HTMLParser):
    """The contents of a page: its text, its elements, its scripts and styles."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._within = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag
        self.text += "" if tag == "wbr" else " "
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self._within in self.inside:
            self.inside[self._within][-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def make(path: Path, record: object = RECORD, rows: list[Any] | None = None) -> Run:
    """A run folder with a record, metrics and no samples."""
    (path / "samples").mkdir(parents=True)
    (path / "experiment.toml").write_text('name = "mine"\nseed = 7\n')
    (path / "run.json").write_text(json.dumps(record))
    if rows is None:
        rows = [
            {"step": step, "train_loss": 4 - step / 10, "tokens": 64 * step, "seconds": step / 2}
            | (
                {"val_loss": 4.1 - step / 10, "bits_per_byte": 1.5 * (4.1 - step / 10)}
                if step % 5 == 0
                else {}
            )
            for step in range(1, 21)
        ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(path)


def the_run() -> Run:
    (name,) = run_ids(Path("runs"))
    return Run(Path("runs", name))


# Written


@pytest.mark.slow
@pytest.mark.parametrize("saving", [(), ("--no-save",)], ids=["saved", "not saved"])
def test_a_run_that_ends_has_its_report(
    tiny_experiment: Path, gptkit_command: Command, saving: tuple[str, ...]
) -> None:
    done = gptkit_command(
        "train", tiny_experiment, "--eval-interval", 5, "--set", "sampling.sample_interval=10", *saving
    )
    run = the_run()
    assert done.code == 0
    assert f"report:      runs/{run.id}/report.html" in done.out
    page = Page((run.path / "report.html").read_bytes())
    assert run.id in page.words
    assert "finished It reached its last step." in page.words
    for sample in run.samples.iterdir():
        assert " ".join(sample.read_text().split()) in page.words
    best = run.record()["best_val_loss"]
    assert f"Best val loss {best:.4f} ({run.record()['best_bits_per_byte']:.4f} bits per byte)" in page.words
    assert f"gptkit resume runs/{run.id}" in page.words
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 4
    assert gptkit_command("runs", "verify", run.path).code == 0


@pytest.mark.slow
def test_a_stopped_run_is_reported_as_stopped_and_a_resumed_one_has_a_new_report(
    tiny_experiment: Path, gptkit_command: Command
) -> None:
    assert gptkit_command("train", tiny_experiment, "--stop-at", 10).code == 0
    page = Page((the_run().path / "report.html").read_bytes())
    assert "stopped It was asked to stop before its last step" in page.words
    assert "Steps 10 of 20" in page.words
    assert gptkit_command("resume", "latest").code == 0
    assert "Steps 20 of 20" in Page((the_run().path / "report.html").read_bytes()).words


def test_a_report_that_cannot_be_written_is_only_a_warning(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.disk.create

    def full(path: Path) -> Any:
        if "report.html" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(files.disk, "create", full)
    done = gptkit_command("train", tiny_experiment)
    assert done.code == 0
    assert "warning: the report of the run is not written: disk full while writing report.html" in done.err
    run = the_run()
    assert run.record()["status"] == "finished"
    assert not (run.path / "report.html").exists()
    failed = gptkit_command("runs", "report", "latest")
    assert (failed.code, failed.out) == (6, "")
    assert "disk full while writing report.html" in failed.err
    monkeypatch.setattr(files.disk, "create", real)
    assert gptkit_command("runs", "verify", "latest").code == 0


def test_a_defect_of_the_report_harms_no_run(
    tiny_experiment: Path, gptkit_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Run) -> Path:
        raise ZeroDivisionError("of the page")

    monkeypatch.setattr("gptkit.report.page.write_report", broken)
    done = gptkit_command("train", tiny_experiment)
    assert done.code == 0
    assert "not written: ZeroDivisionError: of the page" in done.err


def test_an_immediate_stop_does_not_wait_for_the_report(tiny_experiment: Path, context: RunContext) -> None:
    def second_interrupt(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 3:
            raise KeyboardInterrupt

    experiment = load_experiment(tiny_experiment, [("data.dataset", "sums.txt")])
    with pytest.raises(KeyboardInterrupt):
        train_run(experiment, RunContext(context.runs_folder, context.folders, second_interrupt))
    (path,) = context.runs_folder.iterdir()
    assert Run(path).record()["status"] == "interrupted"
    assert not (path / "report.html").exists()


def test_the_command_writes_the_report_anew_and_prints_its_path(
    workspace: Path, gptkit_command: Command
) -> None:
    run = make(Path("runs/mine"))
    done = gptkit_command("runs", "report", "mine")
    assert (done.code, done.out, done.err) == (0, f"{Path('runs/mine/report.html')}\n", "")
    assert (run.path / "report.html").read_bytes() == run_page(run)
    assert gptkit_command("runs", "report", "nothing").code == 2


# What it shows


def test_the_page_shows_what_the_run_recorded(tmp_path: Path) -> None:
    page = Page(run_page(make(tmp_path / "mine")))
    for shown in (
        "Best val loss 2.1000 (3.1500 bits per byte), at step 20",
        "Last train loss 2.0000 (3.0000 bits per byte)",
        "Training time 1 min 15 s",
        "Characters 1,234",
        "SHA-256 of the text " + "ab" * 32,
        "order 2",
        "Tokens to train on 1,111",
        "t5 positions gptkit-t5-bias 1.5",
        "torch 2.99",
        "It was started with gptkit train tiny.toml",
        "Started 2026-01-02 03:04:05 +0000",
    ):
        assert shown in page.words
    rows = re.findall(r"\b(\d+) ([\d.]+) ([\d.]+) ([\d.]+)\b", page.words)
    assert ("20", "2.0000", "2.1000", "3.1500") in rows


def test_the_page_can_be_read_aloud(tmp_path: Path) -> None:
    page = Page(run_page(make(tmp_path / "mine")))
    assert page.all("html") == [{"lang": "en"}]
    assert page.all("h1")
    assert {attributes.get("scope") for attributes in page.all("th")} == {"row", "col"}
    for svg in page.all("svg"):
        assert svg.get("role") == "img" or svg.get("aria-hidden") or svg["class"] == "lines"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    assert (
        "train loss: from 3.9000 at step 1 to 2.0000 at step 20, lowest 2.0000, highest 3.9000" in page.words
    )


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("interrupted", "interrupted It was interrupted (Ctrl-C, or SIGINT)"),
        ("terminated", "(SIGTERM, or its terminal was closed)"),
        ("diverged", "not finite"),
        ("running", "crashed Its process was killed"),  # no process holds its lock
        ("odd", "unknown How it ended is not recorded"),
    ],
)
def test_the_page_shows_why_the_run_ended(tmp_path: Path, status: str, message: str) -> None:
    assert message in Page(run_page(make(tmp_path / "mine", RECORD | {"status": status}))).words


def test_the_runs_own_reason_is_shown(tmp_path: Path) -> None:
    page = Page(run_page(make(tmp_path / "mine", RECORD | {"reason": "no new best in 3"})))
    assert "finished Why it ended: no new best in 3." in page.words


# Settings


def differing(run: Run) -> dict[str, tuple[str, str | None]]:
    return {one.key: (one.value, one.default) for one in described_settings(run)[0] if one.differs}


def test_settings_that_differ_from_their_defaults_are_marked(tmp_path: Path) -> None:
    run = make(tmp_path / "mine")
    run.experiment_file.write_text(
        'name = "x"\nseed = 3\n[tokenizer]\ntype = "bigram"\nmax_pairs = 12\n'
        '[model]\nn_layer = 2\nn_head = 4\nposition = { type = "rope", base = 10000.0 }\n'
        "[training]\nminutes = 2.5\n"
        '[optimizer]\ntype = "adamw"\nlearning_rate = 0.001\nbeta1 = 0.8\n'
    )
    assert differing(run) == {
        "tokenizer": ('"bigram"', '"char"'),
        "tokenizer.max_pairs": ("12", differing(run)["tokenizer.max_pairs"][1]),
        "model.n_layer": ("2", "4"),
        "training.minutes": ("2.5", "not set"),
        "optimizer": ('"adamw"', '"muon"'),
        "optimizer.beta1": ("0.8", "0.9"),  # AdamW's own default
    }
    page = Page(run_page(run)).words
    assert re.search(r"model\.n_layer [^.]+\. 2 4 ", page)


def test_a_plugin_that_is_not_here_leaves_its_options_unmarked(tmp_path: Path) -> None:
    run = make(tmp_path / "mine")
    run.experiment_file.write_text('[model]\nposition = { type = "t5", buckets = 32 }\n')
    settings_of, message = described_settings(run)
    assert {one.key: one.differs for one in settings_of} == {
        "model.position": True,
        "model.position.buckets": False,
    }
    assert "'t5' is not installed, so its defaults are not known" in message


# No requests, no foreign script


def test_the_page_makes_no_request_and_runs_only_its_own_script(tmp_path: Path) -> None:
    page = Page(run_page(make(tmp_path / "mine")))
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "image", "use")
        assert not set(attributes) & {"src", "href", "xlink:href", "srcset", "style", "action", "data"}
        assert not [name for name in attributes if name.startswith("on")]
    (style,) = page.inside["style"]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy
    code = [
        text
        for text, attributes in zip(page.inside["script"], page.all("script"), strict=True)
        if attributes.get("type") != "application/json"
    ]
    assert len(code) == 1
    for kind, text in (("script", code[0]), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u2028{{ 7 * 7 }}\x00\x1b[31m\u202e"


def test_values_of_a_run_stay_text(tmp_path: Path) -> None:
    run = make(tmp_path / "mine", _poisoned(RECORD))
    run.write_sample(5, EVIL)
    run.experiment_file.write_text(
        f"name = {json.dumps(EVIL)}\n[{json.dumps(EVIL)}]\nx = {json.dumps(EVIL)}\n"
    )
    data = run_page(run)
    page = Page(data)
    assert not page.all("img")
    clean = Page(run_page(make(tmp_path / "clean")))
    assert len(page.all("script")) == len(clean.all("script"))
    assert page.words.count("<img src=x onerror=alert(1)>") > 10
    assert "{{ 7 * 7 }}" in page.words
    assert not re.search(rb"[\x00-\x08\x1b]", data)
    assert "\u202e" not in data.decode()


def _poisoned(value: Any) -> Any:
    """Every text in it replaced, and one more key."""
    if isinstance(value, dict):
        return {key: _poisoned(inner) for key, inner in value.items()} | {EVIL: EVIL}
    return [_poisoned(inner) for inner in value] if isinstance(value, list) else EVIL


def test_json_in_a_script_is_escaped_and_the_same_json() -> None:
    value = {"label": EVIL, "&<>": ["]]>", "<!--"]}
    text = str(script_json(value))
    assert not re.search(r"[<>&\u2028\x00]", text)
    assert json.loads(text) == value


# Whatever the folder holds

WILD: list[Any] = [
    *(None, True, -1, 0, 1e308, -1e308, 5e-324, 10**400, "", "x", "x" * 100_000, [], {}, [[]], {"": {}}),
    *([{"a": [1, None, {"b": "c"}]}], {"type": 3}, "\ud800", {"x" * 9999: "y"}, list(range(2000))),
]


@pytest.mark.parametrize("number", range(len(WILD)))
def test_a_record_of_any_kind_has_a_page(tmp_path: Path, number: int) -> None:
    wild = WILD[number]
    for record in (wild, dict.fromkeys(RECORD, wild), {**RECORD, "dataset": dict.fromkeys(RECORD, wild)}):
        run = make(tmp_path / f"of {type(record).__name__} {id(record)}", record)
        page = run_page(run)
        assert run.id in Page(page).words
        assert len(page) < 1_000_000
    for key in ("train_loss", "val_loss", "step", "tokens", "seconds", "bits_per_byte"):
        rows = [{"step": 1, "train_loss": 3.0, "val_loss": 3.0}, {"step": 2, "train_loss": 2.0, key: wild}]
        assert run_page(make(tmp_path / key, rows=rows))


@given(rows=st.lists(st.fixed_dictionaries({"step": st.integers(0, 2**53)}, optional={
    "train_loss": st.floats(allow_nan=False, allow_infinity=False),
    "val_loss": st.floats(allow_nan=False, allow_infinity=False),
    "grad_norm": st.integers() | st.none() | st.text(max_size=3),
}), max_size=8))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_metrics_of_any_size_have_a_page(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    run = make(tmp_path_factory.mktemp("any") / "run", rows=rows)
    page = run_page(run).decode()
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", "".join(Page(page.encode()).inside["script"][:-1]))
    assert not re.search(r'"(nan|inf|-inf)%?"', page)


def test_missing_and_odd_files_are_left_out_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.mkdir()
    run = Run(path)
    page = Page(run_page(run)).words
    assert "run.json cannot be read: there is no such file" in page
    assert "there is no experiment file" in page
    assert "No curve was recorded" in page
    (path / "metrics.jsonl").write_text(
        '{"step": 1, "train_loss": 2}\n{"step": "x"}\n[]\n{"step": 2, "train_'
    )
    (path / "experiment.toml").write_bytes(b"\xff")
    (path / "samples").write_text("no folder")
    (path / "run.json").write_text('{"a": 1, "a": 2}')
    page = Page(run_page(run)).words
    assert "2 lines of metrics.jsonl are damaged" in page
    assert "not UTF-8" in page
    assert "a key occurs twice" in page


def test_links_in_a_run_are_not_followed(workspace: Path, gptkit_command: Command) -> None:
    run = make(Path("runs/mine"))
    Path("secret.txt").write_text("my secret")
    (run.samples / "step-000000000001.txt").symlink_to(Path("secret.txt").absolute())
    assert gptkit_command("runs", "report", "mine").code == 0
    assert "my secret" not in (run.path / "report.html").read_text()
    (run.path / "report.html").unlink()
    (run.path / "report.html").symlink_to(Path("secret.txt").absolute())
    assert gptkit_command("runs", "report", "mine").code == 5
    assert Path("secret.txt").read_text() == "my secret"


# Sizes


@pytest.mark.slow
def test_a_long_run_has_a_small_page_that_notes_what_it_leaves_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = make(tmp_path / "mine", rows=[])
    losses = rng.normal(3, 0.1, 60_000)
    losses[31_234], losses[41_234] = 3.9, 2.1
    with (run.path / "metrics.jsonl").open("w") as file:
        for step, loss in enumerate(losses.tolist()):
            file.write(f'{{"step": {step}, "train_loss": {loss}, "val_loss": {loss}, "grad_norm": {loss}}}\n')
    for step in range(0, 3000):
        (run.samples / f"step-{step:012d}.txt").write_text("long " * 10_000)
    data = run_page(run)
    assert len(data) < 3_000_000
    page = Page(data)
    assert "Thinned out" in page.words
    assert "40 of 3,000 samples are shown" in page.words
    assert "Shortened; the rest is in its file" in page.words
    shown = json.loads(page.inside["script"][0])["series"][0]
    points = dict(zip(shown["x"], shown["y"], strict=True))
    assert points[31_234] == 3.9
    assert points[41_234] == 2.1
    assert len(points) <= MAX_POINTS
    steps = [sample.step for sample in chosen_samples(run)[0]]
    assert steps[:10] == list(range(2999, 2989, -1))
    assert steps[-1] == 0
    assert max(np.diff(steps[10:]) * -1) <= 110


# Charts


@given(st.floats(-1e290, 1e290), st.floats(1e-280, 1e290))
@settings(max_examples=300, deadline=None)
def test_ticks_are_few_round_and_around_the_values(low: float, span: float) -> None:
    high = low + span
    if high - low <= abs(low) * 1e-9:
        return
    at = ticks(low, high, 5)
    assert 2 <= len(at) <= 8
    margin = (high - low) * 1e-6
    assert at[0] <= low + margin
    assert at[-1] >= high - margin


def test_many_runs_are_laid_over_one_another_with_marks_and_bands() -> None:
    x = np.arange(10.0)
    series = [Series(f"run <{n}>", x, x * n, color=n) for n in range(12)]
    series[0] = Series("mean", x, x, band=(x - 1, x + 1))
    drawn = draw(Chart("many", "Many <b>", series, x_label="tokens", mark=Mark(3, 3, "<i>", 1)))
    assert drawn is not None
    page = Page(drawn.svg.encode())
    lines = [path["class"] for path in page.all("path")]
    assert lines.count("band c0") == 1
    assert lines.count("line c0") == 1
    assert lines.count("line c0 dashed") == 1  # the ninth color is the first again, distinguished by dashes
    assert "Many <b>" in page.text
    assert not page.all("b")
    assert not page.all("i")
    assert [entry["label"] for entry in drawn.legend] == [one.label for one in series]
    assert drawn.legend[2]["x"] == "9 tokens"


def test_a_few_values_far_off_do_not_flatten_a_curve() -> None:
    y = np.concatenate([np.linspace(1, 2, 1000), [5e6]])
    drawn = draw(Chart("norm", "Norm", [Series("norm", np.arange(1001.0), y)]))
    assert drawn is not None
    assert drawn.data["y"][1] < 10
    assert "1 values above" in drawn.note


def test_a_chart_of_nothing_is_none_and_of_one_point_is_one() -> None:
    nothing = np.array([])
    assert draw(Chart("none", "None", [Series("none", nothing, nothing)])) is None
    assert draw(Chart("nan", "Nan", [Series("nan", np.array([1.0]), np.array([np.nan]))])) is None
    drawn = draw(Chart("one", "One", [Series("one", np.array([7.0]), np.array([0.0]))]))
    assert drawn is not None
    assert len(Page(drawn.svg.encode()).all("circle")) == 1


def test_a_report_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path / "mine")
    before = write_report(run).read_bytes()
    write_record(run, RECORD | {"status": "stopped"})

    def cut(file: Any, data: bytes) -> None:
        file.write(data[:100])
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(files.disk, "write", cut)
    with pytest.raises(Exception, match=r"disk error while writing report\.html"):
        write_report(run)
    assert (run.path / "report.html").read_bytes() == before
    assert not list(run.path.glob(".tmp-*"))
