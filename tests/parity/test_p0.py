"""Parity P0: the package's engine and the naive one agree on every record, gap and counter, to the picosecond."""

from __future__ import annotations

import random

import pytest

from tests.parity.cases import FEATURES, Case, any_features, random_case
from tests.parity.fast import TOTALS, run_fast
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
