"""A scripted OpenAI-compatible server: it answers well, or fails in the way the script says, request by request. Times are seconds.

It lives in the caller's own loop and speaks plain sockets, so that it can also break HTTP itself. Tests use it, and the conformance suite puts it
behind a gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Act:
    """How one request is answered."""

    kind: str = "ok"
    """ok, hang, hang_mid, die, die_mid, end_mid, linger, garbage_http, garbage_body, garbage_event, error_event, status, not_a_stream, no_done."""
    tokens: int = 4
    at: int = 2
    """Events before a fault in the middle."""
    gap_s: float = 0.0
    """Time between events, and before a whole answer."""
    status: int = 503
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b'{"error":{"message":"busy","type":"server_error","code":"busy"}}'
    newline: bytes = b"\n"
    portion: int = 0
    """Bytes written at once; 0: an event at a time."""
    close: bool = False
    """Close the connection after the answer without having said so."""
    extra: bytes = b""
    """Bytes before each event: comments, other fields."""
    timings: dict[str, Any] | None = None
    padding: str = ""
    """In each token's text."""


@dataclass
class Seen:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: Any
    connection: int
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client closed the connection before the answer was over."""


class Upstream:
    """The server; `async with Upstream() as up`, `up.script.append(Act("die"))`, `up.seen`."""

    def __init__(self, port: int = 0) -> None:
        self._wanted_port = port
        self.script: deque[Act] = deque()
        self.default = Act()
        self.seen: list[Seen] = []
        self.connections = 0
        self.running = 0
        """Requests that are being answered."""
        self.healthy = True
        self.metrics = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._wanted_port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Refuse from now on, and drop whoever is connected."""
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def act_for(self, seen: Seen) -> Act:
        """How this request is answered: the script's next, else as usual."""
        return self.script.popleft() if self.script else self.default

    async def arrived(self, count: int) -> Seen:
        """Return when that many requests have come: the last of them."""
        async with self._arrived:
            await asyncio.wait_for(self._arrived.wait_for(lambda: len(self.seen) >= count), 10)
        return self.seen[count - 1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio runs each connection in a task of its own"
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            while await self._one(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await _body(reader, headers)
        if method in ("GET", "HEAD"):
            self._whole(
                writer, *self._get(path), kind="text/plain; version=0.0.4" if path == "/metrics" else "application/json"
            )
            await writer.drain()
            return True
        try:
            seen = Seen(path, headers, json.loads(body), number)
        except (ValueError, RecursionError):
            self._whole(
                writer,
                400,
                b'{"error":{"message":"no JSON","type":"invalid_request_error","param":null,"code":"invalid_json"}}',
            )
            await writer.drain()
            return True
        act = self.act_for(seen)
        self.seen.append(seen)
        async with self._arrived:
            self._arrived.notify_all()
        gone = asyncio.ensure_future(reader.read(1))
        answer = asyncio.ensure_future(self._act(act, seen, writer))
        self.running += 1
        await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            seen.aborted.set()
        answer.cancel()
        gone.cancel()
        results = await asyncio.gather(answer, gone, return_exceptions=True)
        self.running -= 1
        return results[0] is True and not act.close

    def _get(self, path: str) -> tuple[int, bytes]:
        if path.endswith("/models"):
            return 200, b'{"object":"list","data":[{"id":"tiny","object":"model"}]}'
        if path.endswith("/metrics"):
            return 200, self.metrics
        return (200, b'{"status":"ok"}') if self.healthy else (503, b'{"status":"no"}')

    def _whole(
        self,
        writer: Any,
        status: int,
        body: bytes,
        extra: tuple[tuple[str, str], ...] = (),
        kind: str = "application/json",
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in extra]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def _act(self, act: Act, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if act.kind == "hang":
            await asyncio.Event().wait()
        if act.kind == "die":
            writer.transport.abort()
            return False
        if act.kind == "garbage_http":
            writer.write(b"\x00\x01 what? \r\n\r\n")
            return False
        if act.kind in ("status", "garbage_body", "not_a_stream"):
            status, body = (act.status, act.body) if act.kind == "status" else (200, b"<html>it works</html>")
            self._whole(writer, status, body, act.headers)
            await writer.drain()
            return True
        usage = {
            "prompt_tokens": 7, "completion_tokens": act.tokens, "total_tokens": 7 + act.tokens, "prompt_tokens_details": {"cached_tokens": 3},
        }  # fmt: skip
        if not seen.body.get("stream"):
            await asyncio.sleep(act.gap_s)
            whole = self.whole(act, seen) | {"usage": usage}
            self._whole(writer, 200, json.dumps(whole | ({"timings": act.timings} if act.timings else {})).encode())
            await writer.drain()
            return True
        return await self._stream(act, seen, writer, usage)

    async def _stream(self, act: Act, seen: Seen, writer: asyncio.StreamWriter, usage: dict[str, Any]) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for sent, event in enumerate(self._events(act, seen, usage)):
            if sent == act.at and act.kind == "die_mid":
                writer.transport.abort()
                return False
            if sent == act.at and act.kind == "end_mid":
                break
            if sent == act.at and act.kind == "hang_mid":
                await asyncio.Event().wait()
            if sent == act.at and act.kind == "garbage_event":
                event = b"{nonsense"
            if sent == act.at and act.kind == "error_event":
                event = b'{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}'
            data = act.extra + b"data: " + event + 2 * act.newline
            step = act.portion or len(data)
            for i in range(0, len(data), step):
                part = data[i : i + step]
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                if act.portion:
                    await writer.drain()
                    await asyncio.sleep(0)
            await writer.drain()
            await asyncio.sleep(act.gap_s)
            if sent == act.at and act.kind == "error_event":
                break
        if act.kind == "linger":
            await asyncio.Event().wait()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def whole(self, act: Act, seen: Seen) -> dict[str, Any]:
        """A whole answer, without its usage."""
        said = self.letter * act.tokens
        chat = seen.path.endswith("chat/completions")
        choice = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        kind = "chat.completion" if chat else "text_completion"
        return self.about(seen, kind) | {"choices": [{"index": 0, **choice, "finish_reason": self.reason}]}

    #: Why answers end, and what whole ones are made of.
    reason, letter = "stop", "x"

    def about(self, seen: Seen, kind: str) -> dict[str, Any]:
        """What each answer and event begins with."""
        return {"id": "c-1", "object": kind, "created": 1, "model": seen.body.get("model", "")}

    def _events(self, act: Act, seen: Seen, usage: dict[str, Any]) -> list[bytes]:
        chat = seen.path.endswith("chat/completions")
        begin = self.about(seen, "chat.completion.chunk" if chat else "text_completion")

        def event(text: str | None, finish: str | None, first: bool = False) -> dict[str, Any]:
            role = {"role": "assistant"} if first else {}
            said = {"delta": role if text is None else role | {"content": text}} if chat else {"text": text or ""}
            return begin | {"choices": [{"index": 0, **said, "finish_reason": finish}]}

        events = [event(f"t{i}{act.padding} ", None, i == 0) for i in range(act.tokens)]
        events.append(event(None, self.reason) | ({"timings": act.timings} if act.timings else {}))
        options = seen.body.get("stream_options") or {}
        if options.get("continuous_usage_stats"):
            for told, one in enumerate(events, 1):
                one["usage"] = usage | {"completion_tokens": min(told, act.tokens)}
        if options.get("include_usage"):
            events.append(begin | {"choices": [], "usage": usage})
        whole = [json.dumps(one).encode() for one in events]
        return whole if act.kind == "no_done" else [*whole, b"[DONE]"]


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """A request's body, of known length or in chunks."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readline()
    return b"".join(parts)
