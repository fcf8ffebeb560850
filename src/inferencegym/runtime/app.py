"""The gateway as an ASGI application: which path leads where, who may go there, and one envelope for everything that goes wrong.

Plain ASGI: a request costs a dictionary look-up and two sends. With our own HTTP protocol (`server.Protocol`) a client that leaves is known at once;
under another ASGI server a task waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inferencegym.metrics.record import Outcome
from inferencegym.runtime import wire
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.flow import Flow
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.intake import SEEN, ClientGoneError, Receive, body_of, head_of
from inferencegym.runtime.keys import Keyring
from inferencegym.runtime.log import JsonLog
from inferencegym.runtime.mounts import Mount
from inferencegym.runtime.ports import CHAT, COMPLETIONS, EMBEDDINGS
from inferencegym.runtime.render import Events, Whole, error_event
from inferencegym.runtime.stream import CONNECTION, Connection, Header, Send, Stream, Streams

if TYPE_CHECKING:
    from inferencegym.runtime.traces import Trace, Traces

Scope = Mapping[str, Any]
#: What a page gets: the request's headers we look at, its query, its body. What it gives: status, headers, body.
Page = Callable[["Call"], Awaitable["Reply"]]

JSON: Header = (b"content-type", b"application/json")
GENERATE = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETIONS, "/v1/embeddings": EMBEDDINGS}
_STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Call:
    """A request for a page."""

    __slots__ = ("app", "body", "headers", "id", "method", "path", "query")

    def __init__(self, app: App, scope: Scope, headers: dict[bytes, bytes], call_id: str, body: bytes) -> None:
        self.app, self.headers, self.id, self.body = app, headers, call_id, body
        self.method, self.path, self.query = scope["method"], scope["path"], scope["query_string"]


class Reply:
    """A page's answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: bytes, status: int = 200, headers: list[Header] | None = None) -> None:
        self.body, self.status, self.headers = body, status, [JSON] if headers is None else headers


class App:
    """The ASGI callable."""

    def __init__(
        self, gateway: Gateway, pages: Mapping[str, Mapping[str, Page]], keyring: Keyring, log: JsonLog, traces: Traces | None = None,
        mounts: Sequence[Mount] = (),
    ) -> None:  # fmt: skip
        """`pages`: path to method to page; the generating endpoints are the app's own. `traces`: None, if nobody traces. `mounts`: guests below paths that are nobody else's."""
        self.gateway, self.keyring, self.log, self.traces = gateway, keyring, log, traces
        self._pages, self._mounts = pages, tuple(mounts)
        self._server = gateway.settings.server
        self._cors = frozenset(origin.encode() for origin in self._server.cors_origins)
        self.streams = Streams(gateway.clock, self._server.keepalive_comment_s)
        self.responses: Counter[tuple[str, int]] = Counter()
        """(path, status) to how many; unknown paths count as `other`."""
        self._prefix = os.urandom(6).hex()
        self._count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        assert scope["type"] == "http", "the server is set up without lifespan and sockets"
        arrival_s = self.gateway.clock()
        headers = {name: value for name, value in scope["headers"] if name in SEEN}
        call_id = self._id(headers.get(b"x-request-id"))
        try:
            endpoint = GENERATE.get(scope["path"])
            if endpoint is not None and scope["method"] == "POST":
                if self.traces is None:
                    await self._generate(endpoint, scope, receive, send, headers, call_id, arrival_s)
                else:
                    with self.traces.begin(endpoint, scope["path"], headers, arrival_s) as trace:
                        await self._generate(endpoint, scope, receive, send, headers, call_id, arrival_s, trace)
            else:
                await self._page(scope, receive, send, headers, call_id)
        except ApiError as error:
            await self._refuse(scope, send, headers, call_id, error)
        except ClientGoneError:
            self._say(scope, call_id, 499)
        except Exception as error:
            self.log.write("error", "unhandled", id=call_id, path=scope["path"], error=type(error).__name__)
            # A response that has begun cannot be taken back, and the server says so; then the connection just closes.
            with contextlib.suppress(RuntimeError):
                told = ApiError(500, "internal_error", "The server made a mistake; its log has the request's id")
                await self._refuse(scope, send, headers, call_id, told)
            raise

    # --- answers ---------------------------------------------------------------------------------------------------------

    async def _generate(self, endpoint: str, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], call_id: str, arrival_s: float, trace: Trace | None = None) -> None:  # fmt: skip
        """A request that an engine answers."""
        head = head_of(headers, call_id, self.keyring)
        body = await body_of(receive, headers, self._server.max_body_bytes)
        fields = wire.read(endpoint, body)
        gateway = self.gateway
        ask = gateway.ask(endpoint, body, fields, head, arrival_s)
        if trace is not None:
            trace.asked(ask)
        shared = gateway.shared is not None and await gateway.counted_for_all(ask)
        flow = gateway.submit(ask, head.timeout_s, shared=shared)
        connection: Connection | None = scope.get(CONNECTION)
        watch = None
        if connection is None:
            watch = asyncio.ensure_future(_until_gone(receive, flow))
        elif connection.gone:
            flow.leave()
        else:
            connection.on_gone = flow.leave
        try:
            if ask.stream:
                await self._stream(flow, send, headers, connection)
            else:
                await self._whole(flow, send, headers)
        finally:
            if connection is not None:
                connection.on_gone = None
            if watch is not None:
                watch.cancel()
            flow.leave()
            self._ended(scope["path"], flow)

    async def _whole(self, flow: Flow, send: Send, headers: dict[bytes, bytes]) -> None:
        whole = Whole(flow.ask)
        while (piece := await flow.next()) is not None:
            whole.add(piece)
        if flow.outcome is not Outcome.OK:
            return
        body = whole.body(flow.usage_now())
        told = [JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": told + self._told(flow, headers)})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stream(self, flow: Flow, send: Send, headers: dict[bytes, bytes], connection: Connection | None) -> None:
        """Events as they come; what is there at once goes out at once, in one write."""
        events = Events(flow.ask)
        stream = Stream(self.streams, send, lambda: _STREAM_HEADERS + self._told(flow, headers), connection)
        flow.on_fail = stream.cut
        self.streams.add(stream)
        parts: list[bytes] = []
        try:
            while (piece := await flow.next()) is not None:
                if data := events.event(piece, flow.usage_now() if events.continuous else None):
                    parts.append(data)
                if parts and not flow.ready():
                    await stream.write(b"".join(parts))
                    parts.clear()
            if flow.outcome is Outcome.OK:
                parts.append(events.end(flow.usage_now()))
                await stream.write(b"".join(parts), more=False)
        except ApiError as error:
            if not stream.begun and not parts:
                raise
            parts.append(error_event(error))
            await stream.write(b"".join(parts), more=False)
        finally:
            self.streams.discard(stream)
            flow.on_fail = None

    async def _page(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], call_id: str
    ) -> None:
        path, method = scope["path"], scope["method"]
        methods = _methods(path, self._pages)
        if methods is None:
            for mount in self._mounts:
                if mount.has(path):
                    await self._visit(mount, scope, receive, send, headers)
                    return
            raise ApiError(404, "not_found", f"There is nothing at {path[:200]}; /openapi.json lists what there is")
        if method == "OPTIONS" and self._cors and headers.get(b"access-control-request-method"):
            reply = Reply(b"", 204, [])
        else:
            page = methods.get("GET" if method == "HEAD" else method)
            if page is None:
                names = [*methods, "HEAD"] if "GET" in methods else [*methods]
                raise _NotAllowedError(method, path, names)
            body = await body_of(
                receive, headers, self._server.max_body_bytes, typed=method not in ("GET", "HEAD", "DELETE")
            )
            reply = await page(Call(self, scope, headers, call_id, body))
        self._say(scope, call_id, reply.status)
        told = [
            *reply.headers,
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", call_id.encode("latin-1")),
        ]
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": told + self._cors_headers(headers)}
        )
        await send({"type": "http.response.body", "body": reply.body, "more_body": False})

    async def _visit(self, mount: Mount, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:  # fmt: skip
        """A request for a guest."""
        typed = scope["method"] not in ("GET", "HEAD", "DELETE")
        body = await body_of(receive, headers, self._server.max_body_bytes, typed=typed)
        status = await mount.answer(dict(scope), body, receive, send)
        self.responses[mount.prefix, status] += 1

    def end_mounts(self) -> None:
        """The server shuts down: what guests stream ends."""
        for mount in self._mounts:
            mount.end()

    async def _refuse(
        self, scope: Scope, send: Send, headers: dict[bytes, bytes], call_id: str, error: ApiError
    ) -> None:
        """An error as a response."""
        self._say(scope, call_id, error.status, error.code)
        body = error.body()
        told = [
            JSON,
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", call_id.encode("latin-1")),
            *error.headers(),
        ]
        if error.status == 401:
            told.append((b"www-authenticate", b"Bearer"))
        if error.status == 413:
            told.append((b"connection", b"close"))
        if isinstance(error, _NotAllowedError):
            told.append((b"allow", ", ".join(error.methods).encode()))
        await send(
            {"type": "http.response.start", "status": error.status, "headers": told + self._cors_headers(headers)}
        )
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _told(self, flow: Flow, headers: dict[bytes, bytes]) -> list[Header]:
        """What an answer's headers say of the request's way."""
        told = [(b"x-request-id", flow.ask.id.encode("latin-1"))]
        if self._server.overhead_header:
            told.append((b"x-overhead-ms", b"%.3f" % (flow.overhead_s(self.gateway.clock()) * 1e3)))
        told += self.gateway.admission.limit_headers(flow.ask)
        return told + self._cors_headers(headers) if self._cors else told

    def _cors_headers(self, headers: dict[bytes, bytes]) -> list[Header]:
        origin = headers.get(b"origin")
        if origin is None or not (origin in self._cors or b"*" in self._cors):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"vary", b"origin"),
            (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE, HEAD"),
            (b"access-control-allow-headers", b"authorization, content-type, x-request-id, x-slo-class, x-queue-ttl-ms, x-no-queue, x-session-affinity, x-tenant"),
            (b"access-control-expose-headers", b"x-request-id, x-overhead-ms, retry-after"),
        ]  # fmt: skip

    # --- requests --------------------------------------------------------------------------------------------------------

    def _id(self, given: bytes | None) -> str:
        if given is not None and len(given) <= 256 and given.isascii() and given.decode().isprintable() and given:
            return given.decode()
        self._count += 1
        return f"{self._prefix}{self._count:08x}"

    # --- what is written down --------------------------------------------------------------------------------------------

    def _say(self, scope: Scope, call_id: str, status: int, code: str = "") -> None:
        path = scope["path"]
        known = path in GENERATE or path in self._pages
        self.responses[path if known else "other", status] += 1
        if self.log.info and (path in GENERATE or not known):
            self.log.write(
                "info", "refused", id=call_id, method=scope["method"], path=path[:200], status=status, code=code
            )

    def _ended(self, path: str, flow: Flow) -> None:
        """A request that had been let in has ended: one line."""
        status = 200 if flow.failure is None else flow.failure.status
        status = 499 if flow.outcome is Outcome.ABORTED else status
        if flow.failure is None:
            self.responses[path, status] += 1
        ask = flow.ask
        if ask.trace is not None:
            ask.trace.ended(flow, status, self.gateway.settings.classes[ask.slo_class].name)
        if not self.log.info:
            return
        usage = flow.usage_now()
        self.log.write(
            "info", "request", id=ask.id, path=path, status=status, code=flow.code, outcome=flow.outcome.name.lower() if flow.outcome is not None else "",
            model=ask.model, tenant=ask.tenant, slo_class=self.gateway.settings.classes[ask.slo_class].name, stream=ask.stream,
            prompt_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, queue_ms=_ms(flow.dispatched_s - flow.enqueued_s),
            ttft_ms=_ms(flow.first_s - ask.arrival_s), total_ms=_ms(flow.finish_s - ask.arrival_s),
            **({} if ask.trace is None else {"trace_id": ask.trace.id}),
        )  # fmt: skip


def _methods(path: str, pages: Mapping[str, Mapping[str, Page]]) -> Mapping[str, Page | None] | None:
    """What a path can be asked; the generating ones are the app's own. Names of models may have slashes."""
    if path in GENERATE:
        return {"POST": None}
    return pages.get("/v1/models/*" if path.startswith("/v1/models/") else path)


class _NotAllowedError(ApiError):
    def __init__(self, method: str, path: str, methods: list[str]) -> None:
        super().__init__(405, "method_not_allowed", f"{path} has no {method[:20]}; it has: {', '.join(methods)}")
        self.methods = methods


async def _until_gone(receive: Receive, flow: Flow) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    flow.leave()


def _ms(seconds: float) -> float | None:
    return round(seconds * 1e3, 3) if seconds == seconds else None
