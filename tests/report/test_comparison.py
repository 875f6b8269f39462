"""The page of several runs: groups in bands, three axes, what differs, what each writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptkit.report.comparison import MAX_GROUPS, comparison_page
from gptkit.runs import Curve, Sample
from tests.report.test_page import EVIL, Page
from tests.support import Command

NO_CURVE = Curve()


@dataclass(frozen=True)
class Summary:
    status: str = "finished"
    step: int = 4
    best_val_loss: float | None = 2.0
    best_bits_per_byte: float | None = 3.0


@dataclass(frozen=True)
class Run:
    id: str
    train: Curve = NO_CURVE
    val: Curve = NO_CURVE
    summary: Summary = Summary()
    last_sample: Sample | None = None


@dataclass(frozen=True)
class Group:
    title: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Difference:
    key: str
    values: tuple[str | int | float | bool | None, ...]


@dataclass(frozen=True)
class Comparison:
    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    in_bits: bool = False


def curve(losses: tuple[float, ...], *, every: int = 1, speed: float = 1.0) -> Curve:
    steps = tuple(every * (number + 1) for number in range(len(losses)))
    bits = tuple(2 * loss for loss in losses)
    return Curve(
        steps, losses, tuple(64 * step for step in steps), tuple(step / speed for step in steps), bits
    )


def run(name: str, losses: tuple[float, ...], speed: float = 1.0, best: float = 2.0) -> Run:
    val = curve(losses, speed=speed)
    return Run(
        name, val, val, Summary(best_val_loss=best, best_bits_per_byte=2 * best), Sample(4, f"I am {name}")
    )


RUNS = (
    run("a-1", (4, 3, 2, 2), best=2.0),
    run("a-2", (6, 3, 4, 3), speed=2.0, best=3.0),
    run("b-1", (5, 5, 5, 1), best=1.0),
)
THREE = Comparison(
    RUNS,
    (Group("a-1 and 1 more", (0, 1)), Group("b-1", (2,))),
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
    page = Page(comparison_page(Comparison(THREE.runs, THREE.groups, in_bits=True)))
    drawn = charts(page)
    assert sorted(drawn) == ["val-by-seconds", "val-by-step", "val-by-tokens"]
    assert drawn["val-by-step"]["b-1"] == {1: 10, 2: 10, 3: 10, 4: 2}
    assert "Val loss (bits per byte)" in page.words


def test_what_the_runs_say_stays_text_and_what_they_lack_is_left_out() -> None:
    nothing = Run(EVIL, summary=Summary(EVIL, 0, None, None), last_sample=Sample(4, EVIL))
    odd = Run("odd", Curve((1,), (3,), (float("nan"),), (2,), (None,)))
    compared = Comparison(
        (nothing, odd), (Group(EVIL, (0,)), Group("odd", (1,))), (Difference(EVIL, (EVIL, None)),), (EVIL,)
    )
    page = Page(comparison_page(compared))
    assert not page.all("img")
    assert page.words.count("<img src=x onerror=alert(1)>") >= 6
    assert sorted(charts(page)) == ["train-by-seconds", "train-by-step"]


def test_of_very_many_runs_the_first_are_shown() -> None:
    many = tuple(run(f"run-{number}", (3, 2)) for number in range(MAX_GROUPS + 6))
    compared = Comparison(many, tuple(Group(one.id, (number,)) for number, one in enumerate(many)))
    page = Page(comparison_page(compared))
    assert f"the first {MAX_GROUPS} of {MAX_GROUPS + 6} are shown" in page.words
    assert len(charts(page)["val-by-step"]) == MAX_GROUPS


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
