"""What the OpenEnv tests share: servers of both families in this process, one for the whole run, and an address that nobody else has."""

from __future__ import annotations

import warnings

import pytest

from tests.starting import InThread, free_port

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
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = make_app(family, limits)
        config = uvicorn.Config(
            self.app, port=self.port, log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=2
        )
        self.stop = InThread(uvicorn.Server(config)).stop


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
