"""The generator of parity cases: it reaches every corner of the rules, repeats itself, and stays small."""

from __future__ import annotations

import random

import pytest

from tests.parity.cases import FEATURES, any_features, random_case
from tests.parity.corners import CORNERS, cases_in
from tests.reference.naive_engine import run_naive


@pytest.mark.parametrize("corner", CORNERS)
def test_corner_is_reached(corner: str) -> None:
    assert list(cases_in(corner, how_many=1)), f"no case with {CORNERS[corner]} reaches '{corner}'"


def test_every_feature_leads_into_a_corner_or_changes_the_order() -> None:
    named = {feature for mix in CORNERS.values() for feature in mix.split()}
    assert set(FEATURES) - named == {"priority", "aging", "edf", "round_robin", "long_answers"}


def test_same_seed_same_case() -> None:
    for seed in range(20):
        one, two = (random_case(random.Random(seed), set(FEATURES)) for _ in range(2))
        assert one == two


def test_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="warp"):
        random_case(random.Random(0), {"warp", "prefix"})


def test_cases_are_small() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        case = random_case(rng, any_features(rng))
        assert 5 <= len(case.requests) <= 40
        assert run_naive(case.requests, case.config, case.times, case.changes).steps < 50_000
