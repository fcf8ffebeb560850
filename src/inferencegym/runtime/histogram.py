"""Durations of live traffic in log-spaced bins (those of `metrics.itl`): counting one costs a shift and an addition, whatever came before.

Durations are seconds outside, whole picoseconds inside, so that sums are exact; a percentile is right to a bin's width (1/64).
"""

from __future__ import annotations

import numpy as np

from inferencegym.ground.units import PS_PER_S
from inferencegym.metrics.itl import BINS, BINS_AN_OCTAVE, FIRST_OCTAVE, ItlHistogram

_LEAST_PS = 1 << FIRST_OCTAVE
_LAST = BINS - 1

#: Upper ends of the buckets that Prometheus is shown, s: 2^k and 1.5 * 2^k picoseconds, which are ends of bins, from 1.07 ms to 106 s.
BUCKETS_S: tuple[float, ...] = tuple(part * (1 << octave) / PS_PER_S / 2 for octave in range(30, 47) for part in (2, 3))
#: The last bin below each of these ends.
_LAST_BINS = np.array(
    [
        BINS_AN_OCTAVE * (octave - FIRST_OCTAVE) + (part - 2) * BINS_AN_OCTAVE // 2 - 1
        for octave in range(30, 47)
        for part in (2, 3)
    ]
)


class Histogram:
    """Counts of durations."""

    __slots__ = ("_counts", "count", "sum_ps")

    def __init__(self) -> None:
        self._counts = [0] * BINS
        self.count = 0
        self.sum_ps = 0

    def observe(self, seconds: float) -> None:
        """Count one duration; a negative one (clocks of two processes) counts as none at all, 0."""
        ps = max(round(seconds * PS_PER_S), 0)
        self.count += 1
        self.sum_ps += ps
        if ps < _LEAST_PS:
            self._counts[0] += 1
            return
        log2 = ps.bit_length() - 1
        where = BINS_AN_OCTAVE * (log2 - FIRST_OCTAVE) + (ps >> (log2 - 6)) - BINS_AN_OCTAVE
        self._counts[where if where < _LAST else _LAST] += 1

    @property
    def sum_s(self) -> float:
        """The durations' sum, seconds."""
        return self.sum_ps / PS_PER_S

    def frozen(self) -> ItlHistogram:
        """As things stand now; two of these subtract to a window's."""
        return ItlHistogram(np.array(self._counts, dtype=np.int64), self.sum_ps, self.count)


def cumulative(histogram: ItlHistogram) -> list[int]:
    """How many durations lie below each of BUCKETS_S, and in all."""
    upto = np.cumsum(histogram.counts)
    return [*upto[_LAST_BINS].tolist(), histogram.count]
