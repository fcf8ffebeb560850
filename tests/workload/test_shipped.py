"""The shipped descriptions: a generated day lies as near to the data as their fit says, in lengths, gaps, bursts and
reuse.
"""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np
import pytest

from inferencegym.workload import generate, names, read
from inferencegym.workload.describe import describe, dispersion
from inferencegym.workload.fitting import distance
from inferencegym.workload.prefixes import endless_cache
from inferencegym.workload.shipped import FOLDER, load_named

DAY_S = 86_400.0
TRACES = {
    "azure-conversation": "azure_conv_2023",
    "azure-code": "azure_code_2023",
    "mooncake-conversation": "mooncake_conversation",
    "mooncake-arxiv-head": "mooncake_arxiv_head1000",
}


@cache
def day(name: str):
    return generate(name, seed=11, duration_s=DAY_S)


def chance(n: int) -> float:
    """Distance that a sample of n keeps below, 99 times in 100, from the law it is drawn from."""
    return 1.63 / sqrt(n)


def share_below(values, probs, quantiles):
    """Largest difference between the sample's shares and the grid's, just below and at each quantile."""
    ordered = np.sort(values)
    q = np.asarray(quantiles, dtype=float)
    at = np.searchsorted(ordered, q + 0.5, side="right") / len(ordered)
    below = np.searchsorted(ordered, q - 0.5, side="left") / len(ordered)
    p = np.asarray(probs)
    return float(max((p - at).max(), (below - p).max()))


@pytest.mark.parametrize("name", names())
def test_it_says_whose_data_it_rests_on(name):
    spec = load_named(name)
    assert spec.licence in ("CC-BY-4.0", "Apache-2.0")
    assert spec.attribution
    assert spec.fitted_on
    w = generate(name, seed=0, requests=50)
    assert "generated from the description" in w.source
    assert spec.licence in w.attribution


@pytest.mark.parametrize("name", names())
def test_it_is_small(name):
    assert (FOLDER / f"{name}.json").stat().st_size < 30_000


@pytest.mark.parametrize("name", TRACES)
def test_a_day_has_the_lengths_of_its_own_grids(name):
    w, law = day(name), load_named(name).traffic[0].lengths
    assert share_below(w.prompt_tokens, law.prompt_probs, law.prompt_q) < chance(len(w))
    order = np.argsort(w.prompt_tokens, kind="stable")
    bins = len(law.output_q)
    for i in (0, bins // 2, bins - 1):
        part = w.output_tokens[order[i * len(w) // bins : (i + 1) * len(w) // bins]]
        # Equal prompts at a bin's edge may fall into either bin.
        assert share_below(part, law.output_probs, law.output_q[i]) < chance(len(part)) + 0.03


@pytest.mark.parametrize("name", ["azure-conversation", "azure-code"])
def test_gaps_have_the_quantiles_of_the_grid(name):
    gaps, law = np.diff(day(name).arrival_s), load_named(name).traffic[0].gaps
    at = np.searchsorted(np.sort(gaps), law.gap_q_s, side="right") / len(gaps)
    # Gaps remember each other, so a day of them counts for fewer.
    assert np.abs(at - np.asarray(law.probs))[1:-1].max() < 0.02


@pytest.mark.parametrize("name", ["azure-conversation", "azure-code", "mooncake-conversation"])
def test_an_hour_bursts_like_the_data(name):
    measured = load_named(name).measured["idc_60s"]
    found = [dispersion(generate(name, seed=seed, duration_s=2800.0).arrival_s, 60.0) for seed in range(20)]
    assert np.median(found) == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize("name", ["mooncake-conversation", "mooncake-arxiv-head"])
def test_an_endless_cache_finds_as_much_as_in_the_data(name):
    spec = load_named(name)
    reuse = endless_cache(generate(name, seed=1, requests=spec.fitted_on["rows"]))
    assert reuse.hit_rate_tokens == pytest.approx(spec.measured["hit_rate_tokens"], abs=0.03)
    assert reuse.hit_rate_blocks == pytest.approx(spec.measured["hit_rate_blocks"], abs=0.03)


def test_burstgpt_has_the_weeks_and_campaigns_of_the_data():
    spec = load_named("burstgpt")
    w = generate("burstgpt", seed=0, duration_s=49 * DAY_S)
    api = np.isin(w.kind, [i for i, name in enumerate(w.kind_names) if name.startswith("api")])
    hours = {
        log: np.bincount((w.arrival_s[rows] // 3600).astype(int), minlength=49 * 24)
        for log, rows in (("api", api), ("conv", ~api))
    }
    assert hours["conv"].mean() == pytest.approx(spec.measured["conv_mean_per_hour"], rel=0.05)
    assert hours["conv"].std() / hours["conv"].mean() == pytest.approx(spec.measured["conv_hour_cv"], rel=0.05)
    assert (hours["api"] > 0).mean() == pytest.approx(spec.measured["api_active_share"], abs=0.08)
    assert hours["api"].std() / hours["api"].mean() == pytest.approx(spec.measured["api_hour_cv"], rel=0.4)
    served, failed = w.servable()
    assert failed / len(w) == pytest.approx(0.018, abs=0.005)
    tokens = served.prompt_tokens.astype(float) + served.output_tokens
    assert tokens.mean() == pytest.approx(spec.measured["mean_total_tokens"], rel=0.05)
    assert (w.arrival_s == np.floor(w.arrival_s)).all()


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", TRACES)
def test_a_day_is_as_near_to_the_real_trace_as_the_fit_says(shared_data, name):
    real = read(shared_data / "traces" / f"{TRACES[name]}.parquet", prefixes=False)
    w, said = day(name), load_named(name).measured
    # The sampling error of the real trace is in the fit's figures already; a day's own is small.
    assert distance(w.prompt_tokens, real.prompt_tokens) < said["ks_prompt"] + chance(len(w))
    assert distance(w.output_tokens, real.output_tokens) < said["ks_output"] + chance(len(w))
    if "ks_gaps" in said:
        assert distance(np.diff(w.arrival_s), np.diff(real.arrival_s)) < said["ks_gaps"] + chance(len(w))
    else:
        per_tick = [np.unique(x.arrival_s, return_counts=True)[1] for x in (w, real)]
        assert distance(*per_tick) < said["ks_requests_per_tick"] + chance(len(per_tick[1]))
    if "correlation" in said:
        assert describe(w.head(20_000))["correlation"]["spearman"] == pytest.approx(
            said["correlation"]["spearman"], abs=0.06
        )
