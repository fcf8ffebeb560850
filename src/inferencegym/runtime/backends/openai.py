"""A backend behind any OpenAI-compatible URL: requests go out by aiohttp, events come back as they are, each read once for counting.

Times are seconds of the event loop. A connection that the server closed while it lay idle costs one retry, and only if no byte of the
answer came; everything else that goes wrong is told as a `BackendError`.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends.answer import MAX_ERROR_BYTES, HttpAnswer, Received, WholeAnswer
from inferencegym.runtime.backends.events import garbage, told
from inferencegym.runtime.backends.http import Client, NotHttpError, Unreachable
from inferencegym.runtime.ports import CHAT, COMPLETIONS, EMBEDDINGS, Ask, BackendError, Capabilities, Load

PATHS = {CHAT: "chat/completions", COMPLETIONS: "completions", EMBEDDINGS: "embeddings"}
#: aiohttp warns of bytes longer than this in one piece.
_LARGE_BODY_BYTES = 1 << 20

_ASK_USAGE = b',"stream_options":{"include_usage":true}}'
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPTIONS = msgspec.json.Decoder(dict[str, Any])
_opened: ContextVar[bool] = ContextVar("opened", default=False)


class _Connector(aiohttp.TCPConnector):
    """Says whether a request got a new connection: only one that lay idle may have been closed behind our back."""

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        _opened.set(True)
        return await super()._create_connection(req, traces, timeout)


class OpenAI:
    """Any OpenAI-compatible server. `url` ends in `/v1` or has no path; `model` is its own name for what is asked for by other names."""

    always_stream = False
    """Ask for streams only, and put whole answers together here."""
    by_aiohttp = False
    """Send requests by aiohttp also where our own client would do; https goes so always."""
    ask_usage = True
    """Have streams tell their usage also when the client did not ask for it."""

    def __init__(
        self, name: str, url: str, *, models: tuple[str, ...] = (), model: str = "", api_key: str = "", connect_timeout_s: float = 5.0,
        read_timeout_s: float = 300.0, keepalive_s: float = 4.0, reuse_after_stream: bool = True, health_path: str = "",
        native_concurrency: int | None = None, max_model_len: int | None = None,
    ) -> None:  # fmt: skip
        """`read_timeout_s` is the longest silence; `keepalive_s` how long an idle connection is kept (below the server's own limit)."""
        self.name, self.models, self.model = name, models, model
        self.connect_timeout_s, self.read_timeout_s = connect_timeout_s, read_timeout_s
        self.keepalive_s, self.reuse_after_stream = keepalive_s, reuse_after_stream
        self.native_concurrency, self.max_model_len = native_concurrency, max_model_len
        self._health_path = health_path
        self._headers = CIMultiDict({"Content-Type": "application/json", "Accept-Encoding": "identity"})
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._client: Client | None = None
        self.answers: set[HttpAnswer] = set()
        self.gate: asyncio.Event | None = None
        """While it is there and not set, requests wait before they go out."""
        self._gated = 0
        self.set_url(url)

    def set_url(self, url: str) -> None:
        """Where requests go from now on. ConfigError if it is no http URL."""
        base = URL(url)
        if base.scheme not in ("http", "https") or not base.host:
            raise ConfigError(f"backend {self.name}.url", f"'{url}'", allowed="http://HOST:PORT or https://HOST/v1")
        self.root = base.with_path("/").with_query(None)
        self.base = base if base.path.strip("/") else base / "v1"
        self._urls = {endpoint: self.base / path for endpoint, path in PATHS.items()}
        key = f"authorization: {self._headers['Authorization']}\r\n" if "Authorization" in self._headers else ""
        self._heads = {
            endpoint: f"POST {url.raw_path_qs} HTTP/1.1\r\nhost: {url.raw_authority}\r\ncontent-type: application/json\r\naccept-encoding: identity\r\n{key}"
            for endpoint, url in self._urls.items()
        }
        if self._client is not None:
            self._client.close()
        self._client = None
        if base.scheme == "http" and base.raw_user is None and not self.by_aiohttp:
            self._client = Client(
                base.host, base.port or 80, connect_timeout_s=self.connect_timeout_s, keepalive_s=self.keepalive_s
            )
        self._health = self.root.join(URL(self._health_path)) if self._health_path else self.base / "models"

    def capabilities(self) -> Capabilities:
        """Everything is handed on; the server judges itself."""
        return Capabilities(
            endpoints=frozenset(PATHS), native_concurrency=self.native_concurrency, max_model_len=self.max_model_len
        )

    async def start(self) -> None:
        """Open the session and, where no model is named, ask which there are. BackendError if it cannot be reached then."""
        self.open_session()
        if not self.models:
            self.models = await self.list_models()

    def open_session(self, keep: bool = True) -> aiohttp.ClientSession:
        """The session, made on the running loop; one of its own for connections that serve only once."""
        session = self._sessions.get(keep)
        if session is None:
            connector = (
                _Connector(limit=0, force_close=True)
                if not keep
                else _Connector(limit=0, keepalive_timeout=self.keepalive_s)
            )
            session = self._sessions[keep] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(sock_connect=self.connect_timeout_s),
                skip_auto_headers=("Accept", "User-Agent"),
            )
        return session

    async def stop(self) -> None:
        """Break off what is under way and close the connections."""
        for answer in tuple(self.answers):
            answer.break_off(BackendError(f"{self.name} was stopped", status=503, code="backend_stopped", fault=False))
        if self._client is not None:
            self._client.close()
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    async def list_models(self) -> tuple[str, ...]:
        """The names under which it serves (GET models)."""
        body = await self.get_json(self.base / "models")
        try:
            return tuple(str(one["id"]) for one in body["data"])
        except (KeyError, TypeError):
            raise garbage(f"{self.base / 'models'} does not list models") from None

    async def get(self, url: URL, timeout_s: float = 5.0) -> tuple[int, bytes]:
        """Status and body of a small GET. BackendError if nothing came."""
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self.open_session().get(
                url, headers=self._headers, timeout=limit, allow_redirects=False
            ) as response:
                return response.status, await response.content.read(MAX_ERROR_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self.failure(error, began=False) from error

    async def get_json(self, url: URL) -> Any:
        """The JSON of a small GET. BackendError if it is none or not 200."""
        status, body = await self.get(url)
        if status != 200:
            raise told(body, status)
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise garbage(f"{url}: {error}") from None

    async def healthy(self) -> bool:
        """Whether its health URL (or its list of models) answers, and not with a refusal."""
        try:
            if not self.models:
                self.models = await self.list_models()
            status, _ = await self.get(self._health)
        except BackendError:
            return False
        return status < 400 or (not self._health_path and status in (404, 405))

    def load(self) -> Load:
        """Requests of ours that are under way there."""
        return Load(running=float(len(self.answers)))

    def apply(self, knobs: Mapping[str, object]) -> Mapping[str, str]:
        """It has no knobs."""
        return {name: f"{self.name} has no knob '{name}'" for name in knobs}

    def submit(self, ask: Ask) -> HttpAnswer:
        """Hand a request over."""
        if self.always_stream and not ask.stream and ask.endpoint != EMBEDDINGS:
            return WholeAnswer(self, ask)
        return HttpAnswer(self, ask, ask.stream)

    def moved(self) -> None:
        """An answer ended, or waits at the gate; for kinds that wait for the last one."""

    def request(self, ask: Ask, stream: bool) -> tuple[bytes, bool]:
        """(body, whether the usage event is only for us): the body as it came but for the model's name and what makes it a stream."""
        body, hide_usage = ask.body, False
        rename = bool(self.model) and self.model != ask.model
        if rename or stream != ask.stream:
            changes: dict[str, Any] = {"model": self.model} if rename else {}
            body = msgspec.json.encode({**_RAW.decode(body), **changes, "stream": stream})
        if stream and self.ask_usage and ask.endpoint != EMBEDDINGS:
            body, hide_usage = _with_usage(body)
        return body, hide_usage

    async def post(self, ask: Ask, body: bytes, stream: bool) -> Received:
        """The response, as far as its head; once more on a new connection where an idle one turned out to be closed."""
        if self.gate is not None:
            self._gated += 1
            self.moved()
            try:
                await self.gate.wait()
            finally:
                self._gated -= 1
        passed = {"x-request-id": ask.id, "traceparent": ask.traceparent}
        if not (ask.id + ask.traceparent).isprintable():
            raise BackendError(
                "x-request-id or traceparent has characters that no header may have", status=400, fault=False
            )
        keep = self.reuse_after_stream or not stream
        if self._client is None:
            return await self._post_by_aiohttp(self._urls[ask.endpoint], body, passed, keep)
        parts = [self._heads[ask.endpoint], *(f"{name}: {value}\r\n" for name, value in passed.items() if value)]
        if not keep:
            parts.append("connection: close\r\n")
        parts.append(f"content-length: {len(body)}\r\n\r\n")
        return await self._client.post("".join(parts).encode("latin-1", "replace") + body, keep)

    async def _post_by_aiohttp(
        self, url: URL, body: bytes, passed: dict[str, str], keep: bool
    ) -> aiohttp.ClientResponse:
        session = self.open_session(keep)
        headers = self._headers.copy()
        headers.update({name: value for name, value in passed.items() if value})
        for last in (False, True):
            data = body if len(body) < _LARGE_BODY_BYTES else io.BytesIO(body)
            _opened.set(False)
            try:
                return await session.post(url, data=data, headers=headers, allow_redirects=False)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if last or _opened.get() or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        raise AssertionError("the second attempt returns or raises")

    def failure(self, error: BaseException, began: bool) -> BackendError:
        """What a client library's exception means. `began`: a part of the answer had come."""
        what = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | Unreachable):
            return BackendError(f"{self.name} cannot be reached: {what}", code="backend_unreachable", sent=False)
        if isinstance(error, TimeoutError):
            return BackendError(f"{self.name} was silent for too long", status=504, code="backend_timeout")
        if isinstance(error, aiohttp.ClientResponseError | NotHttpError):  # no HTTP, as its parser sees it
            return garbage(what)
        if began:
            return BackendError(f"{self.name} broke off its answer", code="backend_broke_off")
        return BackendError(f"{self.name} closed the connection before it answered", code="backend_disconnected")


def _with_usage(body: bytes) -> tuple[bytes, bool]:
    """The body of a streamed request, asking for the usage; and whether the client had not asked for it."""
    if b'"stream_options"' not in body:
        return body.rstrip()[:-1] + _ASK_USAGE, True
    fields = _RAW.decode(body)
    options = (
        _OPTIONS.decode(fields.get("stream_options", b"{}"))
        if bytes(fields.get("stream_options", b"{}")) != b"null"
        else {}
    )
    if options.get("include_usage"):
        return body, False
    return msgspec.json.encode({**fields, "stream_options": {**options, "include_usage": True}}), True
