"""The HTTP backend against a scripted server: what is forwarded, what is counted, and what becomes of every fault."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends.assemble import Assembly
from inferencegym.runtime.backends.events import EventStream
from inferencegym.runtime.backends.openai import OpenAI
from inferencegym.runtime.ports import Ask, BackendError, Piece
from tests.runtime.upstream import Act, Upstream


@pytest.fixture(autouse=True, params=[False, True], ids=["own client", "aiohttp"])
def _either_client(request, monkeypatch):
    """Everything holds with both HTTP clients."""
    monkeypatch.setattr(OpenAI, "by_aiohttp", request.param)


def make_ask(stream: bool = True, endpoint: str = "chat", **more) -> Ask:
    said = {"messages": [{"role": "user", "content": "hi"}]} if endpoint == "chat" else {"prompt": "hi"}
    body = json.dumps({"model": "tiny", "stream": stream, **said, **more}).encode()
    return Ask(
        id="req-1", endpoint=endpoint, model="tiny", body=body, fields=None, prompt_tokens=1, max_tokens=None, stream=stream,
        arrival_s=0.0, traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )  # fmt: skip


@asynccontextmanager
async def pair(**options):
    """A scripted server and a backend that asks it."""
    async with Upstream() as up:
        backend = OpenAI("up", up.url, models=("tiny",), **options)
        await backend.start()
        try:
            yield up, backend
        finally:
            await backend.stop()


async def read(answer) -> list:
    return [piece async for piece in answer]


async def fails(backend, ask) -> tuple[list, BackendError]:
    pieces = []
    try:
        async for piece in backend.submit(ask):
            pieces.append(piece)
    except BackendError as error:
        assert backend.load().running == 0
        return pieces, error
    raise AssertionError(f"no error after {len(pieces)} pieces")


def run(main, *arguments):
    return asyncio.run(asyncio.wait_for(main(*arguments), 30))


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("portion", [0, 1, 7])
def test_a_stream_is_handed_on_as_it_came_and_counted(endpoint, newline, portion):
    async def main():
        async with pair() as (up, backend):
            up.script.append(Act(newline=newline, portion=portion, extra=b": ping" + newline + b"event: x" + newline))
            pieces = await read(backend.submit(make_ask(endpoint=endpoint)))
            *said, end, usage = pieces
            assert [one.tokens for one in said] == [1, 1, 1, 1]
            assert all(json.loads(one.raw)["id"] == "c-1" for one in said)
            assert (end.tokens, end.finish_reason) == (0, "stop")
            # The client did not ask for the usage: it is for the gateway alone.
            assert usage.raw is None
            assert (usage.usage.prompt_tokens, usage.usage.completion_tokens, usage.usage.cached_tokens) == (7, 4, 3)
            assert up.seen[0].body["stream_options"] == {"include_usage": True}
            assert up.seen[0].headers["x-request-id"] == "req-1"
            assert up.seen[0].headers["traceparent"].startswith("00-4bf9")
            assert backend.load().running == 0

    run(main)


def test_a_client_that_asks_for_usage_gets_the_event():
    async def main():
        async with pair() as (up, backend):
            for options in ({"include_usage": True, "x": 1}, {"include_usage": False, "x": 1}, None):
                pieces = await read(backend.submit(make_ask(stream_options=options)))
                asked = bool(options and options["include_usage"])
                assert (pieces[-1].raw is not None) is asked
                assert pieces[-1].usage.completion_tokens == 4
                assert up.seen[-1].body["stream_options"] == {**(options or {}), "include_usage": True}

    run(main)


def test_a_whole_answer_is_one_piece():
    async def main():
        async with pair() as (up, backend):
            (piece,) = await read(backend.submit(make_ask(stream=False)))
            assert json.loads(piece.raw)["choices"][0]["message"]["content"] == "xxxx"
            assert (piece.tokens, piece.finish_reason, piece.usage.prompt_tokens) == (4, "stop", 7)
            assert "stream_options" not in up.seen[0].body

    run(main)


def test_the_model_has_the_name_that_the_server_knows():
    async def main():
        async with pair(model="tiny-int4") as (up, backend):
            ask = make_ask(metadata={"a": [1, 2.5, None]})
            await read(backend.submit(ask))
            assert up.seen[0].body == {
                **json.loads(ask.body),
                "model": "tiny-int4",
                "stream_options": {"include_usage": True},
            }

    run(main)


def test_connections_are_used_again_and_a_stale_one_costs_nothing():
    async def main():
        async with pair() as (up, backend):
            for stream in (True, False, True, False):
                await read(backend.submit(make_ask(stream)))
            assert {one.connection for one in up.seen} == {1}
            # The server closes the idle connection just as the next request goes out on it.
            up.script.extend([Act("die"), Act()])
            pieces = await read(backend.submit(make_ask()))
            assert pieces[-1].usage is not None
            assert [one.connection for one in up.seen[-2:]] == [1, 2]

    run(main)


def test_a_server_that_dies_on_a_new_connection_is_not_asked_twice():
    async def main():
        async with pair() as (up, backend):
            up.script.append(Act("die"))
            pieces, error = await fails(backend, make_ask())
            assert (pieces, error.code, error.status, error.fault, error.sent) == (
                [],
                "backend_disconnected",
                502,
                True,
                True,
            )
            assert len(up.seen) == 1

    run(main)


def test_no_connection_is_used_again_after_a_stream_where_the_server_cannot():
    async def main():
        async with pair(reuse_after_stream=False) as (up, backend):
            for stream in (False, True, True, False):
                await read(backend.submit(make_ask(stream)))
            assert [one.connection for one in up.seen] == [1, 2, 3, 1]

    run(main)


FAULTS = [
    (Act("die_mid"), 2, "backend_broke_off", 502, True),
    (Act("end_mid"), 2, "backend_broke_off", 502, True),
    (Act("garbage_http"), 0, "backend_garbage", 502, True),
    (Act("not_a_stream"), 0, "backend_garbage", 502, True),
    (Act("garbage_event"), 2, "backend_garbage", 502, True),
    (Act("error_event"), 2, "backend_500", 500, True),
    (Act("status", status=500, body=b"oh"), 0, "backend_500", 500, True),
    (Act("status", status=503), 0, "busy", 503, True),
    (Act("status", status=503, headers=(("Retry-After", "7"),)), 0, "busy", 503, False),
    (Act("status", status=429, headers=(("Retry-After", "7"),)), 0, "busy", 429, False),
    (Act("status", status=429), 0, "busy", 429, False),
    (Act("status", status=400, body=b'{"error":"too long"}'), 0, "backend_400", 400, False),
    (Act("status", status=501, body=b'{"detail":"no such thing"}'), 0, "backend_501", 501, False),
    (Act("status", status=302, headers=(("Location", "/x"),)), 0, "backend_garbage", 502, True),
]  # fmt: skip


@pytest.mark.parametrize(("act", "before", "code", "status", "fault"), FAULTS, ids=lambda x: getattr(x, "kind", None))
def test_every_fault_has_its_name_and_what_came_before_stands(act, before, code, status, fault):
    async def main():
        async with pair() as (up, backend):
            up.script.append(act)
            pieces, error = await fails(backend, make_ask())
            assert [one.tokens for one in pieces] == [1] * before
            assert (error.code, error.status, error.fault) == (code, status, fault)
            if act.kind == "status" and status != 302 and code != "backend_garbage":
                assert error.body == act.body
                assert error.retry_after_s == (7.0 if act.headers else None)
                assert error.sent is (status not in (429, 503))
            # The next request is none the worse for it.
            assert (await read(backend.submit(make_ask())))[-1].usage is not None

    run(main)


@pytest.mark.parametrize(("body", "message"), [(b'{"error":"too long"}', "too long"), (b'{"detail":"no"}', "no"), (b"<html>", "'<html>'"), (b"", "''")])  # fmt: skip
def test_an_error_is_told_in_the_servers_own_words(body, message):
    async def main():
        async with pair() as (up, backend):
            up.script.append(Act("status", status=400, body=body))
            assert (await fails(backend, make_ask(stream=False)))[1].message == message

    run(main)


@pytest.mark.parametrize(("header", "low", "high"), [("2.5", 2.5, 2.5), ("date", 3500, 3601), ("soon", None, None), ("-3", 0, 0)])  # fmt: skip
def test_the_time_to_come_back_is_kept(header, low, high):
    if header == "date":
        header = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)

    async def main():
        async with pair() as (up, backend):
            up.script.append(Act("status", status=429, headers=(("Retry-After", header),)))
            given = (await fails(backend, make_ask()))[1].retry_after_s
            assert given is None if low is None else low <= given <= high
            up.script.append(Act("status", status=429, headers=(("Retry-After", "9"), ("retry-after-ms", "1500"))))
            assert (await fails(backend, make_ask()))[1].retry_after_s == 1.5

    run(main)


def test_a_whole_answer_that_is_no_json_is_garbage():
    async def main():
        async with pair() as (up, backend):
            up.script.append(Act("garbage_body"))
            assert (await fails(backend, make_ask(stream=False)))[1].code == "backend_garbage"

    run(main)


def test_a_server_that_is_not_there_is_said_so_and_another_may_be_tried():
    async def main():
        async with pair() as (up, backend):
            await up.stop()
            _, error = await fails(backend, make_ask())
            assert (error.code, error.status, error.sent, error.fault) == ("backend_unreachable", 502, False, True)
            assert not await backend.healthy()

    run(main)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["hang", "hang_mid"])
def test_silence_ends_in_a_timeout_and_the_connection_is_closed(kind, stream):
    if kind == "hang_mid" and not stream:
        pytest.skip("a whole answer has no middle")

    async def main():
        async with pair(read_timeout_s=0.2) as (up, backend):
            up.script.append(Act(kind))
            pieces, error = await fails(backend, make_ask(stream))
            assert (error.code, error.status, error.fault, error.sent) == ("backend_timeout", 504, True, True)
            assert len(pieces) == (2 if kind == "hang_mid" else 0)
            await asyncio.wait_for(up.seen[0].aborted.wait(), 5)

    run(main)


def test_a_slow_reader_is_not_a_silent_server_and_holds_it_back():
    async def main():
        async with pair(read_timeout_s=1.0) as (up, backend):
            up.script.append(Act(tokens=200, padding=100_000 * "x"))
            answer = backend.submit(make_ask())
            first = await anext(answer)
            assert first.tokens == 1
            await asyncio.sleep(1.5)  # longer than the silence that is allowed
            # The server could not finish: its socket is full, and only a bounded part lies here.
            assert not up.seen[0].aborted.is_set()
            assert backend.load().running == 1
            counted = first.tokens + sum([piece.tokens async for piece in answer])
            assert counted == 200

    run(main)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("when", ["at once", "waiting", "mid"])
def test_abort_closes_the_connection_and_ends_the_iteration(stream, when):
    if when == "mid" and not stream:
        pytest.skip("a whole answer has no middle")

    async def main():
        async with pair() as (up, backend):
            up.script.append(Act("hang_mid" if when == "mid" else "hang"))
            answer = backend.submit(make_ask(stream))
            reader = asyncio.ensure_future(read(answer))
            if when != "at once":
                await up.arrived(1)
            if when == "mid":
                await asyncio.sleep(0.05)
            answer.abort()
            answer.abort()
            pieces = await asyncio.wait_for(reader, 5)
            assert len(pieces) == (2 if when == "mid" else 0)
            assert await read(answer) == []
            assert backend.load().running == 0
            if when != "at once":
                await asyncio.wait_for(up.seen[0].aborted.wait(), 5)

    run(main)


def test_a_crowd_that_leaves_at_once_leaves_nothing_behind():
    async def main():
        async with pair() as (up, backend):
            up.default = Act("hang")
            before = len(asyncio.all_tasks())
            for stream in (True, False):
                seen = len(up.seen)
                answers = [backend.submit(make_ask(stream)) for _ in range(100)]
                traces = [weakref.ref(answer) for answer in answers]
                readers = [asyncio.ensure_future(read(answer)) for answer in answers]
                await up.arrived(seen + 100)
                for answer in answers:
                    answer.abort()
                assert await asyncio.gather(*readers) == [[]] * 100
                for one in up.seen[seen:]:
                    await asyncio.wait_for(one.aborted.wait(), 5)
                del answers, answer, readers
                await asyncio.sleep(0)
                gc.collect()
                assert not any(trace() for trace in traces)
                assert backend.load().running == 0
            async with asyncio.timeout(5):
                while len(asyncio.all_tasks()) > before:
                    await asyncio.sleep(0.01)

    run(main)


def test_a_reader_that_is_cancelled_takes_the_request_with_it():
    async def main():
        async with pair() as (up, backend):
            for kind in ("hang", "hang_mid"):
                up.script.append(Act(kind))
                reader = asyncio.ensure_future(read(backend.submit(make_ask())))
                seen = await up.arrived(len(up.seen) + 1)
                await asyncio.sleep(0.05)
                reader.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reader
                await asyncio.wait_for(seen.aborted.wait(), 5)
                assert backend.load().running == 0

    run(main)


def test_stopping_breaks_off_what_is_under_way():
    async def main():
        async with Upstream() as up:
            backend = OpenAI("up", up.url)
            await backend.start()
            assert backend.models == ("tiny",)
            up.script.extend([Act("hang"), Act("hang_mid")])
            readers = [asyncio.ensure_future(read(backend.submit(make_ask()))) for _ in range(2)]
            await up.arrived(2)
            await asyncio.sleep(0.05)
            await backend.stop()
            ends = await asyncio.gather(*readers, return_exceptions=True)
            assert [(type(end), end.code, end.fault) for end in ends] == [(BackendError, "backend_stopped", False)] * 2

    run(main)


def test_a_stream_without_done_is_whole_if_it_has_its_end():
    async def main():
        async with pair() as (up, backend):
            up.script.append(Act("no_done"))
            assert (await read(backend.submit(make_ask())))[-1].usage is not None
            up.script.append(Act("linger"))
            assert (await read(backend.submit(make_ask())))[-1].usage is not None
            await asyncio.wait_for(up.seen[-1].aborted.wait(), 5)

    run(main)


def test_timings_tell_the_tokens_and_when_computing_began():
    timings = {"cache_n": 5, "prompt_n": 2, "prompt_ms": 30.0, "predicted_n": 4, "predicted_ms": 20.0}

    async def main():
        async with pair() as (up, backend):
            up.script.append(Act(timings=timings, gap_s=0.05))
            answer = backend.submit(make_ask())
            handed_s = answer.scheduled_s
            end = next(piece for piece in await read(answer) if piece.finish_reason)
            assert (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.cached_tokens) == (7, 4, 5)
            assert answer.scheduled_s >= handed_s

    run(main)


class Streaming(OpenAI):
    always_stream = True


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_whole_answer_can_be_put_together_from_a_stream(endpoint):
    async def main():
        async with Upstream() as up:
            backend = Streaming("up", up.url, models=("tiny",))
            (piece,) = await read(backend.submit(make_ask(stream=False, endpoint=endpoint)))
            assert up.seen[0].body["stream"] is True
            whole = json.loads(piece.raw)
            (choice,) = whole["choices"]
            assert (choice["message"]["content"] if endpoint == "chat" else choice["text"]) == "t0 t1 t2 t3 "
            assert (choice["finish_reason"], piece.finish_reason, piece.tokens) == ("stop", "stop", 4)
            assert whole["usage"] == {
                "prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11, "prompt_tokens_details": {"cached_tokens": 3},
            }  # fmt: skip
            # Broken off, it is no answer; left, the connection is closed.
            up.script.append(Act("die_mid"))
            pieces, error = await fails(backend, make_ask(stream=False))
            assert (pieces, error.code) == ([], "backend_broke_off")
            up.script.append(Act("hang_mid"))
            answer = backend.submit(make_ask(stream=False))
            reader = asyncio.ensure_future(read(answer))
            await up.arrived(3)
            answer.abort()
            assert await reader == []
            await asyncio.wait_for(up.seen[2].aborted.wait(), 5)
            assert backend.load().running == 0
            await backend.stop()

    run(main)


def test_tool_calls_and_logprobs_are_put_together_choice_by_choice():
    events = [
        {"id": "c", "choices": [{"index": 1, "delta": {"role": "assistant", "content": "B"}, "logprobs": {"content": [{"token": "B"}]}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}}]},
        {"id": "c", "choices": [{"index": 1, "delta": {"content": "b"}, "logprobs": {"content": [{"token": "b"}]}}]},
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}, {"index": 1, "delta": {}, "finish_reason": "stop"}]},
    ]  # fmt: skip
    assembly = Assembly("chat")
    for event in events:
        assembly.add(Piece(raw=json.dumps(event).encode()))
    first, second = json.loads(assembly.piece().raw)["choices"]
    assert [(call["id"], call["function"]) for call in first["message"]["tool_calls"]] == [
        ("call_1", {"name": "f", "arguments": '{"a": 1}'}), ("call_2", {"name": "g", "arguments": "{}"}),
    ]  # fmt: skip
    assert first["finish_reason"] == "tool_calls"
    assert first["message"]["content"] is None
    assert (second["message"]["content"], second["logprobs"]["content"]) == ("Bb", [{"token": "B"}, {"token": "b"}])


def test_large_bodies_go_out_without_a_warning():
    async def main():
        async with pair() as (up, backend):
            await read(backend.submit(make_ask(user="u" * 3_000_000)))
            assert len(up.seen[0].body["user"]) == 3_000_000

    run(main)


def test_the_key_is_shown():
    async def main():
        async with pair(api_key="sk-1") as (up, backend):
            await read(backend.submit(make_ask()))
            assert up.seen[0].headers["authorization"] == "Bearer sk-1"
            assert await backend.healthy()

    run(main)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/v1", ""])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match=r"backend up\.url"):
        OpenAI("up", url)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_v1_may_be_left_out(url):
    assert str(OpenAI("up", url).base).rstrip("/") == "http://h:1/v1"


def test_events_are_cut_the_same_whatever_the_portions():
    text = b': hello\r\n\r\ndata: {"a":1}\r\n\r\nevent: x\ndata:{"b":\ndata: 2}\n\n\n\nid: 3\n\ndata: [DONE]\n\n'
    for size in range(1, len(text)):
        cut, events = EventStream(), []
        for i in range(0, len(text), size):
            events += cut.feed(text[i : i + size])
        assert [*events, *cut.end()] == [b'{"a":1}', b'{"b":\n2}', b"[DONE]"]
