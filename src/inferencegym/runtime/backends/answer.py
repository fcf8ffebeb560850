"""A request under way over HTTP: its events as they come, or its whole answer, and what becomes of it when a connection, a server or a client goes.

Times are seconds of the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import aiohttp

from inferencegym.runtime.backends.assemble import Assembly
from inferencegym.runtime.backends.events import EventStream, Timings, garbage, piece_of, read_event, told
from inferencegym.runtime.ports import Ask, BackendError, Piece

MAX_ANSWER_BYTES = 64 << 20
MAX_ERROR_BYTES = 1 << 20
_DONE = b"[DONE]"
#: How long the end of a stream may come after `[DONE]` before the connection is given up.
_END_S = 0.1


class Body(Protocol):
    """A body as it comes; aiohttp's and `http`'s have this in common."""

    async def readany(self) -> bytes:
        """What is there; waits if nothing is; empty at the end."""

    def at_eof(self) -> bool:
        """Whether all has been read."""


class Received(Protocol):
    """A response whose head has come."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, found by names in lower case."""

    @property
    def content_type(self) -> str:
        """Without its parameters."""

    @property
    def content(self) -> Body:
        """Its body."""

    def close(self) -> None:
        """Close the connection, unless the answer has ended."""

    def release(self) -> Any:
        """Nobody reads any more; the connection may serve again."""


class Sender(Protocol):
    """The backend, as its answers need it."""

    name: str
    read_timeout_s: float
    reuse_after_stream: bool
    answers: set[HttpAnswer]

    def request(self, ask: Ask, stream: bool) -> tuple[bytes, bool]:
        """(body, whether the usage event is only for us)."""

    async def post(self, ask: Ask, body: bytes, stream: bool) -> Received:
        """The response, as far as its head."""

    def failure(self, error: BaseException, began: bool) -> BackendError:
        """What a client library's exception means."""

    def moved(self) -> None:
        """An answer ended."""


class HttpAnswer:
    """A request under way over HTTP. One task opens it; whoever iterates reads, and the socket waits while nobody does."""

    __slots__ = ("__weakref__", "_aborted", "_backend", "_cut", "_ending", "_events", "_failure", "_first_s", "_hide_usage", "_loop", "_open_choices", "_opening", "_over", "_response", "_stream", "_waiting_s", "_watch", "scheduled_s")  # fmt: skip

    def __init__(self, backend: Sender, ask: Ask, stream: bool) -> None:
        """`stream`: whether the server is asked for a stream, whatever the client wants."""
        self._loop = loop = asyncio.get_running_loop()
        self.scheduled_s = loop.time()
        self._backend, self._stream = backend, stream
        body, self._hide_usage = backend.request(ask, stream)
        self._cut, self._events = EventStream(), deque[bytes]()
        self._open_choices: dict[int, bool] = {}
        self._response: Received | None = None
        self._aborted = self._over = self._ending = False
        self._failure: BackendError | None = None
        self._first_s, self._waiting_s = math.nan, self.scheduled_s
        self._watch = loop.call_at(self.scheduled_s + backend.read_timeout_s, self._check)
        self._opening = loop.create_task(backend.post(ask, body, stream))
        backend.answers.add(self)

    def __aiter__(self) -> HttpAnswer:
        return self

    async def __anext__(self) -> Piece:
        """The next event, or the whole answer. BackendError when it broke off."""
        while True:
            if self._over:
                raise StopAsyncIteration
            try:
                if self._events:
                    piece = self._read(self._events.popleft())
                    if piece is not None:
                        return piece
                else:
                    whole = await self._more()
                    if whole is not None:
                        return whole
            except BackendError:
                self._finish(reusable=False)
                raise

    def ready(self) -> bool:
        """Whether an event lies here."""
        return bool(self._events) and self._events[0] != _DONE

    def abort(self) -> None:
        """Close the connection, whatever has come so far."""
        self._aborted = True
        self._finish(reusable=False)

    def break_off(self, failure: BackendError) -> None:
        """Close the connection; whoever reads is told `failure`."""
        self._failure = failure
        self._hang_up()

    async def _more(self) -> Piece | None:
        """Wait for bytes: a whole answer, or events into `_events`."""
        if self._failure is not None:
            raise self._failure
        self._waiting_s = self._loop.time()
        try:
            if self._response is None:
                self._response = await self._opening
                await self._check_head(self._response)
            if not self._stream:
                return self._whole(await self._read_all(self._response, MAX_ANSWER_BYTES))
            data = await self._response.content.readany()
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                self.abort()
                raise
            self._cut_off()
            return None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if self._aborted or self._failure is not None:
                self._cut_off()
                return None
            if self._ending:
                self._finish(reusable=False)
                return None
            raise self._backend.failure(error, began=not math.isnan(self._first_s)) from error
        finally:
            self._waiting_s = math.inf
        if math.isnan(self._first_s):
            self._first_s = self._loop.time()
        if not data:
            self._end_of_stream()
        elif not self._ending:
            self._events.extend(self._cut.feed(data))
        return None

    def _cut_off(self) -> None:
        """The connection was closed from this side: by `abort`, or by `break_off` and the watch, which have a failure to tell."""
        if self._failure is not None and not self._aborted:
            raise self._failure
        self._finish(reusable=False)

    async def _check_head(self, response: Received) -> None:
        """BackendError unless this is the answer that was asked for."""
        if response.status // 100 != 2:
            body = await self._read_all(response, MAX_ERROR_BYTES)
            if response.status < 400:
                raise garbage(f"a redirection ({response.status})")
            raise told(body, response.status, _retry_after_s(response.headers))
        if self._stream and not response.content_type.startswith("text/event-stream"):
            body = await self._read_all(response, MAX_ERROR_BYTES)
            raise garbage(f"{response.content_type} instead of a stream of events: {body[:80]!r}")

    async def _read_all(self, response: Received, limit_bytes: int) -> bytes:
        parts, size = [], 0
        while data := await response.content.readany():
            parts.append(data)
            size += len(data)
            if size > limit_bytes:
                raise garbage(f"more than {limit_bytes} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _whole(self, body: bytes) -> Piece:
        event = read_event(body)
        if event.timings is not None:
            self._account(event.timings, self._loop.time() - event.timings.predicted_ms / 1e3)
        self._finish(reusable=True)
        return piece_of(event, body, whole=True)

    def _read(self, raw: bytes) -> Piece | None:
        if raw == _DONE:
            self._done()
            return None
        event = read_event(raw)
        if event.timings is not None:
            self._account(event.timings, self._first_s)
        for choice in event.choices or ():
            self._open_choices[choice.index] = choice.finish_reason is None and self._open_choices.get(
                choice.index, True
            )
        piece = piece_of(event, raw, whole=False)
        if self._hide_usage and not event.choices and piece.usage is not None:
            piece.raw = None
        return piece

    def _account(self, timings: Timings, first_token_s: float) -> None:
        self.scheduled_s = max(self.scheduled_s, first_token_s - timings.prompt_ms / 1e3)

    def _done(self) -> None:
        """`[DONE]`: all is said; the connection can serve again once the response has ended, which may not take long."""
        assert self._response is not None
        self._events.clear()
        if self._response.content.at_eof() or not self._backend.reuse_after_stream:
            self._finish(reusable=True)
            return
        self._ending = True
        self._watch.cancel()
        self._watch = self._loop.call_later(_END_S, self.abort)

    def _end_of_stream(self) -> None:
        """The response has ended. Without `[DONE]` that is an answer only if every choice has come to its end."""
        if self._ending:
            self._finish(reusable=True)
            return
        self._events.extend(self._cut.end())
        if self._events:
            return
        if self._open_choices and not any(self._open_choices.values()):
            self._finish(reusable=True)
            return
        raise BackendError(f"{self._backend.name} ended its stream in the middle", code="backend_broke_off")

    def _check(self) -> None:
        """The watch: only silence while somebody waits for it counts, not a slow reader."""
        now, limit_s = self._loop.time(), self._backend.read_timeout_s
        if now - self._waiting_s >= limit_s:
            self.break_off(self._backend.failure(TimeoutError(), began=False))
        else:
            self._watch = self._loop.call_at(min(self._waiting_s, now) + limit_s, self._check)

    def _hang_up(self) -> None:
        if self._response is not None:
            self._response.close()
        elif not self._opening.done():
            self._opening.cancel()
        elif not self._opening.cancelled() and self._opening.exception() is None:
            self._opening.result().close()

    def _finish(self, reusable: bool) -> None:
        if self._over:
            return
        self._over = True
        self._watch.cancel()
        self._events.clear()
        if reusable and self._response is not None:
            self._response.release()
        else:
            self._hang_up()
        self._backend.answers.discard(self)
        self._backend.moved()


class WholeAnswer(HttpAnswer):
    """A whole answer, put together from a stream."""

    __slots__ = ("_assembly",)

    def __init__(self, backend: Sender, ask: Ask) -> None:
        super().__init__(backend, ask, stream=True)
        self._assembly: Assembly | None = Assembly(ask.endpoint)

    async def __anext__(self) -> Piece:
        """The whole answer. BackendError when the stream broke off: a part of it is none."""
        if self._assembly is None:
            raise StopAsyncIteration
        while not self._over:
            try:
                self._assembly.add(await super().__anext__())
            except StopAsyncIteration:
                break
        if self._aborted:
            raise StopAsyncIteration
        assembly, self._assembly = self._assembly, None
        return assembly.piece()

    def ready(self) -> bool:
        """It comes at the end."""
        return False


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of retry-after-ms or Retry-After (a number or a date); None if there is none that can be read."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1e3)
        if (after := headers.get("retry-after")) is None:
            return None
        try:
            return max(0.0, float(after))
        except ValueError:
            return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
