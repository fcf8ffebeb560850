"""Records, histograms, windows and files of live traffic."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from inferencegym.engine.simulate import simulate
from inferencegym.ground.rng import stream
from inferencegym.metrics.itl import ItlHistogram, bins_of
from inferencegym.metrics.record import Outcome, Records
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.histogram import BUCKETS_S, Histogram, cumulative
from inferencegym.runtime.ports import Usage
from inferencegym.runtime.recorder import MOST_REASONS, Recorder
from inferencegym.runtime.settings import QueueSettings, ServiceClass, Settings
from inferencegym.workload import read
from tests.runtime.asks import ask
from tests.runtime.virtual import House, mock, run_house

CLASSES = (
    ServiceClass("vip", priority=0, ttft_slo_s=0.1, itl_slo_s=0.05),
    ServiceClass("free", priority=3, ttft_slo_s=1.0),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_histogram_counts_as_the_engines_does():
    rng = stream(0, "histogram")
    seconds = np.concatenate([rng.lognormal(-4, 3, 2000), [0.0, 1e-9, 1e6, 4503.6]])
    live = Histogram()
    for value in seconds.tolist():
        live.observe(value)
    ps = np.rint(seconds * 1e12).astype(np.int64)
    assert live.frozen().counts.tolist() == np.bincount(bins_of(ps), minlength=2048).tolist()
    assert live.sum_ps == sum(ps.tolist())
    counts = cumulative(live.frozen())
    assert counts == [int((seconds < end).sum()) for end in BUCKETS_S] + [len(seconds)]
    assert list(BUCKETS_S) == sorted(BUCKETS_S)


def test_one_life():
    clock = Clock()
    recorder = Recorder(CLASSES, clock)
    one = ask(1, arrival_s=100.0, slo_class=0, tenant="t", priority=2, max_tokens=9, prompt_tokens=12)
    clock.now_s = 100.01
    assert recorder.begin(one) == one.row == 0
    assert [me.ask for me in recorder.waiting()] == [one]
    clock.now_s = 100.02
    recorder.scheduled(one, replica=3)
    assert (recorder.running, recorder.waiting()) == (1, [])
    for at_s, tokens in ((100.05, 1), (100.07, 2), (100.10, 1)):
        clock.now_s = at_s
        recorder.tokens(one, tokens)
    recorder.finish(one, Outcome.OK, Usage(14, 4, 8))
    records = recorder.records()
    assert records.observer == "gateway"
    assert records.out_of_order().tolist() == []
    times = {"arrival_s": 0.0, "enqueued_s": 0.01, "scheduled_s": 0.02, "first_token_s": 0.05, "finish_s": 0.10}
    for name, expected in times.items():
        assert getattr(records, name).tolist() == pytest.approx([expected]), name
    whole = {"prompt_tokens": 14, "output_tokens": 4, "cached_tokens": 8, "priority": 2, "replica": 3, "outcome": 0}
    for name, number in whole.items():
        assert getattr(records, name).tolist() == [number], name
    figures = recorder.figures[0]
    assert (figures.itl.count, figures.ttft.count, figures.tpot.count, figures.e2e.count) == (2, 1, 1, 1)
    assert figures.itl.sum_s == pytest.approx(0.05)
    assert (figures.decided, figures.met, figures.finished, figures.good) == (1, 1, 1, 1)
    assert (recorder.running, recorder.live, recorder.emitted_tokens) == (0, {}, 4)


def test_windows_of_several_who_look():
    clock = Clock()
    recorder = Recorder(CLASSES, clock)
    fast, slow = recorder.mark(), recorder.mark()
    asks = [ask(i, arrival_s=100.0 + i, slo_class=i % 2) for i in range(6)]
    for i, one in enumerate(asks):
        clock.now_s = one.arrival_s
        recorder.begin(one)
        recorder.scheduled(one)
        clock.now_s += 0.05 if i < 4 else 0.5
        recorder.tokens(one, 1)
        recorder.finish(one, Outcome.OK)
        if i == 2:
            figures, fast = recorder.since(fast)
            assert (figures.arrivals, figures.finished, figures.slo_compliance) == (3, 3, 1.0)
    figures, _ = recorder.since(fast)
    assert (figures.arrivals, figures.ttft.count) == (3, 3)
    # Request 4 is a VIP that waited half a second for its first token; its class has a tenth.
    assert (figures.slo_compliance, figures.vip_slo_compliance) == (pytest.approx(2 / 3), 0.0)
    figures, _ = recorder.since(slow)
    assert (figures.arrivals, figures.finished, figures.mean_prompt_tokens, figures.mean_output_tokens) == (6, 6, 10, 1)
    assert figures.span_s == pytest.approx(5.5)


def test_who_waits_too_long_counts_against_the_window_and_who_leaves_does_not():
    clock = Clock()
    recorder = Recorder(CLASSES, clock)
    mark = recorder.mark()
    waits, leaves, fails = (ask(i, arrival_s=100.0, slo_class=0) for i in range(3))
    for one in (waits, leaves, fails):
        recorder.begin(one)
    clock.now_s = 101.0
    recorder.finish(leaves, Outcome.ABORTED, reason="client_left")
    recorder.finish(fails, Outcome.FAILED, reason="backend_error")
    figures, _ = recorder.since(mark)
    assert figures.slo_compliance == 0.0
    clock.now_s = 101.5
    recorder.tokens(waits, 1)
    figures, _ = recorder.since(mark)
    assert figures.slo_compliance == 0.0
    assert recorder.outcomes == {("aborted", "client_left"): 1, ("failed", "backend_error"): 1}
    assert recorder.counts()["ok"] == 0


def test_memory_is_bounded():
    recorder = Recorder(CLASSES, Clock(), keep=10)
    for i in range(105):
        recorder.reject(ask(i, arrival_s=100.0), f"reason {i}")
    assert 10 <= len(recorder.records()) < 20
    assert recorder.records().row.tolist()[-1] == 104
    assert recorder.journal.dropped + len(recorder.records()) == 105
    assert len(recorder.outcomes) <= MOST_REASONS + 1
    assert recorder.outcomes[("rejected", "other")] == 105 - MOST_REASONS


def test_records_rotate_to_files_that_replay(tmp_path: Path):
    """Parity P6: what was recorded is a workload again, row for row, and goes through the simulator."""

    async def test(house: House) -> None:
        flows = []
        for i in range(25):
            flows.append(
                house.begin(
                    prompt=40 + i,
                    most=5 + i % 7,
                    slo_class="vip" if i % 3 else "free",
                    tenant=f"t{i % 4}",
                    session=f"secret {i % 5}",
                )
            )
            await asyncio.sleep(0.003)
        flows[3].leave()
        for flow in flows:
            await house.read(flow)

    house = run_house(test, Settings(classes=CLASSES), path=tmp_path, rows_per_file=10)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"{kind}-0000{i}.parquet" for kind in ("records", "workload") for i in (1, 2, 3)
    ]  # fmt: skip
    total = 0
    for i in (1, 2, 3):
        records = Records.from_table(pq.read_table(tmp_path / f"records-0000{i}.parquet"))
        workload = read(tmp_path / f"workload-0000{i}.parquet")
        assert records.row.tolist() == list(range(len(workload)))
        assert records.arrival_s.tolist() == workload.arrival_s.tolist()
        for name in ("prompt_tokens", "output_tokens", "slo_class", "priority", "tenant"):
            assert getattr(records, name).tolist() == getattr(workload, name).tolist(), name
        assert workload.slo_class_names == ("vip", "free")
        assert workload.session_id.max() < 5
        servable, _ = workload.servable()
        assert simulate(servable, timeline_points=0).records.ok.all()
        total += len(records)
    assert total == 25
    assert b"secret" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert house.recorder.journal.files == 3
    # A restart adds to what is there.
    again = run_house(test, Settings(classes=CLASSES), path=tmp_path, rows_per_file=100)
    assert again.recorder.journal.files == 4


def test_through_the_gateway_every_way_to_end():
    async def test(house: House) -> None:
        kept = [house.begin(most=500) for _ in range(9)]
        assert (house.recorder.running, len(house.recorder.waiting())) == (8, 1)
        kept.append(house.begin())
        with pytest.raises(ApiError):
            house.begin()
        kept[0].leave()
        kept[1].fail(ApiError(504, "deadline_exceeded", "too late"))
        await asyncio.gather(*(house.read(flow) for flow in kept))
        # A mock that dies.
        house.pool.backends[0]._failures = mock(failures={"die": 1.0})._failures
        assert await house.ask(most=21) == 10

    house = run_house(test, Settings(queue=QueueSettings(max_requests=2)))
    counts = house.recorder.counts()
    assert (counts["ok"], counts["aborted"], counts["rejected"], counts["failed"]) == (8, 1, 1, 2)
    records = house.recorder.records()
    assert records.out_of_order().tolist() == []
    assert house.recorder.live == {}
    assert house.recorder.running == 0
    died = records.take(records.row == records.row.max())
    assert (died.output_tokens.tolist(), died.outcome.tolist()) == ([10], [Outcome.FAILED])
    itl = sum((f.itl.frozen() for f in house.recorder.figures), ItlHistogram())
    assert itl.count == int(np.maximum(records.output_tokens - 1, 0).sum())
    assert not math.isnan(house.recorder.figures[0].ttft.sum_s)
