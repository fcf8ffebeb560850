"""A backend that does as the test says, and a gateway, an app or a server around such backends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from inferencegym.runtime.app import App
from inferencegym.runtime.backends.pool import Pool, Traits
from inferencegym.runtime.exporter import Exporter
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.keys import Keyring
from inferencegym.runtime.live import LiveConfig
from inferencegym.runtime.log import JsonLog
from inferencegym.runtime.pages import Pages
from inferencegym.runtime.plant import GatewayPlant
from inferencegym.runtime.ports import CHAT, COMPLETIONS, BackendError, Capabilities, Load, Piece
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.server import Server
from inferencegym.runtime.settings import Settings
from tests import starting
from tests.starting import InThread

#: Steps of a script besides pieces: wait so many seconds; hang until aborted; fail.
HANG = object()


class Gate:
    """A step that lasts until the test opens it."""

    def __init__(self):
        self._loop, self._event = None, asyncio.Event()

    async def wait(self):
        self._loop = asyncio.get_running_loop()
        await self._event.wait()

    def open(self):
        self._loop.call_soon_threadsafe(self._event.set)


class FakeAnswer:
    def __init__(self, backend, ask, script):
        self.backend, self.ask, self.script, self.at = backend, ask, script, 0
        self.scheduled_s = asyncio.get_running_loop().time()
        self.aborted = asyncio.Event()

    def __aiter__(self):
        return self

    def ready(self):
        return self.aborted.is_set() or self.at >= len(self.script) or isinstance(self.script[self.at], Piece)

    async def __anext__(self):
        while self.at < len(self.script) and not self.aborted.is_set():
            step = self.script[self.at]
            self.at += 1
            if isinstance(step, Piece):
                self.backend.given += 1
                return step
            if isinstance(step, BackendError):
                raise step
            if isinstance(step, Gate):
                await step.wait()
                continue
            try:
                await asyncio.wait_for(self.aborted.wait(), None if step is HANG else step)
            except TimeoutError:
                continue
        raise StopAsyncIteration

    def abort(self):
        if not self.aborted.is_set():
            self.backend.aborted.append(self.ask.id)
        self.aborted.set()


class FakeBackend:
    """`script(ask)` gives what an answer does: pieces, seconds to wait, HANG, or a BackendError."""

    def __init__(
        self,
        script: Callable,
        name="fake",
        models=("m",),
        seats=None,
        endpoints=(CHAT, COMPLETIONS),
        fields=frozenset(),
    ):
        self.script, self.name, self.models = script, name, models
        self.able = Capabilities(frozenset(endpoints), fields, seats)
        self.asked, self.aborted, self.given, self.well = [], [], 0, True

    def capabilities(self):
        return self.able

    async def start(self):
        pass

    async def stop(self):
        pass

    def submit(self, ask):
        self.asked.append(ask)
        return FakeAnswer(self, ask, self.script(ask))

    async def healthy(self):
        return self.well

    def load(self):
        return Load()

    def apply(self, knobs):
        return dict.fromkeys(knobs, "fixed")


def words(count=3, pause_s=None):
    """So many words, one a token, with a pause before each."""
    script = []
    for i in range(count):
        if pause_s is not None:
            script.append(pause_s)
        last = i == count - 1
        script.append(Piece(text=f"w{i} ", tokens=1, finish_reason="stop" if last else None))
    return script


def make_gateway(*backends, settings=None, clock=None, **more):
    settings = settings or Settings(**more)
    clock = clock or asyncio.get_running_loop().time
    pool = Pool(backends, settings.routing, {one.name: Traits(health_interval_s=float("inf")) for one in backends})
    return Gateway(settings, pool, Recorder(settings.classes, clock), clock)


def make_app(gateway):
    live = LiveConfig(gateway.settings, gateway.change)
    plant = GatewayPlant(gateway, patch=lambda changes: live.patch(changes, by="plant"))
    pages = Pages(gateway, live, Exporter(gateway), plant).table()
    return App(gateway, pages, Keyring(gateway.settings.keys), JsonLog("error"))


class Served:
    """A server on loopback in a thread, for as long as a test wants it."""

    def __init__(self, *backends, log_fd=None, settings=None, **more):
        self.backends = backends
        settings = settings or Settings(**more)
        self.gateway = make_gateway(*backends, settings=settings, clock=time.monotonic)
        self.app = make_app(self.gateway)
        if log_fd is not None:
            self.app.log = JsonLog("info", log_fd)
        self.server = Server(self.app, settings)
        self.running = InThread(self.server)
        until(lambda: self.gateway.started)
        self.url = f"http://127.0.0.1:{self.server.port}"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.running.stop()


def until(happened, limit_s=10.0):
    """Return when something another thread does has happened."""
    starting.until(happened, "what another thread does", limit_s, poll_s=0.005)
