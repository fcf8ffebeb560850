"""Gaps between tokens (ITL) of millions of requests in 16 KiB: a histogram of log-spaced bins, exact in sum and count.

Gaps are integer picoseconds, as the engine's clock is; answers are seconds, right to a bin's width (1/64).

    gap g        bin
    g < 2^20     0                                        (2^20 ps is about a microsecond)
    else         64 * e + m,  e = floor(log2 g) - 20,  m = (g >> (e + 14)) - 64
    g >= 2^52    2047, the last                           (2^52 ps is about 75 minutes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from inferencegym.ground.units import PS_PER_S

BINS = 2048
BINS_AN_OCTAVE = 64
#: log2 of the least gap, in ps, that has a bin of its own.
FIRST_OCTAVE = 20

Counts = npt.NDArray[np.int64]


def _no_counts() -> Counts:
    return np.zeros(BINS, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ItlHistogram:
    """How many gaps fell into each bin, and their exact sum."""

    counts: Counts = field(default_factory=_no_counts)
    """int64[2048], gaps in each bin."""
    sum_ps: int = 0
    """The gaps' sum in picoseconds, exact."""
    count: int = 0
    """How many gaps there are: the sum of `counts`, carried so that whoever counts twice is checked."""

    def __post_init__(self) -> None:
        assert self.counts.shape == (BINS,), f"an ITL histogram has {BINS} bins, not {self.counts.shape}"
        assert self.counts.dtype == np.int64, f"ITL counts are int64, not {self.counts.dtype}"
        held = int(self.counts.sum())
        assert self.count == held, f"the bins hold {held} gaps, not {self.count}"

    @classmethod
    def of_gaps(cls, gaps_ps: npt.ArrayLike) -> ItlHistogram:
        """The histogram of these gaps, each in picoseconds."""
        gaps = np.asarray(gaps_ps, dtype=np.int64)
        counts = np.bincount(bins_of(gaps), minlength=BINS).astype(np.int64)
        # Python integers do not overflow; int64 would, at 106 days of gaps.
        return cls(counts, sum(gaps.tolist()), len(gaps))

    def mean(self) -> float:
        """Mean gap in seconds, exact; NaN if there is none."""
        return self.sum_ps / (self.count * PS_PER_S) if self.count else float("nan")

    def percentile(self, q: float) -> float:
        """The q-th percentile (0..100) in seconds; NaN if there is no gap.

        The nearest-rank gap, placed inside its bin as if the bin's gaps lay evenly in logarithm.
        """
        return self.percentiles([q])[0]

    def percentiles(self, qs: Sequence[float]) -> list[float]:
        """Several percentiles at the cost of one."""
        assert all(0 <= q <= 100 for q in qs), f"percentiles lie in 0..100, not {list(qs)}"
        if self.count == 0:
            return [float("nan")] * len(qs)
        upto = np.cumsum(self.counts)
        ranks = np.clip(np.ceil(np.asarray(qs) / 100 * self.count), 1, self.count)
        bins = np.searchsorted(upto, ranks)
        inside = self.counts[bins]
        fraction = (ranks - (upto[bins] - inside) - 0.5) / inside
        lower_ps, upper_ps = bin_edges_ps()
        low, high = lower_ps[bins].astype(np.float64), upper_ps[bins].astype(np.float64)
        found: list[float] = (low * (high / low) ** fraction / PS_PER_S).tolist()
        return found

    def max(self) -> float:
        """An upper bound of the largest gap in seconds, at most a bin's width above it; NaN if there is none."""
        used = np.flatnonzero(self.counts)
        return float(bin_edges_ps()[1][used[-1]]) / PS_PER_S if len(used) else float("nan")

    def __add__(self, other: ItlHistogram) -> ItlHistogram:
        """Both together, as of two replicas."""
        return ItlHistogram(self.counts + other.counts, self.sum_ps + other.sum_ps, self.count + other.count)

    def __sub__(self, earlier: ItlHistogram) -> ItlHistogram:
        """What was added since `earlier`, a copy of this histogram at the start of a window."""
        counts = self.counts - earlier.counts
        assert counts.min() >= 0, "the histogram that is taken away must be an earlier state of this one"
        return ItlHistogram(counts, self.sum_ps - earlier.sum_ps, self.count - earlier.count)


def bins_of(gaps_ps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bin of each gap (docs/scheduling.md, section 12)."""
    assert gaps_ps.size == 0 or gaps_ps.min() >= 0, "a gap between tokens is never negative"
    # Up to 2^52 a float holds the integer exactly, so its exponent is floor(log2) + 1 without rounding.
    capped = np.clip(gaps_ps, 1 << FIRST_OCTAVE, (1 << 52) - 1)
    log2 = np.frexp(capped.astype(np.float64))[1].astype(np.int64) - 1
    return BINS_AN_OCTAVE * (log2 - FIRST_OCTAVE) + (capped >> (log2 - 6)) - BINS_AN_OCTAVE


def bin_edges_ps() -> tuple[Counts, Counts]:
    """Lower and upper edge of each bin in picoseconds.

    The first bin also holds all below its lower edge, the last one all above its upper edge.
    """
    index = np.arange(BINS, dtype=np.int64)
    octave, step = index // BINS_AN_OCTAVE, index % BINS_AN_OCTAVE
    scale = np.int64(1) << (octave + FIRST_OCTAVE - 6)
    return (BINS_AN_OCTAVE + step) * scale, (BINS_AN_OCTAVE + step + 1) * scale
