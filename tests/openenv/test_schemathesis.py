"""Schemathesis, for a short while, over the OpenAPI documents of both servers: nothing is a 5xx, and what is answered is what is promised.

The long run is a command in docs/openenv.md. The routes' own examples of wrong input are in test_http.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")
pytest.importorskip("schemathesis", reason="the extra 'dev' is not installed")

SETTINGS = Path(__file__).with_name("schemathesis.toml")
BUDGET_S = 15
FAMILIES = ["pagedkv", "llmserve"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_schemathesis_finds_nothing(own_server, http, family, tmp_path):
    running = own_server(family, sessions=8)
    # Kernels are compiled before the clock runs.
    opened = http.post(f"{running.url}/reset").json()
    for path, body in {
        "/step": {"session_id": opened["session_id"], "action": 17 if family == "pagedkv" else {}},
        "/api/simulate": {"ticks": 5},
    }.items():
        if family == "pagedkv" or path == "/step":
            assert http.post(running.url + path, json=body, timeout=300).status_code == 200
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS), "run", f"{running.url}/openapi.json", "--checks", "all",
            "--phases", "coverage,fuzzing,stateful", "--max-examples", "3", "--max-time", str(BUDGET_S), "--no-color",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    assert int(re.search(r"(\d+) generated", done.stdout).group(1)) >= 50


@pytest.mark.parametrize("family", FAMILIES)
def test_every_route_of_ours_promises_more_than_some_object(family, paging_server, serve_server):
    document = (paging_server if family == "pagedkv" else serve_server).app.openapi()
    ours = {"Episodes over plain HTTP", "InferenceGym", "Paging dashboards"}
    looked = 0
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if ours & set(operation.get("tags", ())) and path != "/metrics":
                looked += 1
                schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
                assert document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"], path
                if "requestBody" in operation:
                    assert {"413", "422"} <= set(operation["responses"]), path
    assert looked == (13 if family == "pagedkv" else 9)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/reset", {"seed": True}),
        ("/reset", {"seed": "3"}),
        ("/step", {"action": True}),
        ("/step", {"action": "8"}),
        ("/step", {"action_id": False}),
        ("/step", {"action": 8, "timeout_s": "1"}),
        ("/api/settings", {"cpu_total_blocks": True}),
        ("/api/settings", {"cpu_total_blocks": 0}),
        ("/api/simulate", {"limit": "5"}),
    ],
)
def test_true_and_text_are_no_numbers(paging_server, http, path, body):
    assert http.post(paging_server.url + path, json=body).status_code == 422


def test_405_names_every_method(paging_server, http):
    refused = http.put(f"{paging_server.url}/api/settings", json={})
    assert refused.status_code == 405
    assert refused.headers["allow"] == "GET, POST"
