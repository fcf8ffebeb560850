"""The histogram's bins are those of docs/scheduling.md, its sums exact, its percentiles right to a bin's width."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.metrics.itl import BINS, ItlHistogram, bin_edges_ps, bins_of

GAPS = st.lists(st.one_of(st.integers(0, 2**53), st.integers(2**20, 2**40)), max_size=60)
#: Gaps that lie in a bin with two edges: neither below the first nor above the last.
INNER_GAPS = st.lists(st.integers(2**20, 2**52 - 1), min_size=1, max_size=60)
WIDTH = 1 / 64


def bin_by_the_page(gap: int) -> int:
    """Section 12 of docs/scheduling.md, word by word."""
    if gap < 2**20:
        return 0
    log2 = gap.bit_length() - 1
    octave = log2 - 20
    return min(64 * octave + (gap >> (log2 - 6)) - 64, 2047) if octave <= 31 else 2047


@given(GAPS)
def test_bins_are_those_of_the_page(gaps):
    assert bins_of(np.array(gaps, dtype=np.int64)).tolist() == [bin_by_the_page(gap) for gap in gaps]


def test_bins_at_every_edge():
    lower, upper = bin_edges_ps()
    assert bins_of(lower).tolist() == list(range(BINS))
    assert bins_of(upper - 1).tolist() == list(range(BINS))
    assert (lower[1:] == upper[:-1]).all()
    assert ((upper - lower) / lower).max() == WIDTH
    assert bins_of(np.array([0, 1, 2**63 - 1])).tolist() == [0, 0, BINS - 1]


@given(GAPS)
def test_count_and_mean_are_exact(gaps):
    itl = ItlHistogram.of_gaps(gaps)
    assert itl.count == len(gaps)
    assert itl.sum_ps == sum(gaps)
    if gaps:
        assert itl.mean() == sum(gaps) / (len(gaps) * 10**12)


@given(INNER_GAPS, st.floats(0, 100))
def test_a_percentile_is_the_nearest_ranks_to_a_bins_width(gaps, q):
    exact_s = np.percentile(gaps, q, method="inverted_cdf") / 1e12
    assert ItlHistogram.of_gaps(gaps).percentile(q) == pytest.approx(exact_s, rel=WIDTH)


@given(st.integers(2**20, 2**52 - 1))
def test_a_lone_gap_is_put_in_the_middle_of_its_bin(gap):
    lower, upper = (int(edge[bin_by_the_page(gap)]) for edge in bin_edges_ps())
    assert ItlHistogram.of_gaps([gap]).percentile(50) == pytest.approx(math.sqrt(lower * upper) / 1e12, rel=1e-12)


@given(INNER_GAPS, st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_percentiles_rise_and_stay_below_the_maximum(gaps, qs):
    itl = ItlHistogram.of_gaps(gaps)
    found = itl.percentiles(sorted(qs))
    assert found == sorted(found)
    assert found[-1] <= itl.max()
    assert max(gaps) / 1e12 <= itl.max() <= max(gaps) / 1e12 * (1 + WIDTH)


@given(GAPS, GAPS)
def test_adding_and_taking_away_are_inverse(before, since):
    earlier, window = ItlHistogram.of_gaps(before), ItlHistogram.of_gaps(since)
    both = earlier + window
    assert both.counts.tolist() == ItlHistogram.of_gaps(before + since).counts.tolist()
    assert both.sum_ps == sum(before + since)
    back = both - earlier
    assert back.counts.tolist() == window.counts.tolist()
    assert back.sum_ps == window.sum_ps


def test_an_empty_histogram_has_no_figures():
    empty = ItlHistogram()
    assert empty.count == 0
    assert all(math.isnan(value) for value in (empty.mean(), empty.percentile(50), empty.max()))


def test_misuse_is_said():
    one, two = ItlHistogram.of_gaps([2**30]), ItlHistogram.of_gaps([2**30, 2**31])
    with pytest.raises(AssertionError, match="earlier state"):
        _ = one - two
    with pytest.raises(AssertionError, match="never negative"):
        ItlHistogram.of_gaps([-1])
    with pytest.raises(AssertionError, match=r"0\.\.100"):
        one.percentile(101)
    with pytest.raises(AssertionError, match="hold 2 gaps, not 3"):
        ItlHistogram(two.counts, two.sum_ps, 3)
    with pytest.raises(AssertionError, match="2048 bins"):
        ItlHistogram(np.zeros(10, dtype=np.int64))
    with pytest.raises(AssertionError, match="int64"):
        ItlHistogram(np.zeros(BINS))
