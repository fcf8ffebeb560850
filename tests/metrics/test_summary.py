"""The summary's figures are those of the formulas, it is plain JSON whatever came in, and its intervals cover."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Records
from inferencegym.metrics.slo import Slo, SloTable
from inferencegym.metrics.summary import STATISTICS, Distribution, distribution, mean_ci95, summarise
from inferencegym.metrics.vocabulary import METRICS
from tests.metrics.strategies import records

NAMES = ("chat", "batch", "agent")
TABLE = SloTable(default=Slo(ttft_s=50), by_class={"batch": Slo(), "agent": Slo(e2e_s=100, tpot_s=1)})
EMPTY = Records.of(arrival_s=[])


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@given(records(), st.none() | st.floats(0.1, 100), st.booleans())
def test_it_is_plain_json_whatever_came_in(made, cost_per_hour, with_timeline):
    timeline = {"t_s": np.arange(3.0), "kv_used_fraction": np.array([0.1, 0.9, np.nan]), "running": np.arange(3)}
    made_summary = summarise(
        made,
        ItlHistogram.of_gaps([2**30] * len(made)),
        slo=TABLE,
        class_names=NAMES,
        cost_per_hour=cost_per_hour,
        totals={"steps": np.int64(3), "busy_s": np.float64("nan")},
        timeline=timeline if with_timeline else None,
    )
    plain = made_summary.to_dict()
    assert json.loads(json.dumps(plain), parse_constant=refuse) == plain


@given(records(min_size=1))
def test_classes_sum_to_the_whole(made):
    summary = summarise(made, slo=TABLE, class_names=NAMES, span_s=10.0)
    parts = summary.by_class.values()
    assert sum(part.requests for part in parts) == summary.requests == len(made)
    assert sum(part.ok for part in parts) == summary.outcomes["ok"]
    for name in ("queue_s", "ttft_s", "tpot_s", "e2e_s"):
        assert sum(getattr(part, name).count for part in parts) == getattr(summary, name).count
    goodputs = [part.goodput_rps for part in parts if part.goodput_rps is not None]
    assert summary.goodput_rps == (pytest.approx(sum(goodputs)) if goodputs else None)


@given(records(min_size=1))
def test_the_order_of_rows_changes_no_figure_but_the_interval(made):
    backwards = made.take(np.arange(len(made))[::-1])
    first, second = (summarise(part, slo=TABLE, class_names=NAMES) for part in (made, backwards))
    for metric in METRICS:
        for statistic in set(STATISTICS) - {"mean_ci95"} if metric.kind == "distribution" else {""}:
            value = first.value(metric.name, statistic)
            assert second.value(metric.name, statistic) == (None if value is None else pytest.approx(value))


@given(st.lists(st.floats(0, 1e6) | st.just(float("nan")), max_size=300))
def test_a_distribution_is_numpys_of_the_values_that_are_there(values):
    there = [value for value in values if value == value]
    found = distribution(np.array(values))
    assert found.count == len(there)
    if there:
        assert [found.p50, found.p90, found.p95, found.p99] == np.percentile(there, [50, 90, 95, 99]).tolist()
        assert found.max == max(there)
        assert found.mean == pytest.approx(np.mean(there))
        assert (found.mean_ci95 is not None) == (len(there) >= 200)
    else:
        assert found == Distribution()


def test_figures_of_three_requests_by_hand():
    made = Records.of(
        arrival_s=[0.0, 1.0, 2.0],
        enqueued_s=[0.25, 1.0, 2.0],
        scheduled_s=[0.5, 1.0, np.nan],
        first_token_s=[1.0, 3.0, np.nan],
        finish_s=[5.0, 10.0, 2.0],
        prompt_tokens=[100, 300, 9999],
        output_tokens=[5, 8, 0],
        cached_tokens=[0, 100, 0],
        preemptions=[0, 2, 0],
        swaps=[0, 1, 0],
        outcome=[0, 0, 1],
    )
    summary = summarise(
        made,
        ItlHistogram.of_gaps([10**12] * 11),
        slo=Slo(ttft_s=1.5),
        cost_per_hour=36.0,
        gpus=2,
        totals={"steps": 40, "drafted": 8, "accepted": 6},
        timeline={
            "t_s": np.array([0.0, 1.0, 4.0]),
            "kv_used_fraction": np.array([0.2, 0.6, 0.9]),
            "running": np.array([1, 3, 0]),
            "waiting": np.array([0, 4, 0]),
        },
    )
    expected = {
        "requests": 3,
        "ok": 2,
        "refused_length": 1,
        "rejected": 0,
        "span_s": 10.0,
        "arrival_rps": 1.0,
        "throughput_rps": 0.2,
        "output_tps": 1.3,
        "output_tps_per_gpu": 0.65,
        "total_tps": 41.3,
        "goodput_rps": 0.1,
        "slo_attainment": 1 / 3,
        "prefix_hit_fraction": 0.25,
        "preemptions": 2,
        "swaps": 1,
        "kv_used_mean": (0.2 * 1 + 0.6 * 3) / 4,
        "kv_used_max": 0.9,
        "running_mean": 2.5,
        "waiting_mean": 3.0,
        "spec_acceptance_fraction": 0.75,
        # Ten seconds at 36 $/h are 0.1 $, for 13 tokens.
        "cost_per_1k_output_tokens": 0.1 / 0.013,
        "cost_per_hour": 36.0,
        "steps": 40,
    }
    assert {name: summary.value(name) for name in expected} == pytest.approx(expected)
    assert summary.value("queue_s", "mean") == 0.25
    assert summary.value("ttft_s", "max") == 2.0
    assert summary.value("tpot_s", "p50") == 1.0
    assert summary.value("e2e_s", "count") == 2
    assert summary.value("itl_s", "mean") == 1.0
    assert summary.value("itl_s", "p99") == pytest.approx(1.0, rel=1 / 64)


def test_no_requests_give_no_figures_and_no_warnings():
    summary = summarise(EMPTY, slo=TABLE, class_names=NAMES, cost_per_hour=1.0)
    assert summary.requests == 0
    assert summary.by_class == {}
    # What counts is zero; what would divide by nothing is not there.
    for metric in METRICS:
        value = summary.value(metric.name, "p99" if metric.kind == "distribution" else "")
        assert value in ((0, None) if metric.kind == "counter" else (0, 1, None))


def test_without_an_slo_there_is_no_attainment():
    summary = summarise(Records.of(arrival_s=[0.0], scheduled_s=[0.0], first_token_s=[1.0], finish_s=[1.0]))
    assert summary.slo_attainment is None
    assert summary.goodput_rps is None
    assert summary.by_class["default"].slo == "none"


def test_a_class_without_a_name_is_shown_by_its_number():
    made = Records.of(arrival_s=[0.0, 1.0], scheduled_s=[0.0, 1.0], first_token_s=[1.0, 1.0], finish_s=[1.0, 2.0])
    made.slo_class[:] = [0, 3]
    assert list(summarise(made).by_class) == ["default", "class 3"]


def test_days_of_tokens_do_not_overflow():
    count = 3000
    made = Records.of(arrival_s=np.arange(count), prompt_tokens=np.full(count, 2**30), first_token_s=np.arange(count))
    assert summarise(made).prompt_tokens == count * 2**30


def test_a_statistic_that_does_not_exist_is_said():
    with pytest.raises(AssertionError, match="has the statistics"):
        summarise(EMPTY).value("ttft_s", "p42")


def test_the_interval_is_that_of_twenty_batch_means():
    values = np.random.default_rng(1).exponential(size=205)
    means = [values[10 * batch : 10 * batch + 10].mean() for batch in range(20)]
    low, high = scipy.stats.t.interval(0.95, df=19, loc=np.mean(means), scale=scipy.stats.sem(means))
    assert mean_ci95(values) == pytest.approx((high - low) / 2, rel=1e-6)


def test_intervals_cover_the_mean_of_correlated_values():
    """Values that lean on the one before, as waiting times do: 95 % intervals cover the true mean about that often."""
    random = np.random.default_rng(5)
    trials, count, lean = 300, 20_000, 0.98
    values = np.zeros((trials, count))
    noise = random.normal(size=(trials, count))
    values[:, 0] = noise[:, 0] / np.sqrt(1 - lean**2)
    for index in range(1, count):
        values[:, index] = lean * values[:, index - 1] + noise[:, index]
    covered = [abs(row.mean()) <= (mean_ci95(row) or 0.0) for row in values]
    naive = [abs(row.mean()) <= 1.96 * row.std() / np.sqrt(count) for row in values]
    # Three standard errors of 300 trials are 3.8 points; batch means fall a little short of 95 % by nature.
    assert 0.88 <= np.mean(covered) <= 0.99
    # What the batches are for: taking the values as independent covers hardly ever.
    assert np.mean(naive) < 0.4


@pytest.mark.slow
def test_a_million_rows_cost_under_half_a_cpu_second():
    count = 1_000_000
    random = np.random.default_rng(0)
    arrival_s = np.cumsum(random.exponential(size=count))
    scheduled_s = arrival_s + random.exponential(size=count)
    first_token_s = scheduled_s + random.exponential(size=count)
    output_tokens = random.integers(1, 500, count)
    made = Records.of(
        arrival_s=arrival_s,
        scheduled_s=scheduled_s,
        first_token_s=first_token_s,
        finish_s=first_token_s + 0.02 * output_tokens,
        prompt_tokens=random.integers(1, 4000, count),
        output_tokens=output_tokens,
        slo_class=random.integers(0, 3, count),
    )
    costs = []
    for _ in range(3):
        started = time.process_time()
        summarise(made, slo=TABLE, class_names=NAMES)
        costs.append(time.process_time() - started)
    # The least of three: a busy machine adds to CPU time too.
    assert min(costs) < 0.5
