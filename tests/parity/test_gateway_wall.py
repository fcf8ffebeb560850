"""Parity P3: the same requests over loopback HTTP, mock and gateway on the wall clock, come close to the simulation.

How close depends on what else the machine does, so counts and orders are asserted, and the figures are reported (`-rP` shows them).
"""

from __future__ import annotations

import asyncio
import time

import aiohttp
import numpy as np
import pytest

from inferencegym.engine.deployment import Deployment
from inferencegym.engine.settings import EngineSettings
from inferencegym.engine.simulate import simulate
from inferencegym.ground.rng import stream
from inferencegym.metrics.record import Records
from inferencegym.runtime.backends.mock import MockBackend
from inferencegym.runtime.settings import DispatchSettings, QueueSettings
from inferencegym.workload import Workload
from tests.runtime.fakes import Served

pytestmark = pytest.mark.slow

REQUESTS, RATE_RPS, SEATS = 80, 25.0, 8
BIG = Deployment(kv_blocks=2000)


def traffic() -> Workload:
    rng = stream(3, "wall")
    return Workload.of(
        arrival_s=np.cumsum(rng.exponential(1 / RATE_RPS, REQUESTS)), prompt_tokens=rng.integers(20, 600, REQUESTS),
        output_tokens=rng.integers(5, 80, REQUESTS),
    )  # fmt: skip


async def load(url: str, workload: Workload) -> list[int]:
    """Ask when each request is due; the events with text that each got."""
    loop, begun = asyncio.get_running_loop(), asyncio.get_running_loop().time()

    async def client(row: int, session: aiohttp.ClientSession) -> int:
        await asyncio.sleep(begun + float(workload.arrival_s[row]) - loop.time())
        body = {
            "model": "m", "prompt": [1] * int(workload.prompt_tokens[row]), "max_tokens": int(workload.output_tokens[row]),
            "ignore_eos": True, "stream": True,
        }  # fmt: skip
        async with session.post(f"{url}/v1/completions", json=body, headers={"x-request-id": str(row)}) as response:
            assert response.status == 200
            text = (await response.read()).decode()
        assert text.endswith("data: [DONE]\n\n")
        return text.count('"text":" ')

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await asyncio.gather(*(client(row, session) for row in range(len(workload))))


def figures(records: Records) -> dict[str, float]:
    return {
        "queue p50 ms": 1e3 * float(np.median(records.queue_s)),
        "TTFT p50 ms": 1e3 * float(np.median(records.ttft_s)),
        "TPOT mean ms": 1e3 * float(np.nanmean(records.tpot_s)),
        "E2E p50 ms": 1e3 * float(np.median(records.e2e_s)),
        "span s": float(records.finish_s.max() - records.arrival_s.min()),
    }


@pytest.mark.parametrize("queue_in", ["gateway", "engine"])
def test_over_http(queue_in: str) -> None:
    workload = traffic()
    engine = EngineSettings(max_num_seqs=SEATS, prefix_caching=False)
    mock = MockBackend(deployment=BIG, settings=engine, models=("m",), clock=time.monotonic)
    room = DispatchSettings(max_concurrency=SEATS if queue_in == "gateway" else 1000)
    with Served(mock, queue=QueueSettings(), dispatch=room) as served:
        events = asyncio.run(load(served.url, workload))
        live = served.gateway.recorder.records().sorted_by_row()
    truth = simulate(workload, BIG, engine, timeline_points=0).records
    assert len(live) == REQUESTS
    assert live.ok.all()
    # Pieces may hold several tokens when the reader is late, never more pieces than tokens.
    assert (np.array(events) <= workload.output_tokens).all()
    # Who came later may overtake on the way to the server if both came within milliseconds, so compare as sets of lengths.
    assert sorted(zip(live.prompt_tokens.tolist(), live.output_tokens.tolist(), strict=True)) == sorted(
        zip(truth.prompt_tokens.tolist(), truth.output_tokens.tolist(), strict=True)
    )
    assert live.out_of_order().tolist() == []
    # First come, first served: a later arrival never begins before an earlier one.
    assert (np.diff(live.scheduled_s[np.argsort(live.arrival_s, kind="stable")]) >= -1e-3).all()
    ranks = [np.argsort(np.argsort(records.finish_s)) for records in (live, truth)]
    likeness = float(np.corrcoef(*ranks)[0, 1])
    assert likeness > 0.8, "they end in about the same order"
    ours, theirs = figures(live), figures(truth)
    for name, expected in theirs.items():
        print(
            f"{queue_in}: {name}: simulated {expected:.2f}, over HTTP {ours[name]:.2f} ({ours[name] / expected - 1:+.1%})"
        )
    print(f"{queue_in}: order of ends: rank correlation {likeness:.4f}")
    assert ours["TPOT mean ms"] == pytest.approx(theirs["TPOT mean ms"], rel=0.5)
