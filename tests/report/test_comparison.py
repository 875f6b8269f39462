"""The page of several runs: groups in bands, three axes, what differs, what each writes."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from gptkit.events import RunStatus
from gptkit.report.comparison import MAX_GROUPS, comparison_page
from gptkit.runs import Curve, RunSummary, Sample
from gptkit.runs.compare import ComparedRun, Comparison, Difference, Group, Spread
from tests.report.test_page import EVIL, Page
from tests.support import Command

NO_CURVE = Curve()


def curve(losses: tuple[float, ...], speed: float = 1.0) -> Curve:
    """A loss at each step of 64 tokens."""
    steps = tuple(range(1, len(losses) + 1))
    tokens, seconds = (tuple(step * each for step in steps) for each in (64, 1 / speed))
    return Curve(steps, losses, tokens, seconds, tuple(2 * loss for loss in losses))


def run(
    name: str, train: Curve = NO_CURVE, val: Curve = NO_CURVE, best: float | None = None, sample: str = ""
) -> ComparedRun:
    bits = None if best is None else 2 * best
    summary = RunSummary(name, RunStatus.FINISHED, "", "", 4, 4, best, bits, "")
    return ComparedRun(summary, Path("runs", name), {}, {}, train, val, Sample(4, sample) if sample else None)


def trained(name: str, losses: tuple[float, ...], speed: float = 1.0, best: float = 2.0) -> ComparedRun:
    return run(name, curve(losses, speed), curve(losses, speed), best, f"I am {name}")


def group(title: str, members: tuple[int, ...], *best: float) -> Group:
    """Runs with these best val losses, of twice as many bits per byte."""
    nats, bits = (
        Spread(len(values), fmean(values), min(values), max(values)) if values else None
        for values in (best, tuple(2 * loss for loss in best))
    )
    return Group(title, members, nats, bits)


RUNS = (
    trained("a-1", (4, 3, 2, 2), best=2.0),
    trained("a-2", (6, 3, 4, 3), speed=2.0, best=3.0),
    trained("b-1", (5, 5, 5, 1), best=1.0),
)
THREE = Comparison(
    RUNS,
    (group("a-1 and 1 more", (0, 1), 2.0, 3.0), group("b-1", (2,), 1.0)),
    (Difference("seed", ("1, 2", 1)), Difference("model.qk_norm", (True, None))),
    ("the texts differ.",),
)


def charts(page: Page) -> dict[str, dict[str, dict[float, float]]]:
    """Of each chart the points of each series, as the script sees them."""
    ids = [str(one["id"]) for one in page.all("figure")]
    data = [json.loads(text) for text in page.inside["script"][: len(ids)]]
    return {
        name: {one["label"]: dict(zip(one["x"], one["y"], strict=True)) for one in chart["series"]}
        for name, chart in zip(ids, data, strict=True)
    }


def test_runs_of_a_group_are_one_line_in_a_band_over_each_axis() -> None:
    page = Page(comparison_page(THREE))
    drawn = charts(page)
    assert sorted(drawn) == sorted(
        f"{which}-by-{axis}" for which in ("train", "val") for axis in ("step", "tokens", "seconds")
    )
    assert drawn["val-by-step"] == {
        "a-1 and 1 more: mean": {1: 5, 2: 3, 3: 3, 4: 2.5},
        "b-1": {1: 5, 2: 5, 3: 5, 4: 1},
    }
    assert drawn["val-by-tokens"]["b-1"] == {64: 5, 128: 5, 192: 5, 256: 1}
    mean = drawn["val-by-seconds"]["a-1 and 1 more: mean"]  # where both were trained: from 1 to 2 seconds
    assert (min(mean), max(mean)) == (1, 2)
    assert mean[1] == pytest.approx((4 + 3) / 2)
    assert mean[2] == pytest.approx((3 + 3) / 2)
    bands = [path for path in page.all("path") if str(path["class"]).startswith("band")]
    assert len(bands) == 6


def test_the_table_has_the_spread_of_a_group_and_what_differs() -> None:
    words = Page(comparison_page(THREE)).words
    assert "2.5000 (2.0000 to 3.0000)" in words
    assert "5.0000 (4.0000 to 6.0000)" in words
    assert "b-1 finished 1.0000 2.0000" in words
    assert "seed 1, 2 1" in words
    assert "model.qk_norm true" in words
    assert "the texts differ." in words
    assert "a-1, step 4 I am a-1 b-1, step 4 I am b-1" in words


def test_other_tokenizers_are_compared_in_bits_per_byte_alone() -> None:
    page = Page(comparison_page(Comparison(THREE.runs, THREE.groups, (), in_bits=True)))
    drawn = charts(page)
    assert sorted(drawn) == ["val-by-seconds", "val-by-step", "val-by-tokens"]
    assert drawn["val-by-step"]["b-1"] == {1: 10, 2: 10, 3: 10, 4: 2}
    assert "Val loss (bits per byte)" in page.words


def test_values_of_runs_stay_text_and_missing_ones_are_left_out() -> None:
    nothing = run(EVIL, sample=EVIL)
    odd = run("odd", Curve((1,), (3,), (None,), (2,), (None,)))
    compared = Comparison(
        (nothing, odd), (group(EVIL, (0,)), group("odd", (1,))), (Difference(EVIL, (EVIL, None)),), (EVIL,)
    )
    page = Page(comparison_page(compared))
    assert not page.all("img")
    assert page.words.count("<img src=x onerror=alert(1)>") >= 6
    assert sorted(charts(page)) == ["train-by-seconds", "train-by-step"]


def test_of_very_many_runs_the_first_are_shown() -> None:
    many = tuple(trained(f"run-{number}", (3, 2)) for number in range(MAX_GROUPS + 6))
    compared = Comparison(many, tuple(group(one.id, (number,)) for number, one in enumerate(many)), ())
    page = Page(comparison_page(compared))
    assert f"the first {MAX_GROUPS} of {MAX_GROUPS + 6} are shown" in page.words
    assert len(charts(page)["val-by-step"]) == MAX_GROUPS


@pytest.mark.slow
def test_the_command_writes_the_page(tiny_experiment: Path, gptkit_command: Command) -> None:
    for seed in (1, 2):
        trained = gptkit_command(
            *("train", tiny_experiment, "--steps", 4, "--eval-interval", 2, "--seed", seed, "--quiet")
        )
        assert trained.code == 0, trained.err
    done = gptkit_command("runs", "compare", "--where", "step=4", "--html", "page.html")
    assert done.code == 0, done.err
    assert done.out.endswith("The page: page.html\n")
    page = Path("page.html").read_text()
    assert "<svg" in page
    assert "Content-Security-Policy" in page
    nowhere = gptkit_command("runs", "compare", "--where", "step=4", "--html", "no/such/page.html")
    assert nowhere.code == 6, nowhere.err
