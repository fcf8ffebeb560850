"""Faults over real HTTP: clients that take nothing, that leave in crowds or between two requests, overload, Redis gone, and a clock that jumps."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from inferencegym.bench.client import Target
from inferencegym.bench.load import Plan, run, synthetic
from inferencegym.engine.deployment import Deployment
from inferencegym.engine.settings import EngineSettings
from inferencegym.metrics.record import Outcome
from inferencegym.runtime.backends.mock import MockBackend
from inferencegym.runtime.flow import Flow
from inferencegym.runtime.housekeeping import Housekeeper, give_back_memory
from inferencegym.runtime.ports import Piece
from inferencegym.runtime.server import Protocol
from inferencegym.runtime.settings import (
    AdmissionSettings,
    QueueSettings,
    ServerSettings,
    ServiceClass,
    Settings,
    SharedSettings,
)
from tests.runtime.fakes import HANG, FakeBackend, Gate, Served, until, words
from tests.runtime.test_shared import Server as Redis

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def settings(server=None, **more):
    return Settings(server=ServerSettings(port=0, log="error", **(server or {})), **more)


def request(**body):
    data = json.dumps(CHAT | body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(data) + data


def connect(server, receive_bytes=None):
    """A connection whose kernel takes only so much before somebody reads."""
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(10)
    made.connect(("127.0.0.1", server.server.port))
    return made


# --- clients that take nothing ---------------------------------------------------------------------------------------------


def test_a_client_that_takes_nothing_is_cut_off():
    backend = FakeBackend(lambda ask: [0.0005, Piece(text="x" * 100_000, tokens=1)] * 500)
    with Served(backend, settings=settings({"write_timeout_s": 0.3})) as server, connect(server, 4096) as raw:
        raw.sendall(request(stream=True))
        until(lambda: backend.given)
        until(lambda: server.gateway.under_way() == 0)
        assert backend.given < 500
        assert backend.aborted
        assert server.gateway.recorder.outcomes == {("aborted", "client_stalled"): 1}
        until(lambda: not server.server.server_state.connections)


def test_a_client_that_takes_no_answers_of_pages_is_cut_off():
    # No request of a model is under way here: what waits is in the connection alone.
    config = settings({"write_timeout_s": 0.3})
    with Served(FakeBackend(lambda ask: words()), settings=config) as server, connect(server, 4096) as raw:
        raw.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 2000)
        until(lambda: server.server.server_state.connections)
        until(lambda: not server.server.server_state.connections)


def test_a_client_that_reads_slowly_is_not_cut_off():
    backend = FakeBackend(lambda ask: [0.0005, Piece(text="x" * 100_000, tokens=1)] * 500)
    with Served(backend, settings=settings({"write_timeout_s": 0.4})) as server, connect(server, 4096) as raw:
        raw.sendall(request(stream=True))
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < 2.0:  # five times as long as a client may take nothing
            assert raw.recv(20_000)
            time.sleep(0.02)
        assert server.gateway.under_way() == 1
        assert not backend.aborted


# --- clients that leave ----------------------------------------------------------------------------------------------------


def alive(*kinds):
    return sum(isinstance(one, kinds) for one in gc.get_objects())


def test_who_has_left_leaves_nothing_for_the_collector():
    with Served(FakeBackend(lambda ask: [HANG], seats=1), settings=settings()) as server:
        kinds = (Flow, Protocol, RequestResponseCycle)
        gc.collect()
        before = alive(*kinds)
        gc.disable()
        try:
            crowd = [connect(server) for _ in range(30)]
            for number, one in enumerate(crowd):
                one.sendall(request(stream=number % 2 == 0))
            until(lambda: server.gateway.under_way() == 30)
            for one in crowd:
                one.close()
            until(lambda: server.gateway.under_way() == 0 and not server.server.server_state.tasks)
            until(lambda: alive(*kinds) <= before)
        finally:
            gc.enable()


def test_a_client_that_leaves_between_two_requests_on_one_connection(caplog):
    backend = FakeBackend(lambda ask: [HANG])
    with Served(backend, settings=settings()) as server:
        with connect(server) as raw:
            raw.sendall(request() + request())
            until(lambda: backend.asked)
        until(lambda: server.gateway.under_way() == 0 and not server.server.server_state.tasks)
        assert len(backend.asked) == 1, "the second one was never begun"
        assert not caplog.records


def test_who_comes_and_ends_between_two_calls_of_the_engine_can_still_be_aborted():
    engine = MockBackend(deployment=Deployment(kv_blocks=100), settings=EngineSettings(max_num_seqs=4)).engine
    gone, stays = engine.submit(0, 16, 1), engine.submit(1, 16, 1000)
    news = engine.abort(gone, 10**12)
    assert [(ticket, end.output_tokens) for ticket, end in news.ended] == [(gone, 1)]
    assert engine.alive == 1
    assert [ticket for ticket, _ in engine.abort(stays, engine.now_ps).ended] == [stays]


def test_a_crowd_that_has_left_gives_its_memory_back(monkeypatch):
    given_back = []
    monkeypatch.setattr(
        "inferencegym.runtime.housekeeping.give_back_memory", lambda: given_back.append(len(connections))
    )

    class Idle:
        stuck_since_s, taken = float("inf"), 0

        class transport:
            get_write_buffer_size = staticmethod(lambda: 0)

    connections = set()

    async def main():
        keeper = Housekeeper(connections, asyncio.get_running_loop().time, 0.04)
        keeper.start()
        for count in (999, 0, 4000, 1001, 1000, 0):
            while len(connections) < count:
                connections.add(Idle())
            while len(connections) > count:
                connections.pop()
            await asyncio.sleep(0.05)
        keeper.stop()

    asyncio.run(main())
    assert given_back[0] == 1000, "when three of four have gone, not before"
    give_back_memory()


# --- overload --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_times_overload_is_served_in_order_and_refused_at_once():
    """Counts and orders only; figures: `runs/serving_live.py`."""
    backend = MockBackend(
        deployment=Deployment(), settings=EngineSettings(max_num_seqs=8, prefix_caching=False), models=("m",), clock=time.monotonic
    )  # fmt: skip
    config = settings(
        admission=AdmissionSettings(predicted_wait=True), queue=QueueSettings(ttl_s=5.0), classes=(ServiceClass("default", ttft_slo_s=1.0),)
    )  # fmt: skip
    # 8 seats, 64 tokens of about 6 ms: some 20 requests a second.
    workload = synthetic(requests=1200, rate_rps=200.0, prompt_tokens=100, output_tokens=64, seed=1)
    with Served(backend, settings=config) as server:
        seen = asyncio.run(run(Plan(workload), Target(server.url, "m", extra={"ignore_eos": True})))
        until(lambda: server.gateway.under_way() == 0)
        counts, records = server.gateway.recorder.counts(), server.gateway.recorder.records()
    assert set(np.unique(seen.records.outcome)) == {Outcome.OK, Outcome.REJECTED}
    ok, refused = (int((seen.records.outcome == one).sum()) for one in (Outcome.OK, Outcome.REJECTED))
    assert (counts["ok"], counts["rejected"]) == (ok, refused), "both sides count the same"
    assert ok + refused == 1200
    assert refused > 6 * ok
    served = records.take(records.outcome == Outcome.OK)
    served = served.take(np.argsort(served.row))
    assert (np.diff(served.scheduled_s) >= 0).all(), "first come, first served"
    assert all("server_is_overloaded" in told or "503" in told or "429" in told for told in seen.errors)


# --- Redis -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path):
    pytest.importorskip("redis", reason="the extra 'serve' is not installed")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine; Debian: apt-get install redis-server")
    made = Redis(tmp_path)
    yield made
    if made.process.poll() is None:
        made.kill()


@pytest.mark.redis
def test_redis_goes_and_comes_while_requests_are_served(redis):
    shared = SharedSettings(redis_url=redis.url, timeout_s=0.5, retry_s=0.05)
    config = settings(shared=shared, admission=AdmissionSettings(rate_rps=1000, burst=1000))
    gate = Gate()
    backend = FakeBackend(lambda ask: [gate, *words()] if ask.stream else words())
    with Served(backend, settings=config) as server:
        limits = server.gateway.shared
        until(lambda: limits.up)
        answers = []

        def ask(**body):
            answers.append(httpx.post(f"{server.url}/v1/chat/completions", json=CHAT | body, timeout=20))

        held = threading.Thread(target=ask, kwargs={"stream": True})
        held.start()
        until(lambda: server.gateway.in_flight() == 1)
        ask()
        redis.kill()
        for _ in range(5):
            ask()
        assert not limits.up
        gate.open()
        held.join()
        redis.start()
        until(lambda: limits.up)
        ask()
    assert [answer.status_code for answer in answers] == [200] * 8
    assert any(answer.text.endswith("data: [DONE]\n\n") for answer in answers)


# --- the clock -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
def test_a_jump_of_the_wall_clock_ends_no_request_and_bends_no_figure(monkeypatch, jump_s):
    gate = Gate()
    backend = FakeBackend(lambda ask: [Piece(text="a", tokens=1), gate, *words(2)], seats=1)
    with Served(backend, settings=settings(admission=AdmissionSettings(rate_rps=100, burst=10))) as server:
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(
                    httpx.post(f"{server.url}/v1/chat/completions", json=CHAT | {"stream": True}, timeout=20)
                )
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.gateway.in_flight() == 1 and server.gateway.waiting() == 1)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump_s)
        gate.open()
        for thread in threads:
            thread.join(20)
        assert [answer.text.endswith("data: [DONE]\n\n") for answer in answers] == [True, True]
        records = server.gateway.recorder.records()
        for times in (records.first_token_s - records.arrival_s, records.finish_s - records.arrival_s):
            assert ((times >= 0) & (times < 20)).all()
