"""Standing of learned policies: known gaps come out, seeds count as draws of their own, and the verdict follows the intervals."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.envs.grade import Anchors
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.results import best_rule, references, standing

SCENARIOS = range(40)


def anchors(**values):
    """Random at 0, best static at 0.5, a rule at 0.4, the planner at 1, each the same noise above or below: scenarios are easy or hard."""
    noise = np.random.default_rng(1).normal(0, 0.02, len(SCENARIOS))
    means = {
        "random": 0.0,
        "do-nothing": 0.9,
        "aimd": 0.4,
        "vllm-like": 0.3,
        "best-static": 0.5,
        "clairvoyant": 1.0,
    } | values
    rows = {who: (mean + noise).tolist() for who, mean in means.items()}
    return Anchors("toy", "d", "test", list(SCENARIOS), rows, {}, "0", "a test"), noise


def test_the_gap_that_is_closed_comes_out():
    found_anchors, noise = anchors()
    found = standing([0.8 + noise, 0.8 + noise], found_anchors, SCENARIOS)
    assert found.closed is not None
    assert found.closed.value == pytest.approx(0.6)
    # What scenarios differ in is shared, so it cancels out of the share and of the differences, not out of the values.
    assert found.closed.high - found.closed.low < 1e-9
    assert found.over_static.value == pytest.approx(0.3)
    assert found.over_static.high - found.over_static.low < 1e-9
    assert found.learned.high - found.learned.low > 0.003
    assert found.grade.value == pytest.approx(0.8, abs=1e-6)
    assert (found.rule, found.seeds, found.scenarios) == ("aimd", 2, 40)


def test_seeds_that_differ_widen_the_interval_as_seeds_not_as_scenarios():
    found_anchors, noise = anchors()
    rng = np.random.default_rng(0)
    apart = standing([level + noise for level in (0.6, 0.7, 0.8, 0.9, 1.0)], found_anchors, SCENARIOS)
    # The same numbers, spread over scenarios: two hundred independent cells would say that much is known.
    mixed = standing(
        np.array([rng.permutation([0.6, 0.7, 0.8, 0.9, 1.0]) for _ in SCENARIOS]).T + noise, found_anchors, SCENARIOS
    )
    assert apart.learned.high - apart.learned.low > 2 * (mixed.learned.high - mixed.learned.low)


@pytest.mark.parametrize(
    ("level", "verdict"),
    [(0.8, "beats"), (0.505, "better on the same scenarios"), (0.5, "no worse"), (0.45, "worse")],
)
def test_the_verdict_follows_the_intervals(level, verdict):
    found_anchors, noise = anchors()
    assert standing([level + noise], found_anchors, SCENARIOS).verdict == verdict


def test_a_policy_above_best_static_but_below_the_best_rule_is_no_winner():
    found_anchors, noise = anchors(aimd=0.7)
    found = standing([0.6 + noise], found_anchors, SCENARIOS)
    assert found.verdict == "worse"
    assert found.closed is not None
    assert found.closed.value == pytest.approx(0.2)
    assert found.closed_from_rule is not None
    assert found.closed_from_rule.value == pytest.approx(-1 / 3)


def test_no_share_of_a_gap_that_is_none():
    found_anchors, noise = anchors(clairvoyant=0.5)
    found = standing([0.6 + noise], found_anchors, SCENARIOS)
    assert found.closed is None
    assert found.learned.value > found.clairvoyant.value


def test_references_are_picked_by_scenario_and_missing_ones_are_named():
    found_anchors, _ = anchors()
    assert references(found_anchors, [3, 1])["aimd"].tolist() == [
        found_anchors.values["aimd"][3],
        found_anchors.values["aimd"][1],
    ]
    with pytest.raises(ConfigError, match=r"57 of 'toy' has no anchors.*runs/anchors.sh"):
        references(found_anchors, [0, 57])


def test_neither_planners_nor_ends_of_the_scale_are_rules():
    values = {
        who: np.array([level])
        for who, level in [
            ("random", 9.0),
            ("clairvoyant", 8.0),
            ("model-predictive", 7.0),
            ("best-static", 6.0),
            ("do-nothing", 5.0),
            ("lru", 1.0),
        ]
    }
    assert best_rule(values) == "lru"


@pytest.mark.parametrize("values", [np.zeros(40), np.zeros((2, 39)), np.zeros((0, 40)), np.full((1, 40), np.nan)])
def test_values_of_another_shape_are_refused(values):
    with pytest.raises(ConfigError, match="seeds x 40 scenarios"):
        standing(values, anchors()[0], SCENARIOS)
