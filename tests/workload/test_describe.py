"""Figures of workloads whose figures are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from scipy.stats import spearmanr

from inferencegym.workload import Workload
from inferencegym.workload.describe import describe, dispersion, spread
from tests.workload.strategies import workloads


@given(workloads())
def test_any_workload_can_be_described_in_json(w):
    found = json.loads(json.dumps(describe(w), allow_nan=False))
    assert found["requests"] == len(w)
    assert sum(found["kinds"].values()) == len(w)
    assert found["failed_at_source"] == int((w.output_tokens == 0).sum())


def test_dispersion_is_1_for_poisson_0_for_even_and_the_batch_for_batches():
    rng = np.random.default_rng(0)
    times = np.sort(rng.random(100_000)) * 10_000
    assert dispersion(times, 10.0) == pytest.approx(1.0, abs=0.15)
    assert dispersion(np.arange(1000.0), 10.0) == 0
    batches = np.repeat(np.sort(rng.random(10_000)) * 10_000, 7)
    assert dispersion(batches, 10.0) == pytest.approx(7.0, rel=0.15)
    assert dispersion(np.arange(5.0), 10.0) is None


def test_ranks_take_the_middle_of_ties():
    rng = np.random.default_rng(1)
    prompt, output = rng.integers(1, 9, 500), rng.integers(1, 9, 500)
    w = Workload.of(arrival_s=np.arange(500), prompt_tokens=prompt, output_tokens=output)
    assert describe(w)["correlation"]["spearman"] == pytest.approx(spearmanr(prompt, output)[0])


def test_a_spread_of_nothing_is_none():
    assert spread(np.zeros(0)) is None
    assert spread(np.array([1, 2, 3]))["p50"] == 2.0
