"""Throws random and broken bytes at the wire layer for some minutes: at `wire.read` in process, and at the HTTP port of a whole server with a mock engine.

What must hold: a body is read or refused with ApiError 400, whatever it is; a connection gets HTTP answers with a known status below 500 (503 where it
is overloaded), or is closed; errors come in the envelope; the server lives, nothing stays under way, and what was never refused still works.
`python runs/fuzz_wire.py --minutes 10 [--seed 1] [--out FILE]`; the seed gives the same bytes again. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from inferencegym.ground.rng import stream
from inferencegym.runtime import wire
from inferencegym.runtime.backends.events import EventStream, read_event
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.ports import CHAT, COMPLETIONS, EMBEDDINGS, BackendError
from inferencegym.runtime.server import Server
from inferencegym.runtime.settings import BackendSettings, QueueSettings, ServerSettings, Settings

MODEL = "llama-3.1-8b"
#: Whole bodies that are right, as the ground for what is wrong.
BODIES: tuple[dict[str, Any], ...] = (
    {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3},
    {"model": MODEL, "prompt": "once", "max_tokens": 2, "temperature": 0.5, "priority": -1, "user": "u"},
    {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 2, "stream": True, "ignore_eos": True, "min_tokens": 1},
    {"model": MODEL, "input": ["a", "b"], "dimensions": 4},
)  # fmt: skip
#: Values that readers stumble over.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1e308, -1e308, 2**31, 2**63, 2**64, 10**30, 0.1, "", "\x00", "\ud800", "8", "true", [], {}, [[]], [None], [{}], {"a": None},
    "x" * 5000, "\u202e\U0001f600", [1] * 300, {"role": 1}, [{"role": "user"}], [{"role": "user", "content": [{"type": "text"}]}], ["", [1], 2],
)  # fmt: skip
#: Bytes that mean something to a reader of HTTP, JSON or server-sent events.
TOKENS: tuple[bytes, ...] = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b": ", b"\x00", b"\xff", b"\xc3", b"{", b"}", b"[", b"]", b'"', b"\\u", b"\\", b"NaN", b"Infinity", b"-", b"1e999", b"data: ",
    b"[DONE]", b"\n\n", b"chunked", b"transfer-encoding: chunked\r\n", b"content-length: 0\r\n", b"content-length: 5\r\n", b"content-length: -1\r\n",
    b"expect: 100-continue\r\n", b"connection: close\r\n", b"connection: upgrade\r\nupgrade: websocket\r\n", b"upgrade: h2c\r\n", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1",
    b"GET ", b"POST ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"fffffffffffffffff\r\n", b"x-queue-ttl-ms: nan\r\n", b"x-no-queue: maybe\r\n",
    b"x-request-id: \xff\r\n", b"x-stainless-read-timeout: inf\r\n", b"authorization: Bearer \x7f\r\n", b"x-queue-ttl-ms: 1e-320\r\n", b"content-encoding: gzip\r\n",
)  # fmt: skip
PATHS = (*("/v1/chat/completions", "/v1/completions") * 8, "/v1/embeddings", "/v1/models", "/v1/models/%00", "/metrics", "/metrics?format=json", "/v1/runtime/config",
         "/v1/runtime/plant", "/v1/runtime/config/revert", "/health", "/openapi.json", "/", "//", "/%", "/%ff", "/v1/chat/completions?x=%", "*", "http://a/v1/models")  # fmt: skip
METHODS = (*("POST",) * 12, "GET", "HEAD", "OPTIONS", "PATCH", "PUT", "DELETE", "TRACE", "CONNECT", "BREW")
#: Statuses that may be told; every other one is a find. The mock neither fails nor runs out of time.
KNOWN = frozenset({100, 200, 204, 400, 401, 404, 405, 412, 413, 415, 429, 503})
#: What would stop or change the server for all that follow.
_SPARED = b"/v1/runtime/drain"


class Maker:
    """Makes bytes from one random stream."""

    def __init__(self, seed: int, name: str) -> None:
        self._draw = stream(seed, name)

    def below(self, end: int) -> int:
        """A whole number from 0, below `end`."""
        return int(self._draw.integers(end))

    def one(self, among: tuple[Any, ...]) -> Any:
        """One of these."""
        return among[self.below(len(among))]

    def value(self, value: Any, depth: int = 0) -> Any:
        """Something like it: here and there something else."""
        if self.below(6) == 0 or depth > 4:
            return self.one(ODD)
        if isinstance(value, dict):
            made = {
                key: self.value(one, depth + 1) if self.below(3) == 0 else one
                for key, one in value.items()
                if self.below(12)
            }
            if self.below(4) == 0:
                made[self.one((*wire.Chat.__struct_fields__, "x", ""))] = self.one(ODD)
            return made
        if isinstance(value, list):
            return [self.value(one, depth + 1) for one in value] * (1 + (self.below(20) == 0) * 50)
        return value

    def body(self) -> bytes:
        """JSON that is nearly right, sometimes with broken bytes."""
        right = dict(self.one(BODIES))
        data = json.dumps(right if self.below(3) == 0 else self.value(right)).encode()
        kind = self.below(8)
        if kind == 0:
            return self.broken(data)
        if kind == 1:
            depth = 10 ** (1 + self.below(5))
            return b'{"model":' + b"[" * depth + b"]" * (depth if self.below(2) else 0)
        return self._draw.bytes(self.below(200)) if kind == 2 else data

    def broken(self, data: bytes) -> bytes:
        """The same bytes with some put in, taken out, doubled or changed."""
        held = bytearray(data)
        for _ in range(1 + self.below(4)):
            at, kind = self.below(len(held) + 1), self.below(5)
            if kind == 0:
                held[at:at] = self.one(TOKENS)
            elif kind == 1:
                del held[at : at + 1 + self.below(8)]
            elif kind == 2:
                held[at:at] = held[at : at + self.below(64)]
            elif kind == 3 and at < len(held):
                held[at] = self.below(256)
            else:
                held = held[:at]
        return bytes(held)

    def request(self) -> bytes:
        """One HTTP request, more or less."""
        body, path = self.body(), self.one(PATHS)
        head = [f"{self.one(METHODS)} {path} HTTP/1.1".encode(), b"host: a"]
        if self.below(3):
            head.append(b"connection: close")
        if self.below(5):
            head.append(b"content-type: application/json")
        framing = self.below(10)
        if framing == 0:
            head.append(b"transfer-encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif framing == 1:
            head.append(b"content-length: %d" % self.below(2 * len(body) + 2))
        else:
            head.append(b"content-length: %d" % len(body))
        data = b"\r\n".join(head) + b"\r\n\r\n"
        if self.below(4) == 0:
            at = data.index(b"\r\n") + 2
            data = data[:at] + self.one(TOKENS) + data[at:]
        return self.broken(data + body) if self.below(3) == 0 else data + body

    def connection(self) -> list[bytes]:
        """What a client sends on one connection, in portions."""
        data = b"".join(self.request() for _ in range(1 + (self.below(4) == 0) * 3))
        if self.below(12) == 0:
            data = self._draw.bytes(self.below(3000))
        if self.below(40) == 0:
            data = data[:20] + b"a" * 100_000 + data[20:]
        while _SPARED in data:
            data = data.replace(_SPARED, b"/")
        cuts = sorted(self.below(len(data) + 1) for _ in range(self.below(4)))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class Finds:
    """What should not have been, and how often each thing was tried."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.found: list[dict[str, str]] = []

    def add(self, where: str, what: str, data: bytes) -> None:
        """One find; the bytes that made it, as Python writes them."""
        if sum(one["what"] == what for one in self.found) < 3:
            self.found.append({"where": where, "what": what, "bytes": repr(data[:4000])})
            print(f"FOUND {where}: {what}\n  {data[:300]!r}", flush=True)


class Heard(logging.Handler):
    """Listens to the server's own log: an exception there is a find; that somebody spoke no HTTP is not."""

    def __init__(self, finds: Finds) -> None:
        super().__init__(logging.ERROR)
        self._finds = finds

    def emit(self, record: logging.LogRecord) -> None:
        """One line of the log."""
        error = record.exc_info[1] if record.exc_info else None
        self._finds.add("log", f"{record.getMessage().strip()} {error!r}"[:300], b"")


# --- in process -------------------------------------------------------------------------------------------------------------


def in_process(finds: Finds, maker: Maker, until_s: float) -> None:
    """Bodies at `wire.read`, and what follows it; events at the reader of what backends send."""
    readers: tuple[tuple[str, Callable[[bytes], None]], ...] = (
        *((f"wire.read({name})", lambda data, name=name: _read(name, data)) for name in (CHAT, COMPLETIONS, EMBEDDINGS)),
        ("events", lambda data: _events(maker, data)),
    )  # fmt: skip
    while time.monotonic() < until_s:
        for _ in range(200):
            name, read = maker.one(readers)
            data = maker.body()
            finds.tried[name] += 1
            try:
                read(data)
            except (ApiError, BackendError) as error:
                if isinstance(error, ApiError) and error.status != 400:
                    finds.add(name, f"status {error.status}", data)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a find
                finds.add(name, repr(error)[:200], data)


def _read(endpoint: str, data: bytes) -> None:
    fields = wire.read(endpoint, data)
    assert wire.prompt_tokens(fields) >= 1, "a prompt of no tokens"
    wire.answer_limit(fields)
    assert len(wire.beginning(fields)) <= 256, "a beginning longer than it may be"


def _events(maker: Maker, data: bytes) -> None:
    cut = EventStream()
    events, at = [], 0
    data = b"data: " + data.replace(b"\n", b"\n\ndata: ") + b"\n\n"
    while at < len(data):
        end = at + 1 + maker.below(300)
        events += cut.feed(data[at:end])
        at = end
    for event in events + cut.end():
        read_event(event).counted()


# --- over HTTP --------------------------------------------------------------------------------------------------------------


async def _talk(port: int, portions: list[bytes], patience_s: float) -> tuple[bytes, bool]:
    """(what came back, whether the server closed)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got, closed = b"", False
    try:
        for portion in portions:
            writer.write(portion)
            await asyncio.sleep(0)
        async with asyncio.timeout(patience_s):
            await writer.drain()
            while data := await reader.read(65_536):
                got += data
                if len(got) > 1 << 20:
                    break
            closed = True
    except TimeoutError:
        pass  # it waits for more of a request that has no end: its time limits are tested elsewhere
    except (OSError, RuntimeError):  # uvloop's way to say that the server has closed
        closed = True
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return got, closed


_STATUS = re.compile(rb"(?:^|\n)HTTP/1\.1 (\d{3}) ")


async def over_http(finds: Finds, maker: Maker, port: int, until_s: float) -> None:
    """Connections with anything on them, eight at a time."""

    async def one() -> None:
        while time.monotonic() < until_s:
            portions = maker.connection()
            data = b"".join(portions)
            finds.tried["connections"] += 1
            try:
                got, _ = await _talk(port, portions, 0.05 + 0.2 * (maker.below(10) == 0))
            except OSError as error:
                finds.add("http", f"no connection: {error!r}", data)
                await asyncio.sleep(0.5)
                continue
            if got and not got.startswith(b"HTTP/1.1 "):
                finds.add("http", "what came back is no HTTP", data + b" -> " + got[:500])
            for status in map(int, _STATUS.findall(got)):
                finds.statuses[status] += 1
                if status not in KNOWN:
                    finds.add("http", f"status {status}", data + b" -> " + got[:500])
            if b"Traceback" in got or b"Internal Server Error" in got:
                finds.add("http", "the server told its inside", data)

    async def well() -> None:
        while time.monotonic() < until_s:
            await asyncio.sleep(1.0)
            told = await asyncio.to_thread(_sane, port)
            if told:
                finds.add("http", told, b"")

    await asyncio.gather(well(), *(one() for _ in range(8)))


def _sane(port: int) -> str:
    """What is wrong with a right request; nothing if it is answered."""
    call = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        call.request("POST", PATHS[0], json.dumps(BODIES[0]), {"content-type": "application/json"})
        answer = call.getresponse()
        told = answer.read()
        return "" if answer.status in (200, 503, 429) else f"a right request got {answer.status}: {told[:200]!r}"
    except (OSError, http.client.HTTPException) as error:
        return f"a right request got no answer: {error!r}"
    finally:
        call.close()


async def serve_and_fuzz(finds: Finds, maker: Maker, lasting_s: float) -> None:
    """A whole server in this process, so that what goes wrong inside is seen too."""
    from inferencegym.cli.gateway import make_app

    backend = BackendSettings(kind="mock", model=MODEL, time_scale=1000.0)
    server_settings = ServerSettings(port=0, header_timeout_s=2.0, log="error", max_body_bytes=1 << 20)
    settings = Settings(server=server_settings, backends=(backend,), queue=QueueSettings(max_requests=1000))
    app = make_app(settings)
    server = Server(app, settings, signals={})
    logging.getLogger("uvicorn.error").handlers = [Heard(finds)]
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: finds.add("loop", repr(context.get("exception") or context["message"])[:300], b"")
    )
    serving = asyncio.ensure_future(server.serve())
    while not (server.started and app.gateway.started):
        await asyncio.sleep(0.05)
        assert not serving.done(), "the server did not start"
    await over_http(finds, maker, server.port, time.monotonic() + lasting_s)
    for _ in range(100):
        if not app.gateway.under_way():
            break
        await asyncio.sleep(0.1)
    if app.gateway.under_way():
        finds.add("gateway", f"{app.gateway.under_way()} requests are still under way", b"")
    left = {
        "seats": app.gateway.in_flight(), "queue": app.gateway.waiting(), "records": len(app.gateway.recorder.live),
        "admission": app.gateway.admission.total.requests, "streams": len(app.streams),
        "connections": len(server.server_state.connections), "tasks": len(server.server_state.tasks),
    }  # fmt: skip
    if any(left.values()):
        finds.add("gateway", f"not all came back to nothing: {left}", b"")
    finds.tried["requests let in"] = app.gateway.recorder.arrivals
    server.should_exit = True
    try:
        await asyncio.wait_for(serving, 30)
    except TimeoutError:
        finds.add("server", "it does not end", b"")


def main() -> int:
    """Fuzz, tell, and end with 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write what was tried and found as JSON")
    arguments = parser.parse_args()
    begin_s, finds = time.monotonic(), Finds()
    in_process(finds, Maker(arguments.seed, "fuzz.read"), begin_s + 12 * arguments.minutes)
    uvloop.run(serve_and_fuzz(finds, Maker(arguments.seed, "fuzz.http"), 48 * arguments.minutes))
    told = {
        "seed": arguments.seed, "minutes": round((time.monotonic() - begin_s) / 60, 2), "tried": dict(finds.tried),
        "statuses": {str(status): count for status, count in sorted(finds.statuses.items())}, "found": finds.found,
    }  # fmt: skip
    print(json.dumps(told, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(bool(finds.found))


if __name__ == "__main__":
    raise SystemExit(main())
