"""The server as a process with its page on, and under arbitrary input: it starts, answers, ends cleanly, and never says 5xx."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

import httpx
from openenv.cli._validation import validate_running_environment

from inferencegym.envs.openenv.app import make_app
from inferencegym.ground.errors import ConfigError

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "inferencegym.cli.main", "env", "llmserve", "--port", str(port), "--web"],
        env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            assert server.poll() is None, server.stdout.read()
            assert time.monotonic() < end, "the server did not start"
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
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
        server.send_signal(signal.SIGTERM)
        told, _ = server.communicate(timeout=30)
        assert b"Traceback" not in told
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
