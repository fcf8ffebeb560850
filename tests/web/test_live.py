"""The Runtime page's feed and the dashboard behind a gateway, over HTTP and with real requests: the same figures as /metrics, who may look, how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import tracemalloc
from itertools import pairwise

import httpx
import numpy as np
import pytest

import inferencegym.cli.dashboard as composed
from inferencegym.cli.gateway import make_app
from inferencegym.runtime.server import Server
from inferencegym.runtime.settings import BackendSettings, DispatchSettings, Key, ServerSettings, ServiceClass, Settings
from inferencegym.web.feed import KEPT, Feed
from tests.runtime.fakes import HANG, FakeBackend, Served, until, words
from tests.starting import InThread

CLASSES = (ServiceClass("gold", ttft_slo_s=5.0), ServiceClass("batch", priority=1, ttft_slo_s=1e-6, max_requests=1))
ADMIN = Key("ops", hashlib.sha256(b"a-long-admin-key").hexdigest(), admin=True)
USER = Key("lena", hashlib.sha256(b"a-long-user-key").hexdigest())


def script(ask):
    """`hang` is never answered, everything else has five words."""
    return [HANG] if b"hang" in ask.body else words(5)


class Front:
    """A gateway as `inferencegym serve` makes it, before a server of fakes."""

    def __init__(self, **more):
        self.upstream = Served(FakeBackend(script))
        server = ServerSettings(port=0, log="error", drain_timeout_s=0.2, **more.pop("server", {}))
        backend = BackendSettings(kind="openai", name="up", url=self.upstream.url, model="m", health_interval_s=1.0)
        settings = Settings(server=server, backends=(backend,), classes=CLASSES, **more)
        self.app = make_app(settings)
        self.feed = next((one for one in self.app.gateway.companions if isinstance(one, Feed)), None)
        self.server = Server(self.app, settings)
        self.running = InThread(self.server)
        until(lambda: self.app.gateway.started)
        self.url = f"http://127.0.0.1:{self.server.port}"
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def ask(self, slo_class="gold", text="hi", **more):
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True} | more
        return self.client.post("/v1/chat/completions", json=body, headers={"x-slo-class": slo_class})

    def hang(self, slo_class="gold"):
        """A request that has no answer, until its client is closed."""

        def run():
            try:
                with httpx.Client(base_url=self.url, timeout=30) as client:
                    held.append(client)
                    client.post("/v1/chat/completions", json=body, headers={"x-slo-class": slo_class})
            except httpx.HTTPError:
                pass  # cut off with the server

        held, body = [], {"model": "m", "messages": [{"role": "user", "content": "hang"}]}
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def lines(self, count, **more):
        """So many lines of the stream."""
        with self.client.stream("GET", "/dashboard/api/runtime/stream", **more) as answer:
            assert answer.status_code == 200
            found = []
            for line in answer.iter_lines():
                found.append(json.loads(line))
                if len(found) == count:
                    return found
        return found

    def stop(self):
        self.client.close()
        if self.running._thread.is_alive():
            self.server._loop.call_soon_threadsafe(self.server.begin_drain)
        self.running._thread.join(10)
        self.upstream.running.stop()


@pytest.fixture
def front():
    made = []

    def make(**more):
        made.append(Front(**more))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def column(hello, name):
    at = [one["name"] for one in hello["columns"]].index(name)
    return np.array([np.nan if v is None else v for v in hello["values"][at]])


def test_the_figures_are_those_of_metrics(front):
    gateway = front(dispatch=DispatchSettings(max_concurrency=1))
    gateway.lines(2)
    for number in range(12):
        assert gateway.ask("batch" if number % 4 == 0 else "gold").status_code == 200
    gateway.hang()
    until(lambda: gateway.app.gateway.in_flight() == 1)
    gateway.hang("batch")
    until(lambda: gateway.app.gateway.waiting() == 1)
    assert [gateway.ask("batch").status_code for _ in range(3)] == [429] * 3
    hello = gateway.lines(3)[0]
    seq = hello["seq"]
    until(lambda: gateway.feed.seq >= seq + 2)
    hello = gateway.client.get("/dashboard/api/runtime").json()
    told = gateway.client.get("/metrics", params={"format": "json"}).json()
    totals = hello["now"]["totals"]
    assert totals["requests"] == told["counters"]["requests"] == 15
    for name in ("prompt_tokens", "output_tokens", "cached_tokens", "retries"):
        assert totals[name] == told["counters"][name], name
    for outcome in ("ok", "rejected", "failed", "aborted"):
        assert totals[outcome] == sum(told["by_reason"][outcome].values()), outcome
    shown = {(row["outcome"], row["reason"]): (row["total"], row["minute"]) for row in hello["now"]["reasons"]}
    assert shown == {("rejected", "slow_down"): (3, 3), ("refused", "class_requests"): (3, 3)}
    for name in ("running_mean", "waiting_mean", "kv_tokens_in_flight", "waiting_prompt_tokens"):
        assert column(hello, name)[-1] == told["gauges"][name], name
    # Rates, second by second, add up to the counters.
    spans = np.diff(hello["times"], prepend=hello["started"])
    assert (column(hello, "arrival_rps") * spans).sum() == pytest.approx(totals["arrivals"], rel=0.2)
    assert totals["arrivals"] == 17
    gold, batch = hello["now"]["classes"]
    assert (gold["in_flight"], batch["waiting"], gold["met"], gold["finished"]) == (1, 1, 9, 9)
    assert (batch["met"], batch["decided"]) == (0, 6)
    # Percentiles of the last 10 s are those of the histograms that Prometheus gets.
    overall = told["latencies"]["ttft_s"]
    window = column(hello, "ttft_s.p50")
    assert window[~np.isnan(window)][-1] == overall["p50"]
    assert column(hello, "slo_attainment@batch")[-1] == 0.0


def test_every_second_a_line_the_same_for_all_who_look(front):
    gateway = front()
    before = gateway.app.gateway.recorder.arrivals
    found = {}

    def look(who):
        with (
            httpx.Client(base_url=gateway.url, timeout=20) as client,
            client.stream("GET", "/dashboard/api/runtime/stream") as answer,
        ):
            lines = answer.iter_lines()
            found[who] = [next(lines) for _ in range(4)]

    threads = [threading.Thread(target=look, args=(who,)) for who in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    hello, *samples = (json.loads(line) for line in found[0])
    assert [sample["seq"] for sample in samples] == [hello["seq"] + n for n in (1, 2, 3)]
    assert [0.5 < b["at"] - a["at"] < 3 for a, b in pairwise(samples)] == [True, True]
    common = set(found[0][1:]).intersection(*(lines[1:] for lines in found.values()))
    assert common, "encoded once, so the same to the byte"
    assert gateway.app.gateway.recorder.arrivals == before, "who looks is no request"
    until(lambda: gateway.feed.watchers == 0)


def test_changes_are_told_with_who_and_why_and_what_was_refused(front):
    gateway = front()
    change = {"changes": {"dispatch.max_concurrency": 7}, "reason": "a quiet evening"}
    assert gateway.client.patch("/v1/runtime/config", json=change).status_code == 200
    command = {"batch_cap": 5, "quantization_tier": "INT4", "policy": "aimd", "guard": "slo"}
    assert gateway.client.post("/v1/runtime/plant", json=command).json()["accepted"] == {"batch_cap": 5}
    told = gateway.client.get("/dashboard/api/runtime").json()
    by_hand, by_policy = told["events"]
    assert by_hand["changes"] == {"dispatch.max_concurrency": {"from": None, "to": 7}}
    assert (by_hand["by"], by_hand["reason"], by_hand["version"]) == ("anybody", "a quiet evening", 2)
    assert (by_policy["policy"], by_policy["guard"], by_policy["accepted"]) == ("aimd", "slo", {"batch_cap": 5})
    assert "no backend is configured as a variant" in by_policy["refused"]["quantization_tier"]
    assert told["now"]["steering"]["policy"] == "aimd"
    assert told["now"]["knobs"]["batch_cap"] == 5
    assert told["settings"]["dispatch.max_concurrency"]["value"] == 7
    assert told["settings"]["dispatch.max_concurrency"]["first"] is None
    refused = gateway.client.post("/v1/runtime/plant", json={"batch_cap": 5, "policy": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "policy")


def test_a_backend_that_dies_is_seen(front):
    gateway = front()
    assert gateway.ask().status_code == 200
    up = gateway.lines(2)[1]["now"]["backends"][0]
    assert (up["name"], up["kind"], up["up"], up["breaker"], up["picked"], up["failed"]) == ("up", "openai", True, "closed", 1, 0)  # fmt: skip
    gateway.upstream.running.stop()
    for _ in range(3):
        assert gateway.ask().status_code >= 500
    until(lambda: not gateway.app.gateway.pool.members[0].healthy, 20)
    down = gateway.lines(2)[1]["now"]
    assert down["state"] == "no backend is well"
    assert not down["backends"][0]["up"]
    assert down["backends"][0]["problem"]
    gateway.upstream = Served(FakeBackend(script))  # for the fixture to stop


def test_with_keys_only_administrators_may_look(front):
    gateway = front(keys=(ADMIN, USER))
    get = gateway.client.get
    assert get("/dashboard/about.json").json()["needs_key"] is True
    assert get("/dashboard/runtime").status_code == 200
    assert get("/dashboard/static/shell.js").status_code == 200
    for path in ("/dashboard/api/runtime", "/dashboard/api/runtime/stream", "/dashboard/api/catalogue"):
        nobody = get(path)
        assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
        assert "API key" in nobody.json()["error"]["message"]
        assert get(path, headers={"authorization": "Bearer a-long-user-key"}).status_code == 403
    admin = {"authorization": "Bearer a-long-admin-key"}
    assert get("/dashboard/api/runtime", headers=admin).status_code == 200
    assert gateway.lines(2, headers=admin)[1]["type"] == "sample"


def test_a_quarter_of_an_hour_is_kept_and_no_more():
    settings = Settings(backends=(BackendSettings(kind="openai", url="http://127.0.0.1:9"),), classes=CLASSES)

    async def run():
        feed = next(one for one in make_app(settings).gateway.companions if isinstance(one, Feed))
        feed.start()
        feed.watchers = 1
        for _ in range(KEPT + 50):
            feed.sample()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(KEPT):
            feed.sample()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        history = feed.history()
        feed.stop()
        return feed, history, grown

    feed, history, grown = asyncio.run(run())
    assert feed.seq == 2 * KEPT + 50
    assert len(history["times"]) == KEPT
    assert {len(values) for values in history["values"]} == {KEPT}
    assert history["times"] == sorted(history["times"])
    # Lines and marks that are kept are replaced by later ones of the same size.
    assert grown < 500_000


def test_streams_end_with_the_server_and_nothing_goes_on(front):
    gateway = front()
    told = []

    def look():
        with (
            httpx.Client(base_url=gateway.url, timeout=20) as client,
            client.stream("GET", "/dashboard/api/runtime/stream") as answer,
        ):
            told.extend(json.loads(line) for line in answer.iter_lines())

    thread = threading.Thread(target=look)
    thread.start()
    until(lambda: len(told) >= 2)
    gateway.server._loop.call_soon_threadsafe(gateway.server.begin_drain)
    thread.join(10)
    assert not thread.is_alive()
    assert told[-1] == {"type": "end", "why": "The server shuts down."}
    gateway.running._thread.join(10)
    assert not gateway.running._thread.is_alive()
    assert gateway.feed._timer is None
    assert gateway.feed.watchers == 0


def test_nothing_of_the_dashboard_is_loaded_before_somebody_asks():
    program = (
        "import sys; from inferencegym.cli.gateway import make_app; from inferencegym.runtime.settings import *;"
        "make_app(Settings(backends=(BackendSettings(kind='openai', url='http://127.0.0.1:9'),)));"
        "print([name for name in sys.modules if name.partition('.')[0] in ('starlette', 'numba', 'gymnasium', 'pyarrow')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_one_line_says_how_to_get_it(front, monkeypatch):
    monkeypatch.setattr(composed, "_EXTRA", "no_such_module_here")
    gateway = front()
    assert gateway.feed is None
    missing = gateway.client.get("/dashboard")
    assert (missing.status_code, missing.json()["error"]["code"]) == (501, "missing_extra")
    assert "pip install 'inferencegym[web]'" in missing.json()["error"]["message"]
    assert "pip install 'inferencegym[web]'" in composed.where(True, "http://a")
    assert gateway.ask().status_code == 200


def test_it_can_be_left_out(front):
    gateway = front(server={"dashboard": False})
    assert gateway.feed is None
    assert gateway.client.get("/dashboard").status_code == 404


def test_the_gateways_limits_hold_for_the_dashboard_too(front):
    gateway = front(server={"max_body_bytes": 2048})
    large = gateway.client.post("/dashboard/api/runs", json={"task": "x" * 4096})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    odd = gateway.client.post("/dashboard/api/runs", content=b"task=hard", headers={"content-type": "text/plain"})
    assert odd.status_code == 415
    assert gateway.client.get("/dashboardish").status_code == 404
