"""Verdicts on groups of seeds: their error rates in simulation, and what a user sees of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptkit.report.comparison import comparison_page
from gptkit.runs import Run
from gptkit.runs.compare import compare_runs, with_decisions
from gptkit.runs.record import EvaluationRecord, Evaluations
from gptkit.runs.verdict import (
    Doubt,
    Outcome,
    Permutation,
    SeedLoss,
    decide,
    holm,
    least_p_value,
    least_seeds,
    student_quantile,
)
from tests.support import Command
from tests.support.runs import EXPERIMENT, make
from tools.verdicts import RANGE_OF_FIVE, found, simulated

BLOCKS = 20


def seeds(losses: list[float], *, first: int = 1, blocks: bool = False) -> list[SeedLoss]:
    profile = np.linspace(-0.5, 0.5, BLOCKS)  # some parts of the text are harder than others
    return [
        SeedLoss(first + number, loss, tuple(profile + loss) if blocks else ())
        for number, loss in enumerate(losses)
    ]


# The statistics


@pytest.mark.parametrize(
    ("count", "alike", "same_seeds", "most"),
    [
        (4, 0.0, False, 0.05),
        (5, 0.5, True, 0.05),
        (8, 0.5, True, 0.09),  # the exact level is 5 % there, which gives more than 18 once in 500 times
    ],
)
def test_without_a_difference_at_most_one_in_twenty_is_called_better_or_worse(
    count: int, alike: float, same_seeds: bool, most: float
) -> None:
    pair = simulated(np.random.default_rng(1), count, alike)
    (errors,) = found(pair, 200, same_seeds=same_seeds, differences=[0.0])
    assert errors <= most


def test_a_difference_of_twice_the_range_of_seeds_is_found_with_five() -> None:
    pair = simulated(np.random.default_rng(1), 5, 0.0)
    (right,) = found(pair, 50, same_seeds=False, differences=[2 * RANGE_OF_FIVE])
    assert right >= 0.9


def test_permutations_are_those_counted_by_hand() -> None:
    """Of 20 ways to choose three of six, two are as far apart; of 2^8 signs, two."""
    apart = seeds([1.0, 2.0, 3.0]), seeds([4.0, 5.0, 6.0], first=11)
    (verdict,) = decide(apart[0], [apart[1]])
    assert (verdict.p_value, verdict.permutation) == (pytest.approx(2 / 20), Permutation.LABELS)
    assert verdict.least_p_value == verdict.p_value
    (verdict,) = decide(seeds([*range(8)]), [seeds([0.5 + seed for seed in range(8)])])
    assert (verdict.p_value, verdict.permutation, verdict.paired) == (2 / 256, Permutation.SIGN_FLIP, True)
    assert verdict.outcome is Outcome.WORSE  # all pairs differ alike, much less than seeds do
    (verdict,) = decide(seeds([1.0] * 5), [seeds([1.0] * 5)])
    assert (verdict.p_value, verdict.difference, verdict.low, verdict.high) == (1.0, 0.0, 0.0, 0.0)


def test_many_seeds_are_permuted_at_random_and_always_alike() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(size=(2, 30))
    for first in (1, 100):
        verdicts = [decide(seeds(list(a)), [seeds(list(b + 2), first=first)]) for _ in range(2)]
        assert verdicts[0] == verdicts[1]
        assert verdicts[0][0].p_value == pytest.approx(1 / 50_001)


def test_few_seeds_prove_nothing_however_different_and_blocks_are_no_seeds() -> None:
    for count in (1, 2, 3):
        a = seeds([1.0 + 0.001 * seed for seed in range(count)], blocks=True)
        b = seeds([9.0 + 0.001 * seed for seed in range(count)], first=50, blocks=True)
        (verdict,) = decide(a, [b])
        assert verdict.outcome is Outcome.CANNOT_TELL
        assert verdict.doubt is (Doubt.ONE_SEED if count == 1 else Doubt.TOO_FEW_SEEDS)
        assert (verdict.low is None) == (count == 1)
        assert verdict.blocks == BLOCKS
    assert least_seeds(1) == 4
    assert least_seeds(10) > 4
    assert least_p_value((4, 4), Permutation.LABELS) == 2 / 70
    assert least_p_value((2, 3), Permutation.LABELS) == 1 / 10


def test_runs_that_repeat_a_seed_are_no_further_evidence() -> None:
    again = [SeedLoss(1, 1.0)] * 6
    (verdict,) = decide(again, [[SeedLoss(2, 5.0)] * 6])
    assert (verdict.seeds, verdict.doubt) == ((1, 1), Doubt.ONE_SEED)


def test_the_interval_is_students_where_there_are_no_blocks() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [3.0, 3.0, 5.0, 8.0, 6.0, 9.0, 8.0, 10.0]
    (paired,) = decide(seeds(a), [seeds(b)])
    (apart,) = decide(seeds(a), [seeds(b, first=11)])
    for verdict, error, freedom in (
        (paired, np.subtract(b, a).std(ddof=1) / math.sqrt(8), 7),
        (apart, math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 8), 13),
    ):
        assert verdict.difference == pytest.approx(2.0)
        assert verdict.paired == (verdict is paired)
        assert verdict.low is not None
        margin = student_quantile(0.975, freedom) * error
        assert verdict.difference - verdict.low == pytest.approx(margin, rel=0.05)  # 4,000 resamples


def test_a_difference_in_one_part_of_the_text_widens_the_interval() -> None:
    a = seeds([1.0, 1.1, 0.9, 1.05, 0.95], blocks=True)
    evenly = [
        replace(one, loss=one.loss - 0.5, block_losses=tuple(np.array(one.block_losses) - 0.5)) for one in a
    ]
    part = np.zeros(BLOCKS)
    part[0] = 0.5 * BLOCKS
    in_part = [replace(one, block_losses=tuple(np.array(one.block_losses) + 0.5 - part)) for one in evenly]
    (even,), (uneven,) = decide(a, [evenly]), decide(a, [in_part])
    assert even.outcome is Outcome.BETTER
    assert uneven.outcome is Outcome.CANNOT_TELL  # on another text there may be no such part
    assert even.p_value == uneven.p_value


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (8, 2.306), (100, 1.984)]
)
def test_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, rel=2e-3)


def test_several_comparisons_with_one_baseline_need_smaller_p_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    a, b = seeds([1.0, 2.0, 3.0, 4.0]), seeds([11.0, 12.0, 13.0, 14.0], first=11)
    (alone,) = decide(a, [b])
    assert (alone.outcome, alone.comparisons) == (Outcome.WORSE, 1)
    of_many = decide(a, [b] * 4)
    assert {(one.outcome, one.doubt) for one in of_many} == {(Outcome.CANNOT_TELL, Doubt.TOO_FEW_SEEDS)}
    assert of_many[0].single_p_value == alone.p_value


def test_more_seeds_are_advised_as_the_difference_gets_smaller() -> None:
    a, b = [1.0, 1.4, 0.6, 1.2, 0.8], [1.1, 0.7, 1.3, 0.9, 1.0]
    needed = []
    for difference in (0.0001, 0.1, 0.3):
        (verdict,) = decide(seeds(a), [seeds([loss + difference for loss in b], first=11)])
        assert verdict.doubt is Doubt.WITHIN_SPREAD
        needed.append(verdict.seeds_needed)
    assert needed[0] is None
    assert needed[1] is not None
    assert needed[2] is not None
    assert 5 < needed[2] < needed[1] < 1000


# Runs


@pytest.fixture
def recorded(workspace: Path) -> None:
    """Five seeds of one experiment, five that are wider and better, each with blocks."""
    for group, width, best in (("a", 32, 2.0), ("b", 64, 1.5)):
        for seed in range(1, 6):
            loss = best + 0.01 * (seed * (3 if group == "a" else 2) % 5)
            run = recorded_run(
                f"{group}{seed}", loss, {"seed": seed, "model": {**EXPERIMENT["model"], "n_embd": width}}
            )
            best_evaluation = EvaluationRecord(
                step=10, val_loss=loss, block_losses=(loss - 0.5, loss + 0.5) * 4
            )
            run.write_evaluations(Evaluations(best=best_evaluation, last=best_evaluation))


def recorded_run(name: str, loss: float, experiment: dict[str, Any], **record: Any) -> Run:
    return make(name, {"best_val_loss": loss, "best_bits_per_byte": 2 * loss, **record}, experiment)


A, B = [f"a{seed}" for seed in range(1, 6)], [f"b{seed}" for seed in range(1, 6)]


def test_the_command_decides_with_difference_interval_and_p_value(
    recorded: None, gptkit_command: Command
) -> None:
    done = gptkit_command("runs", "compare", *A, *B, "--decide")
    assert (done.code, done.err, done.out.isascii()) == (0, "", True)
    assert "Against A (nats per token, lower is better):\nB  better: -0.5000 (95 % interval -0.5" in done.out
    assert "-1.0000 bits per byte, p = 0.0079\n" in done.out
    assert "   5 and 5 seeds, 8 blocks of the val split\n" in done.out
    (verdict,) = json.loads(gptkit_command("runs", "compare", *B, *A, "--decide", "--json").out)["verdicts"]
    assert (verdict["baseline"], verdict["group"]) == ("n_embd 64 (5 runs)", "n_embd 32 (5 runs)")
    assert (verdict["outcome"], verdict["doubt"], verdict["advice"]) == ("worse", None, "")
    assert verdict["difference"] == pytest.approx(0.5)
    assert "verdicts" not in json.loads(gptkit_command("runs", "compare", *B, *A, "--json").out)
    page = comparison_page(with_decisions(compare_runs([Run(Path("runs") / name) for name in (*A, *B)])))
    assert b"<td>better</td><td>-0.5000</td>" in page


def test_few_seeds_are_named_with_how_many_more_are_needed(recorded: None, gptkit_command: Command) -> None:
    done = gptkit_command("runs", "compare", "a1", "b1", "--decide")
    assert "B  cannot tell: -0.5" in done.out
    assert "one seed has no spread to compare a difference with\n   4 seeds of each may tell" in done.out
    done = gptkit_command("runs", "compare", *A[:3], *B[:3], "--decide")
    assert "with so few seeds no difference has a p-value below 0.1\n" in done.out
    assert "   1 more seed of each (2 s of training a run) would probably tell" in done.out


def test_runs_without_blocks_are_compared_by_their_seeds_and_it_is_noted(
    recorded: None, gptkit_command: Command
) -> None:
    (Path("runs") / "a3" / "evaluations.json").unlink()
    done = gptkit_command("runs", "compare", *A, *B, "--decide")
    assert "B  better: " in done.out
    assert "5 and 5 seeds, no blocks recorded" in done.out
    assert "note: not every run has recorded its losses by block" in done.out


def test_blocks_of_another_evaluation_than_the_best_are_not_used(recorded: None) -> None:
    run = Run(Path("runs/a1"))
    found = run.read_evaluations()
    run.write_evaluations(found.model_copy(update={"best": found.best.model_copy(update={"step": 5})}))
    assert compare_runs([run]).runs[0].block_losses == ()


def test_a_run_repeated_with_its_seed_counts_once_and_it_is_noted(
    recorded: None, gptkit_command: Command
) -> None:
    recorded_run("again", 2.0, {"seed": 1})
    done = gptkit_command("runs", "compare", *A, "again", *B, "--decide")
    assert "note: runs of one seed count once: 6 runs of n_embd 32 (6 runs) have 5 seeds." in done.out


LOSSY = {"type": "hf", "sha256": "ff", "lossless": False}


@pytest.mark.parametrize(
    ("record", "experiment", "message"),
    [
        ({"dataset": {"sha256": "other"}}, {}, "a1 and other have different texts"),
        ({}, {"data": {"val_fraction": 0.2}}, "different val splits"),
        ({"evaluation": "every token"}, {}, "different rules of evaluation"),
        (
            {"tokenizer": LOSSY},
            {"tokenizer": {"type": "hf"}},
            "that of other is not known to return the text",
        ),
        ({"status": "stopped"}, {}, "other is stopped; leave it out"),
        ({"best_val_loss": None}, {"model": {"n_embd": 8}}, "other is without a val loss"),
        (
            {"tokenizer": {"type": "char", "sha256": "cd34", "val_tokens": 1000}},
            {"evaluation": {"eval_tokens": 100}},
            "different parts of the val split",
        ),
        ({}, {"seed": 9}, "these differ only by their seed"),
    ],
    ids=["text", "split", "rule", "lossy", "stopped", "no loss", "part", "one group"],
)
def test_what_does_not_compare_is_refused(
    record: dict[str, Any], experiment: dict[str, Any], message: str, recorded: None, gptkit_command: Command
) -> None:
    make("other", record, experiment)
    refused = gptkit_command("runs", "compare", "a1", "other", "--decide")
    assert refused.code == 2
    assert message in refused.err


def test_other_tokenizers_are_compared_in_bits_per_byte(recorded: None, gptkit_command: Command) -> None:
    for seed in range(1, 6):
        recorded_run(
            f"c{seed}",
            3.0,
            {"seed": seed, "tokenizer": {"type": "byte"}},
            tokenizer={"type": "byte", "sha256": "ee"},
            best_bits_per_byte=3.0,
        )
    done = gptkit_command("runs", "compare", *A, *(f"c{seed}" for seed in range(1, 6)), "--decide")
    assert "Against A (bits per byte, lower is better):\nB  better: -1.0" in done.out
