"""A scripted OpenAI-compatible server for tests: it answers well, or fails in the way the script says, request by request.

It lives in the test's own loop and speaks plain sockets, so that it can also break HTTP itself.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Act:
    """How one request is answered."""

    kind: str = "ok"
    """ok, hang, die, die_mid, end_mid, linger, garbage_http, garbage_body, garbage_event, error_event, status, not_a_stream, no_done."""
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

    def __init__(self) -> None:
        self.script: deque[Act] = deque()
        self.default = Act()
        self.seen: list[Seen] = []
        self.connections = 0
        self.healthy = True
        self.metrics = b""
        self._tasks: set[asyncio.Task] = set()
        self._arrived = asyncio.Condition()

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
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

    async def arrived(self, count: int) -> Seen:
        """Return when that many requests have come: the last of them."""
        async with self._arrived:
            await asyncio.wait_for(self._arrived.wait_for(lambda: len(self.seen) >= count), 10)
        return self.seen[count - 1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
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
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            self._whole(writer, *self._get(path))
            await writer.drain()
            return True
        act = self.script.popleft() if self.script else self.default
        seen = Seen(path, headers, json.loads(body), number)
        self.seen.append(seen)
        async with self._arrived:
            self._arrived.notify_all()
        gone = asyncio.ensure_future(reader.read(1))
        answer = asyncio.ensure_future(self._act(act, seen, writer))
        await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            seen.aborted.set()
        answer.cancel()
        gone.cancel()
        results = await asyncio.gather(answer, gone, return_exceptions=True)
        return results[0] is True and not act.close

    def _get(self, path: str) -> tuple[int, bytes]:
        if path.endswith("/models"):
            return 200, b'{"object":"list","data":[{"id":"tiny","object":"model"}]}'
        if path.endswith("/metrics"):
            return 200, self.metrics
        return (200, b'{"status":"ok"}') if self.healthy else (503, b'{"status":"no"}')

    def _whole(self, writer: Any, status: int, body: bytes, extra: tuple[tuple[str, str], ...] = ()) -> None:
        lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}"]
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
        usage = {"prompt_tokens": 7, "completion_tokens": act.tokens, "prompt_tokens_details": {"cached_tokens": 3}}
        if not seen.body.get("stream"):
            await asyncio.sleep(act.gap_s)
            whole = {
                "choices": [{"index": 0, "message": {"content": "x" * act.tokens}, "finish_reason": "stop"}],
                "usage": usage,
            }
            self._whole(writer, 200, json.dumps(whole | ({"timings": act.timings} if act.timings else {})).encode())
            await writer.drain()
            return True
        return await self._stream(act, seen, writer, usage)

    async def _stream(self, act: Act, seen: Seen, writer: asyncio.StreamWriter, usage: dict) -> bool:
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
        if act.kind == "linger":
            await asyncio.Event().wait()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _events(self, act: Act, seen: Seen, usage: dict) -> list[bytes]:
        chat = seen.path.endswith("chat/completions")

        def event(text: str | None, finish: str | None) -> dict:
            said = {"delta": {} if text is None else {"content": text}} if chat else {"text": text or ""}
            return {"id": "c-1", "choices": [{"index": 0, **said, "finish_reason": finish}]}

        events = [event(f"t{i}{act.padding} ", None) for i in range(act.tokens)]
        events.append(event(None, "stop") | ({"timings": act.timings} if act.timings else {}))
        if (seen.body.get("stream_options") or {}).get("include_usage"):
            events.append({"id": "c-1", "choices": [], "usage": usage})
        whole = [json.dumps(one).encode() for one in events]
        return whole if act.kind == "no_done" else [*whole, b"[DONE]"]
