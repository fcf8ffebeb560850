"""CPU microseconds that a request costs in the HTTP backend, by either client, beside raw aiohttp in the same run; streams of 16 events, and whole answers.

A second process answers from memory. `python benchmarks/http_backend.py [--requests 4000] [--json]`; figures are of this process's CPU time only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from multiprocessing import get_context

import aiohttp
import uvloop

from inferencegym.runtime.backends.openai import OpenAI
from inferencegym.runtime.ports import Ask

MESSAGES = [{"role": "user", "content": "x" * 200}]
EVENTS = 16


def _answers() -> dict[bytes, bytes]:
    def event(more: dict) -> bytes:
        return (
            b"data: "
            + json.dumps({"id": "c-1", "object": "chat.completion.chunk", "model": "m", **more}).encode()
            + b"\n\n"
        )

    usage = {"prompt_tokens": 50, "completion_tokens": EVENTS, "total_tokens": 50 + EVENTS}
    events = [
        event({"choices": [{"index": 0, "delta": {"content": f"word{i} "}, "finish_reason": None}]})
        for i in range(EVENTS)
    ]
    events.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    events += [event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in events)
    body = json.dumps({"id": "c-1", "choices": [{"index": 0, "message": {"content": "word " * EVENTS}, "finish_reason": "stop"}], "usage": usage}).encode()  # fmt: skip
    return {
        b"true": b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        b"false": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body),
    }  # fmt: skip


class _Canned(asyncio.Protocol):
    answers = _answers()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        self.rest += data
        if self.rest.endswith(b"}"):
            self.transport.write(self.answers[b"true" if b'"stream": true' in self.rest else b"false"])
            self.rest = b""


def _serve(pipe) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Canned, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(main())


async def _crowd(one, requests: int, concurrency: int) -> float:
    """CPU microseconds a request."""

    async def worker(count: int) -> None:
        for _ in range(count):
            await one()

    await asyncio.gather(*(worker(20) for _ in range(concurrency)))
    begin = time.process_time()
    await asyncio.gather(*(worker(requests // concurrency) for _ in range(concurrency)))
    return (time.process_time() - begin) / (requests // concurrency * concurrency) * 1e6


async def _measure(port: int, requests: int) -> dict[str, float]:
    url = f"http://127.0.0.1:{port}"
    backend = OpenAI("b", url, models=("m",))
    OpenAI.by_aiohttp = True
    slow = OpenAI("b", url, models=("m",))
    await backend.start()
    await slow.start()
    session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
    figures: dict[str, float] = {}
    for stream in (True, False):
        body = json.dumps({"model": "m", "messages": MESSAGES, "stream": stream}).encode()
        ask = Ask("req-1", "chat", "m", body, None, 50, None, stream, 0.0)

        async def raw(body: bytes = body) -> None:
            async with session.post(
                f"{url}/v1/chat/completions", data=body, headers={"content-type": "application/json"}
            ) as response:
                async for _ in response.content.iter_any():
                    pass

        async def ours(ask: Ask = ask) -> None:
            async for _ in backend.submit(ask):
                pass

        async def by_aiohttp(ask: Ask = ask) -> None:
            async for _ in slow.submit(ask):
                pass

        for name, one in (("aiohttp", raw), ("backend_by_aiohttp", by_aiohttp), ("backend", ours)):
            best = min([await _crowd(one, requests, 16) for _ in range(3)])
            figures[f"{name}_{'stream' if stream else 'whole'}_us"] = round(best, 1)
    await session.close()
    await backend.stop()
    await slow.stop()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    here, there = get_context("spawn").Pipe()
    server = get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    server.start()
    try:
        figures = uvloop.run(_measure(here.recv(), options.requests))
    finally:
        server.terminate()
        server.join()
    if options.json:
        json.dump(figures, sys.stdout)
    else:
        print("\n".join(f"{name:>30} {value:8.1f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
