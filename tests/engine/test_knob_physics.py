"""Every knob moves the physics the right way, on the engine: what a step costs, what memory holds, who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest

from inferencegym import Workload
from inferencegym.decision.snapshot import Snapshot
from inferencegym.engine.fleet import Plan
from inferencegym.engine.window import TALLY
from inferencegym.ground.rng import stream
from inferencegym.metrics.itl import ItlHistogram
from tests.engine import fleets
from tests.engine.fleets import SECOND_PS, core_of, gap_counts, levers, started

TIERS = ("FP16", "INT8", "INT4")


@dataclass(frozen=True)
class Run:
    """What came of serving a workload for some time under one setting."""

    records: np.ndarray
    itl: ItlHistogram
    tokens_per_s: float
    preemptions: int
    refused: int
    met_weight: float
    shown: Snapshot
    busy_share: float

    def ttft_s(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Times to first token of the requests that finished, of these rows if given."""
        mine = self.records if rows is None else self.records[np.isin(self.records["row"], rows)]
        return (mine["first_ps"] - mine["arrival_ps"]) / 1e12

    def latency_s(self) -> float:
        """Mean time from arrival to the last token."""
        return float((self.records["finish_ps"] - self.records["arrival_ps"]).mean() / 1e12)


def serve(of: Plan, workload: Workload, seconds: int, **knobs: object) -> Run:
    """One setting from the start on, without restarts; figures of the whole time."""
    fleet = started(of, workload, capacity=256, **knobs)
    ended, met, preempted, refused = [], 0.0, 0.0, 0.0
    for _ in range(seconds):
        fleet.step(SECOND_PS)
        ended.append(fleet.records(0).copy())
        met += fleet.tally[0, TALLY.index("met_weight")]
        preempted += fleet.tally[0, TALLY.index("preemptions")]
        refused += fleet.tally[0, TALLY.index("refused")]
    records = np.concatenate(ended)
    core = core_of(fleet)
    return Run(
        records=records[records["outcome"] == 0],
        itl=ItlHistogram(gap_counts(fleet), int(core["gap_sum_ps"].sum()), int(core["gap_count"].sum())),
        tokens_per_s=float(core["emitted_tokens"].sum()) / seconds,
        preemptions=int(preempted),
        refused=int(refused),
        met_weight=met,
        shown=Snapshot.of(fleet.seen[0]),
        busy_share=float(core["busy_ps"].mean() / (seconds * SECOND_PS)),
    )


def traffic(rate_rps: float, seconds: float, prompt: int, output: int, seed: int = 1, megas: int = 0) -> Workload:
    """Poisson arrivals of chat requests, every fifth of them urgent, and evenly spread prompts of 12,000 tokens."""
    rng = stream(seed, "physics")
    n = round(rate_rps * seconds)
    arrival_s = np.sort(rng.random(n) * seconds)
    mega_s = (np.arange(megas) + 0.5) * seconds / max(megas, 1)
    urgent = np.arange(n + megas) % 5 == 0
    return Workload.of(
        arrival_s=np.concatenate([arrival_s, mega_s]),
        prompt_tokens=np.concatenate([rng.integers(prompt // 2, 3 * prompt // 2, n), np.full(megas, 12_000)]),
        output_tokens=np.concatenate([rng.integers(output // 2, 3 * output // 2, n), np.full(megas, 20)]),
        priority=np.where(urgent, 0, 1),
        slo_class=np.where(urgent, 0, 1),
        slo_class_names=["vip", "free"],
    )


@lru_cache(maxsize=1)
def roomy() -> Plan:
    """Two H100s with all the KV that fits."""
    return fleets.plan(kv_blocks=None, max_model_len=16_384, acceptance=(0.75, 0.65, 0.55), prefix_caching=False)


@lru_cache(maxsize=1)
def tight() -> Plan:
    """The same with 48,000 tokens of KV on a replica."""
    return fleets.plan(kv_blocks=3000, max_model_len=16_384, prefix_caching=False)


# --- batch cap --------------------------------------------------------------------------------------------------------


def test_a_larger_batch_gives_more_tokens_a_second_and_longer_gaps() -> None:
    runs = [serve(roomy(), traffic(100, 10, 200, 200), 10, batch_cap=cap) for cap in (2, 8, 32, 128)]
    rates = [run.tokens_per_s for run in runs]
    gaps_ms = [1000 * run.itl.mean() for run in runs]
    assert all(b > 1.3 * a for a, b in pairwise(rates)), rates
    assert all(b > 1.01 * a for a, b in pairwise(gaps_ms)), gaps_ms
    # Decode is bound by memory: four times the seats give nearly four times the tokens as long as all are taken.
    assert rates[1] / rates[0] == pytest.approx(4.0, rel=0.1)
    assert runs[3].ttft_s().mean() < 0.2 * runs[0].ttft_s().mean()


def test_seats_beyond_the_load_change_nothing() -> None:
    calm = traffic(10, 10, 200, 100)
    a, b = (serve(roomy(), calm, 12, batch_cap=cap) for cap in (256, 512))
    assert np.array_equal(a.records, b.records)


# --- KV budget --------------------------------------------------------------------------------------------------------


def test_a_small_kv_budget_preempts_long_requests_and_not_short_ones() -> None:
    long, short = traffic(8, 10, 1500, 400), traffic(8, 10, 50, 20)
    full, fifth = (serve(tight(), long, 20, kv_budget_fraction=share) for share in (1.0, 0.2))
    assert full.preemptions == 0
    assert fifth.preemptions > 10
    assert fifth.met_weight < 0.5 * full.met_weight
    assert fifth.tokens_per_s < 0.9 * full.tokens_per_s
    assert fifth.shown.kv_cache_occupancy > 0.7
    small, whole = (serve(tight(), short, 20, kv_budget_fraction=share) for share in (0.2, 1.0))
    assert small.preemptions == 0
    assert np.array_equal(small.records, whole.records)


def test_a_prompt_that_never_fits_the_budget_is_refused_and_holds_up_nobody() -> None:
    workload = traffic(5, 10, 200, 50, megas=1)
    starved, fed = (serve(tight(), workload, 20, kv_budget_fraction=share) for share in (0.2, 1.0))
    assert (starved.refused, fed.refused) == (1, 0)
    assert len(starved.records) == len(workload) - 1


# --- speculation ------------------------------------------------------------------------------------------------------


def test_speculation_helps_where_few_run_and_hurts_where_many_do() -> None:
    few, many = traffic(1, 10, 200, 200), traffic(150, 10, 200, 200)
    calm = {depth: serve(roomy(), few, 12, speculation_depth=depth) for depth in (0, 1, 4)}
    assert calm[0].latency_s() > 1.4 * calm[1].latency_s()
    assert calm[1].latency_s() > 1.2 * calm[4].latency_s()
    assert calm[4].busy_share < 0.6 * calm[0].busy_share
    assert np.isnan(calm[0].shown.spec_acceptance_rate)
    loaded = {depth: serve(roomy(), many, 12, speculation_depth=depth, batch_cap=512) for depth in (0, 8)}
    assert loaded[8].tokens_per_s < 0.9 * loaded[0].tokens_per_s
    assert loaded[8].met_weight < 0.7 * loaded[0].met_weight
    assert loaded[8].itl.mean() > 3 * loaded[0].itl.mean()


def test_drafts_are_kept_as_often_as_the_settings_say() -> None:
    of = roomy()
    fleet = started(of, traffic(10, 10, 200, 200), capacity=256, speculation_depth=3)
    for _ in range(12):
        fleet.step(SECOND_PS)
    core = core_of(fleet)
    chances = of.settings.cumulative_acceptance()[:3]
    kept = core["accepted"].sum() / core["drafted"].sum()
    assert kept == pytest.approx(sum(chances) / 3, rel=0.03)


# --- quantization -----------------------------------------------------------------------------------------------------


def test_fewer_bits_speed_up_what_memory_bounds_and_not_what_computing_does() -> None:
    few, prompts = traffic(1, 10, 200, 200), traffic(60, 10, 3000, 5)
    step_ms = {tier: 1000 * serve(roomy(), few, 12, quantization_tier=tier).itl.percentile(50) for tier in TIERS}
    assert step_ms["INT8"] < 0.8 * step_ms["FP16"]
    assert step_ms["INT4"] < 0.85 * step_ms["INT8"]
    served = {tier: len(serve(roomy(), prompts, 12, quantization_tier=tier).records) for tier in TIERS}
    assert served["INT8"] > 1.05 * served["FP16"]  # INT8 arithmetic is faster too
    assert served["INT4"] < served["FP16"]  # INT4 weights are turned into BF16 before they are multiplied


def test_smaller_weights_leave_more_room_for_kv() -> None:
    fp16, int8, int4 = (int(roomy().variants["kv_blocks"][i]) for i in (0, 2, 4))
    facts, block = roomy().deployment.model_facts, roomy().deployment.kv_block_bytes()
    assert fp16 < int8 < int4
    assert int8 - fp16 == pytest.approx((facts.weight_bytes("bf16") - facts.weight_bytes("int8")) / block, abs=1)


def test_a_reload_costs_its_pause_and_pays_back_later() -> None:
    workload = traffic(130, 20, 200, 200)
    emitted = {}
    for when in (None, 5):
        fleet = started(roomy(), workload, capacity=256, batch_cap=64)
        tokens = []
        for window in range(20):
            if window == when:
                fleet.want[:] = levers(quantization_tier="INT8", batch_cap=64)
            fleet.step(SECOND_PS)
            tokens.append(fleet.tally[0, TALLY.index("emitted_tokens")])
        emitted[when] = np.array(tokens)
    kept, reloaded = emitted[None], emitted[5]
    assert np.array_equal(kept[:5], reloaded[:5])
    pause_s = roomy().pause_ps[0, 2] / 1e12
    assert reloaded[5] < (1 - pause_s + 0.1) * kept[5]
    assert (reloaded[8:] > 1.1 * kept[8:]).all()


# --- split ------------------------------------------------------------------------------------------------------------


def test_a_split_keeps_long_prompts_out_of_the_gaps_between_tokens() -> None:
    workload = traffic(10, 10, 200, 150, megas=20)
    mega = np.flatnonzero(workload.prompt_tokens == 12_000)
    chat = np.flatnonzero(workload.prompt_tokens != 12_000)
    pooled, split = (serve(roomy(), workload, 14, prefill_decode_split=on) for on in (False, True))
    assert len(pooled.records) == len(split.records) == len(workload)
    assert pooled.itl.percentile(99) > 0.1
    assert split.itl.percentile(99) < 0.01
    assert split.latency_s() < pooled.latency_s()
    # The price: all prompts share one replica, so chats wait behind the long ones more often.
    assert np.median(split.ttft_s(chat)) > 3 * np.median(pooled.ttft_s(chat))
    assert split.ttft_s(mega).min() > 0.25


def test_a_split_wastes_the_pool_that_has_nothing_to_do() -> None:
    decodes, prefills = traffic(120, 10, 200, 300), traffic(60, 10, 1500, 20)
    for workload, cap in ((decodes, 64), (prefills, 256)):
        pooled, split = (serve(roomy(), workload, 10, prefill_decode_split=on, batch_cap=cap) for on in (False, True))
        assert split.tokens_per_s < 0.75 * pooled.tokens_per_s
        assert len(split.records) < 0.8 * len(pooled.records)


# --- priority routing -------------------------------------------------------------------------------------------------


def test_priority_routing_moves_waiting_from_the_vips_to_the_rest() -> None:
    workload = traffic(60, 10, 200, 200)
    vip, free = (np.flatnonzero(workload.slo_class == kind) for kind in (0, 1))
    plain, routed = (serve(roomy(), workload, 40, batch_cap=16, priority_routing=on) for on in (False, True))
    assert len(plain.records) == len(routed.records) == len(workload)
    p99 = [[float(np.percentile(run.ttft_s(rows), 99)) for rows in (vip, free)] for run in (plain, routed)]
    assert p99[1][0] < 0.05 * p99[0][0]
    assert p99[1][1] > p99[0][1]
    assert routed.ttft_s(free).mean() > 1.1 * plain.ttft_s(free).mean()
    assert routed.met_weight > 3 * plain.met_weight
    # Nothing is gained over all: somebody else waits.
    assert routed.tokens_per_s == pytest.approx(plain.tokens_per_s, rel=0.02)


def test_priority_routing_takes_memory_from_the_rest_first() -> None:
    workload = traffic(8, 10, 1500, 400)
    preempted = {}
    for on in (False, True):
        records = serve(tight(), workload, 60, kv_budget_fraction=0.2, priority_routing=on).records
        vip = workload.slo_class[records["row"]] == 0
        preempted[on] = (int(records["preemptions"][vip].sum()), int(records["preemptions"][~vip].sum()))
    assert preempted[False][0] > 0
    assert preempted[True][0] == 0
    assert preempted[True][1] > 10
