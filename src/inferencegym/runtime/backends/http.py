"""A small HTTP/1.1 client for POSTs to a server nearby, without TLS: half the processor time of aiohttp, and just what a proxied request needs.

One client speaks to one host and port. Idle connections are kept `keepalive_s`; a body is read as it comes, with a bounded buffer. What goes wrong
is an OSError: `Unreachable` (no connection), `Disconnected` (it broke), or `NotHttpError` (what came is no HTTP). Times are seconds of the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

import httptools

#: Bytes that lie here unread before the server is held back.
_HIGH, _LOW = 256 << 10, 64 << 10
_MAX_HEAD = 64 << 10


class Unreachable(OSError):  # noqa: N818 - a kind of OSError, as ConnectionRefusedError is
    """No connection could be made."""


class Disconnected(OSError):  # noqa: N818
    """The connection ended before the answer did."""


class NotHttpError(OSError):
    """The server does not speak HTTP."""


class Response:
    """An answer whose head has come; the body is read by `readany`."""

    __slots__ = ("_buffer", "_connection", "_eof", "_failure", "_size", "_waiter", "content_type", "headers", "status")

    def __init__(self, connection: _Connection, status: int, headers: dict[str, str]) -> None:
        self._connection = connection
        self.status, self.headers = status, headers
        self.content_type = headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
        self._buffer: list[bytes] = []
        self._size = 0
        self._eof = False
        self._failure: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def content(self) -> Response:
        """The body's reader, by aiohttp's name."""
        return self

    async def readany(self) -> bytes:
        """What has come; waits if nothing has; empty at the end."""
        while not self._buffer:
            if self._failure is not None:
                raise self._failure
            if self._eof:
                return b""
            self._waiter = self._connection.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        if self._size >= _LOW:
            self._connection.resume()
        self._size = 0
        return data

    def at_eof(self) -> bool:
        """Whether all has been read."""
        return self._eof and not self._buffer

    def close(self) -> None:
        """Close the connection, unless the answer has already ended."""
        if not self._eof:
            self._connection.abort()
            self.fail(Disconnected("closed"))

    def release(self) -> None:
        """Nobody reads any more; the connection went back by itself where the answer has ended."""
        self.close()

    def feed(self, data: bytes) -> bool:
        """A part of the body; whether too much lies here."""
        self._buffer.append(data)
        self._size += len(data)
        self._wake()
        return self._size > _HIGH

    def end(self) -> None:
        """The body is whole."""
        self._eof = True
        self._wake()

    def fail(self, failure: OSError) -> None:
        """It will never be whole."""
        if not self._eof and self._failure is None:
            self._failure = failure
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection; httptools' callbacks fill the response of the request under way."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._head: asyncio.Future[Response] | None = None
        self._response: Response | None = None
        self._paused = self._keep = self._surplus = False
        self.began = False
        """Whether a byte of the answer came."""
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def usable(self) -> bool:
        """Whether it can take a request, as far as anybody knows."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, request: bytes, keep: bool) -> Response:
        """Send a request; the response as soon as its head has come. `keep`: whether the connection may serve again."""
        assert self._transport is not None, "connected"
        self._keep, self.began = keep, False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._response = None
        self._head = self.loop.create_future()
        self._transport.write(request)
        try:
            return await self._head
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """There is room again."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # -- the transport's word ----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._head is None:  # nobody asked
            self.abort()
            return
        self.began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._break(NotHttpError("it wants to change the protocol"))
        except httptools.HttpParserError as error:
            self._break(NotHttpError(str(error) or type(error).__name__))
        if self._surplus:
            self.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._client.forget(self)
        response = self._response
        if (
            response is not None
            and error is None
            and not ({"content-length", "transfer-encoding"} & response.headers.keys())
        ):
            response.end()  # such a body ends with the connection
        self._fail(Disconnected(str(error) if error else "the server closed the connection"))

    def _break(self, failure: OSError) -> None:
        self._fail(failure)
        self.abort()

    def _fail(self, failure: OSError) -> None:
        if self._response is not None:
            self._response.fail(failure)
        elif self._head is not None and not self._head.done():
            self._head.set_exception(failure)

    # -- the parser's word -------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD:
            raise ValueError("the head is too long")
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and its like: the answer is yet to come
            self._headers = {}
            return
        if self._head is None or self._head.done():  # more than the answer: whoever reads that next would get another's
            self._surplus = True
            return
        self._response = Response(self, status, self._headers)
        self._head.set_result(self._response)

    def on_body(self, body: bytes) -> None:
        if (
            self._response is not None
            and self._response.feed(body)
            and not self._paused
            and self._transport is not None
        ):
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        self._head = None
        self.resume()
        reusable = (
            self._keep
            and self._parser.should_keep_alive()
            and ({"content-length", "transfer-encoding"} & response.headers.keys() or response.status in (204, 304))
        )
        response.end()
        if reusable and self.usable():
            self._client.keep(self)
        elif self._transport is not None:
            self._transport.close()


class Client:
    """Connections to one host and port."""

    def __init__(self, host: str, port: int, *, connect_timeout_s: float, keepalive_s: float) -> None:
        self._host, self._port, self._connect_timeout_s, self._keepalive_s = host, port, connect_timeout_s, keepalive_s
        self._idle: deque[_Connection] = deque()
        self._all: set[_Connection] = set()

    async def post(self, request: bytes, keep: bool) -> Response:
        """The response's head. Tried once more on a new connection where an idle one turned out to be closed, no byte having come."""
        connection = self._find() if keep else None
        if connection is not None:
            try:
                return await connection.send(request, keep)
            except Disconnected:
                if connection.began:
                    raise
        connection = await self._connect()
        return await connection.send(request, keep)

    def close(self) -> None:
        """Close all connections."""
        for connection in tuple(self._all):
            connection.abort()

    def keep(self, connection: _Connection) -> None:
        """A connection is free again."""
        connection.idle_since_s = connection.loop.time()
        self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _find(self) -> _Connection | None:
        """The connection that was used last; those that lay idle for too long are closed."""
        if not self._idle:
            return None
        stale_s = self._idle[0].loop.time() - self._keepalive_s
        while self._idle and self._idle[0].idle_since_s < stale_s:
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except TimeoutError:
            raise Unreachable(
                f"no connection to {self._host}:{self._port} within {self._connect_timeout_s:g} s"
            ) from None
        except OSError as error:
            raise Unreachable(f"{self._host}:{self._port}: {error.strerror or error}") from None
        self._all.add(connection)
        return connection
