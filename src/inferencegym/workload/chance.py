"""Draws that several parts share: values from a quantile grid, the normal law's two directions, and series with a
memory.

Everything is vectorised NumPy and takes its generator as an argument. No units: what a grid holds is its owner's
affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import erfc, sqrt
from statistics import NormalDist

import numpy as np

from inferencegym.workload.workload import Floats, Ints

_SQRT_HALF = sqrt(0.5)


def normal_cdf(z: Floats) -> Floats:
    """Share of a standard normal below each z."""
    return 0.5 * np.fromiter(map(erfc, (z * -_SQRT_HALF).tolist()), np.float64, len(z))


def normal_quantile(shares: Iterable[float]) -> Floats:
    """The z below which each share (strictly between 0 and 1) of a standard normal lies."""
    return np.fromiter(map(NormalDist().inv_cdf, shares), np.float64)


def from_grid(u: Floats, probs: Sequence[float], quantiles: Sequence[float]) -> Floats:
    """Values at the shares u of a law given by its quantiles at `probs`, straight lines between them."""
    found: Floats = np.interp(u, probs, quantiles)
    return found


def from_log_grid(u: Floats, probs: Sequence[float], quantiles: Sequence[float]) -> Floats:
    """The same with straight lines between the logarithms of the quantiles (which must be above 0)."""
    found: Floats = np.exp(np.interp(u, probs, np.log(quantiles)))
    return found


def log_grid_mean(probs: Sequence[float], quantiles: Sequence[float]) -> float:
    """Mean of the law that `from_log_grid` draws from, exactly."""
    p, q = np.asarray(probs), np.asarray(quantiles, dtype=np.float64)
    ratio = np.log(q[1:] / q[:-1])
    flat = ratio < 1e-12
    # The mean of exp(straight line from log a to log b) is (b - a) / log(b / a).
    piece = np.where(flat, q[1:], (q[1:] - q[:-1]) / np.where(flat, 1.0, ratio))
    return float(np.sum(np.diff(p) * piece))


def with_memory(noise: Floats, phi: float) -> Floats:
    """A stationary AR(1) series of unit variance out of independent standard normals, one for one.

    x[t] = phi * x[t-1] + sqrt(1 - phi^2) * noise[t], summed by doubling: 2^k terms after k passes over the array.
    """
    if not len(noise) or phi == 0.0:
        return noise
    x = noise * sqrt(1.0 - phi * phi)
    x[0] = noise[0]
    reach, weight = 1, phi
    while reach < len(x) and abs(weight) > 1e-16:
        x[reach:] += weight * x[:-reach].copy()
        reach, weight = reach * 2, weight * weight
    return x


def correlated(rng: np.random.Generator, z: Floats, correlation: float) -> Floats:
    """Standard normals that have this correlation with z."""
    return correlation * z + sqrt(1.0 - correlation * correlation) * rng.standard_normal(len(z))


def choose(rng: np.random.Generator, shares: Sequence[float], size: int) -> Ints:
    """Indices drawn in proportion to `shares`."""
    bounds = np.cumsum(np.asarray(shares, dtype=np.float64))
    found: Ints = np.minimum(np.searchsorted(bounds, rng.random(size) * bounds[-1], side="right"), len(shares) - 1)
    return found
