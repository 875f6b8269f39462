"""Runs compared: groups of seeds, settings that differ, samples, the chart, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptkit.runs import Run, Sample
from gptkit.runs.compare import Comparison, compare_runs
from tests.support import Command
from tests.support.runs import EXPERIMENT, RECORD, make

MODEL = EXPERIMENT["model"]


def compare(*names: str) -> Comparison:
    return compare_runs([Run(Path("runs") / name) for name in names])


def differences(comparison: Comparison) -> dict[str, tuple[Any, ...]]:
    return {difference.key: difference.values for difference in comparison.differences}


@pytest.fixture
def seeds(workspace: Path) -> None:
    """Three seeds of one experiment, and one that is wider."""
    for seed, best in ((1, 1.5), (2, 1.7), (3, 1.6)):
        make(f"a{seed}", {"best_val_loss": best, "best_bits_per_byte": 2 * best}, {"seed": seed})
    make("wide", {"best_val_loss": 1.2}, {"model": {**MODEL, "n_embd": 64}})


# Groups and differences


@pytest.mark.parametrize(
    ("first", "second", "titles"),
    [
        ({"name": "one"}, {"name": "two", "model": {**MODEL, "n_embd": 64}}, ("one", "two")),
        ({"model": {**MODEL, "dropout": 0.1}}, {}, ("dropout 0.1", "dropout -")),
        (
            {"model": {**MODEL, "position": {"type": "rope", "base": 10.0}, "bias": True}},
            {"model": {**MODEL, "position": {"type": "none"}, "bias": False}},
            ("bias true, position rope", "bias false, position none"),
        ),
        ({"seed": 1, "training": {"max_steps": 5}}, {"seed": 1, "training": {"max_steps": 5}}, ("a", "b")),
        ({"a": 1, "b": 1, "c": 1}, {"a": 2, "b": 2, "c": 2}, ("a", "b")),  # too many for a title
        ({"name": "</script>"}, {"name": "two"}, ("a", "b")),
        ({"name": "x" * 50}, {"name": "two"}, ("a", "b")),
    ],
    ids=["names", "not set", "two settings", "nothing", "too many", "hostile", "long"],
)
def test_a_group_is_named_by_what_distinguishes_it(
    workspace: Path, first: dict[str, Any], second: dict[str, Any], titles: tuple[str, str]
) -> None:
    make("a", {}, first)
    make("b", {"step": 7, "status": "stopped"}, second)
    assert tuple(group.title for group in compare("a", "b").groups) == titles


def test_runs_that_differ_by_their_seed_alone_are_a_group_with_its_spread(seeds: None) -> None:
    comparison = compare("a1", "wide", "a2", "a3")
    group, wide = comparison.groups
    assert (group.members, wide.members) == ((0, 2, 3), (1,))
    assert (group.title, wide.title) == ("n_embd 32 (3 runs)", "n_embd 64")
    spread = group.best_val_loss
    assert spread is not None
    assert (spread.count, spread.lowest, spread.highest) == (3, 1.5, 1.7)
    assert spread.mean == pytest.approx(1.6)
    assert group.best_bits_per_byte is not None
    assert group.best_bits_per_byte.highest == 3.4
    assert differences(comparison) == {"seed": ("1, 2, 3", 1), "model.n_embd": (32, 64)}


@pytest.mark.parametrize(
    ("record", "experiment"),
    [
        ({"dataset": {"sha256": "another"}}, {}),
        ({"loaded_from": {"run": "x", "step": 5}}, {}),
        ({"step": 10, "status": "stopped"}, {}),
        ({}, {"tokenizer": {"type": "byte"}}),
        ({}, {"model": {**MODEL, "qk_norm": 0}}),  # false is not 0
    ],
)
def test_runs_trained_differently_are_not_a_group(
    record: dict[str, Any], experiment: dict[str, Any], workspace: Path
) -> None:
    make("one")
    make("other", record, {"seed": 2, **experiment})
    assert [group.members for group in compare("one", "other").groups] == [(0,), (1,)]


def test_a_name_does_not_change_training_but_is_listed(workspace: Path) -> None:
    make("one")
    make("other", None, {"name": "other"})
    comparison = compare("one", "other")
    assert len(comparison.groups) == 1
    assert differences(comparison) == {"name": ("one, other",)}


def test_runs_whose_experiments_cannot_be_read_are_never_taken_for_the_same(workspace: Path) -> None:
    for name in ("one", "other"):
        make(name).experiment_file.write_text("[[[")
    assert len(compare("one", "other").groups) == 2


def test_a_setting_that_one_run_does_not_have_is_listed(workspace: Path) -> None:
    make("one")
    make("other", None, {"model": {**MODEL, "position": {"type": "alibi"}}})
    assert differences(compare("one", "other")) == {
        "model.position": ("rope", "alibi"),
        "model.position.base": (5000.0, None),
    }


@pytest.mark.parametrize(
    ("record", "experiment", "message"),
    [
        ({"tokenizer": {"sha256": "another"}}, {}, "losses in nats per token do not compare"),
        ({"dataset": {"sha256": "another"}}, {}, "the texts differ"),
        ({}, {"data": {"val_fraction": 0.2}}, "data.val_fraction"),
    ],
)
def test_what_does_not_compare_is_noted(
    record: dict[str, Any], experiment: dict[str, Any], message: str, workspace: Path
) -> None:
    make("one")
    make("same")
    make("other", record, experiment)
    (note,) = compare("one", "other").notes
    assert message in note
    assert compare("one", "same").notes == ()


# Samples


def test_a_run_whose_tokenizer_loses_text_compares_with_no_other_tokenizer(workspace: Path) -> None:
    words = {"type": "hf", "sha256": "ff", "lossless": False, "lost": 0.5, "example": "'a' comes back as 'b'"}
    make("char")
    make("lossy", {"tokenizer": words})
    make("old", {"tokenizer": {"type": "hf", "sha256": "ee"}})
    compared = compare("char", "lossy")
    assert compared.in_bits
    assert compared.notes == (
        "the tokenizers differ, so losses in nats per token do not compare.",
        "the tokenizer of lossy does not return the text ('a' comes back as 'b'), so its losses compare with "
        "those of no other tokenizer.",
    )
    assert compared.runs[1].summary.best_bits_per_byte is None
    assert compared.runs[1].val.bits_per_byte == (None,)
    assert compared.runs[0].val.bits_per_byte == (2.8,)
    assert compare("char", "old").notes == (
        "the tokenizers differ, so losses in nats per token do not compare; bits per byte do.",
        "whether the tokenizer of old returns the text is not recorded; if not, its bits per byte do not "
        "compare.",
    )


def test_runs_that_were_evaluated_by_different_rules_are_noted(workspace: Path) -> None:
    make("new", {"evaluation": "every token"})
    make("old")
    (note,) = compare("new", "old").notes
    assert "0.1.0, which left the last, shorter window" in note


def test_the_newest_sample_is_read_and_links_are_not(workspace: Path) -> None:
    run = make("one")
    assert run.last_sample() is None
    run.write_sample(5, "early")
    run.write_sample(10, "late")
    assert run.last_sample() == Sample(10, "late")
    (run.samples / "step-000000000015.txt").symlink_to(workspace / "data" / "mine.txt")
    assert run.last_sample() is None


# The command


def test_compare_shows_what_differs_the_losses_and_a_chart_in_plain_letters(
    seeds: None, gptkit_command: Command
) -> None:
    for name in ("a1", "a2", "a3", "wide"):
        run = Run(Path("runs") / name)
        high = 4.0 if name == "wide" else 3.0
        rows = [{"step": step, "val_loss": high - step / 20} for step in (5, 10, 20)]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Run(Path("runs/wide")).write_sample(20, "To be\nor \x1b[2Jnot")
    done = gptkit_command("runs", "compare", "a1", "a2", "a3", "wide")
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "\x1b" not in done.out
    lines = done.out.splitlines()
    assert lines[:4] == ["A  a1", "   a2", "   a3", "B  wide"]
    words = [line.split() for line in lines]
    assert ["model.n_embd", "32", "64"] in words
    assert ["best", "val", "loss", "1.6000", "(1.5000", "to", "1.7000,", "3", "runs)", "1.2000"] in words
    assert "B writes, at step 20:\n  To be\n  or \\x1b[2Jnot" in done.out
    chart = [line.partition("|")[2] for line in lines if "|" in line]
    assert len(chart) == 12
    assert chart[0].startswith("B")  # the highest, at the left
    assert chart[-1].endswith("A")  # the lowest, at the right
    assert "val loss by step" in done.out


def test_the_chart_is_in_bits_where_the_tokenizers_differ(workspace: Path, gptkit_command: Command) -> None:
    for name, bits in (("one", 3.0), ("other", 2.0)):
        run = make(name, {"tokenizer": {"sha256": name}})
        rows = [{"step": step, "val_loss": 9.0, "bits_per_byte": bits} for step in (5, 10)]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = gptkit_command("runs", "compare", "one", "other").out
    assert "val bits/byte by step" in shown
    assert "note: the tokenizers differ" in shown
    assert [line.split()[0] for line in shown.splitlines() if "|A" in line or "|B" in line] == ["3", "2"]


def test_runs_are_chosen_by_conditions_too(seeds: None, gptkit_command: Command) -> None:
    chosen = gptkit_command("runs", "compare", "--where", "seed>=2", "--json")
    assert [run["id"] for run in json.loads(chosen.out)["runs"]] == ["a2", "a3"]
    both = gptkit_command("runs", "compare", "a1", "a3", "wide", "--where", "model.n_embd=32", "--json")
    assert [run["id"] for run in json.loads(both.out)["runs"]] == ["a1", "a3"]


def test_json_has_settings_curves_and_groups(seeds: None, gptkit_command: Command) -> None:
    compared = json.loads(gptkit_command("runs", "compare", "a1", "a2", "wide", "--json").out)
    assert set(compared) == {"runs", "groups", "differences", "notes"}
    assert compared["runs"][2]["settings"]["model.n_embd"] == 64
    assert compared["runs"][0]["train"]["steps"] == [10, 20]
    assert [group["runs"] for group in compared["groups"]] == [["a1", "a2"], ["wide"]]
    assert compared["differences"][-1] == {"key": "model.n_embd", "values": [32, 64]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "found none"),
        (("a1",), "found only a1"),
        (("a1", "a1"), "found only a1"),
        (("a1", "nope"), "no run 'nope'"),
        (("--where", "seed=99"), "found none"),
    ],
)
def test_fewer_than_two_runs_are_refused(
    arguments: tuple[str, ...], message: str, seeds: None, gptkit_command: Command
) -> None:
    refused = gptkit_command("runs", "compare", *arguments)
    assert refused.code == 2
    assert message in refused.err


def test_what_a_run_has_recorded_is_there_for_a_page(seeds: None) -> None:
    run = compare("a1", "wide").runs[0]
    assert (run.id, run.settings["seed"], run.summary.status) == ("a1", 1, RECORD["status"])
    assert (run.facts["tokenizer.vocab_size"], run.settings["model.n_layer"]) == (65, 4)
    assert run.summary.tokens_per_second == 640
