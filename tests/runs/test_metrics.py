"""metrics.jsonl: rows, last values and curves, of whole, damaged and very long files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptkit.runs import Curve, Metrics
from gptkit.runs.metrics import MAX_POINTS


def of(path: Path, text: str) -> Metrics:
    (path / "metrics.jsonl").write_text(text)
    return Metrics(path / "metrics.jsonl")


def lines(losses: list[tuple[int, float]]) -> str:
    return "".join(json.dumps({"step": step, "train_loss": loss}) + "\n" for step, loss in losses)


def train_curve(metrics: Metrics) -> Curve:
    return metrics.curves(("train_loss",))["train_loss"]


def test_curves_have_what_the_file_has(tmp_path: Path) -> None:
    metrics = of(
        tmp_path,
        '{"step": 5, "train_loss": 3.0, "tokens": 50, "seconds": 0.5}\n'
        '{"step": 10, "train_loss": 2.0, "val_loss": 2.5, "bits_per_byte": 3.6, "tokens": 100}\n'
        '{"step": 15, "train_l',
    )
    curves = metrics.curves(("train_loss", "val_loss", "grad_norm"))
    assert curves["train_loss"] == Curve((5, 10), (3.0, 2.0), (50, 100), (0.5, None), (None, None))
    assert curves["val_loss"] == Curve((10,), (2.5,), (100,), (None,), (3.6,))
    assert not curves["grad_norm"]
    assert (curves.last_step, curves.left_out, curves.thinned) == (10, 0, False)


def test_lines_that_are_no_rows_are_counted_except_for_one_that_a_crash_cut_off(tmp_path: Path) -> None:
    text = '[]\n{"step": 1, "train_loss": 2}\n{"step": -1}\n{"step": "x"}\n{"step": 2, "train_l'
    assert of(tmp_path, text).curves(()).left_out == 3


def test_of_steps_that_were_trained_again_the_later_ones_count(tmp_path: Path) -> None:
    losses = [(5, 3.0), (10, 2.5), (15, 2.0), (10, 9.0), (20, 1.0)]
    curve = train_curve(of(tmp_path, lines(losses)))
    assert (curve.steps, curve.values) == ((5, 10, 20), (3.0, 9.0, 1.0))
    assert curve.values[curve.best] == 1.0


def test_lines_are_read_one_by_one_around_a_damaged_one_and_in_blocks_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = lines([(step, step / 8) for step in range(1, 40)]).splitlines(keepends=True)
    # The last two are JSON where the lines before and after them are joined by commas
    bad = [
        "\n",
        '{"step": 9, "train_loss": NaN}\n',
        "[1\n",
        "2]\n",
    ]
    text = "".join(good[:20] + bad + good[20:])
    for block in (1, 300, 1 << 18):
        monkeypatch.setattr("gptkit.runs.metrics._BLOCK", block)
        metrics = of(tmp_path, text)
        curves = metrics.curves(("train_loss",))
        assert (curves.left_out, curves.last_step) == (len(bad), 39)
        assert curves["train_loss"].steps == tuple(range(1, 40))
        assert [row["step"] for row in metrics.stream()] == list(range(1, 40))


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ('{"step": 1, "val_loss": 2.5, "bits_per_byte": 3.5}\n{"step": 2, "val_loss": 2.25}\n', (2.25, None)),
        ('{"step": 1, "val_loss": 12.5}\n{"step": 2, "val_loss": 9.5}\n', (9.5, None)),
        ('{"step": 1, "val_loss": 5e-05}\n{"step": 2, "val_loss": 0.5}\n', (5e-05, None)),
        ('{"step": 1, "val_loss":-1}\n{"step": 2, "val_loss" : 1}\n', (-1, None)),
        ('{"step": 1, "val_loss": 2.5}\n{"step": 2, "val_loss": 1.5, "x"\n', (2.5, None)),  # damaged
        ('{"step": 1, "val_loss": 2.5}\n{"step": 2, "x": {"val_loss": 1.5}}\n', (2.5, None)),
        (
            '{"step": 1, "val_loss": NaN}\n{"step": 2, "val_loss": 1e999}\n{"step": 3, "val_loss": "1"}\n',
            None,
        ),
        ('{"step": 1, "val_loss": 1-2}\n{"step": 1, "val_loss": 3}\n', (3, None)),
        ("", None),
    ],
)
def test_the_best_is_the_lowest_val_loss_of_the_rows(
    text: str, best: tuple[float, float | None] | None, tmp_path: Path
) -> None:
    assert of(tmp_path, text).best() == best


@pytest.mark.slow
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.integers(1, 40_000),
    st.integers(0, 40_000),
)
@settings(max_examples=15, deadline=None)
def test_a_thinned_curve_keeps_its_ends_its_extremes_and_its_evenness(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], count: int, resumed_at: int
) -> None:
    rng = random.Random(count)
    losses = [(step, rng.choice(values)) for step in range(1, count + 1)]
    again = [(step, rng.choice(values)) for step in range(resumed_at + 1, count + 1)] if resumed_at else []
    metrics = of(tmp_path_factory.mktemp("run"), lines(losses + again))
    curve, whole = train_curve(metrics), dict(losses) | dict(again)
    assert len(curve) <= MAX_POINTS + 2
    assert all(whole[step] == loss for step, loss in zip(curve.steps, curve.values, strict=True))
    assert list(curve.steps) == sorted(set(curve.steps))
    assert {1, count} <= set(curve.steps)
    assert (min(curve.values), max(curve.values)) == (min(whole.values()), max(whole.values()))
    gaps = [after - before for before, after in zip(curve.steps, curve.steps[1:], strict=False)]
    assert max(gaps, default=1) <= max(1, 200 * count // MAX_POINTS)


def test_a_file_of_nothing_but_one_step_takes_no_longer_for_it(tmp_path: Path) -> None:
    curve = train_curve(of(tmp_path, lines([(number % 3, float(number)) for number in range(30_000)])))
    assert curve.steps == (0, 1, 2)
    assert curve.values == (29_997.0, 29_998.0, 29_999.0)


def test_the_last_values_are_found_from_the_end_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        '{"step": 1, "val_loss": 9.5}\n' + lines([(step, step / 8) for step in range(2, 200)]) + '{"step": 2'
    )
    metrics = of(tmp_path, text)
    for block in (1 << 20, 100, 7):
        monkeypatch.setattr("gptkit.runs.metrics._BLOCK", block)
        monkeypatch.setattr("gptkit.runs.metrics._MAX_TAIL", 10_000)
        assert metrics.last_values(("train_loss", "val_loss", "seconds")) == {
            "train_loss": 199 / 8,
            "val_loss": 9.5,
        }
    assert metrics.last_step() == 199  # not that of the torn line


def test_a_torn_last_line_is_cut_and_a_whole_file_is_not_read_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = of(tmp_path, '{"step": 1}\n{"step": 2}\n{"st')
    metrics.drop_torn_line()
    assert metrics.path.read_text() == '{"step": 1}\n{"step": 2}\n'
    monkeypatch.setattr(Path, "read_bytes", None)
    metrics.drop_torn_line()


def test_where_there_is_no_file_there_is_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.rows() == []
    assert metrics.last_step() == 0
    assert metrics.last_values(("train_loss",)) == {}
    assert metrics.curves(("train_loss",)).by_name == {}
    metrics.drop_torn_line()
    (tmp_path / "secret").write_text('{"step": 1}\n')
    metrics.path.symlink_to(tmp_path / "secret")
    assert metrics.rows() == []
