"""One run, three ways over real processes: the Arena, `POST /api/simulate` of the same server, and the command line that the Arena names."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.starting import free_port, until_healthy

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

BIN = Path(sys.executable).parent
POLICIES = ["lru", "learned"]
SEED = 1


@pytest.fixture(scope="module")
def url():
    """A server of `inferencegym env`."""
    port = free_port()
    command = [str(BIN / "inferencegym"), "env", "pagedkv", "--port", str(port), "--no-web"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            until_healthy(server, f"http://127.0.0.1:{port}", 90)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["easy", "hard"])
def test_a_run_has_the_same_numbers_in_the_arena_evaluate_and_simulate(url, task):
    asked = {"task": task, "policies": POLICIES, "split": "test", "seed": SEED}
    run = httpx.post(f"{url}/dashboard/api/runs", json=asked, timeout=60).json()
    httpx.get(f"{url}/dashboard/api/runs/{run['id']}/stream", timeout=200)
    run = httpx.get(f"{url}/dashboard/api/runs/{run['id']}").json()
    assert run["state"] == "done"

    program, *words = shlex.split(run["command"])
    typed = subprocess.run([str(BIN / program), *words], capture_output=True, text=True, check=True, timeout=200)
    told = json.loads(typed.stdout)
    evaluated = {one["policy"]: one for one in told["episodes"] if one["scenario"] == SEED}
    assert run["task_digest"] == told["digests"][task]

    for policy in run["policies"]:
        arena, evaluate = policy["result"], evaluated[policy["name"]]
        body = {"agent": policy["name"], "task": task, "split": "test", "seed": SEED, "limit": 0}
        simulate = httpx.post(f"{url}/api/simulate", json=body, timeout=200).json()["session"]
        for name in ("value", "total_reward", "parts", "facts", "crashed"):
            assert arena[name] == evaluate[name] == simulate[name], name
        assert arena["grade"] == evaluate["grade"] == simulate["final_score"]
        assert arena["steps"] == evaluate["steps"] == simulate["decisions"]
        assert simulate["digest"] == run["task_digest"]
        assert simulate["graded"]
