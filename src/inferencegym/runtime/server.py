"""The gateway as a process: uvicorn with our own HTTP protocol and our own end. Seconds.

First signal: readiness turns 503, new work is refused, what was let in goes on to its end or to `drain_timeout_s`; then the port closes.
Second signal: now. Several workers share the port; each is a process with its own gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import multiprocessing.connection
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.app import App
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.housekeeping import Housekeeper
from inferencegym.runtime.settings import Settings
from inferencegym.runtime.siblings import Worker, new_folder
from inferencegym.runtime.stream import CONNECTION

SIGNALS: Mapping[int, bool] = {signal.SIGINT: True, signal.SIGTERM: True}
#: A terminal's Ctrl+C reaches all processes at once: workers leave it to their parent, who tells them once.
_WORKER_SIGNALS: Mapping[int, bool] = {signal.SIGINT: False, signal.SIGTERM: True}
#: A worker that ends within this time of its start has not worked: it is not started again.
_STILLBORN_S = 5.0


class Protocol(HttpToolsProtocol):  # type: ignore[misc]
    """uvicorn's, which also tells at once when a client leaves, limits the time for a request's head and between the parts of its body, and speaks our envelope when it hears no HTTP."""

    header_timeout_s = 10.0
    cycle: Any
    scope: Any
    headers: Any

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.gone = False
        self.on_gone: Callable[[str], None] | None = None
        self.stuck_since_s, self.taken = float("inf"), 0
        self._timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._answering: Any = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected: its first head is awaited."""
        super().connection_made(transport)
        self._await_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or we closed."""
        self.gone = True
        self._in_time()
        self._unset_keepalive_if_required()
        if self._answering is not None:
            # uvicorn tells it to the latest request only; where some came at once, an earlier one is being answered.
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        if self.on_gone is not None:
            self.on_gone("client_left")
        # Requests that are under way hold what they need. Without these circles all goes with them, and no collector has to come for it.
        self.cycle = self.scope = self.headers = self._answering = None
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Something came; if it is not the whole request, more must come in time."""
        super().data_received(data)
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:
            self._in_time()
            self._await_more()
        elif self._in_body:
            self._in_time()
        self._in_body = cycle is not None and cycle.more_body

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._timer is None:
            self._await_more()
        super().on_message_begin()
        self.scope[CONNECTION] = self

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._in_time()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Its body is whole: go on reading, for only who reads hears that the client leaves."""
        super().on_message_complete()
        if not self.pipeline:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def chunk(self, data: bytes) -> bool:
        """Write one chunk of the response that is under way, without the detour by ASGI's messages; False where that has to decide or to wait."""
        if self.gone or not self.cycle.chunked_encoding or self.flow.write_paused:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def abort(self) -> None:
        """Close, whatever is still to be written."""
        self.transport.abort()

    def give_up(self) -> None:
        """Close: the client takes nothing of what was written."""
        if self.on_gone is not None:
            self.on_gone("client_stalled")
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        body = ApiError(400, "invalid_http", msg).body()
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)  # fmt: skip
        self.transport.write(head + body)
        self.transport.close()

    def _await_more(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout_s, self._too_late)

    def _in_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn, with the gateway's start, drain and end."""

    def __init__(self, app: App, settings: Settings, signals: Mapping[int, bool] = SIGNALS) -> None:
        """`signals`: those that mean the end, and those (False) to pass over."""
        held = settings.server
        protocol = type("TimedProtocol", (Protocol,), {"header_timeout_s": held.header_timeout_s})
        super().__init__(
            uvicorn.Config(
                app, host=held.host, port=held.port, http=protocol, loop="uvloop", ws="none", lifespan="off", access_log=False,
                log_config=None, server_header=False, timeout_keep_alive=75, backlog=4096, interface="asgi3",
            )
        )  # fmt: skip
        self.app, self._settings = app, held
        self._signals = signals
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        """Why the backends did not start."""

    @property
    def port(self) -> int:
        """Where it listens; chosen by the system if the settings say 0."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    async def _serve(self, sockets: Any = None) -> None:
        """From the first socket to the last answer. Raises what kept the backends from starting."""
        loop = self._loop = asyncio.get_running_loop()
        keeper = Housekeeper(self.server_state.connections, self.app.gateway.clock, self._settings.write_timeout_s)
        keeper.start()
        starting = loop.create_task(self.app.gateway.start())
        starting.add_done_callback(self._started)
        try:
            await super()._serve(sockets)
        finally:
            keeper.stop()
            if not starting.done():
                starting.cancel()
                await asyncio.wait([starting])
            if self._ending is not None:
                self._ending.cancel()
            await self.app.gateway.stop()
            self.app.log.flush()
        if self.failure is not None:
            raise self.failure

    def _started(self, starting: asyncio.Task[None]) -> None:
        """The backends are up, or cannot be."""
        if starting.cancelled():
            return
        self.failure = starting.exception()
        if self.failure is not None:
            self.should_exit = True
        else:
            # What is here now stays: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            self.app.log.write("info", "ready", models=list(self.app.gateway.pool.models()))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal, in the middle of anything."""
        if self.app.gateway.draining and self._ending is not None:
            self.force_exit = self.should_exit = True
            return
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.begin_drain)

    def begin_drain(self) -> None:
        """Take nothing new, and end when all that was let in has ended, or `drain_timeout_s` is over."""
        if self._ending is None:
            self.app.gateway.drain()
            self.app.log.write("info", "draining", under_way=self.app.gateway.under_way())
            self._ending = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self.app.gateway.idle()
        except TimeoutError:
            self.app.log.write("warning", "drain_timeout", under_way=self.app.gateway.under_way())
            for_all = ApiError(503, "shutdown", "The server has shut down", retry_after_s=1.0)
            self.app.gateway.end_all(for_all)
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """Close the port, and the connections as their last answers are out."""
        self.app.end_mounts()
        if self.force_exit:
            self.app.gateway.end_all(ApiError(503, "shutdown", "The server has shut down", retry_after_s=1.0))
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the process by our way, with exit code 0; only the main thread hears them."""
        try:
            before = {
                number: signal.signal(number, self.handle_exit if heard else signal.SIG_IGN)
                for number, heard in self._signals.items()
            }
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


#: What makes an application: of the settings, and for one of several workers.
Maker = Callable[[Settings, Worker | None], App]


def serve(make_app: Maker, settings: Settings) -> None:
    """Serve until a signal. Errors of the start are raised."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    if settings.server.workers == 1:
        Server(make_app(settings, None), settings).run()
    else:
        _Workers(make_app, settings).run()


def _work(make_app: Maker, settings: Settings, worker: Worker, sockets: list[Any]) -> None:
    Server(make_app(settings, worker), settings, _WORKER_SIGNALS).run(sockets)


class _Workers:
    """Several processes on one listening socket: whoever is free takes the next connection."""

    def __init__(self, make_app: Maker, settings: Settings) -> None:
        if settings.server.port == 0:
            raise ConfigError("server.port", "is 0 with several workers", allowed="a port of its own")
        managed = [b.name for b in settings.backends if b.kind in ("llama.cpp", "vllm") and not (b.url or b.adopt)]
        if managed:
            raise ConfigError("server.workers", f"each worker would start its own '{managed[0]}'", allowed="1, or backends that run already: set their url and adopt")  # fmt: skip
        self._make_app, self._settings = make_app, settings
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[int, Any, float]] = []
        self._ending = False

    def run(self) -> None:
        """Start them, start again those that die, and end all with the first signal."""
        socket = uvicorn.Config(
            "", host=self._settings.server.host, port=self._settings.server.port, log_config=None
        ).bind_socket()
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        self._folder = new_folder()
        try:
            self._workers = [self._start(number, socket) for number in range(self._settings.server.workers)]
            while self._workers:
                multiprocessing.connection.wait([process.sentinel for _, process, _ in self._workers])
                for worker in [w for w in self._workers if not w[1].is_alive()]:
                    self._workers.remove(worker)
                    if not self._ending and time.monotonic() - worker[2] > _STILLBORN_S:
                        self._workers.append(self._start(worker[0], socket))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, number: int, socket: Any) -> tuple[int, Any, float]:
        worker = Worker(number, self._folder)
        process = self._context.Process(target=_work, args=(self._make_app, self._settings, worker, [socket]))
        process.start()
        return number, process, time.monotonic()

    def _pass_on(self, number: int, _frame: Any) -> None:
        self._ending = True
        for _, process, _ in self._workers:
            if process.is_alive():
                process.terminate()
