"""Parity P2: the gateway with the mock behind it, in virtual time, is the simulation: every time of every request to the picosecond, every gap.

Once with the engine's queue (the gateway lets all through), once with the gateway's (the engine has a seat for whoever comes): the orders are the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pytest

from inferencegym.engine.deployment import Deployment
from inferencegym.engine.engine import Engine
from inferencegym.engine.profile import load_profile
from inferencegym.engine.settings import EngineSettings
from inferencegym.engine.simulate import simulate
from inferencegym.ground.clock import run_virtual
from inferencegym.ground.rng import stream
from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Outcome, Records
from inferencegym.runtime.backends.mock import MockBackend
from inferencegym.runtime.backends.pool import Pool, Traits
from inferencegym.runtime.gateway import Gateway, Head
from inferencegym.runtime.ports import COMPLETIONS
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import DispatchSettings, QueueSettings, ServiceClass, Settings
from inferencegym.runtime.wire import Completion
from inferencegym.workload import Workload

CLASSES = (ServiceClass("soon", priority=0, ttft_slo_s=0.5), ServiceClass("later", priority=5, ttft_slo_s=4.0))
#: So little memory that requests are preempted, and so few seats that they wait.
TIGHT = Deployment(model="llama-3.1-8b", gpu="h100", kv_blocks=400)
SEATS = 16
TIMES = ("arrival_s", "scheduled_s", "first_token_s", "finish_s")


@dataclass
class Ran:
    records: Records
    itl: ItlHistogram
    texts: list[str]
    tenants: list[str]


def traffic(requests: int = 160, rate_rps: float = 40.0, tenants: int = 3) -> Workload:
    """Open-loop requests, several of them at the same instants."""
    rng = stream(7, "traffic")
    arrival_s = np.cumsum(rng.exponential(1 / rate_rps, requests))
    arrival_s[1::5] = arrival_s[::5][: len(arrival_s[1::5])]
    classes = rng.integers(0, len(CLASSES), requests)
    # The gateway numbers tenants as they come.
    tenant = np.concatenate([np.arange(tenants), rng.integers(0, tenants, requests - tenants)])
    return Workload.of(
        arrival_s=np.sort(arrival_s), prompt_tokens=rng.integers(1, 900, requests), output_tokens=rng.integers(1, 200, requests),
        slo_class=classes, slo_class_names=tuple(c.name for c in CLASSES), priority=np.array([c.priority for c in CLASSES])[classes],
        tenant=tenant, tenant_names=tuple(f"tenant {i}" for i in range(tenants)),
    )  # fmt: skip


async def through_gateway(
    workload: Workload, deployment: Deployment, engine: EngineSettings, settings: Settings
) -> Ran:
    """The workload's requests, asked for at the gateway when they are due."""
    loop = asyncio.get_running_loop()
    backend = MockBackend(deployment=deployment, settings=engine, models=("mock",))
    recorder = Recorder(settings.classes, loop.time, keep=100_000)
    pool = Pool([backend], traits={backend.name: Traits(health_interval_s=inf)})
    gateway = Gateway(settings, pool, recorder, loop.time)
    await gateway.start()
    texts = [""] * len(workload)
    tasks: list[asyncio.Task[None]] = []

    async def client(row: int) -> None:
        fields = Completion(
            model="mock", prompt=[1] * int(workload.prompt_tokens[row]), max_tokens=int(workload.output_tokens[row]), ignore_eos=True, stream=True
        )  # fmt: skip
        head = Head(str(row), slo_class=CLASSES[workload.slo_class[row]].name, tenant=f"tenant {workload.tenant[row]}")
        flow = gateway.submit(gateway.ask(COMPLETIONS, b"", fields, head, loop.time()))
        while (piece := await flow.next()) is not None:
            texts[row] += piece.text

    for row, at_s in enumerate(workload.arrival_s.tolist()):
        loop.call_at(at_s, lambda row=row: tasks.append(loop.create_task(client(row))))
    await asyncio.sleep(workload.duration_s)
    while not all(task.done() for task in tasks) or len(tasks) < len(workload):
        await asyncio.gather(*tasks)
    await gateway.stop()
    itl = sum((figures.itl.frozen() for figures in recorder.figures), ItlHistogram())
    records, names = recorder.records().sorted_by_row(), recorder.journal.tenant_names()
    return Ran(records, itl, texts, [names[code] for code in records.tenant])


def ps(seconds: np.ndarray) -> list[int]:
    assert np.nanmax(seconds) < 1000, "a float tells picoseconds apart up to there"
    return np.rint(seconds * 1e12).astype(np.int64).tolist()


def check(live: Ran, records: Records, itl: ItlHistogram) -> None:
    for name in TIMES:
        assert ps(getattr(live.records, name)) == ps(getattr(records, name)), name
    for name in ("prompt_tokens", "output_tokens", "cached_tokens", "outcome", "slo_class", "priority"):
        assert getattr(live.records, name).tolist() == getattr(records, name).tolist(), name
    assert live.tenants == [f"tenant {code}" for code in records.tenant]
    assert live.itl.counts.tolist() == itl.counts.tolist()
    assert live.itl.sum_ps == itl.sum_ps


def wide_open(**queue: object) -> Settings:
    return Settings(classes=CLASSES, queue=QueueSettings(**queue), dispatch=DispatchSettings(max_concurrency=10_000))


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("order", ["fcfs", "priority", "aging", "sjf", "edf", "vtc"])
def test_the_engine_orders(order: str, depth: int) -> None:
    workload = traffic()
    engine = EngineSettings(order=order, max_num_seqs=SEATS, speculation_depth=depth, aging_s=0.3, prefix_caching=False)
    live = run_virtual(through_gateway(workload, TIGHT, engine, wide_open()))
    machine = TIGHT.machine(engine, load_profile("h100"))
    truth = Engine(workload, machine, engine, slo_ttft_s=[c.ttft_slo_s for c in CLASSES])
    records = truth.run().sorted_by_row()
    assert records.preemptions.sum() > 10, "memory is tight"
    assert np.nanmax(records.queue_s) > 0.5, "there is a queue"
    check(live, records, truth.itl())


@pytest.mark.parametrize("order", ["fcfs", "priority", "aging", "edf"])
def test_the_gateway_orders(order: str) -> None:
    """The gateway's queue in front of an engine with as many seats is the engine's own queue in that order."""
    workload = traffic()
    roomy = TIGHT.with_(kv_blocks=None)
    engine = EngineSettings(max_num_seqs=SEATS, prefix_caching=False)
    settings = Settings(
        classes=CLASSES, queue=QueueSettings(order=order, aging_s=0.3), dispatch=DispatchSettings(max_concurrency=SEATS)
    )
    live = run_virtual(through_gateway(workload, roomy, engine, settings))
    ordered = replace(engine, order=order, aging_s=0.3)
    truth = Engine(
        workload, roomy.machine(ordered, load_profile("h100")), ordered, slo_ttft_s=[c.ttft_slo_s for c in CLASSES]
    )
    records = truth.run().sorted_by_row()
    assert np.nanmax(records.queue_s) > 0.3, "there is a queue"
    check(live, records, truth.itl())


def test_simulate_itself_and_the_texts() -> None:
    workload = traffic()
    engine = EngineSettings(max_num_seqs=SEATS, prefix_caching=False)
    live = run_virtual(through_gateway(workload, TIGHT, engine, wide_open()))
    truth = simulate(workload, TIGHT, engine, timeline_points=0)
    check(live, truth.records, truth.itl)
    assert (live.records.outcome == Outcome.OK).all()
    assert [len(text.split()) for text in live.texts] == workload.output_tokens.tolist(), "a word is a token"


def test_the_same_twice() -> None:
    workload, engine = traffic(60), EngineSettings(max_num_seqs=SEATS)
    once, twice = (run_virtual(through_gateway(workload, TIGHT, engine, wide_open())) for _ in range(2))
    assert once.texts == twice.texts
    for name in TIMES:
        assert getattr(once.records, name).tolist() == getattr(twice.records, name).tolist()
