"""What a window shows and counts, worked out again in plain Python from the requests themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from inferencegym import Workload
from inferencegym.decision.knobs import QUANTIZATION_TIERS
from inferencegym.decision.snapshot import NAMES, Snapshot
from inferencegym.engine.codes import Ending, Phase
from inferencegym.engine.fleet import FORMATS, Fleet, Steering
from inferencegym.engine.window import TALLY
from inferencegym.ground.rng import stream
from inferencegym.metrics.itl import ItlHistogram
from tests.engine import fleets
from tests.engine.fleets import (
    OBJECTIVES,
    SECOND_PS,
    any_levers,
    core_of,
    crowd,
    gap_counts,
    levers,
    live,
    started,
    windows_of,
)

IN_QUEUE = (Phase.WAITING, Phase.SWAPPED, Phase.CARRIED)


def nearest_rank(values: list[float], q: float) -> float:
    """The least value that at least a share q of all do not exceed; NaN of nothing."""
    return sorted(values)[max(int(np.ceil(q * len(values))) - 1, 0)] if values else float("nan")


@dataclass
class Request:
    """One request as it stands at a window's end, gone or not."""

    row: int
    urgent: bool
    weight: float
    ttft_ps: int
    tpot_ps: int
    prompt: int
    arrival_ps: int
    first_ps: int
    output: int
    preemptions: int
    phase: int = -1
    finish_ps: int = -1
    refused: bool = False

    def in_time(self) -> bool:
        """Whether the first token came within its objective."""
        return self.first_ps >= 0 and self.first_ps - self.arrival_ps <= self.ttft_ps


@dataclass
class Book:
    """Keeps a row's requests from window to window and says what should be seen."""

    fleet: Fleet
    until_ps: int = 0
    tokens: dict[int, int] = field(default_factory=dict)
    preempted: dict[int, int] = field(default_factory=dict)
    gaps: ItlHistogram = field(default_factory=ItlHistogram)

    def requests(self) -> list[Request]:
        """All that are here, and all that ended in the window."""
        fleet = self.fleet
        workload = fleet.asking(0).workload
        slots = fleets.memory.part_of(fleet.arena(0), "slots")
        core = core_of(fleet)
        found = []
        for r in range(len(core)):
            for slot in slots[r][: core["slots_used"][r]]:
                if slot["state"] != Phase.FREE:
                    crowd_turns = (
                        int(core["turn"][r] - slot["turn"])
                        if slot["in_crowd"] and slot["state"] == Phase.RUNNING
                        else 0
                    )
                    found.append(
                        self._request(workload, slot, int(slot["generated"]) + crowd_turns, phase=int(slot["state"]))
                    )
        for record in fleet.records(0):
            refused = record["outcome"] != Ending.OK
            found.append(self._request(workload, record, int(record["output"]), finish_ps=int(record["finish_ps"]), refused=refused))  # fmt: skip
        return found

    @staticmethod
    def _request(workload: Workload, of: np.ndarray, output: int, **more: Any) -> Request:
        row = int(of["row"])
        kind = int(workload.slo_class[row])
        return Request(
            row=row, urgent=kind == 0, weight=OBJECTIVES["weight"][kind], ttft_ps=round(OBJECTIVES["ttft_s"][kind] * 1e12),
            tpot_ps=round(OBJECTIVES["tpot_s"][kind] * 1e12), prompt=int(workload.prompt_tokens[row]), arrival_ps=int(of["arrival_ps"]),
            first_ps=int(of["first_ps"]), output=output, preemptions=int(of["preemptions"]), **more,
        )  # fmt: skip

    def expected(self, window_ps: int) -> tuple[dict[str, float], dict[str, float]]:
        """(seen, tally) of the window that has just ended."""
        start_ps, self.until_ps = self.until_ps, self.until_ps + window_ps
        until_ps, span_s, nan = self.until_ps, window_ps / 1e12, float("nan")
        fleet, plan, everyone = self.fleet, self.fleet.plan, self.requests()
        workload = fleet.asking(0).workload
        batch, fraction, depth, tier, split, routing = fleet.levers[0].tolist()
        came = [r for r in range(len(workload)) if start_ps < round(workload.arrival_s[r] * 1e12) <= until_ps]
        here = [r for r in everyone if r.finish_ps < 0]
        gone = [r for r in everyone if r.finish_ps >= 0]
        served = [r for r in gone if not r.refused]
        queue = [r for r in here if r.phase in IN_QUEUE]
        first = [r for r in here + served if r.first_ps > start_ps]
        overdue = [r for r in here if r.first_ps < 0 and until_ps - r.arrival_ps > r.ttft_ps]
        good = [r for r in served if r.in_time() and (r.finish_ps - r.first_ps) <= r.tpot_ps * max(r.output - 1, 1)]
        emitted = sum(r.output - self.tokens.get(r.row, 0) for r in everyone)
        preemptions = sum(r.preemptions - self.preempted.get(r.row, 0) for r in everyone)
        self.tokens |= {r.row: r.output for r in everyone}
        self.preempted |= {r.row: r.preemptions for r in everyone}
        gaps = ItlHistogram(
            gap_counts(fleet), int(core_of(fleet)["gap_sum_ps"].sum()), int(core_of(fleet)["gap_count"].sum())
        )
        self.itl, self.gaps = gaps - self.gaps, gaps
        core = core_of(fleet)
        held = int((core["pool_blocks"] - core["blank"] - core["cached_free"]).sum())
        deployment = plan.deployment
        weights_gb = (
            deployment.model_facts.weight_bytes(FORMATS[QUANTIZATION_TIERS[int(tier)]]) * deployment.replicas / 1e9
        )
        hourly = (deployment.price_per_gpu_hour or 0.0) * deployment.gpus
        cost = hourly * span_s / 3600 * (1 - plan.steering.lent_credit * (1 - fraction))
        ttft_ms = [(r.first_ps - r.arrival_ps) / 1e9 for r in first]

        def compliance(among: list[Request]) -> float:
            decided = {r.row for r in (*first, *overdue, *(r for r in gone if r.refused)) if r in among}
            return sum(r.in_time() for r in first if r in among) / len(decided) if decided else 1.0

        seen = {
            "queue_depth": len(queue),
            "active_requests": sum(r.phase == Phase.RUNNING for r in here),
            "kv_cache_occupancy": max(held, 0) / core["pool_blocks"].sum(),
            "mean_prompt_length": float(np.mean(workload.prompt_tokens[came])) if came else nan,
            "p50_ttft_ms": nearest_rank(ttft_ms, 0.5),
            "p99_ttft_ms": nearest_rank(ttft_ms, 0.99),
            "throughput_tps": emitted / span_s,
            "slo_compliance_rate": compliance(everyone),
            "gpu_memory_used_gb": weights_gb + max(held, 0) * deployment.kv_block_bytes() / 1e9,
            "estimated_cost_per_1k": 1000 * cost / emitted if emitted else nan,
            "request_arrival_rate": len(came) / span_s,
            "preemptions": preemptions,
            "goodput_rps": len(good) / span_s,
            "oldest_wait_ms": max([until_ps - r.arrival_ps for r in queue], default=0) / 1e9,
            "waiting_prompt_tokens": sum(r.prompt for r in queue),
            "vip_queue_depth": sum(r.urgent for r in queue),
            "vip_slo_compliance_rate": compliance([r for r in everyone if r.urgent]),
            "mean_output_length": float(np.mean([r.output for r in served])) if served else nan,
            "batch_cap": batch, "kv_budget_fraction": fraction, "speculation_depth": depth,
            "quantization_tier": tier, "prefill_decode_split": split, "priority_routing": routing,
            "window_s": span_s, "snapshot_age_s": 0.0, "episode_fraction": 0.0,
        }  # fmt: skip
        hopeful = [
            r
            for r in here
            if (r.in_time() and until_ps - r.first_ps <= r.tpot_ps * (r.output + 1))
            or (r.first_ps < 0 and until_ps - r.arrival_ps <= r.ttft_ps)
        ]
        tally = {
            "arrived": len(came),
            "finished": len(served),
            "served_weight": sum(r.weight for r in served),
            "met_weight": sum(r.weight for r in good),
            "emitted_tokens": emitted,
            "preemptions": preemptions,
            "refused": len(gone) - len(served),
            "met": len(good),
            "overdue_weight": sum(r.weight for r in overdue if until_ps - r.arrival_ps - r.ttft_ps <= window_ps),
            "hopeful_weight": sum(r.weight for r in hopeful),
            "late_weight": sum(r.weight for r in overdue),
        }
        return seen, tally


#: Compared otherwise: percentiles of gaps by their bins, counters below.
ELSEWHERE = {"p50_itl_ms", "p99_itl_ms", "spec_acceptance_rate", "eviction_events", "pause_left_s"}


@pytest.mark.parametrize("seed", range(8))
def test_what_is_seen_is_what_happened(seed: int) -> None:
    rng = stream(seed, "seen")
    of = fleets.plan(
        replicas=2, kv_blocks=(200, 900)[seed % 2], prefix_caching=seed % 4 < 2, price_per_gpu_hour=2.5,
        steering=Steering(restart_s=0.3, split_s=0.2, lent_credit=0.4),
    )  # fmt: skip
    fleet = started(of, crowd(200 + seed, 220, rate_rps=50.0), prefill_decode_split=seed >= 6)
    book, kinds = Book(fleet), set()
    totals = np.zeros(3)
    for k, window_ps in enumerate(windows_of(rng, 14)):
        # At first live knobs only, so that SLOs can be met; then restarts too.
        fixed = {} if k > 6 else {"quantization_tier": np.nan, "prefill_decode_split": np.nan}
        fleet.want[:] = any_levers(rng, 1, fixed, share=0.2)
        fleet.step(window_ps)
        seen, tally = book.expected(window_ps)
        shown = dict(zip(NAMES, fleet.seen[0].tolist(), strict=True))
        counted = dict(zip(TALLY, fleet.tally[0].tolist(), strict=True))
        assert {name: shown[name] for name in seen} == pytest.approx(seen, rel=1e-9, nan_ok=True)
        assert {name: counted[name] for name in tally} == pytest.approx(tally, rel=1e-9)
        assert set(seen) | ELSEWHERE == set(NAMES)
        assert set(tally) | {"reloads"} == set(TALLY)
        # The upper end of the bin that holds the nearest-rank gap: at most a 64th above the true one.
        for name, q in (("p50_itl_ms", 50.0), ("p99_itl_ms", 99.0)):
            assert np.isnan(shown[name]) == (book.itl.count == 0)
            if book.itl.count:
                assert 1.0 <= shown[name] / (1000 * book.itl.percentile(q)) <= 65 / 64 + 1e-9
        core = core_of(fleet)
        now = np.array([core[name].sum() for name in ("evicted_blocks", "drafted", "accepted")])
        evicted, drafted, accepted = now - totals
        totals = now
        assert shown["eviction_events"] == evicted
        assert shown["spec_acceptance_rate"] == pytest.approx(accepted / drafted if drafted else np.nan, nan_ok=True)
        left_s = max(int(fleet.stands["ready_ps"][0]) - book.until_ps, 0) / 1e12
        assert shown["pause_left_s"] == pytest.approx(left_s)
        kinds |= {name for name, value in tally.items() if value > 0}
        kinds |= {"missed"} if 0 < shown["slo_compliance_rate"] < 1 else set()
    always = {"arrived", "finished", "served_weight", "emitted_tokens", "preemptions", "refused", "hopeful_weight"}
    assert kinds >= always | ({"met", "met_weight"} if seed % 2 else {"overdue_weight", "late_weight", "missed"})


def test_nothing_has_happened_before_the_first_request() -> None:
    late = Workload.of(arrival_s=[5.0], prompt_tokens=[10], output_tokens=[3], slo_class_names=["vip", "free"])
    fleet = started(fleets.plan(), late, kv_budget_fraction=0.5)
    at_start = Snapshot.of(fleet.seen[0])
    assert (at_start.queue_depth, at_start.throughput_tps, at_start.slo_compliance_rate) == (0.0, 0.0, 1.0)
    assert (at_start.batch_cap, at_start.kv_budget_fraction) == (256.0, 0.5)
    fleet.step(SECOND_PS)
    idle = Snapshot.of(fleet.seen[0])
    assert (idle.queue_depth, idle.active_requests, idle.kv_cache_occupancy, idle.request_arrival_rate) == (0, 0, 0, 0)
    assert np.isnan([idle.p99_ttft_ms, idle.p50_itl_ms, idle.mean_prompt_length, idle.estimated_cost_per_1k]).all()
    assert idle.slo_compliance_rate == idle.vip_slo_compliance_rate == 1.0
    assert not fleet.tally.any()


def test_whoever_waits_for_an_earlier_answer_counts_when_it_comes() -> None:
    turns = Workload.of(
        arrival_s=[0.0, 0.0, 0.0], prompt_tokens=[100, 300, 500], output_tokens=[20, 20, 20], session_id=[1, 1, 1],
        after=[-1, 0, 1], think_s=[0.0, 1.0, 1.0], slo_class_names=["vip", "free"],
    )  # fmt: skip
    fleet = started(fleets.plan(), turns)
    arrived, lengths = [], []
    for _ in range(5):
        fleet.step(SECOND_PS)
        arrived.append(fleet.tally[0, TALLY.index("arrived")])
        lengths.append(fleet.seen[0, NAMES.index("mean_prompt_length")])
    assert arrived == [1, 1, 1, 0, 0]
    assert lengths[:3] == [100, 300, 500]


def test_prompts_on_their_way_to_the_decode_pool_are_in_no_queue() -> None:
    of = fleets.plan(kv_blocks=2000)
    slow = fleets.Plan(of.deployment.with_(link_gb_per_s=0.05), of.settings, of.steering)
    fleet = started(slow, crowd(3, 60), prefill_decode_split=True)
    fleet.step(SECOND_PS)
    on_wire = int(fleet.header(0)["wire_len"][0])
    assert on_wire > 5
    assert (live(fleet)["state"] == Phase.ON_WIRE).sum() == on_wire
    shown = Snapshot.of(fleet.seen[0])
    assert shown.vip_queue_depth <= shown.queue_depth
    assert shown.waiting_prompt_tokens == sum(slot["prompt"] for slot in live(fleet) if slot["state"] in IN_QUEUE)


def test_lending_the_pool_out_is_credited_and_two_tiers_in_memory_are_seen() -> None:
    steering = Steering(lent_credit=0.4, resident=("INT8", "INT4"), price_per_gpu_hour=3.0)
    of = fleets.plan(kv_blocks=2000, steering=steering)
    cost, used_gb = {}, {}
    for fraction in (1.0, 0.5):
        fleet = started(of, crowd(3, 60), kv_budget_fraction=fraction, quantization_tier="INT8")
        fleet.step(2 * SECOND_PS)
        shown = Snapshot.of(fleet.seen[0])
        cost[fraction] = shown.estimated_cost_per_1k * shown.throughput_tps / 1000
        used_gb[fraction] = shown.gpu_memory_used_gb
    assert cost[1.0] == pytest.approx(2 * 3.0 / 3600)
    assert cost[0.5] == pytest.approx(cost[1.0] * 0.8)
    facts = of.deployment.model_facts
    weights_gb = 2 * (facts.weight_bytes("int8") + facts.weight_bytes("int4")) / 1e9
    assert used_gb == {1.0: pytest.approx(weights_gb), 0.5: pytest.approx(weights_gb)}  # all have left by then


def test_levers_are_what_is_shown() -> None:
    fleet = started(fleets.plan(), crowd(3, 60))
    fleet.want[:] = levers(batch_cap=3, speculation_depth=2, priority_routing=True)
    fleet.step(SECOND_PS)
    assert fleet.levers[0].tolist() == levers(batch_cap=3, speculation_depth=2, priority_routing=True).tolist()
    assert fleet.seen[0, NAMES.index("batch_cap") : NAMES.index("batch_cap") + 6].tolist() == fleet.levers[0].tolist()
