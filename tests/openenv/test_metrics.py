"""What Prometheus reads at /metrics: it parses, it counts what was played (sockets too), and the servers of one process do not mix."""

from __future__ import annotations

import asyncio

import httpx
import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from prometheus_client.parser import text_string_to_metric_families

from inferencegym.envs.openenv.app import Limits, make_app
from inferencegym.envs.openenv.client import PagedKVEnv
from inferencegym.envs.openenv.environment import PagedKVEnvironment


def read(text):
    """{(sample, labels): value}, and the families by name; ValueError if it is no metrics text."""
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families.values()
        for sample in family.samples
    }
    return samples, families


def scraped(http, server):
    answer = http.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read(answer.text)


class Asgi:
    """An application of its own, without a socket."""

    def __init__(self, family):
        self.app = make_app(family, Limits(sessions=2))

    def __call__(self, *requests):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return [await client.request(method, path, json=body) for method, path, body in requests]

        return asyncio.run(ask())

    def metrics(self):
        return read(self(("GET", "/metrics", None))[0].text)[0]


def test_it_counts_what_was_played():
    server = Asgi("pagedkv")
    begun = server(("POST", "/reset", {"task_id": "easy", "seed": 1}))[0].json()
    mine = begun["session_id"]
    server(*[("POST", "/step", {"session_id": mine, "action_id": 17})] * 5)
    found = server.metrics()
    family = (("family", "pagedkv"),)
    assert found["inferencegym_env_episodes_begun_total", (("task", "easy"),)] == 1
    assert found["inferencegym_env_steps_total", family] == 5
    assert found["inferencegym_env_step_seconds_count", family] == 5
    assert 0 < found["inferencegym_env_step_seconds_sum", family] < 60
    assert found["inferencegym_env_sessions_open", ()] == found["inferencegym_env_http_sessions_open", ()] == 1
    assert found["inferencegym_env_sessions_limit", ()] == 2
    server(("DELETE", f"/sessions/{mine}", None))
    found = server.metrics()
    assert found["inferencegym_env_sessions_open", ()] == found["inferencegym_env_http_sessions_open", ()] == 0


def test_it_counts_ends_and_what_came_after_them_not():
    server = Asgi("llmserve")
    mine = server(("POST", "/reset", {"task_id": "static_workload"}))[0].json()["session_id"]
    step = ("POST", "/step", {"session_id": mine, "action": {}})
    done, steps = False, 0
    while not done:
        answer = server(step)[0].json()
        done, steps = answer["done"], steps + 1
    server(step, step)
    found = server.metrics()
    assert found["inferencegym_env_episodes_finished_total", (("end", "horizon"), ("task", "static_workload"))] == 1
    assert found["inferencegym_env_steps_total", (("family", "llmserve"),)] == steps


def test_it_counts_what_was_refused():
    server = Asgi("pagedkv")
    opened = server(*[("POST", "/reset", {})] * 3)
    assert [answer.status_code for answer in opened] == [200, 200, 429]
    server(
        ("POST", "/step", {"session_id": "nobody", "action_id": 1}),
        ("POST", "/step", {"action_id": 99}),
        ("POST", "/reset", {"task_id": "no such task", "session_id": opened[0].json()["session_id"]}),
    )
    found = server.metrics()
    by_status = {
        dict(labels)["status"]: n for (name, labels), n in found.items() if name.endswith("refused_requests_total")
    }
    assert by_status == {"429": 1, "404": 1, "422": 1, "400": 1}


def test_two_servers_of_one_process_do_not_mix():
    one, other = Asgi("pagedkv"), Asgi("pagedkv")
    one(("POST", "/reset", {"task_id": "hard"}))
    assert ("inferencegym_env_episodes_begun_total", (("task", "hard"),)) in one.metrics()
    assert ("inferencegym_env_episodes_begun_total", (("task", "hard"),)) not in other.metrics()
    assert PagedKVEnvironment.meter is None


def test_sockets_are_sessions_too_and_leave_when_they_close(paging_server, http):
    before = scraped(http, paging_server)[0]
    with PagedKVEnv(base_url=paging_server.url).sync() as env:
        env.reset(task_id="easy", seed=3)
        for _ in range(4):
            env.step(17)
        during = scraped(http, paging_server)[0]
    open_, steps = ("inferencegym_env_sessions_open", ()), ("inferencegym_env_steps_total", (("family", "pagedkv"),))
    assert during[open_] == before[open_] + 1
    assert during[steps] == before[steps] + 4
    for _ in range(100):
        if (after := scraped(http, paging_server)[0][open_]) == before[open_]:
            break
        asyncio.run(asyncio.sleep(0.02))
    assert after == before[open_]


def test_names_say_their_unit_and_every_one_is_explained(serve_server, http):
    _, families = scraped(http, serve_server)
    assert len(families) >= 8
    for name, family in families.items():
        assert name.startswith("inferencegym_env_")
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert name.endswith("_seconds")
    counters = {name for name, family in families.items() if family.type == "counter"}
    assert counters >= {
        "inferencegym_env_episodes_begun",
        "inferencegym_env_steps",
        "inferencegym_env_refused_requests",
    }
