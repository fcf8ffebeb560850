"""Guests below a path: made once and late, told their prefix, cut with the server, and free to fail without harm to the gateway."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx
import pytest

from inferencegym.runtime.app import App
from inferencegym.runtime.mounts import Mount
from inferencegym.runtime.server import Server
from inferencegym.runtime.settings import ServerSettings, Settings
from tests.runtime.fakes import FakeBackend, make_app, make_gateway, until, words
from tests.starting import InThread


class Guest:
    """Answers with its path and body; `/endless` streams until it is told that nobody listens; `/broken` raises."""

    def __init__(self):
        self.closed, self.disconnected = 0, threading.Event()

    async def __call__(self, scope, receive, send):
        here = scope["path"].removeprefix(scope["root_path"])
        body = (await receive())["body"]
        if here == "/broken":
            raise RuntimeError("a guest's mistake")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if here != "/endless":
            await send({"type": "http.response.body", "body": here.encode() + b"|" + body, "more_body": False})
            return
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        self.disconnected.set()

    def close(self):
        self.closed += 1


class House:
    def __init__(self):
        self.made = []
        settings = Settings(server=ServerSettings(port=0, log="error"))
        plain = make_app(make_gateway(FakeBackend(lambda ask: words()), settings=settings, clock=time.monotonic))
        self.app = App(plain.gateway, plain._pages, plain.keyring, plain.log, None, [Mount("/guest", self.prepare)])
        self.server = Server(self.app, settings)
        self.running = InThread(self.server)
        until(lambda: self.app.gateway.started)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=10)

    def prepare(self):
        self.thread = threading.current_thread()

        def make():
            asyncio.get_running_loop()
            self.made.append(Guest())
            return self.made[-1]

        return make


@pytest.fixture
def house():
    made = House()
    yield made
    made.client.close()
    made.running.stop()


def test_a_guest_is_made_once_when_it_is_asked_for_and_imported_beside_the_loop(house):
    assert house.made == []
    assert house.client.get("/guest").text == "/|"
    assert house.client.post("/guest/a/b", json={"c": 1}).text == '/a/b|{"c":1}'
    assert len(house.made) == 1
    assert house.thread is not house.running._thread
    assert house.app.responses["/guest", 200] == 2
    assert house.client.get("/guesthouse").status_code == 404


def test_a_guest_that_is_not_ready_when_the_server_ends_is_not_made(house):
    asked, ended = threading.Event(), threading.Event()
    mount, prepare = house.app._mounts[0], house.prepare

    def slowly():
        asked.set()
        assert ended.wait(10)
        return prepare()

    mount._prepare = slowly
    answers = []
    visitor = threading.Thread(target=lambda: answers.append(house.client.get("/guest")))
    visitor.start()
    assert asked.wait(10)
    house.server._loop.call_soon_threadsafe(mount.end)
    house.server._loop.call_soon_threadsafe(ended.set)
    visitor.join(10)
    assert [answer.status_code for answer in answers] == [503]
    assert house.made == []


def test_a_guest_that_fails_harms_nobody(house):
    # As with any mistake of the server's, the connection closes after it.
    assert httpx.get(house.client.base_url.join("/guest/broken")).status_code == 500
    assert house.client.get("/livez").status_code == 200
    assert house.client.get("/guest/x").text == "/x|"


def test_a_client_that_leaves_is_told_to_the_guest(house):
    with house.client.stream("GET", "/guest/endless") as answer:
        assert next(answer.iter_raw()) == b"begun"
    assert house.made[0].disconnected.wait(5)


def test_what_a_guest_streams_ends_with_the_server(house):
    with house.client.stream("GET", "/guest/endless") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"begun"
        house.server._loop.call_soon_threadsafe(house.server.begin_drain)
        assert list(pieces) == []  # a whole answer: a cut one raises
    assert house.made[0].closed == 1
    house.running._thread.join(5)
    assert not house.running._thread.is_alive()
