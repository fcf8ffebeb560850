"""The Runtime page's part of the interface: how the gateway stands, and a line a second of how it goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from inferencegym.web.feed import Feed

_END = msgspec.json.encode({"type": "end", "why": "The server shuts down."}) + b"\n"


class RuntimeSection:
    """`/api/runtime` and `/api/runtime/stream`."""

    name = "runtime"

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def routes(self) -> Sequence[BaseRoute]:
        """Below `/dashboard/api`."""
        return [Route("/runtime", self._snapshot), Route("/runtime/stream", self._stream)]

    def close(self) -> None:
        """Let those who look go."""
        self._feed.close()

    async def _snapshot(self, _: Request) -> Response:
        return Response(self._feed.hello(), media_type="application/json")

    async def _stream(self, _: Request) -> Response:
        return StreamingResponse(lines(self._feed), media_type="application/x-ndjson", headers={"cache-control": "no-store", "x-accel-buffering": "no"})  # fmt: skip


async def lines(feed: Feed) -> AsyncIterator[bytes]:
    """What a viewer gets: all there is, then each sample as it comes, then that it is over."""
    feed.watchers += 1
    try:
        seq = feed.seq
        yield feed.hello()
        while not feed.closed:
            await feed.next()
            for number, line in feed.lines_after(seq):
                yield line
                seq = number
        yield _END
    finally:
        feed.watchers -= 1
