"""Guests below a path of the gateway: ASGI applications that the runtime knows nothing of (the dashboard), made when somebody first asks for them.

What they need is imported in a thread, so that requests under way are not held up by it. Their requests are not the gateway's: they are neither
admitted nor recorded, but the cap on bodies, the time for a head and the cut of clients that take nothing hold for them too. What they stream ends
when the server shuts down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from inferencegym.ground.errors import MissingExtraError
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.intake import Receive
from inferencegym.runtime.stream import Message, Send

#: Time that streams get to say goodbye before they are cut, s.
GOODBYE_S = 0.5


class Guest(Protocol):
    """An ASGI application, and how it ends."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One HTTP request; `root_path` is the mount's prefix."""

    def close(self) -> None:
        """The server shuts down: end what streams, and whatever was begun."""


#: Imports what a guest needs (in a thread), and gives what makes it (in the event loop's thread). MissingExtraError: what to install.
Prepare = Callable[[], Callable[[], Guest]]


class Mount:
    """A path prefix and the guest below it."""

    def __init__(self, prefix: str, prepare: Prepare) -> None:
        """`prefix`: as `/dashboard`, without a slash at its end."""
        self.prefix, self._prepare = prefix, prepare
        self._guest: Guest | None = None
        self._making: asyncio.Task[Guest] | None = None
        self._over: asyncio.Event | None = None
        self._ended = False

    def has(self, path: str) -> bool:
        """Whether a path is the guest's."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")

    async def answer(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> int:
        """One request, whose body is here; the answer's status. ApiError 501: an extra is missing."""
        guest = self._guest or await self._made()
        if scope["path"] == self.prefix:
            scope = {**scope, "path": f"{self.prefix}/", "raw_path": f"{self.prefix}/".encode()}
        assert self._over is not None, "it is made with the guest"
        visit = _Visit(body, self._over, receive, send)
        await guest({**scope, "root_path": self.prefix}, visit.receive, visit.send)
        await visit.finish()
        return visit.status

    def end(self) -> None:
        """The server shuts down: streams say goodbye, and are cut if they do not. Who was not made by now is not made."""
        self._ended = True
        if self._guest is not None:
            self._guest.close()
            assert self._over is not None, "it is made with the guest"
            asyncio.get_running_loop().call_later(GOODBYE_S, self._over.set)

    async def _made(self) -> Guest:
        """The guest, made once, whoever asks; what kept it from being made is tried again with the next request."""
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._make())
        try:
            return await asyncio.shield(self._making)
        except MissingExtraError as error:
            self._making = None
            raise ApiError(501, "missing_extra", str(error)) from error
        except Exception:
            self._making = None
            raise

    async def _make(self) -> Guest:
        make = await asyncio.get_running_loop().run_in_executor(None, self._prepare)
        if self._ended:
            raise ApiError(503, "shutdown", "The server is shutting down")
        self._over = asyncio.Event()
        self._guest = make()
        return self._guest


class _Visit:
    """One request to a guest: its body first, then nothing until the client leaves or the server ends."""

    def __init__(self, body: bytes, over: asyncio.Event, receive: Receive, send: Send) -> None:
        self._body: bytes | None = body
        self._over, self._receive, self._send = over, receive, send
        self.status = 499
        self._begun = self._finished = self._gone = False

    async def receive(self) -> Message:
        """ASGI's."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        waits = {asyncio.ensure_future(self._leaves()), asyncio.ensure_future(self._over.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        return {"type": "http.disconnect"}

    async def _leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if message["type"] == "http.response.start":
            self._begun, self.status = True, message["status"]
        elif not message.get("more_body", False):
            self._finished = True
        await self._send(message)

    async def finish(self) -> None:
        """End an answer that the guest left open because the server shuts down."""
        if self._begun and not self._finished and not self._gone:
            # One that had told a length stays short of it; then the connection just closes.
            with contextlib.suppress(RuntimeError):
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
