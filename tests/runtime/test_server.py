"""The whole server on loopback, asked by httpx and by the openai client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time

import httpx
import openai
import pytest

from inferencegym.runtime import wire
from inferencegym.runtime.gateway import Head
from inferencegym.runtime.ports import BackendError, Capabilities, Piece
from inferencegym.runtime.settings import (
    AdmissionSettings,
    DispatchSettings,
    Key,
    QueueSettings,
    ServerSettings,
    ServiceClass,
    Settings,
)
from tests.runtime.fakes import HANG, FakeBackend, Gate, Served, make_gateway, until, words

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def settings(keepalive_s=15.0, **more):
    server = more.pop("server", {})
    return Settings(server=ServerSettings(port=0, keepalive_comment_s=keepalive_s, log="error", **server), **more)


@pytest.fixture(scope="module")
def served():
    with Served(FakeBackend(lambda ask: words(4)), settings=settings()) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(served, path="/v1/chat/completions", headers=None, **body):
    return httpx.post(served.url + path, json=CHAT | body, headers=headers, timeout=10)


def envelope(answer, status, code):
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    assert "x-request-id" in answer.headers
    return error


# --- the openai client -----------------------------------------------------------------------------------------------------


def test_the_openai_client_gets_a_whole_chat_answer_with_exact_usage(client):
    answer = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    )
    assert answer.choices[0].message.content == "w0 w1 w2 w3 "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4


def test_the_openai_client_streams_with_usage_at_the_end_only_if_asked(client):
    asked = {"model": "m", "messages": CHAT["messages"], "stream": True}
    plain = list(client.chat.completions.create(**asked))
    assert "".join(chunk.choices[0].delta.content for chunk in plain) == "w0 w1 w2 w3 "
    assert [chunk.choices[0].delta.role for chunk in plain] == ["assistant", None, None, None]
    assert all(chunk.usage is None for chunk in plain)
    told = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    assert [chunk.usage is None for chunk in told] == [True] * 4 + [False]
    assert told[-1].choices == []
    assert told[-1].usage.completion_tokens == 4


def test_usage_so_far_in_each_event_where_it_is_asked_for(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.completions.create(model="m", prompt="a", stream=True, stream_options=options)
    assert [chunk.usage.completion_tokens for chunk in stream][-1] == 4


def test_completions_models_and_request_ids(client):
    answer = client.completions.create(model="m", prompt="once", extra_headers={"x-request-id": "mine-7"})
    assert answer.choices[0].text == "w0 w1 w2 w3 "
    assert answer._request_id == "mine-7"
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.models.retrieve("org/other")


def test_pieces_that_are_there_at_once_go_out_in_one_write(served):
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
        parts = list(answer.iter_raw())
    assert len(parts) == 1
    assert parts[0].count(b"data: ") == 5


# --- one envelope on every path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "kwargs", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("GET", "/v1/chat/completions", {}, 405, "method_not_allowed"),
        ("PATCH", "/health", {}, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", {"content": b"{"}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {"content": b""}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {"content": b'{"model":"\xff"}'}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {"content": b'{"a":' + b"[" * 50_000}, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", {"json": {"model": "m"}}, 400, "missing_required_parameter"),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"max_tokens": True}}, 400, "invalid_value"),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"n": 2}}, 400, "unsupported_parameter"),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"model": "other"}}, 404, "model_not_found"),
        ("POST", "/v1/chat/completions", {"json": CHAT | {"stream_options": {}}}, 400, "invalid_value"),
        ("POST", "/v1/embeddings", {"json": {"model": "m", "input": "a"}}, 400, "unsupported_endpoint"),
        ("POST", "/v1/completions", {"json": {"model": "m", "prompt": ["a", "b"]}}, 400, "unsupported_parameter"),
        ("POST", "/v1/completions", {"content": b"a=b", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        ("POST", "/v1/completions", {"content": b"{}", "headers": {"content-encoding": "gzip"}}, 415, "unsupported_encoding"),
        ("POST", "/v1/completions", {"content": b"x" * 5_000_000}, 413, "body_too_large"),
        ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"x-queue-ttl-ms": "-1"}}, 400, "invalid_value"),
        ("POST", "/v1/chat/completions", {"json": CHAT, "headers": {"x-slo-class": "gold"}}, 400, "invalid_value"),
    ],
)  # fmt: skip
def test_every_refusal_is_an_envelope(served, method, path, kwargs, status, code):
    envelope(httpx.request(method, served.url + path, timeout=10, **kwargs), status, code)


def test_a_wrong_field_is_named(served):
    assert envelope(post(served, max_tokens="many"), 400, "invalid_value")["param"] == "max_tokens"
    assert envelope(post(served, messages=[{"role": 3}]), 400, "invalid_value")["param"] == "messages[0].role"


def test_unknown_fields_are_tolerated_and_null_is_no_value(served):
    assert post(served, some_new_field={"a": [1]}, max_tokens=None, stop=None, n=1, top_k=40).status_code == 200


def test_what_is_no_http_gets_an_envelope_too(served):
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=5) as raw:
        raw.sendall(b"NONSENSE\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_a_body_in_chunks_is_cut_off_when_it_is_too_large(served):
    def endless():
        for _ in range(10_000):
            yield b" " * 65_536

    try:
        answer = httpx.post(f"{served.url}/v1/completions", content=endless(), timeout=10)
    except httpx.TransportError:
        return  # closed while it was still sending: as good
    envelope(answer, 413, "body_too_large")


def test_a_mistake_of_ours_is_an_envelope_and_no_trace_of_it(caplog):
    class Broken(FakeBackend):
        def submit(self, ask):
            raise ZeroDivisionError("a secret")

    with Served(Broken(lambda ask: []), settings=settings()) as server:
        answer = post(server)
    envelope(answer, 500, "internal_error")
    assert "secret" not in answer.text


# --- headers ---------------------------------------------------------------------------------------------------------------


def test_request_ids_are_kept_if_they_can_be_headers(served):
    assert post(served, headers={"x-request-id": "a b-1"}).headers["x-request-id"] == "a b-1"
    assert post(served, headers={"x-request-id": "x" * 300}).headers["x-request-id"] != "x" * 300
    assert post(served).headers["x-request-id"] != post(served).headers["x-request-id"]


def test_the_overhead_leaves_out_queue_and_backend():
    with Served(FakeBackend(lambda ask: words(2, 0.2), seats=1), settings=settings()) as server:
        told = [float(post(server).headers["x-overhead-ms"])]
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            told.append(float(answer.headers["x-overhead-ms"]))
    assert all(0 < ms < 150 for ms in told)


def test_what_a_client_says_reaches_the_backend(served):
    served.backends[0].asked.clear()
    headers = {"traceparent": "00-abc-def-01", "x-tenant": "us", "x-session-affinity": "s1", "x-request-id": "r1"}
    post(served, headers=headers, priority=3, max_completion_tokens=7, max_tokens=9)
    ask = served.backends[0].asked[0]
    assert (ask.traceparent, ask.tenant, ask.session, ask.id) == ("00-abc-def-01", "us", "s1", "r1")
    assert (ask.priority, ask.max_tokens, ask.stream) == (3, 7, False)
    assert json.loads(ask.body)["priority"] == 3


def test_pages_answer_head_like_get(served):
    for path in ("/health", "/livez", "/readyz", "/version", "/v1/models", "/openapi.json"):
        head, get = httpx.head(served.url + path), httpx.get(served.url + path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]


def test_pages_of_other_origins_may_not_call_unless_they_are_named(served):
    assert (
        "access-control-allow-origin"
        not in httpx.get(f"{served.url}/health", headers={"origin": "https://a.example"}).headers
    )
    assert (
        httpx.options(
            f"{served.url}/v1/models", headers={"origin": "https://a.example", "access-control-request-method": "GET"}
        ).status_code
        == 405
    )
    with Served(
        FakeBackend(lambda ask: words()), settings=settings(server={"cors_origins": ("https://a.example",)})
    ) as server:
        preflight = httpx.options(f"{server.url}/v1/chat/completions", headers={"origin": "https://a.example", "access-control-request-method": "POST"})  # fmt: skip
        assert preflight.status_code == 204
        assert (
            post(server, headers={"origin": "https://a.example"}).headers["access-control-allow-origin"]
            == "https://a.example"
        )
        assert "access-control-allow-origin" not in post(server, headers={"origin": "https://b.example"}).headers


# --- keys ------------------------------------------------------------------------------------------------------------------


def key(name, secret, **more):
    return Key(name, hashlib.sha256(secret.encode()).hexdigest(), **more)


def test_keys_open_what_they_should():
    keys = (key("user", "sk-user-0123456789"), key("boss", "sk-boss-0123456789", admin=True))
    with Served(FakeBackend(lambda ask: words()), settings=settings(keys=keys)) as server:
        envelope(post(server), 401, "missing_api_key")
        envelope(post(server, headers={"authorization": "Basic abc"}), 401, "missing_api_key")
        wrong = post(server, headers={"authorization": "Bearer sk-user-012345678"})
        envelope(wrong, 401, "invalid_api_key")
        assert wrong.headers["www-authenticate"] == "Bearer"
        user, boss = ({"authorization": f"Bearer sk-{name}-0123456789"} for name in ("user", "boss"))
        assert post(server, headers=user).status_code == 200
        assert server.backends[0].asked[-1].tenant == "user"
        envelope(httpx.get(f"{server.url}/v1/models"), 401, "missing_api_key")
        envelope(httpx.get(f"{server.url}/v1/runtime/drain", headers=user), 403, "not_an_admin")
        assert httpx.get(f"{server.url}/v1/runtime/drain", headers=boss).json()["draining"] is False
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_no_secret_and_no_content_is_logged(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        keys = (key("user", "sk-user-0123456789"),)
        with Served(FakeBackend(lambda ask: words()), log_fd=file.fileno(), settings=settings(keys=keys)) as server:
            post(
                server,
                headers={"authorization": "Bearer sk-user-0123456789", "x-request-id": "r7"},
                messages=[{"role": "user", "content": "private"}],
            )
            post(server, headers={"authorization": "Bearer sk-wrong-0123456789"})
            server.app.log.flush()
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    told = next(line for line in lines if line["event"] == "request")
    assert (told["id"], told["status"], told["tenant"], told["output_tokens"]) == ("r7", 200, "user", 3)
    assert not any(secret in text for secret in ("private", "sk-", "w0"))


# --- clients that leave ----------------------------------------------------------------------------------------------------


def leave(server, stream, after_bytes):
    """Ask, read so many bytes of the answer, and close."""
    body = json.dumps(CHAT | {"stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", server.server.port), timeout=5) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(body)
            + body
        )
        got = b""
        while len(got) < after_bytes:
            got += raw.recv(4096)
        if not after_bytes:
            until(lambda: server.gateway.under_way() > 0)
            time.sleep(0.05)


@pytest.mark.parametrize(("stream", "after_bytes"), [(True, 0), (True, 300), (False, 0)])
def test_a_client_that_leaves_stops_the_backend_at_once(stream, after_bytes):
    backend = FakeBackend(lambda ask: [Piece(text="a", tokens=1), HANG] if stream and after_bytes else [HANG])
    with Served(backend, settings=settings()) as server:
        leave(server, stream, after_bytes)
        until(lambda: backend.aborted)
        until(lambda: server.gateway.recorder.counts()["aborted"] == 1)
        assert server.gateway.in_flight() == server.gateway.under_way() == 0


def test_a_client_that_leaves_the_queue_never_reaches_the_backend():
    backend = FakeBackend(lambda ask: [HANG] if not backend.aborted else words(), seats=1)
    with Served(backend, settings=settings()) as server:
        first = threading.Thread(target=leave, args=(server, False, 0))
        first.start()
        until(lambda: server.gateway.in_flight() == 1)
        first.join()
        until(lambda: server.gateway.under_way() == 0)
        backend.aborted.clear()
        gone = socket.create_connection(("127.0.0.1", server.server.port))
        body = json.dumps(CHAT).encode()
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        gone.sendall(request)
        until(lambda: server.gateway.in_flight() == 1)
        waiting = socket.create_connection(("127.0.0.1", server.server.port))
        waiting.sendall(request)
        until(lambda: server.gateway.waiting() == 1)
        waiting.close()
        until(lambda: server.gateway.waiting() == 0)
        asked = len(backend.asked)
        gone.close()
        until(lambda: server.gateway.under_way() == 0)
        assert len(backend.asked) == asked


def test_a_large_body_does_not_make_the_server_deaf_to_a_client_that_leaves():
    backend = FakeBackend(lambda ask: [HANG])
    with Served(backend, settings=settings()) as server:
        body = json.dumps(CHAT | {"filler": "x" * 1_000_000}).encode()
        with socket.create_connection(("127.0.0.1", server.server.port)) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            until(lambda: backend.asked)
        until(lambda: backend.aborted)


# --- backends that fail ----------------------------------------------------------------------------------------------------


def test_a_backend_that_breaks_in_the_middle_ends_the_stream_with_an_error_and_no_done():
    broken = FakeBackend(
        lambda ask: [Piece(text="a", tokens=1), 0.05, BackendError("it died", code="backend_broke_off")]
    )
    with Served(broken, settings=settings()) as server:
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
            text = "".join(answer.iter_text())
        assert answer.status_code == 200
        assert '"code":"backend_broke_off"' in text.rstrip().rsplit("data: ", 1)[1]
        assert "[DONE]" not in text
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.chat.completions.create(model="m", messages=CHAT["messages"], stream=True)
            with pytest.raises(openai.APIError, match="it died"):
                list(stream)
        envelope(post(server), 502, "backend_broke_off")


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_backend_refuses_is_told_with_its_status_and_its_time(stream):
    body = json.dumps({"error": {"message": "too busy", "type": "x", "param": None, "code": "overloaded"}}).encode()
    busy = FakeBackend(lambda ask: [BackendError("busy", status=503, body=body, retry_after_s=2.5, fault=False)])
    with Served(busy, settings=settings()) as server:
        answer = post(server, stream=stream)
        error = envelope(answer, 503, "overloaded")
        assert error["message"] == "too busy"
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2500")


def test_our_own_credentials_are_not_the_clients_business():
    with Served(FakeBackend(lambda ask: [BackendError("no", status=401, body=b'{"error":{"message":"key sk-1 is bad"}}', fault=False)]), settings=settings()) as server:  # fmt: skip
        answer = post(server)
        envelope(answer, 502, "backend_refused_us")
        assert "sk-1" not in answer.text


def test_another_backend_takes_what_nobody_has_begun_on():
    refusing = FakeBackend(lambda ask: [BackendError("refused", sent=False)], name="a")
    working = FakeBackend(lambda ask: words(), name="b")
    with Served(refusing, working, settings=settings()) as server:
        assert [post(server).status_code for _ in range(4)] == [200] * 4
        assert len(refusing.asked) > 0
        assert len(working.asked) == 4
        assert server.gateway.retries == len(refusing.asked)


def test_what_may_have_been_computed_is_not_computed_twice():
    dying = FakeBackend(lambda ask: [BackendError("reset", sent=True)], name="a")
    working = FakeBackend(lambda ask: words(), name="b")
    with Served(dying, working, settings=settings()) as server:
        assert sorted(post(server).status_code for _ in range(2)) == [200, 502]


def test_no_backend_is_well():
    dead = FakeBackend(lambda ask: [BackendError("refused", sent=False)])
    with Served(dead, settings=settings()) as server:
        codes = [post(server).json()["error"]["code"] for _ in range(6)]
        assert codes[-1] == "no_backend"
        answer = post(server)
        envelope(answer, 503, "no_backend")
        assert "retry-after" in answer.headers
        envelope(httpx.get(f"{server.url}/readyz"), 503, "not_ready")
        assert httpx.get(f"{server.url}/livez").status_code == 200


# --- time, queue, drain ----------------------------------------------------------------------------------------------------


def test_a_request_that_waits_too_long_is_told_so():
    with Served(FakeBackend(lambda ask: [HANG], seats=1), settings=settings()) as server:
        holder = threading.Thread(target=lambda: httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=3))
        leaver = socket.create_connection(("127.0.0.1", server.server.port))
        body = json.dumps(CHAT).encode()
        leaver.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        until(lambda: server.gateway.in_flight() == 1)
        answer = post(server, headers={"x-queue-ttl-ms": "50"})
        envelope(answer, 503, "queue_timeout")
        assert int(answer.headers["retry-after"]) >= 1
        envelope(post(server, headers={"x-no-queue": "true"}), 503, "no_free_seat")
        leaver.close()
        assert not holder.is_alive()


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_takes_too_long_is_told_so(begun):
    backend = FakeBackend(lambda ask: [Piece(text="a", tokens=1), HANG] if begun else [HANG])
    with Served(backend, settings=settings(server={"request_timeout_s": 0.2})) as server:
        answer = post(server, stream=True)
        if begun:
            assert answer.text.count("data: ") == 2
            assert "deadline_exceeded" in answer.text
            assert "[DONE]" not in answer.text
        else:
            envelope(answer, 504, "deadline_exceeded")
        assert backend.aborted


def test_a_client_is_not_kept_longer_than_it_waits():
    backend = FakeBackend(lambda ask: [HANG])
    with Served(backend, settings=settings()) as server:
        envelope(post(server, headers={"x-stainless-read-timeout": "0.1"}), 504, "deadline_exceeded")


def test_a_silent_stream_gets_comments():
    backend = FakeBackend(lambda ask: [0.5, *words(1)])
    with Served(backend, settings=settings(keepalive_s=0.1)) as server:
        answer = post(server, stream=True)
        assert answer.text.count(": still here\n\n") >= 2
        assert answer.text.endswith("data: [DONE]\n\n")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            chunks = list(client.chat.completions.create(model="m", messages=CHAT["messages"], stream=True))
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["w0 "]


def test_a_slow_reader_slows_the_backend_down_instead_of_filling_memory():
    piece = Piece(text="x" * 10_000, tokens=1)
    backend = FakeBackend(lambda ask: [step for _ in range(3000) for step in (0.0005, piece)])
    with Served(backend, settings=settings(server={"request_timeout_s": 3.0})) as server:
        body = json.dumps(CHAT | {"stream": True}).encode()
        with socket.create_connection(("127.0.0.1", server.server.port)) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            until(lambda: backend.given > 10)
            # When its time is over the connection is cut, though the client still holds it.
            until(lambda: server.gateway.under_way() == 0)
            assert backend.given < 2500
            assert backend.aborted


def test_a_request_that_does_not_come_is_not_waited_for():
    with Served(FakeBackend(lambda ask: words()), settings=settings(server={"header_timeout_s": 0.2})) as server:
        stalled = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 50\r\n\r\n{"
        for beginning in (b"", b"POST /v1/chat/comp", stalled):
            with socket.create_connection(("127.0.0.1", server.server.port), timeout=5) as raw:
                raw.sendall(beginning)
                assert raw.recv(100) == b""


def test_the_queue_has_a_cap_and_says_when_to_come_back():
    backend = FakeBackend(lambda ask: [0.3, *words()], seats=1)
    with Served(backend, settings=settings(queue=QueueSettings(max_requests=2))) as server:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(post(server))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 503, 503, 503]
        for answer in answers:
            if answer.status_code == 503:
                envelope(answer, 503, "queue_full")
                assert int(answer.headers["retry-after"]) >= 1


def test_rate_limits_are_told_in_headers_and_the_client_comes_back_in_time():
    # On a busy machine seconds may lie between two requests.
    slow = AdmissionSettings(rate_rps=0.05, burst=1)
    with Served(FakeBackend(lambda ask: words()), settings=settings(admission=slow)) as server:
        first = post(server)
        assert first.headers["x-ratelimit-limit-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        refused = post(server)
        envelope(refused, 429, "rate_limit_exceeded")
        assert 0 < float(refused.headers["retry-after-ms"]) <= 20_000
    limits = AdmissionSettings(rate_rps=5, burst=1)
    with (
        Served(FakeBackend(lambda ask: words()), settings=settings(admission=limits)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=5) as client,
    ):
        for _ in range(3):
            client.chat.completions.create(model="m", messages=CHAT["messages"])


def test_drain_refuses_new_work_finishes_old_and_stays_alive():
    backend = FakeBackend(lambda ask: words(3, 0.2))
    with Served(backend, settings=settings()) as server:
        answers = []
        running = threading.Thread(target=lambda: answers.append(post(server, stream=True)))
        running.start()
        until(lambda: server.gateway.in_flight() == 1)
        assert httpx.post(f"{server.url}/v1/runtime/drain").json()["draining"] is True
        answer = post(server)
        envelope(answer, 503, "draining")
        assert "retry-after" in answer.headers
        envelope(httpx.get(f"{server.url}/readyz"), 503, "draining")
        assert httpx.get(f"{server.url}/livez").status_code == 200
        running.join()
        assert answers[0].text.endswith("data: [DONE]\n\n")
        assert httpx.delete(f"{server.url}/v1/runtime/drain").json()["draining"] is False
        assert post(server).status_code == 200


def test_batches_go_when_they_are_full_or_late():
    backend = FakeBackend(lambda ask: words())
    with Served(backend, settings=settings(dispatch=DispatchSettings(batching=True, max_batch_size=3, batch_timeout_ms=1500))) as server:  # fmt: skip
        threads = [threading.Thread(target=post, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(backend.asked) == 4
        assert server.gateway.dispatcher.batches["size"] == 1
        assert server.gateway.dispatcher.batches["timeout"] == 1


def test_priorities_of_classes_and_requests_order_the_queue():
    gate = Gate()
    backend = FakeBackend(lambda ask: [gate, *words(1)], seats=1)
    classes = (ServiceClass("usual", priority=10), ServiceClass("vip", priority=0))
    with Served(backend, settings=settings(queue=QueueSettings(order="priority"), classes=classes)) as server:
        threads = []
        for name, headers in (("hold", {}), ("slow", {}), ("vip", {"x-slo-class": "vip"})):
            threads.append(
                threading.Thread(target=lambda h=headers, n=name: post(server, headers=h | {"x-request-id": n}))
            )
            threads[-1].start()
            count = len(threads)
            until(lambda count=count: server.gateway.under_way() == count)
        gate.open()
        for thread in threads:
            thread.join()
        assert [ask.id for ask in backend.asked] == ["hold", "vip", "slow"]


def test_ten_thousand_that_wait_and_leave_at_once_leave_nothing():
    # In the queue itself; benchmarks/gateway.py does the same over sockets.
    async def run():
        backend = FakeBackend(lambda ask: [HANG], seats=1)
        gateway = make_gateway(backend, settings=settings(queue=QueueSettings(max_requests=20_000)))
        await gateway.start()
        body = json.dumps(CHAT).encode()
        fields = wire.read("chat", body)
        flows = [
            gateway.submit(gateway.ask("chat", body, fields, Head(str(i)), gateway.clock())) for i in range(10_000)
        ]
        assert gateway.waiting() == 9_999
        readers = [asyncio.ensure_future(flow.next()) for flow in flows]
        await asyncio.sleep(0)
        for flow in flows:
            flow.leave()
        assert await asyncio.gather(*readers) == [None] * 10_000
        assert gateway.waiting() == gateway.in_flight() == gateway.under_way() == 0
        assert gateway.admission.total.requests == gateway.admission.total.bytes == 0
        assert gateway.recorder.counts()["aborted"] == 10_000
        assert not gateway.recorder.live
        await gateway.stop()

    asyncio.run(run())


def test_capabilities_decide_what_is_passed_on():
    able = FakeBackend(lambda ask: words(), fields=frozenset({"n", "stop"}))
    assert isinstance(able.able, Capabilities)
    with Served(able, settings=settings()) as server:
        assert post(server, n=2, stop="x").status_code == 200
        assert envelope(post(server, tools=[{"type": "function"}]), 400, "unsupported_parameter")["param"] == "tools"


# --- live settings and metrics ---------------------------------------------------------------------------------------------


def test_settings_change_while_requests_wait_and_nobody_is_lost():
    gate = Gate()
    backend = FakeBackend(lambda ask: [gate, *words(1)], seats=1)
    with Served(backend, settings=settings()) as server:
        url, answers = f"{server.url}/v1/runtime/config", []
        threads = []
        for name, rank in (("hold", 0), ("last", 9), ("first", 1)):
            threads.append(
                threading.Thread(
                    target=lambda n=name, r=rank: answers.append(post(server, headers={"x-request-id": n}, priority=r))
                )
            )
            threads[-1].start()
            count = len(threads)
            until(lambda count=count: server.gateway.under_way() == count)
        held = httpx.get(url).json()
        assert held["settings"]["queue"]["order"] == "fcfs"
        envelope(httpx.patch(url, json={"changes": {"queue.order": "best"}}), 400, "invalid_config")
        envelope(httpx.patch(url, json={"changes": {"server.port": 1}}), 400, "invalid_config")
        envelope(httpx.patch(url, json={"changes": {}, "version": 7}), 412, "version_conflict")
        dry = httpx.patch(url, json={"changes": {"queue.order": "priority"}, "dry_run": True}).json()
        assert server.gateway.settings.queue.order == "fcfs"
        done = httpx.patch(
            url, json={"changes": {"queue.order": "priority"}, "reason": "why not"}, headers={"if-match": '"1"'}
        ).json()
        gate.open()
        assert (dry["dry_run"], done["version"], done["changes"]) == (
            True,
            2,
            {"queue.order": {"from": "fcfs", "to": "priority"}},
        )
        for thread in threads:
            thread.join()
        assert [ask.id for ask in backend.asked] == ["hold", "first", "last"]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert httpx.post(f"{url}/revert", json={"to": 1}).json()["version"] == 3
        assert server.gateway.settings.queue.order == "fcfs"
        assert [change["reason"] for change in httpx.get(f"{url}/audit").json()["changes"]] == ["why not", ""]


def test_seats_change_while_requests_wait():
    gate = Gate()
    backend = FakeBackend(lambda ask: [gate, *words(1)])
    with Served(backend, settings=settings(dispatch=DispatchSettings(max_concurrency=1))) as server:
        threads = [threading.Thread(target=post, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: server.gateway.waiting() == 3)
        assert (
            httpx.patch(
                f"{server.url}/v1/runtime/config", json={"changes": {"dispatch.max_concurrency": 4}}
            ).status_code
            == 200
        )
        until(lambda: server.gateway.in_flight() == 4)
        gate.open()
        for thread in threads:
            thread.join()


def test_metrics_are_told_to_prometheus_and_to_people(served):
    post(served)
    text = httpx.get(f"{served.url}/metrics")
    assert text.headers["content-type"].startswith("text/plain")
    assert "vllm:" in text.text
    told = httpx.get(f"{served.url}/metrics", params={"format": "json"})
    assert told.headers["content-type"] == "application/json"
    assert told.json()
    assert (
        httpx.get(f"{served.url}/metrics", headers={"accept": "application/json"}).headers["content-type"]
        == "application/json"
    )
    assert httpx.head(f"{served.url}/metrics").status_code == 200


def test_the_gateway_is_a_plant_over_http(served):
    url = f"{served.url}/v1/runtime/plant"
    post(served)
    assert httpx.get(url).json()["p99_ttft_ms"] > 0
    assert httpx.get(url).json()["p99_ttft_ms"] is None, "nothing came since"
    told = httpx.post(url, json={"batch_cap": 3, "speculation_depth": 4}).json()
    assert told["accepted"] == {"batch_cap": 3}
    assert "draft" in told["refused"]["speculation_depth"]
    assert served.gateway.dispatcher.total_cap == 3
    assert envelope(httpx.post(url, json={"batch_cap": 0}), 400, "invalid_value")["param"] == "batch_cap"
    assert envelope(httpx.post(url, json={"batch_cup": 3}), 400, "invalid_value")["param"] == "batch_cup"
    assert httpx.post(url, json={"batch_cap": 512}).status_code == 200
