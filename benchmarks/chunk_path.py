"""What the gateway's own code costs for one proxied chunk, without sockets: from the upstream connection's bytes to the client connection's write.

The rest of `us_per_chunk_paced` in `benchmarks/gateway.py` is the kernel's and the event loop's. CPU microseconds; `python benchmarks/chunk_path.py`.
"""

from __future__ import annotations

import asyncio
import json
import time

import uvloop
from gateway import MODEL, chunk, request, server

from inferencegym.cli.gateway import make_app
from inferencegym.runtime.backends import http
from inferencegym.runtime.settings import BackendSettings, ServerSettings, Settings
from inferencegym.runtime.stream import CONNECTION

STREAMS, CHUNKS, PASSES = 64, 200, 6
#: Turns of the loop in which everybody has read and written what came.
TURNS = 5


class Sink:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        return

    close = resume_reading = pause_reading = abort


class Client:
    """The client's connection, as `runtime.server.Protocol` gives it to a stream."""

    gone, on_gone = False, None

    def __init__(self) -> None:
        self.transport = Sink()

    def chunk(self, data: bytes) -> bool:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def measure(upstream: int) -> float:
    """CPU microseconds a chunk, the least of some passes."""
    connections: list[http._Connection] = []

    async def connect(self: http.Client) -> http._Connection:
        made = http._Connection(self)
        made.connection_made(Sink())
        connections.append(made)
        return made

    backend = BackendSettings(kind="openai", url=f"http://127.0.0.1:{upstream}", model=MODEL)
    app = make_app(Settings(server=ServerSettings(log="error"), backends=(backend,)))
    await app.gateway.start()
    http.Client._connect, real = connect, http.Client._connect
    body = request(stream=True, tokens=CHUNKS).partition(b"\r\n\r\n")[2]

    async def ask() -> None:
        async def receive() -> dict:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict) -> None:
            return

        path = {
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await app({"type": "http", "method": "POST", CONNECTION: Client(), **path}, receive, send)

    costs = []
    for _ in range(PASSES):
        connections.clear()
        asking = [asyncio.ensure_future(ask()) for _ in range(STREAMS)]
        while len(connections) < STREAMS:
            await asyncio.sleep(0)
        await turns()
        for one in connections:
            one.data_received(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
        await turns()
        events = [b"data: " + chunk(b" word%d" % number) + b"\n\n" for number in range(CHUNKS)]
        before = time.process_time()
        for event in events:
            data = b"%x\r\n%b\r\n" % (len(event), event)
            for one in connections:
                one.data_received(data)
            await turns()
        costs.append((time.process_time() - before) / (STREAMS * CHUNKS) * 1e6)
        for one in connections:
            one.data_received(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await asyncio.gather(*asking)
        for one in connections:
            one._client.forget(one)
    http.Client._connect = real
    await app.gateway.stop()
    return min(costs)


if __name__ == "__main__":
    with server("upstream") as (_, port):
        print(json.dumps({"own_us_per_chunk": round(uvloop.run(measure(port)), 2)}))
