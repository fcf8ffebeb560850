"""Statistics for few and skewed runs, after Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice): NumPy alone, exact formulas.

Scores come as strata, one array a task: resampling never mixes tasks. An interval is the percentile bootstrap's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream

Floats = npt.NDArray[np.float64]
Strata = Sequence[npt.ArrayLike]

REPEATS = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interquartile_mean(scores: npt.ArrayLike) -> float:
    """Mean of the middle half: the lowest and highest quarter (rounded down) are left out. More robust than the mean, less blunt than the median."""
    return float(interquartile_means(_filled(scores).reshape(1, -1))[0])


def interquartile_means(rows: Floats) -> Floats:
    """`interquartile_mean` of each row of float64[n, m]: float64[n]."""
    ordered = np.sort(rows, axis=1)
    cut = ordered.shape[1] // 4
    means: Floats = ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)
    return means


def bootstrap(
    strata: Strata,
    statistic: Callable[[Sequence[Floats]], float],
    *,
    repeats: int = REPEATS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate:
    """A statistic of strata, and its percentile interval when each stratum is resampled by itself, with replacement."""
    arrays = [_filled(stratum) for stratum in strata]
    rng = stream(seed, "statistics.bootstrap")
    drawn = np.array([statistic([rng.choice(array, len(array)) for array in arrays]) for _ in range(repeats)])
    return estimate(statistic(arrays), drawn, confidence)


def iqm(strata: Strata, *, repeats: int = REPEATS, confidence: float = CONFIDENCE, seed: int = 0) -> Estimate:
    """Interquartile mean over all runs of all strata, with its stratified bootstrap interval."""
    arrays = [_filled(stratum) for stratum in strata]
    rng = stream(seed, "statistics.bootstrap")
    # All repeats at once: a row of `drawn` is one resampling of everything.
    drawn = np.concatenate([array[rng.integers(0, len(array), (repeats, len(array)))] for array in arrays], axis=1)
    return estimate(interquartile_mean(np.concatenate(arrays)), interquartile_means(drawn), confidence)


def improvement_probability(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> float:
    """P(X > Y) for a run X of ours and Y of theirs drawn at random, ties counting half (Mann-Whitney's U over n m)."""
    x, y = _filled(ours), np.sort(_filled(theirs))
    below = np.searchsorted(y, x, side="left") + np.searchsorted(y, x, side="right")
    return float(below.mean() / (2 * len(y)))


def probability_of_improvement(
    ours: Strata, theirs: Strata, *, repeats: int = REPEATS, confidence: float = CONFIDENCE, seed: int = 0
) -> Estimate:
    """Mean over tasks of `improvement_probability`; runs of both sides are resampled within their task."""
    pairs = _pairs(ours, theirs)
    rng = stream(seed, "statistics.bootstrap")
    drawn = np.empty(repeats)
    for i in range(repeats):
        chances = [improvement_probability(rng.choice(x, len(x)), rng.choice(y, len(y))) for x, y in pairs]
        drawn[i] = np.mean(chances)
    return estimate(float(np.mean([improvement_probability(x, y) for x, y in pairs])), drawn, confidence)


def paired_difference(
    ours: Strata, theirs: Strata, *, repeats: int = REPEATS, confidence: float = CONFIDENCE, seed: int = 0
) -> Estimate:
    """Interquartile mean of ours minus theirs on the same scenarios, in the same order: what differs between scenarios cancels out."""
    pairs = _pairs(ours, theirs)
    for x, y in pairs:
        if len(x) != len(y):
            raise ConfigError(
                "scores", f"{len(x)} and {len(y)} runs are no pairs", allowed="as many, on the same scenarios"
            )
    return iqm([x - y for x, y in pairs], repeats=repeats, confidence=confidence, seed=seed)


def share_better(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> float:
    """On how many of the same scenarios ours is better, ties counting half."""
    difference = _filled(ours) - _filled(theirs)
    return float(np.mean(np.where(difference == 0, 0.5, difference > 0)))


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Rank correlation (ties share their mean rank); NaN if one side is constant."""
    a, b = _ranks(_filled(x)), _ranks(_filled(y))
    if len(a) != len(b):
        raise ConfigError("values", f"{len(a)} and {len(b)}", allowed="as many of one as of the other")
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else float("nan")


def _ranks(values: Floats) -> Floats:
    """1 is the smallest; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts).astype(np.float64)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def _filled(scores: npt.ArrayLike) -> Floats:
    array = np.asarray(scores, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ConfigError("scores", "are empty or not all finite", allowed="one finite number or more")
    return array


def _pairs(ours: Strata, theirs: Strata) -> list[tuple[Floats, Floats]]:
    if len(ours) != len(theirs) or len(ours) == 0:
        raise ConfigError("strata", f"{len(ours)} and {len(theirs)}", allowed="the same tasks on both sides")
    return [(_filled(x), _filled(y)) for x, y in zip(ours, theirs, strict=True)]


def estimate(value: float, drawn: Floats, confidence: float = CONFIDENCE) -> Estimate:
    """A figure with the percentile interval of its resamplings, float64[repeats]."""
    if not 0 < confidence < 1:
        raise ConfigError("confidence", f"{confidence}", allowed="between 0 and 1")
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))
