"""The app under any ASGI server: without our HTTP protocol it still hears a client leave; and what a backend says in its own language passes through."""

from __future__ import annotations

import asyncio
import json

from inferencegym.ground.clock import run_virtual
from inferencegym.runtime.ports import CHAT, COMPLETIONS, EMBEDDINGS, Piece, Usage
from inferencegym.runtime.settings import ServerSettings, Settings
from tests.runtime.fakes import HANG, FakeBackend, make_app, make_gateway, words


async def call(app, path, body, parts=1, leave_s=None):
    """One request, its body in parts; the client leaves after so many seconds. Returns status, headers, body, whether the answer ended."""
    data = json.dumps(body).encode()
    size = -(-len(data) // parts)
    pending = [data[i : i + size] for i in range(0, len(data), size)]
    sent = []

    async def receive():
        if pending:
            part = pending.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(pending)}
        await asyncio.sleep(1e9 if leave_s is None else leave_s)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    if not sent:
        return None
    return (
        sent[0]["status"],
        dict(sent[0]["headers"]),
        b"".join(m["body"] for m in sent[1:]),
        not sent[-1].get("more_body", True),
    )


def in_app(test, *backends, **server):
    async def main():
        gateway = make_gateway(*backends, settings=Settings(server=ServerSettings(**server)))
        app = make_app(gateway)
        await gateway.start()
        told = await test(app)
        assert gateway.under_way() == gateway.in_flight() == len(app.streams) == 0
        await gateway.stop()
        return told

    return run_virtual(main())


BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_under_another_server_a_client_that_leaves_is_heard_too():
    for stream in (False, True):
        backend = FakeBackend(lambda ask: [Piece(text="a", tokens=1), HANG])
        told = in_app(
            lambda app, s=stream: call(app, "/v1/chat/completions", BODY | {"stream": s}, leave_s=2.0), backend
        )
        assert len(backend.aborted) == 1
        assert told is None or not told[3]


def test_bodies_come_in_parts():
    status, headers, body, ended = in_app(
        lambda app: call(app, "/v1/chat/completions", BODY, parts=5), FakeBackend(lambda ask: words())
    )
    assert (status, ended, int(headers[b"content-length"])) == (200, True, len(body))


def test_comments_keep_a_silent_stream_open_and_an_error_after_them_is_an_event():
    backend = FakeBackend(lambda ask: [HANG])
    status, _, body, ended = in_app(
        lambda app: call(app, "/v1/chat/completions", BODY | {"stream": True}),
        backend,
        keepalive_comment_s=15.0,
        request_timeout_s=100.0,
    )
    assert (status, ended) == (200, True)
    assert 5 <= body.count(b": still here\n\n") <= 7
    assert b"deadline_exceeded" in body.rstrip().rsplit(b"data: ", 1)[1]
    assert b"[DONE]" not in body


def test_embeddings_pass_through_where_a_backend_has_them():
    raw = b'{"object":"list","data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":3,"total_tokens":3}}'
    backend = FakeBackend(
        lambda ask: [Piece(raw=raw, usage=Usage(3, 0))], endpoints=(CHAT, COMPLETIONS, EMBEDDINGS), fields=None
    )
    status, _, body, _ = in_app(
        lambda app: call(app, "/v1/embeddings", {"model": "m", "input": ["abc", "def"]}), backend
    )
    assert (status, body) == (200, raw)
    assert backend.asked[0].max_tokens == 0


def test_a_servers_own_events_pass_through_as_they_are():
    events = [
        b'{"choices":[{"index":0,"delta":{"content":"a"}}]}',
        b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}',
    ]
    backend = FakeBackend(
        lambda ask: [Piece(raw=events[0], tokens=1), Piece(raw=events[1], usage=Usage(1, 1))], fields=None
    )
    asked = BODY | {"stream": True, "stream_options": {"include_usage": True}, "tools": [], "n": 2}
    _, _, body, _ = in_app(lambda app: call(app, "/v1/chat/completions", asked), backend)
    assert body == b"".join(b"data: " + event + b"\n\n" for event in [*events, b"[DONE]"])
