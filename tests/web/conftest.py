"""What the dashboard's tests share: a server of it in a thread, and what a client reads from a run's stream."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette", reason="the extra 'web' is not installed")
httpx = pytest.importorskip("httpx")

import uvicorn  # noqa: E402

from inferencegym.web import frames  # noqa: E402
from inferencegym.web.app import make_dashboard  # noqa: E402
from inferencegym.web.arena import ArenaSection  # noqa: E402
from inferencegym.web.desk import Desk  # noqa: E402
from inferencegym.web.runs import Limits  # noqa: E402
from tests.starting import InThread, free_port  # noqa: E402


class Arena:
    """A server with the Arena, and a client of it."""

    def __init__(self, limits: Limits | None = None):
        self.section = ArenaSection(Desk(), limits)
        self.table = self.section.table
        port = free_port()
        config = uvicorn.Config(
            make_dashboard([self.section], server="env"), port=port, log_level="error", timeout_graceful_shutdown=2
        )
        self._running = InThread(uvicorn.Server(config))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=60)

    def start(self, task="hard", policies=("lru",), *, status=200, **others):
        """What POST /runs answers."""
        answer = self.client.post("/runs", json={"task": task, "policies": list(policies), **others})
        assert answer.status_code == status, answer.text
        return answer.json()

    def frames(self, run_id, frame=0):
        """All frames from one on, until the run ends; without the signs of life."""
        data = self.client.get(f"/runs/{run_id}/stream", params={"frame": frame}).content
        return [(header, payload) for header, payload in frames.read(data) if header["type"] != "alive"]

    def played(self, *given, **others):
        """A run at its end."""
        run = self.start(*given, **others)
        self.frames(run["id"])
        return self.client.get(f"/runs/{run['id']}").json()

    def get(self, run_id):
        """The run as it stands."""
        answer = self.client.get(f"/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def process(self, run_id):
        """Number of the process that plays a run, once there is one."""
        process = self.table._played.get(run_id)
        return process and process.pid

    def stop(self):
        """End the server and all that it began."""
        self.client.close()
        self._running.stop()


@pytest.fixture(scope="session")
def arena():
    """A server for all tests that do nothing to it."""
    made = Arena()
    yield made
    made.stop()


@pytest.fixture
def own_arena():
    """Makes servers that one test has for itself."""
    made = []

    def make(**limits):
        made.append(Arena(Limits(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.stop()
