"""How the suite talks to a server: one request, one stream, one client that leaves; and what it can see of it from outside. Times are seconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inferencegym.bench.conformance.check import CheckFailedError, expect, skip
from inferencegym.bench.conformance.exposition import read_samples
from inferencegym.ground.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from inferencegym.bench.conformance.marked import MarkedUpstream

try:
    import aiohttp
except ImportError as error:
    raise MissingExtraError("serve", "the conformance suite") from error

CHAT, COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"
#: Tokens of an answer that is to last.
LONG = 400
#: Within so long a server is to notice that a client has left.
NOTICE_S = 1.0
#: Series of requests that run and that wait, as servers call them.
GAUGES = (
    ("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
)
_TEXT = 160


@dataclass(frozen=True, slots=True)
class Asked:
    """What the suite is told."""

    url: str
    """Of the server, without /v1."""
    model: str = ""
    """Name to ask for; empty: the first that the server offers."""
    key: str = ""
    burst: int = 64
    """Requests at once, for overload and for a queue."""
    limit_s: float = 30.0
    """Longest time for one check."""
    pid: int | None = None
    """The server's process, which the suite may end with SIGTERM."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    def said(self) -> str:
        """For a person: status and beginning of the body."""
        text = self.body.decode(errors="replace").strip()
        return f"{self.status} {text[:_TEXT]!r}" if text else f"{self.status}, empty"

    def json(self) -> Any:
        """The body; a failure if it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise CheckFailedError(self.said(), "a body of JSON") from error

    def ok(self) -> Any:
        """The body of an answer that must be 200."""
        expect(self.status == 200, self.said(), "200")
        return self.json()

    def refused(self, *statuses: int) -> dict[str, Any]:
        """The error of an answer that must be one, in OpenAI's envelope."""
        expect(self.status in statuses, self.said(), f"status {' or '.join(map(str, statuses))}")
        told = self.json()
        error = told.get("error") if isinstance(told, dict) else None
        expect(
            isinstance(error, dict) and isinstance(error.get("message"), str) and "type" in error and "code" in error,
            self.said(), '{"error": {"message", "type", "param", "code"}}',
        )  # fmt: skip
        assert isinstance(error, dict)
        return error


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream that was read to its end."""

    status: int
    headers: Mapping[str, str]
    events: tuple[Any, ...]
    """Each `data:` as JSON."""
    done: bool
    """Whether [DONE] came."""
    broken: str
    """How the connection ended, if not by the stream's end."""
    whole: Answer
    """All that came."""

    def usable(self) -> tuple[Any, ...]:
        """The events of a stream that must be sound and ended by [DONE]."""
        expect(self.status == 200, self.whole.said(), "200")
        expect(not self.broken, f"the connection broke: {self.broken}", "the end of the stream")
        errors = [one for one in self.events if isinstance(one, dict) and "error" in one]
        expect(not errors, f"an error event: {json.dumps(errors[:1])[:_TEXT]}", "tokens")
        expect(self.done, f"{len(self.events)} events and no [DONE]", "data: [DONE]")
        return self.events


@dataclass
class Probe:
    """The suite's hold on one server."""

    asked: Asked
    model: str
    session: aiohttp.ClientSession
    upstream: MarkedUpstream | None = None
    """The scripted server behind a gateway under test."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What several checks look at: a burst, an end."""

    def chat(self, text: str = "Tell me a story.", **more: Any) -> dict[str, Any]:
        """A body for chat."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 8,
            "temperature": 0,
        } | more

    def lasting(self, **more: Any) -> dict[str, Any]:
        """A chat whose answer lasts, as far as one can ask for that."""
        return self.chat(max_tokens=LONG, ignore_eos=True, **more)

    async def call(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:  # fmt: skip
        """One request; its body is JSON, or `raw`."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        async with self.session.request(
            method, self.asked.url + path, data=data, headers=sent | dict(headers or {})
        ) as answer:
            return Answer(answer.status, _lower(answer.headers), await answer.read())

    async def post(self, body: Any, path: str = CHAT, **more: Any) -> Answer:
        """One request for an answer."""
        return await self.call("POST", path, body, **more)

    async def stream(self, body: dict[str, Any], path: str = CHAT) -> Stream:
        """One stream, to its end, however it ends."""
        got, broken = b"", ""
        async with self.session.post(self.asked.url + path, json=body | {"stream": True}) as answer:
            try:
                async for part in answer.content.iter_any():
                    got += part
            except (aiohttp.ClientError, ConnectionError) as error:
                broken = type(error).__name__
            headers, status = _lower(answer.headers), answer.status
        datas = [data for data in events_of(got) if data != "[DONE]"]
        whole = Answer(status, headers, got)
        if status != 200:
            return Stream(status, headers, (), False, broken, whole)
        try:
            told = tuple(json.loads(data) for data in datas)
        except ValueError as error:
            raise CheckFailedError(f"an event that is no JSON in {whole.said()}", "JSON after data:") from error
        return Stream(status, headers, told, "[DONE]" in events_of(got), broken, whole)

    @asynccontextmanager
    async def begun(self, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        """A stream whose first byte has come; leaving the context hangs up."""
        async with self.session.post(self.asked.url + CHAT, json=body | {"stream": True}) as answer:
            first = await answer.content.readany()
            expect(answer.status == 200, f"{answer.status} {first[:_TEXT]!r}", "200")
            try:
                yield answer
            finally:
                answer.close()

    async def left(self, body: dict[str, Any], when: asyncio.Future[Any] | asyncio.Task[Any]) -> None:
        """A client that hangs up when `when` is done, whether or not it has an answer by then."""
        asking = asyncio.ensure_future(self.post(body))
        await asyncio.wait({asking, when}, return_when=asyncio.FIRST_COMPLETED)
        asking.cancel()
        ended = (await asyncio.gather(asking, return_exceptions=True))[0]
        if isinstance(ended, Answer):
            raise CheckFailedError(f"before the client could leave: {ended.said()}", "an answer that lasts")

    # --- what is seen from outside ---------------------------------------------------------------------------------------

    async def under_way(self) -> tuple[float, float]:
        """(requests that run, requests that wait), as the server's own metrics say; skips where they do not."""
        page = await self.call("GET", "/metrics")
        if page.status != 200:
            skip(f"no metrics to see it by: GET /metrics says {page.status}")
        try:
            samples = read_samples(page.body.decode())
        except (InputError, UnicodeDecodeError) as error:
            skip(f"no metrics to see it by: {error}")
        for running, waiting in GAUGES:
            if running in samples:
                return samples[running], samples.get(waiting, 0.0)
        skip("its metrics do not say how many requests run")

    async def until(
        self, true: Callable[[float, float], bool], limit_s: float
    ) -> tuple[bool, float, tuple[float, float]]:
        """Look at the metrics until they are so, or the time is over: (whether they were, after how long, the last look)."""
        clock = asyncio.get_running_loop().time
        begin = clock()
        while True:
            seen = await self.under_way()
            if true(*seen):
                return True, clock() - begin, seen
            if clock() - begin > limit_s:
                return False, clock() - begin, seen
            # Somebody else's gauges have no event to wait for.
            await asyncio.sleep(0.02)


def events_of(stream: bytes) -> list[str]:
    """The data of each server-sent event: lines of one event joined, comments and other fields left out."""
    found, lines = [], []
    for line in stream.decode(errors="replace").replace("\r\n", "\n").split("\n"):
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            found.append("\n".join(lines))
            lines = []
    return found


def text_of(choice: Any) -> str:
    """The text of a choice, whole or a piece, of chat or of completions."""
    said = choice.get("message") or choice.get("delta") or {}
    return str(choice.get("text") or said.get("content") or said.get("reasoning_content") or "")


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
