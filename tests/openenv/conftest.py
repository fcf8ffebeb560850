"""What the OpenEnv tests share: servers of both families in this process, one for the whole run, and an address that nobody else has."""

from __future__ import annotations

import socket
import threading
import time
import warnings

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

with warnings.catch_warnings():
    # The guests' own deprecations are theirs.
    warnings.simplefilter("ignore")
    import httpx
    import uvicorn

    from inferencegym.envs.openenv.app import Limits, make_app


class Running:
    """A server on loopback, in a thread of its own."""

    def __init__(self, family: str, limits: Limits):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = make_app(family, limits)
        config = uvicorn.Config(
            self.app, port=self.port, log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < end, "the server did not start"
            assert self._thread.is_alive(), "the server ended"
            time.sleep(0.02)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def paging_server():
    running = Running("pagedkv", Limits(sessions=80, idle_s=600))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def serve_server():
    running = Running("llmserve", Limits(sessions=80, idle_s=600))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def small_server():
    """Room for three sessions."""
    running = Running("pagedkv", Limits(sessions=3, idle_s=600))
    yield running
    running.stop()


@pytest.fixture
def own_server():
    """Makes servers that no other test uses, and stops them after the test."""
    made = []

    def make(family, sessions):
        made.append(Running(family, Limits(sessions=sessions, idle_s=600)))
        return made[-1]

    yield make
    for running in made:
        running.stop()


@pytest.fixture
def http():
    with httpx.Client(timeout=60) as client:
        yield client
