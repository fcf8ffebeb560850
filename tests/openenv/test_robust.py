"""The server as a process with its page on, and under arbitrary input: it starts, answers, ends cleanly, and never says 5xx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

import httpx
from openenv.cli._validation import validate_running_environment
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_sync

from inferencegym.envs.openenv.app import make_app
from inferencegym.envs.openenv.client import PagedKVEnv
from inferencegym.envs.openenv.environment import PagedKVEnvironment
from inferencegym.envs.openenv.models import PagingAction
from inferencegym.ground.errors import ConfigError
from tests.starting import free_port, until_healthy

DOCS = Path(__file__).resolve().parents[2] / "docs" / "openenv.md"

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["easy", "lru", "validation", "admit_free"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        "action", "action_id", "session_id", "seed", "split", "index", "task_id", "task", "episode_id", "agent", "offset", "episode_log", "metadata",
        "gpu_total_blocks", "max_ticks", "timeout_s",
    ]
)  # fmt: skip
bodies = st.one_of(st.dictionaries(fields, values, max_size=4), values)


@given(body=bodies, path=st.sampled_from(["/step", "/grader", "/api/settings", "/api/simulate"]))
@settings(max_examples=80, deadline=None)
def test_no_json_makes_a_server_error(paging_server, body, path):
    # A simulation that is right would only cost time here.
    if path == "/api/simulate" and isinstance(body, dict):
        body = body | {"ticks": 5}
    answer = httpx.post(
        paging_server.url + path, content=json.dumps(body), headers={"content-type": "application/json"}, timeout=60
    )
    assert answer.status_code < 500, (body, answer.text)
    json.loads(answer.text)


@given(body=bodies)
@settings(max_examples=30, deadline=None)
def test_no_reset_makes_a_server_error_or_keeps_a_session_it_refused(paging_server, body):
    before = httpx.get(f"{paging_server.url}/sessions").json()["open"]
    answer = httpx.post(
        f"{paging_server.url}/reset", content=json.dumps(body), headers={"content-type": "application/json"}, timeout=60
    )
    assert answer.status_code < 500
    if answer.status_code == 200:
        httpx.delete(f"{paging_server.url}/sessions/{answer.json()['session_id']}")
    assert httpx.get(f"{paging_server.url}/sessions").json()["open"] == before


DEEP = "[" * 100_000
ATTACKS = [
    ("POST", "/step", '{"action": {"action_id": NaN}}'),
    ("POST", "/step", '{"action_id": 8, "session_id": "' + "x" * 5000 + '"}'),
    ("POST", "/step", '{"action_id": ' + DEEP),
    ("POST", "/step", '{"action_id": ' + "9" * 5000 + "}"),
    ("POST", "/reset", '{"session_id": "' + "A" * 24 + '"}'),
    ("POST", "/reset", DEEP),
    ("POST", "/reset", '{"metadata": {}, "_batch": 1}'),
    ("POST", "/grader", '{"session_id": "default"}'),
    ("POST", "/grader", '{"episode_log": ' + DEEP),
    ("POST", "/api/simulate", '{"ticks": 1e400}'),
    ("POST", "/api/settings", '{"gpu_total_blocks": 1}'),
    ("DELETE", "/sessions/nobody", ""),
    ("DELETE", "/sessions/..%2f..%2fetc", ""),
    ("GET", "/state?session_id=" + "%00" * 20, ""),
    ("GET", "/baseline?task_id=nope", ""),
]


def test_a_stranger_changes_nobody_elses_session(paging_server):
    """An episode is played beside all kinds of wrong requests, a foreign and a forged log; it stays the one played alone."""
    alone = PagedKVEnvironment()
    with PagedKVEnv.from_url(paging_server.url) as victim, PagedKVEnv.from_url(paging_server.url) as stranger:
        played, rewards, seen = [], [], [alone.reset(seed=11).encoded]
        assert victim.reset(seed=11)["encoded"] == seen[0]
        stranger.reset(seed=12)
        with httpx.Client(base_url=paging_server.url, timeout=60) as http:
            shown = [one["session"] for one in http.get("/sessions").json()["sessions"]]
            shortened = [("DELETE", f"/sessions/{name}", "") for name in shown]
            shortened += [("POST", "/step", json.dumps({"session_id": name, "action_id": 8})) for name in shown]
            for i, (method, path, text) in enumerate(ATTACKS + shortened):
                answer = http.request(method, path, content=text, headers={"content-type": "application/json"})
                assert 400 <= answer.status_code < 500, (path, text[:60], answer.status_code)
                assert answer.json()["detail"]
                played.append(action := (8, 17, 10, 8)[i % 4])
                mine, reward, _, _ = victim.step({"action_id": action})
                expected = alone.step(PagingAction(action_id=action))
                assert (mine["encoded"], reward) == (expected.encoded, expected.reward)
                seen.append(mine["encoded"])
                rewards.append(reward)
            # A log of somebody else's episode, passed off as that of another scenario, task or player.
            foreign = {
                "task_id": "easy", "split": "validation", "seed": 11, "digest": victim.state()["digest"], "actions": played, "rewards": rewards,
                "observations": seen, "terminated": False, "truncated": True, "value": 0.9,
            }  # fmt: skip
            for change in ({}, {"seed": 12}, {"task_id": "hard"}, {"task_id": "static_workload"}, {"digest": "f" * 64}):
                answer = http.post("/grader", json={"episode_log": foreign | change})
                assert answer.status_code == 400, answer.text
                assert answer.json()["detail"]
        assert victim.state()["step_count"] == len(ATTACKS) + len(shortened)
        assert stranger.state()["step_count"] == 0


@pytest.mark.parametrize(
    "frame",
    ["[1]", "null", '"step"', "{}", '{"type": {}}', '{"type": "step", "data": "x"}', '{"type": "step", "data": {"\\ud800": 1}}', DEEP, " " * (17 * 2**20),
     '{"type": "reset", "data": {"task_id": "\\ud800"}}', '{"type": "reset", "data": {"seed": -1}}', '{"type": "reset", "data": {"self": 1}}', b"\x00\xff"],
    ids=lambda frame: ascii(frame[:24]),
)  # fmt: skip
def test_a_wrong_frame_costs_at_most_its_own_socket(paging_server, frame):
    async def go():
        url = paging_server.url.replace("http", "ws") + "/ws"
        async with connect(url) as bad, connect(url) as good:
            await good.send('{"type": "reset", "data": {"seed": 5}}')
            first = json.loads(await good.recv())["data"]["observation"]["encoded"]
            assert first == PagedKVEnvironment().reset(seed=5).encoded
            # It is answered with an error, or the socket is closed; either at once.
            with contextlib.suppress(ConnectionClosed):
                await bad.send(frame)
                told = json.loads(await asyncio.wait_for(bad.recv(), 20))
                assert told["type"] == "error", told
            await good.send('{"type": "step", "data": {"action_id": 8}}')
            assert json.loads(await good.recv())["data"]["observation"]["step_index"] == 1

    asyncio.run(go())


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, capsys):
    from inferencegym.cli.main import main

    monkeypatch.setitem(sys.modules, "inferencegym.envs.openenv.serve", None)
    monkeypatch.setattr(sys, "argv", ["inferencegym", "env"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "pip install 'inferencegym[openenv]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_CONCURRENT_ENVS", "0"),
        ("MAX_CONCURRENT_ENVS", "many"),
        ("SESSION_TIMEOUT_S", "nan"),
        ("LLMSERVE_MODE", "real"),
        ("LLMSERVE_MODE", "x"),
    ],
)
def test_a_wrong_setting_of_the_server_is_one_clear_error(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        make_app("pagedkv")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command_serves_its_page_passes_the_url_checks_and_ends_on_sigterm():
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "inferencegym.cli.main", "env", "llmserve", "--port", str(port), "--web"],
        env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        until_healthy(server, url, 120)
        report = validate_running_environment(url)
        assert report["passed"]
        assert len(report["criteria"]) == 6
        for route in ("/", "/web", "/demo"):
            page = httpx.get(url + route, follow_redirects=True, timeout=60)
            assert page.status_code == 200
            assert page.url.path == "/web/"
        opened = httpx.post(f"{url}/reset", timeout=60).json()
        assert (
            httpx.post(f"{url}/step", json={"session_id": opened["session_id"], "action": {}}, timeout=60).json()[
                "observation"
            ]["step_index"]
            == 1
        )
        assert httpx.post(f"{url}/web/reset", json={}, timeout=60).status_code == 200
        assert httpx.post(f"{url}/web/step", json={"action": {"batch_cap": 0}}, timeout=60).status_code == 422
        with connect_sync(url.replace("http", "ws") + "/ws") as open_session:
            open_session.send('{"type": "reset", "data": {}}')
            assert json.loads(open_session.recv())["type"] == "observation"
            server.send_signal(signal.SIGTERM)
            # The client is told, not left waiting; the server ends although a session was open.
            with pytest.raises(ConnectionClosed):
                open_session.recv(timeout=20)
        told, _ = server.communicate(timeout=30)
        assert server.returncode == -signal.SIGTERM
        assert b"Traceback" not in told
        assert told.decode().split("\n")[0] == f"llmserve is ready on {url}, page at /web, dashboard on {url}/dashboard"
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()


def test_the_page_in_the_docs_names_every_route_of_ours(paging_server, serve_server):
    text = DOCS.read_text(encoding="utf-8")
    for running in (paging_server, serve_server):
        for path in running.app.openapi()["paths"]:
            stem = path if "{" not in path else path[: path.index("{")].rstrip("/")
            assert stem.strip("/") in text or path.startswith("/{env_name}"), path
