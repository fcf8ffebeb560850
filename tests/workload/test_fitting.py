"""Descriptions out of workloads: what is generated from one resembles what it was made from."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.ground.errors import InputError
from inferencegym.workload import Workload, generate
from inferencegym.workload.describe import describe
from inferencegym.workload.fitting import compare, distance, fit, tick_of
from inferencegym.workload.spec import Ticks, check, dump


@pytest.mark.parametrize("name", ["azure-code", "azure-conversation", "mooncake-conversation"])
def test_a_fit_of_a_generated_hour_gives_it_back(name):
    import json

    w = generate(name, seed=3, duration_s=3600.0)
    spec = fit(w)
    assert check(json.loads(dump(spec))) == spec
    far = compare(spec, w)
    assert far["ks_prompt"] < far["ks_chance"] * 1.3
    assert far["ks_output"] < far["ks_chance"] * 1.3
    assert far["ks_gaps"] < far["ks_chance"] + 0.04
    was, now = describe(w), describe(generate(spec, seed=1, requests=len(w)))
    assert now["arrivals"]["rate_rps"] == pytest.approx(was["arrivals"]["rate_rps"], rel=0.35)
    if was["prefixes"]:
        assert isinstance(spec.traffic[0].gaps, Ticks)
        assert now["prefixes"]["hit_rate_tokens"] == pytest.approx(was["prefixes"]["hit_rate_tokens"], abs=0.04)


def test_labels_and_failures_are_described():
    rng = np.random.default_rng(0)
    n = 2_000
    w = Workload.of(
        arrival_s=np.cumsum(rng.exponential(size=n)),
        prompt_tokens=rng.integers(1, 99, n), output_tokens=rng.integers(0, 4, n),
        tenant=rng.integers(0, 2, n), tenant_names=("a", "b"), priority=rng.integers(0, 2, n),
    )  # fmt: skip
    traffic = fit(w).traffic[0]
    assert [tenant.name for tenant in traffic.tenants] == ["a", "b"]
    assert {one.priority for one in traffic.classes} == {0, 1}
    assert traffic.failed_share == pytest.approx(0.25, abs=0.04)


def test_too_little_to_fit_is_said():
    few = Workload.of(arrival_s=np.arange(5), prompt_tokens=np.ones(5), output_tokens=np.ones(5))
    with pytest.raises(InputError, match="too few"):
        fit(few)
    at_once = Workload.of(arrival_s=np.zeros(500), prompt_tokens=np.ones(500), output_tokens=np.ones(500))
    with pytest.raises(InputError, match="at once"):
        fit(at_once)


def test_ticks_are_told_from_free_times():
    rng = np.random.default_rng(0)
    assert tick_of(np.sort(rng.random(1000))) is None
    assert tick_of(np.repeat(np.arange(50) * 3.0, 10)) == 3.0


def test_distance_is_that_of_kolmogorov_and_smirnov():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(1)
    one, two = rng.integers(0, 9, 300), rng.integers(1, 12, 200)
    assert distance(one, two) == pytest.approx(ks_2samp(one, two).statistic)
