"""Parity P0: the package's engine and the naive one agree on every record, gap and counter, to the picosecond."""

from __future__ import annotations

import random

import pytest

from tests.parity.cases import FEATURES, Case, any_features, random_case
from tests.parity.corners import CORNERS, cases_in
from tests.parity.fast import TOTALS, answer, build, run_fast
from tests.reference.naive_engine import run_naive
from tests.reference.plain import NaiveResult


def difference(case: Case, fast: NaiveResult, naive: NaiveResult) -> str:
    """The first thing that the engines say differently, in words; empty if nothing."""
    for i, (mine, theirs) in enumerate(zip(naive.records, fast.records, strict=False)):
        if mine != theirs:
            return f"record {i}\n naive {mine}\n fast  {theirs}\n of {case.requests[mine.row]}\n under {case.config}"
    if len(naive.records) != len(fast.records):
        return f"{len(naive.records)} records (naive), {len(fast.records)} (fast) under {case.config}"
    bins = [i for i, (n, f) in enumerate(zip(naive.itl_counts, fast.itl_counts, strict=True)) if n != f]
    if bins or naive.itl_sum_ps != fast.itl_sum_ps:
        return f"gaps: bins {bins}, sums {naive.itl_sum_ps} (naive), {fast.itl_sum_ps} (fast) under {case.config}"
    off = {name: (naive.totals[name], fast.totals[name]) for name in TOTALS if naive.totals[name] != fast.totals[name]}
    return f"totals (naive, fast): {off} under {case.config}" if off else ""


def check(case: Case) -> None:
    naive = run_naive(case.requests, case.config, case.times, case.changes)
    for leaps in (True, False):
        assert difference(case, run_fast(case, leaps=leaps), naive) == "", f"leaps={leaps}"


@pytest.mark.parametrize("feature", ["none", *FEATURES])
def test_each_rule_alone(feature: str) -> None:
    for seed in range(12):
        rng = random.Random(f"{feature} {seed}")
        check(random_case(rng, set() if feature == "none" else {feature}))


@pytest.mark.parametrize("seed", range(20))
def test_rules_mixed(seed: int) -> None:
    for part in range(20):
        rng = random.Random(seed * 1000 + part)
        check(random_case(rng, any_features(rng)))


@pytest.mark.parametrize("corner", CORNERS)
def test_corner_of_the_rules(corner: str) -> None:
    for seed, case, naive in cases_in(corner, how_many=5):
        assert difference(case, run_fast(case), naive) == "", f"seed {seed} of '{corner}'"


@pytest.mark.parametrize("seed", range(10))
def test_windows_make_one_run(seed: int) -> None:
    """Running to many times, one after the other, says the same as one run."""
    rng = random.Random(seed)
    case = random_case(rng, any_features(rng))
    case.changes = []
    naive = run_naive(case.requests, case.config, case.times)
    engine = build(case)
    stops = sorted(rng.randint(0, max(r.finish_ps for r in naive.records)) for _ in range(20))
    parts = [engine.run_ps(stop) for stop in stops]
    assert difference(case, answer(engine, [*parts, engine.run()]), naive) == ""
    assert engine.done


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_mixes(seed: int) -> None:
    for part in range(500):
        rng = random.Random(f"many {seed} {part}")
        case = random_case(rng, any_features(rng))
        naive = run_naive(case.requests, case.config, case.times, case.changes)
        assert difference(case, run_fast(case), naive) == "", f"part {part}"
