"""Measures how often `gptkit runs compare --decide` is wrong, and how often it finds a difference.

    python -m tools.verdicts [--pairs 200] [--pool 24]

Compares pairs of groups of runs: simulated ones, and ones drawn from tiny runs that it trains, each with
another seed. Where there is no difference, "better" and "worse" are errors; one that is added to the losses
should be found. Prints a line for each kind of pair. Exit code 1 where there are more errors than an error
rate of 5 % explains, or where five seeds miss twice their range in more than one case of ten.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import gptkit
from gptkit.runs.verdict import Outcome, SeedLoss, decide
from tools.support import argument_parser, small_text

Array = NDArray[np.float64]
Group = tuple[Array, Array]
"""The losses of some seeds, and their block losses: (seeds,) and (seeds, blocks)."""
Drawn = Callable[[float], tuple[Group, Group]]
"""Draws two groups with a difference in standard deviations between seeds."""

BLOCKS = 64
RANGE_OF_FIVE = 2.326  # standard deviations from the lowest to the highest of five, on average
DIFFERENCES = (0.0, 1.0, 2.0, 2 * RANGE_OF_FIVE)  # in standard deviations between seeds


def found(
    pair: Drawn, pairs: int, *, same_seeds: bool, differences: Sequence[float] = DIFFERENCES
) -> list[float]:
    """The fraction of pairs found worse, for each difference between the groups; for 0 also if better."""
    fractions = []
    for difference in differences:
        right = 0
        for _ in range(pairs):
            a, b = pair(difference)
            (verdict,) = decide(_seeds(a, 0), [_seeds(b, 0 if same_seeds else len(a[0]))])
            counts = (Outcome.WORSE,) if difference else (Outcome.BETTER, Outcome.WORSE)
            right += verdict.outcome in counts
        fractions.append(right / pairs)
    return fractions


def _seeds(group: Group, first: int) -> list[SeedLoss]:
    losses, blocks = group
    return [
        SeedLoss(first + number, float(loss), tuple(map(float, of_blocks)))
        for number, (loss, of_blocks) in enumerate(zip(losses, blocks, strict=True))
    ]


def simulated(
    random: np.random.Generator, count: int, alike: float
) -> Callable[[float], tuple[Group, Group]]:
    """Pairs of groups whose seeds have a standard deviation of 1 and this correlation between the groups.

    Blocks of text differ among each other by ten times as much, and react to a seed differently.
    """

    def pair(difference: float) -> tuple[Group, Group]:
        text = 10 * random.normal(size=BLOCKS)
        common = math.sqrt(alike) * random.normal(size=count)
        groups = []
        for shift in (0.0, difference):
            losses = 100 + shift + common + math.sqrt(1 - alike) * random.normal(size=count)
            noise = random.normal(size=(count, BLOCKS))
            noise -= noise.mean(1, keepdims=True)
            groups.append((losses, losses[:, None] + text - text.mean() + noise))
        return groups[0], groups[1]

    return pair


def recorded(random: np.random.Generator, pool: Group, other: Group | None, count: int) -> Drawn:
    """Pairs drawn from runs of one experiment; with `other`, from runs of two with the same seeds.

    The difference between the means of the two is taken out, so that the one that is added is all.
    """
    spread = float(pool[0].std(ddof=1))
    difference_of_means = 0.0 if other is None else float(other[0].mean() - pool[0].mean())

    def pair(difference: float) -> tuple[Group, Group]:
        order = random.permutation(len(pool[0]))
        ours = order[:count]
        theirs = order[count : 2 * count] if other is None else ours
        losses, blocks = other or pool
        shift = difference * spread - difference_of_means
        return (pool[0][ours], pool[1][ours]), (losses[theirs] + shift, blocks[theirs] + shift)

    return pair


def train_pool(folder: Path, seeds: int, position: str) -> Group:
    """Tiny runs on a small text, which differ in their seed."""
    text = folder / "mine.txt"
    text.write_text(small_text())
    experiment = {
        "data": {"dataset": {"type": "text", "path": str(text)}, "val_fraction": 0.2},
        "model": {"context_length": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "position": position},
        "training": {"max_steps": 60, "batch_size": 4, "threads": 1, "backend": "cpu"},
        "evaluation": {"eval_interval": 1000},
        "sampling": {"sample_interval": 0},
        "checkpoints": {"save": False},
    }
    losses, blocks = [], []
    for seed in range(seeds):
        run = gptkit.train({**experiment, "seed": seed}, runs_folder=folder / "runs")
        best = run.read_evaluations().best
        assert best.val_loss is not None
        losses.append(best.val_loss)
        blocks.append(best.block_losses)
    return np.array(losses), np.array(blocks)


def main() -> int:
    parser = argument_parser("verdicts", __doc__)
    parser.add_argument("--pairs", type=int, default=200, help="of each kind and difference")
    parser.add_argument("--pool", type=int, default=24, help="runs to train of each of two experiments")
    arguments = parser.parse_args()
    pairs, random = arguments.pairs, np.random.default_rng(1)
    print(f"better or worse, of {pairs} pairs each, for a difference in standard deviations between seeds of")
    print(f"{'':52}" + "".join(f"{difference:>8.3g}" for difference in DIFFERENCES))
    most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / pairs)  # what an error rate of 5 % explains
    bad = False

    def report(title: str, count: int, fractions: list[float]) -> None:
        nonlocal bad
        print(f"{title:52}" + "".join(f"{fraction:8.1%}" for fraction in fractions), flush=True)
        bad |= fractions[0] > most or (count == 5 and fractions[-1] < 0.9)

    for count in (4, 5, 6, 8):
        title = f"simulated, {count} seeds, "
        report(f"{title}other seeds", count, found(simulated(random, count, 0.0), pairs, same_seeds=False))
        for alike in (0.0, 0.5, 0.95):
            fractions = found(simulated(random, count, alike), pairs, same_seeds=True)
            report(f"{title}same seeds, correlation {alike:g}", count, fractions)
    with tempfile.TemporaryDirectory() as name:
        pool, other = (train_pool(Path(name), arguments.pool, position) for position in ("rope", "none"))
    correlation = float(np.corrcoef(pool[0], other[0])[0, 1])
    print(f"recorded: spread {pool[0].std(ddof=1):.4f} nats per token, correlation {correlation:.2f}")
    for count in (5, 8):
        for title, second in (("other seeds", None), ("same seeds, two experiments", other)):
            pair = recorded(random, pool, second, count)
            fractions = found(pair, pairs, same_seeds=second is not None)
            report(f"recorded, {count} seeds, {title}", count, fractions)
    return bad


if __name__ == "__main__":
    sys.exit(main())
