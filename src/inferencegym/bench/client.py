"""One request to an OpenAI-compatible server, streamed and timed as a user feels it: first token, every gap, how it ended.

Times are seconds of `loop.time()`. Nothing is retried but a kept connection that turned out closed before a byte of the answer had come (llama.cpp's
server closes after each stream though it promises to keep alive).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inferencegym.ground.errors import InferenceGymError, MissingExtraError
from inferencegym.metrics.record import Outcome

try:
    import aiohttp
except ImportError as error:
    raise MissingExtraError("serve", "the load generator") from error

CHAT, COMPLETIONS = "chat", "completions"
PATHS = {CHAT: "/v1/chat/completions", COMPLETIONS: "/v1/completions"}
_ERROR_CHARACTERS = 300


class TargetError(InferenceGymError, OSError):
    """The server under load cannot be reached, or answers what no OpenAI-compatible server answers."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to ask, and how."""

    url: str
    """Without `/v1`: http://127.0.0.1:8000."""
    model: str
    endpoint: str = CHAT
    api_key: str = ""
    timeout_s: float = 600.0
    """Of a whole request; beyond it the client hangs up."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields put into every body, such as ignore_eos."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A request to be made."""

    prompt: str
    max_tokens: int
    request_id: str
    priority: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    hang_up_after_s: float | None = None
    """Seconds after sending at which the client leaves, whatever has come."""


@dataclass(slots=True)
class Seen:
    """What the client saw of a request."""

    sent_s: float
    outcome: Outcome = Outcome.FAILED
    first_token_s: float = float("nan")
    finish_s: float = float("nan")
    last_token_s: float = float("nan")
    gaps_s: list[float] = field(default_factory=list)
    """Between pieces of text that came one after the other."""
    pieces: int = 0
    prompt_tokens: int | None = None
    """As the server counted, where it says."""
    output_tokens: int | None = None
    cached_tokens: int = 0
    status: int = 0
    """HTTP status; 0 if no answer began."""
    error: str = ""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_EVENTS = msgspec.json.Decoder(_Event)
_BODIES = msgspec.json.Encoder()


class Client:
    """Connections to one target; an async context."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._address = target.url.rstrip("/") + PATHS[target.endpoint]

    async def __aenter__(self) -> Client:
        headers = {"content-type": "application/json"}
        if self.target.api_key:
            headers["authorization"] = f"Bearer {self.target.api_key}"
        # No limit of connections: how many requests are under way is the plan's business.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def models(self) -> list[str]:
        """Names of the models that the server offers."""
        address = self.target.url.rstrip("/") + "/v1/models"
        try:
            async with self._session.get(address) as answer:
                answer.raise_for_status()
                return [one["id"] for one in (await answer.json())["data"]]
        except (aiohttp.ClientError, OSError, KeyError, TypeError, ValueError) as error:
            raise TargetError(f"{address} does not answer as an OpenAI-compatible server does: {error}") from error

    async def ask(self, shot: Shot) -> Seen:
        """Make the request; never raises for what the server does."""
        loop = asyncio.get_running_loop()
        seen = Seen(sent_s=loop.time())
        limit = self.target.timeout_s if shot.hang_up_after_s is None else shot.hang_up_after_s
        try:
            async with asyncio.timeout(limit):
                for attempt in (0, 1):
                    try:
                        await self._once(shot, seen)
                        break
                    except aiohttp.ServerDisconnectedError:
                        if attempt or seen.status:
                            raise
        except TimeoutError:
            seen.outcome = Outcome.ABORTED
            seen.error = f"hung up after {limit:g} s"
        except (aiohttp.ClientError, OSError) as error:
            seen.outcome, seen.error = Outcome.FAILED, f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            seen.outcome = Outcome.FAILED
            seen.error = f"not what an OpenAI-compatible server sends: {error}"[:_ERROR_CHARACTERS]
        seen.finish_s = loop.time()
        return seen

    async def _once(self, shot: Shot, seen: Seen) -> None:
        headers = {"x-request-id": shot.request_id, **dict(shot.headers)}
        async with self._session.post(self._address, data=self._body(shot), headers=headers) as answer:
            seen.status = answer.status
            if answer.status != 200:
                text = (await answer.read()).decode(errors="replace")
                seen.error = f"{answer.status}: {text[:_ERROR_CHARACTERS]}"
                seen.outcome = Outcome.REJECTED if answer.status in (429, 503, 529) else Outcome.FAILED
                return
            await self._read(answer, seen)

    async def _read(self, answer: aiohttp.ClientResponse, seen: Seen) -> None:
        """Read the stream: each `data:` line is an event; `[DONE]` ends it."""
        loop = asyncio.get_running_loop()
        rest, reason = b"", None
        async for chunk in answer.content.iter_any():
            now = loop.time()
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    seen.outcome = Outcome.OK
                    return
                event = _EVENTS.decode(data)
                if event.error is not None:
                    seen.error = bytes(event.error).decode(errors="replace")[:_ERROR_CHARACTERS]
                    return
                reason = _count(event, seen, now) or reason
        if reason is None:
            seen.error = "the stream was closed without [DONE] or a finish_reason"
        else:
            seen.outcome = Outcome.OK

    def _body(self, shot: Shot) -> bytes:
        target = self.target
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": shot.prompt}]}
            if target.endpoint == CHAT
            else {"prompt": shot.prompt}
        )
        asked |= {
            "model": target.model, "max_tokens": shot.max_tokens, "stream": True, "stream_options": {"include_usage": True}, **target.extra,
        }  # fmt: skip
        if shot.priority:
            asked["priority"] = shot.priority
        return _BODIES.encode(asked)


def _count(event: _Event, seen: Seen, now: float) -> str | None:
    """Note an event's text and usage; returns its finish_reason."""
    reason = None
    for choice in event.choices:
        reason = choice.finish_reason or reason
        delta = choice.delta
        if choice.text or (delta is not None and (delta.content or delta.reasoning_content or delta.tool_calls)):
            if seen.pieces == 0:
                seen.first_token_s = now
            else:
                seen.gaps_s.append(now - seen.last_token_s)
            seen.last_token_s = now
            seen.pieces += 1
    if event.usage is not None:
        seen.prompt_tokens, seen.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
        details = event.usage.prompt_tokens_details
        seen.cached_tokens = (details.cached_tokens or 0) if details is not None else 0
    return reason
