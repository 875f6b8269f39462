"""Decides whether one group of runs is better than another, or whether the seed explains the difference.

Input: the loss of each seed, with its blocks of the val split where they are recorded. Output: a `Verdict`:
better, worse or cannot tell, the difference with an interval, and its p-value. Knows nothing of runs or
files; what is compared must be comparable. The method and its sources: docs/verdicts.md.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import combinations, product
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05  # of the p-value; the interval covers 1 - LEVEL
POWER = 0.8  # the chance with which the number of seeds that would tell is to tell
_RESAMPLES = 4_000  # of the bootstrap
_MAX_EXACT = 50_000  # permutations; of more, that many random ones
_MAX_SEEDS = 1_000  # that are considered in advice
_SEED = 20_261_125  # of resampling, so that the same runs always have the same verdict

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class SeedLoss:
    """The val loss of a run, by its seed. `block_losses` are of the same blocks for all runs, or empty."""

    seed: object
    loss: float
    block_losses: tuple[float, ...] = ()


class Outcome(StrEnum):
    BETTER = "better"  # a lower loss than the baseline's
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"


class Doubt(StrEnum):
    """Why an outcome is "cannot tell"."""

    ONE_SEED = "one seed"  # of one of the two, whose spread is unknown
    TOO_FEW_SEEDS = "too few seeds"  # for any difference to be significant
    WITHIN_SPREAD = "within the spread"


class Permutation(StrEnum):
    """What the p-value is computed by."""

    SIGN_FLIP = "sign flip"  # of the differences between runs with one seed
    LABELS = "labels"  # of runs, permuted


@dataclass(frozen=True)
class Verdict:
    """A group of runs against a baseline. Differences are the group's loss minus the baseline's."""

    outcome: Outcome
    doubt: Doubt | None  # where the outcome is "cannot tell"
    difference: float
    low: float | None  # of the interval; None with one seed
    high: float | None
    p_value: float  # of a difference as large with none, over `comparisons` by Holm's method
    single_p_value: float  # as for this comparison alone
    least_p_value: float  # that this number of seeds can have, for this comparison alone
    permutation: Permutation
    seeds: tuple[int, int]  # of the baseline and of the group
    blocks: int  # of the val split, by which runs are paired; 0: none are recorded
    comparisons: int  # with the same baseline
    seeds_needed: int | None  # of each, to tell a difference as large in 4 of 5 cases; None: over 1,000

    @property
    def paired(self) -> bool:
        """Whether runs with the same seed were compared as pairs."""
        return self.permutation is Permutation.SIGN_FLIP


def decide(baseline: Sequence[SeedLoss], groups: Sequence[Sequence[SeedLoss]]) -> list[Verdict]:
    """The verdict on each group against the baseline; every group and the baseline have a run at least.

    Runs with one seed are one: the first counts. The chance that any group without a difference is found
    better or worse is at most LEVEL.
    """
    first = distinct(baseline)
    found = [_compare(first, distinct(group), len(groups)) for group in groups]
    adjusted = holm([one.single_p_value for one in found])
    return [_concluded(one, p_value) for one, p_value in zip(found, adjusted, strict=True)]


def distinct(group: Sequence[SeedLoss]) -> list[SeedLoss]:
    """The first run of each seed: another one with it repeats it, and is no further evidence."""
    return list({one.seed: one for one in reversed(group)}.values())[::-1]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted


def _compare(baseline: Sequence[SeedLoss], group: Sequence[SeedLoss], comparisons: int) -> Verdict:
    """The verdict without its outcome and the adjustment of its p-value."""
    same_seeds = {one.seed for one in baseline} == {one.seed for one in group}
    if same_seeds:
        by_seed = {one.seed: one for one in group}
        group = [by_seed[one.seed] for one in baseline]
    a, b = _losses(baseline), _losses(group)
    difference = float(b.mean() - a.mean())
    counts = len(a), len(b)
    permutation = _permutation(counts, same_seeds, LEVEL / comparisons)
    paired = permutation is Permutation.SIGN_FLIP
    p_value = _sign_flip(b - a) if paired else _label_permutation(a, b)
    blocks = _blocks(baseline, group)
    few = min(counts) < 2
    error = 0.0 if few else _standard_error(a, b, blocks, paired)
    margin = math.inf if few else student_quantile(1 - LEVEL / 2, _freedom(a, b, paired)) * error
    return Verdict(
        outcome=Outcome.CANNOT_TELL,
        doubt=Doubt.ONE_SEED if few else None,
        difference=difference,
        low=None if few else difference - margin,
        high=None if few else difference + margin,
        p_value=p_value,
        single_p_value=p_value,
        least_p_value=least_p_value(counts, permutation),
        permutation=permutation,
        seeds=counts,
        blocks=0 if blocks is None else blocks[0].shape[1],
        comparisons=comparisons,
        seeds_needed=None if few else _seeds_needed(difference, a, b, blocks, same_seeds, comparisons),
    )


def _concluded(found: Verdict, p_value: float) -> Verdict:
    """With the outcome: the p-value is to be below the level, and the interval without zero."""
    found = replace(found, p_value=p_value)
    if found.low is None or found.high is None:
        return found
    if p_value <= LEVEL and not found.low <= 0 <= found.high:
        return replace(found, outcome=Outcome.BETTER if found.difference < 0 else Outcome.WORSE)
    few = found.least_p_value * found.comparisons > LEVEL
    return replace(found, doubt=Doubt.TOO_FEW_SEEDS if few else Doubt.WITHIN_SPREAD)


def _losses(group: Sequence[SeedLoss]) -> _Array:
    return np.array([one.loss for one in group])


def _blocks(baseline: Sequence[SeedLoss], group: Sequence[SeedLoss]) -> tuple[_Array, _Array] | None:
    """The block losses of both, (seeds, blocks); None unless all runs have the same number, two at least."""
    numbers = {len(one.block_losses) for one in (*baseline, *group)}
    if len(numbers) > 1 or max(numbers) < 2:
        return None
    return np.array([one.block_losses for one in baseline]), np.array([one.block_losses for one in group])


# The p-value


def _permutation(counts: tuple[int, int], same_seeds: bool, level: float) -> Permutation:
    """Chosen by the number of seeds alone, never by their losses, which would make p-values too small.

    A sign flip of n pairs has a p-value of 2 / 2^n at least. Where that is not below the level, labels are
    permuted, which ignores the pairs: where they are alike, its p-value is too large rather than too small.
    """
    enough = least_p_value(counts, Permutation.SIGN_FLIP) <= level
    return Permutation.SIGN_FLIP if same_seeds and enough else Permutation.LABELS


def least_seeds(comparisons: int) -> int:
    """The smallest number of seeds of each with which a difference can be significant."""
    count = 2
    while least_p_value((count, count), Permutation.LABELS) > LEVEL / comparisons:
        count += 1
    return count


def least_p_value(counts: tuple[int, int], permutation: Permutation) -> float:
    """The smallest p-value that so many seeds can have: that of the most extreme permutation."""
    if permutation is Permutation.SIGN_FLIP:
        return 2.0 ** (1 - counts[0])
    return (2 if counts[0] == counts[1] else 1) / math.comb(sum(counts), counts[0])


def _sign_flip(differences: _Array) -> float:
    """The fraction of sign flips of paired differences with a mean as far from zero (Fisher 1935)."""
    count = len(differences)
    exact = 2**count <= _MAX_EXACT
    if exact:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        signs = np.random.default_rng(_SEED).choice((1.0, -1.0), size=(_MAX_EXACT, count))
    return _fraction(signs @ differences, float(differences.sum()), exact)


def _label_permutation(a: _Array, b: _Array) -> float:
    """The fraction of assignments of runs to two such groups whose means differ as much (Fisher 1935)."""
    both = np.concatenate((a, b))
    exact = math.comb(len(both), len(a)) <= _MAX_EXACT
    if exact:
        chosen = np.array(list(combinations(range(len(both)), len(a))))
        means = both[chosen].mean(1)
    else:
        rows = np.broadcast_to(both, (_MAX_EXACT, len(both)))
        means = np.random.default_rng(_SEED).permuted(rows, axis=1)[:, : len(a)].mean(1)
    return _fraction(means - both.mean(), float(a.mean() - both.mean()), exact)


def _fraction(statistics: _Array, observed: float, exact: bool) -> float:
    """Of statistics as extreme as the observed one, which counts among random ones (Phipson & Smyth 2010)."""
    limit = abs(observed) * (1 - 1e-9) - 1e-15  # equal ones may differ in their last bits
    extreme = int((np.abs(statistics) >= limit).sum())
    return extreme / len(statistics) if exact else (extreme + 1) / (len(statistics) + 1)


# The interval


def _standard_error(a: _Array, b: _Array, blocks: tuple[_Array, _Array] | None, paired: bool) -> float:
    """Of the difference of means, by a bootstrap over seeds and, in each of its samples, over blocks.

    Seeds are drawn one fewer than there are, since a sample of all of them varies too little (Rao & Wu 1988);
    pairs of seeds together; and the same blocks for all runs.
    """
    first, second = blocks or (a[:, None], b[:, None])
    of_blocks = _weights(first.shape[1], first.shape[1], 0)
    of_first = _weights(len(first), len(first) - 1, 1)
    of_second = of_first if paired else _weights(len(second), len(second) - 1, 2)
    means = of_second @ second - of_first @ first  # (resamples, blocks)
    return float((means * of_blocks).sum(1).std())


@lru_cache(maxsize=8)
def _weights(count: int, drawn: int, stream: int) -> _Array:
    """The fraction that each of `count` is of `drawn` draws with replacement, (resamples, count)."""
    random = np.random.default_rng((_SEED, stream))
    return random.multinomial(drawn, np.full(count, 1 / count), size=_RESAMPLES) / drawn


def _freedom(a: _Array, b: _Array, paired: bool) -> int:
    """Degrees of freedom of the spread between seeds, rounded down: Welch's of two groups."""
    if paired:
        return len(a) - 1
    first, second = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if first + second == 0:
        return min(len(a), len(b)) - 1
    freedom = (first + second) ** 2 / (first**2 / (len(a) - 1) + second**2 / (len(b) - 1))
    return max(int(freedom + 1e-9), 1)


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's t, for probabilities over 0.5; exact for 1 and 2 degrees, else to about one in a thousand.

    Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms)))


# Advice


def _seeds_needed(
    difference: float,
    a: _Array,
    b: _Array,
    blocks: tuple[_Array, _Array] | None,
    same_seeds: bool,
    comparisons: int,
) -> int | None:
    """The number of seeds of each with which a difference as large would be significant in 4 of 5 cases.

    None if that takes more than 1,000: more seeds do not make the val split longer.
    """
    between, of_text, level = float(a.var(ddof=1) + b.var(ddof=1)), 0.0, LEVEL / comparisons
    if blocks:
        profile = blocks[1].mean(0) - blocks[0].mean(0)
        of_text = float(profile.var(ddof=1)) / len(profile)
    power = NormalDist().inv_cdf(POWER)

    def tells(count: int) -> bool:
        paired = _permutation((count, count), same_seeds, level) is Permutation.SIGN_FLIP
        variance = float((b - a).var(ddof=1)) if paired else between
        quantile = student_quantile(1 - level / 2, count - 1 if paired else 2 * count - 2)
        return abs(difference) >= (quantile + power) * math.sqrt(variance / count + of_text)

    counts = range(least_seeds(comparisons), _MAX_SEEDS + 1)
    found = bisect_left(counts, True, key=tells)
    return counts[found] if found < len(counts) else None
