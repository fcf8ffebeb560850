"""The gateway as a plant: snapshots of live traffic on the surface that policies know, knobs that act, and reasons for those that cannot."""

from __future__ import annotations

import asyncio
import math
from math import inf

import msgspec
import numpy as np
import pytest

from inferencegym.decision.knobs import COLUMNS, Knobs
from inferencegym.ground.units import MIB
from inferencegym.runtime.backends.pool import Traits
from inferencegym.runtime.gpu import Gpu, GpuReader
from inferencegym.runtime.plant import GatewayPlant, Prices
from inferencegym.runtime.ports import Capabilities
from inferencegym.runtime.settings import BackendSettings, DispatchSettings, ServiceClass, Settings
from tests.runtime.fakes import HANG, FakeBackend
from tests.runtime.virtual import House, mock, run_house

CLASSES = (ServiceClass("free", priority=5, ttft_slo_s=1.0), ServiceClass("vip", ttft_slo_s=0.02))
OPEN = Settings(classes=CLASSES, dispatch=DispatchSettings(max_concurrency=100))


def test_a_quiet_gateway():
    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway)
        await asyncio.sleep(2)
        seen = plant.snapshot()
        assert (seen.queue_depth, seen.active_requests, seen.kv_cache_occupancy) == (0, 0, 0)
        assert (seen.slo_compliance_rate, seen.request_arrival_rate, seen.window_s) == (1.0, 0.0, 2.0)
        for name in (
            "p50_ttft_ms",
            "mean_prompt_length",
            "spec_acceptance_rate",
            "gpu_memory_used_gb",
            "estimated_cost_per_1k",
        ):
            assert math.isnan(getattr(seen, name)), name
        # The surface takes it as it is.
        assert np.isfinite(COLUMNS.encode(seen.values())).all()

    run_house(test, OPEN)


def test_a_window_of_traffic():
    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway, prices=Prices(per_hour_usd=3.6))
        flows = [house.begin(prompt=100, most=30, slo_class="vip" if i % 2 else "free") for i in range(20)]
        reading = [asyncio.create_task(house.read(flow)) for flow in flows]
        await asyncio.sleep(0.05)
        seen = plant.snapshot()
        # The backend has eight seats, the gateway let all through.
        assert (seen.queue_depth, seen.active_requests) == (12, 8)
        assert seen.mean_prompt_length == 100
        assert seen.request_arrival_rate == pytest.approx(400)
        assert 0 < seen.kv_cache_occupancy < 0.1
        assert 0 < seen.slo_compliance_rate < 1
        await asyncio.gather(*reading)
        seen = plant.snapshot()
        assert (seen.queue_depth, seen.active_requests, seen.request_arrival_rate) == (0, 0, 0)
        assert seen.mean_output_length == 30
        assert seen.goodput_rps > 0
        assert 1 < seen.p50_itl_ms <= seen.p99_itl_ms < 100
        assert seen.throughput_tps * seen.window_s == pytest.approx(600, rel=0.5)
        assert seen.estimated_cost_per_1k == pytest.approx(3.6 / 3600 * 1000 / seen.throughput_tps)
        assert seen.vip_slo_compliance_rate < seen.slo_compliance_rate

    run_house(test, OPEN)


def test_the_gateways_own_queue_is_seen():
    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway)
        flows = [house.begin(prompt=100, slo_class="vip" if i % 2 else "") for i in range(10)]
        await asyncio.sleep(0.01)
        seen = plant.snapshot()
        assert (seen.queue_depth, seen.active_requests, seen.vip_queue_depth) == (2, 8, 1)
        assert (seen.waiting_prompt_tokens, seen.oldest_wait_ms) == (200, pytest.approx(10))
        for flow in flows:
            await house.read(flow)

    run_house(test, Settings(classes=CLASSES))


def test_each_knob_acts():
    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway, kv_tokens=2000 * 16)
        applied = plant.apply(Knobs(batch_cap=3, kv_budget_fraction=0.5, speculation_depth=2, priority_routing=True))
        assert applied.refused == {}
        assert applied.accepted == {
            "batch_cap": 3,
            "kv_budget_fraction": 0.5,
            "speculation_depth": 2,
            "priority_routing": True,
        }
        flows = [house.begin(most=200, slo_class="vip" if i > 6 else "") for i in range(9)]
        assert (house.gateway.in_flight(), house.gateway.waiting()) == (3, 6)
        assert house.gateway.dispatcher.kv_tokens_cap == 16_000
        seen = plant.snapshot()
        assert (seen.batch_cap, seen.kv_budget_fraction, seen.speculation_depth, seen.priority_routing) == (
            3,
            0.5,
            2,
            1,
        )
        # More at once, without anybody asking again.
        plant.apply(Knobs(batch_cap=5))
        assert house.gateway.in_flight() == 5
        assert [flow.seat is not None for flow in flows] == [True] * 3 + [False] * 4 + [True] * 2, (
            "the urgent went first"
        )
        for flow in flows:
            await house.read(flow)
        assert plant.snapshot().spec_acceptance_rate > 0
        plant.apply(Knobs(kv_budget_fraction=1.0, priority_routing=False))
        assert house.gateway.dispatcher.kv_tokens_cap == inf
        assert house.gateway.settings.queue.order == "fcfs"

    run_house(test, OPEN)


def test_what_cannot_be_turned_is_refused_with_a_reason():
    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway)
        applied = plant.apply(Knobs(batch_cap=4, quantization_tier="INT4", prefill_decode_split=True))
        assert applied.accepted == {"batch_cap": 4}
        assert set(applied.refused) == {"quantization_tier", "prefill_decode_split"}
        assert "variant" in applied.refused["quantization_tier"]
        assert "pools" in applied.refused["prefill_decode_split"]

    run_house(test, OPEN)


@pytest.mark.parametrize("says", ["backend", "settings", "nobody"])
def test_a_share_of_the_kv_is_a_cap_on_tokens_where_their_number_is_known(says):
    class Plain(FakeBackend):
        def capabilities(self):
            return Capabilities(fields=None, kv_tokens=1000 if says == "backend" else None)

    settings = OPEN
    if says == "settings":
        named = BackendSettings("openai", "fake", url="http://127.0.0.1:9", kv_tokens=1000)
        settings = msgspec.structs.replace(OPEN, backends=(named,))

    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway)
        applied = plant.apply(Knobs(kv_budget_fraction=0.5))
        if says == "nobody":
            assert "kv_tokens" in applied.refused["kv_budget_fraction"]
            return
        assert applied.refused == {}
        flows = [house.begin(prompt=200, most=100) for _ in range(5)]
        assert (house.gateway.in_flight(), house.gateway.waiting()) == (2, 3), "the one that passes 500 may go"
        assert plant.snapshot().kv_cache_occupancy == 1.0
        plant.apply(Knobs(kv_budget_fraction=1.0))
        assert house.gateway.in_flight() == 5
        for flow in flows:
            flow.leave()

    run_house(test, settings, [Plain(lambda ask: [HANG])])


def test_variants_and_pools_are_routed_to():
    traits = {
        "full": Traits(variant="FP16", pool="prefill", health_interval_s=inf),
        "quick": Traits(variant="INT4", pool="decode", health_interval_s=inf),
    }

    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway)
        assert plant.apply(Knobs(quantization_tier="INT4")).accepted == {"quantization_tier": "INT4"}
        assert {house.begin().seat.backend.name for _ in range(4)} == {"quick"}
        assert plant.apply(Knobs(quantization_tier="INT8")).refused.keys() == {"quantization_tier"}
        assert plant.snapshot().quantization_tier == 2
        house.pool.set_variant("")
        assert plant.apply(Knobs(prefill_decode_split=True)).refused == {}
        assert house.begin(prompt=100, most=10).seat.backend.name == "full"
        assert house.begin(prompt=10, most=100).seat.backend.name == "quick"

    run_house(test, OPEN, [mock("full"), mock("quick")], traits=traits)


def test_changes_go_through_the_live_configuration_where_there_is_one():
    patched = []

    async def test(house: House) -> None:
        GatewayPlant(house.gateway, patch=patched.append).apply(Knobs(priority_routing=True))

    run_house(test, OPEN)
    assert patched == [{"queue.order": "priority"}]


def test_the_gpus_memory():
    class Card(GpuReader):
        def look(self) -> tuple[Gpu, ...]:
            return (Gpu("0", "card", 0.5, 1000 * MIB, 2000 * MIB, 300.0, 60.0),) * 2

    async def test(house: House) -> None:
        assert GatewayPlant(house.gateway, gpu=Card()).snapshot().gpu_memory_used_gb == pytest.approx(
            2 * 1000 * MIB / 1e9
        )

    run_house(test, OPEN)


def test_seats_are_given_back_as_if_nobody_had_turned_them():
    async def test(house: House) -> None:
        plant = GatewayPlant(house.gateway)
        before = plant.snapshot().batch_cap
        plant.apply(Knobs(batch_cap=3, priority_routing=True))
        assert plant.snapshot().batch_cap == 3
        plant.release_batch_cap()
        assert (plant.snapshot().batch_cap, house.gateway.dispatcher.total_cap) == (before, inf)
        assert plant.snapshot().priority_routing == 1, "the other knobs stay"

    run_house(test, OPEN)
