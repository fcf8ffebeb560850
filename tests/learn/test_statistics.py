"""Statistics against SciPy, against values worked out by hand, and against what an interval promises."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError
from inferencegym.learn.statistics import (
    bootstrap,
    improvement_probability,
    interquartile_mean,
    iqm,
    paired_difference,
    probability_of_improvement,
    share_better,
    spearman,
)

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)
SMALL = st.lists(st.integers(-3, 3), min_size=2, max_size=30)


@given(NUMBERS)
def test_iqm_is_scipys_trimmed_mean(scores):
    assert interquartile_mean(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25), rel=1e-9, abs=1e-6)


def test_iqm_by_hand():
    assert interquartile_mean([7]) == 7
    assert interquartile_mean([1, 2, 3]) == 2
    assert interquartile_mean([-100, 1, 2, 100]) == 1.5
    assert interquartile_mean([0, 0, 1, 2, 3, 4, 50, 60]) == 2.5
    assert iqm([[-100, 1], [2, 100]]).value == 1.5, "over all tasks' runs together"


@given(SMALL, SMALL)
def test_improvement_is_mann_whitney(x, y):
    u = scipy.stats.mannwhitneyu(x, y).statistic
    assert improvement_probability(x, y) == pytest.approx(u / (len(x) * len(y)))
    assert improvement_probability(x, y) + improvement_probability(y, x) == pytest.approx(1.0)


def test_improvement_by_hand():
    assert improvement_probability([1, 2, 3], [0]) == 1.0
    assert improvement_probability([1, 2, 3], [2]) == 0.5
    assert improvement_probability([1, 3], [1, 2]) == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    chances = probability_of_improvement([[1, 2], [0, 0]], [[0, 0], [1, 2]])
    assert chances.value == 0.5, "the mean over tasks"


@given(SMALL, st.randoms())
def test_spearman_is_scipys(x, random):
    y = [value + random.randint(-2, 2) for value in x]
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_spearman_by_hand():
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [5, 4, -9]) == pytest.approx(-1.0)


def test_the_interval_is_the_percentile_bootstraps():
    scores = np.random.default_rng(0).normal(0.5, 0.1, 40)
    ours = iqm([scores], repeats=5000)
    theirs = scipy.stats.bootstrap(
        (scores,),
        lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=5000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.004)
    assert ours.high == pytest.approx(theirs.high, abs=0.004)
    general = bootstrap([scores], lambda arrays: interquartile_mean(np.concatenate(arrays)))
    assert (general.low, general.high) == (pytest.approx(ours.low, abs=0.004), pytest.approx(ours.high, abs=0.004))


def test_ninety_five_per_cent_of_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        interval = iqm([rng.normal(0, 1, 50)], repeats=300, seed=trial)
        hits += interval.low <= 0 <= interval.high
    assert 0.9 <= hits / 300 <= 0.985


def test_resampling_stays_within_a_task():
    apart = iqm([np.zeros(10), np.ones(10)])
    assert apart.low == apart.high == 0.5, "two constant tasks leave nothing to chance"
    mixed = iqm([np.concatenate([np.zeros(10), np.ones(10)])])
    assert mixed.high - mixed.low > 0.3


def test_pairing_takes_away_what_scenarios_differ_in():
    rng = np.random.default_rng(2)
    hardness = rng.normal(0, 1, 50)
    theirs = hardness + rng.normal(0, 0.01, 50)
    ours = hardness + 0.05 + rng.normal(0, 0.01, 50)
    paired = paired_difference([ours], [theirs])
    assert 0.04 < paired.low < 0.05 < paired.high < 0.06
    assert probability_of_improvement([ours], [theirs]).low < 0.5, "unpaired, the difference drowns"
    assert share_better(ours, theirs) > 0.95


def test_the_same_seed_gives_the_same_interval():
    scores = [np.arange(20.0)]
    assert iqm(scores, seed=3) == iqm(scores, seed=3)
    assert iqm(scores, seed=3) != iqm(scores, seed=4)


@pytest.mark.parametrize("call", [
    lambda: interquartile_mean([]), lambda: interquartile_mean([1, np.nan]), lambda: probability_of_improvement([[1]], []),
    lambda: paired_difference([[1, 2]], [[1]]), lambda: iqm([[1, 2]], confidence=1.0), lambda: spearman([1, 2], [1]),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(ConfigError):
        call()
