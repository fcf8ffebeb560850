"""A response that is being streamed: one write a piece, comments while it is silent, and a cut for readers that never read. Seconds.

One timer serves all open streams. A comment goes out by a task of its own, which happens once in many seconds; pieces need none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from inferencegym.runtime.ports import Clock
from inferencegym.runtime.render import COMMENT

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]


class Connection(Protocol):
    """What our HTTP protocol tells beyond ASGI, found in the scope under `CONNECTION`."""

    gone: bool
    on_gone: Callable[[str], None] | None
    """Called when the connection is over, with why: `client_left`, or `client_stalled` if the client took nothing for too long."""

    def chunk(self, data: bytes) -> bool:
        """Write a part of a response that has begun; False: it must go by `send`."""

    def abort(self) -> None:
        """Close it, whatever is still to be written."""


CONNECTION = "inferencegym.connection"


class Stream:
    """One streamed response."""

    __slots__ = ("_comment", "_connection", "_head", "_of", "_send", "begun", "last_s", "open", "writing")

    def __init__(
        self, of: Streams, send: Send, head: Callable[[], list[Header]], connection: Connection | None
    ) -> None:
        self._of, self._send, self._head, self._connection = of, send, head, connection
        self.begun = False
        """Whether its status has been told: from then on errors are events."""
        self.open = self.writing = False
        self.last_s = of.clock()
        self._comment: asyncio.Task[None] | None = None

    async def write(self, data: bytes, more: bool = True) -> None:
        """Send it; returns when the client takes more."""
        if self._comment is not None:
            await self._comment
        if more and self.begun and self._connection is not None and self._connection.chunk(data):
            self.last_s = self._of.clock()
            return
        self.writing = True
        if not self.begun:
            await self._begin()
        if not more:
            self.open = False
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self.writing = False
        self.last_s = self._of.clock()

    def cut(self) -> None:
        """Its request's time is over: if the client does not even take what was written, do not wait for it."""
        if self.writing and self._connection is not None:
            self._connection.abort()

    def comment(self) -> None:
        """A sign of life, unless something is just being written."""
        if self.open and not self.writing and self._comment is None:
            self._comment = asyncio.get_running_loop().create_task(self._send_comment())

    async def _begin(self) -> None:
        self.begun = self.open = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._head()})

    async def _send_comment(self) -> None:
        try:
            if not self.begun:
                await self._begin()
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            self.last_s = self._of.clock()
        finally:
            self._comment = None


class Streams:
    """All open streams."""

    def __init__(self, clock: Clock, silence_s: float) -> None:
        """`silence_s`: a stream that said nothing for so long gets a comment; it may be late by a quarter of that."""
        self.clock, self._silence_s = clock, silence_s
        self._all: set[Stream] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._all)

    def add(self, stream: Stream) -> None:
        """It waits for its first piece; from now on it gets comments."""
        stream.open = True
        self._all.add(stream)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._silence_s / 4, self._look)

    def discard(self, stream: Stream) -> None:
        """It has ended."""
        stream.open = False
        self._all.discard(stream)

    def _look(self) -> None:
        self._timer = None
        if not self._all:
            return
        limit_s = self.clock() - self._silence_s
        for stream in self._all:
            if stream.last_s <= limit_s:
                stream.comment()
        self._timer = asyncio.get_running_loop().call_later(self._silence_s / 4, self._look)
