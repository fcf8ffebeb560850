"""Spans of requests: names and attributes of the GenAI conventions, parents and children, and nothing at all where nobody traces."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra 'otel' is not installed")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from inferencegym.cli.gateway import make_app
from inferencegym.cli.tracing import make_traces
from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.log import JsonLog
from inferencegym.runtime.ports import BackendError
from inferencegym.runtime.settings import BackendSettings, DispatchSettings, QueueSettings, ServerSettings, Settings
from inferencegym.runtime.traces import Traces
from tests.runtime.fakes import HANG, FakeBackend, Gate, Served, until, words

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a secret word"}], "max_tokens": 7, "temperature": 0.5}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traced(Served):
    """A server whose spans are kept."""

    def __init__(self, *backends, sampler=None, **more):
        settings = Settings(server=ServerSettings(port=0, log="error"), **more)
        super().__init__(*backends, settings=settings)
        self.kept = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self.kept))
        self.app.traces = Traces(provider, time.monotonic)

    def post(self, body=CHAT, path="/v1/chat/completions", **headers):
        return httpx.post(self.url + path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}, timeout=10)  # fmt: skip

    def spans(self, kind=None):
        """Those that have ended, once the server's has; by their start."""
        until(lambda: any(span.kind is SpanKind.SERVER for span in self.kept.get_finished_spans()))
        spans = sorted(self.kept.get_finished_spans(), key=lambda span: span.start_time)
        return [span for span in spans if kind is None or span.kind is kind]

    def server_span(self):
        (span,) = self.spans(SpanKind.SERVER)
        return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_server_span_with_its_queue_and_its_backend(stream):
    backend = FakeBackend(lambda ask: words(3, pause_s=0.01))
    with Traced(backend) as server:
        began_ns = time.time_ns()
        answer = server.post(CHAT | {"stream": stream}, traceparent=PARENT, x_request_id="mine", x_tenant="lena")
        assert answer.status_code == 200
        span = server.server_span()
        queue, client = (next(s for s in server.spans() if s.kind is kind) for kind in (SpanKind.INTERNAL, SpanKind.CLIENT))  # fmt: skip
    assert (span.name, queue.name, client.name) == ("chat m", "queue", "chat m")
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert queue.parent.span_id == client.parent.span_id == span.context.span_id
    assert backend.asked[0].traceparent == f"00-{span.context.trace_id:032x}-{client.context.span_id:016x}-01"
    seen = dict(span.attributes)
    first_s = seen.pop("gen_ai.response.time_to_first_chunk")
    assert 0.01 <= first_s == seen.pop("gen_ai.latency.time_to_first_token") < 5
    assert 0 <= seen.pop("gen_ai.latency.time_in_queue") < 1
    assert seen.pop("gen_ai.usage.input_tokens") > 0
    assert seen == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "inferencegym", "gen_ai.request.model": "m", "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5, "gen_ai.request.stream": stream, "gen_ai.response.model": "m", "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("stop",), "http.request.method": "POST", "http.route": "/v1/chat/completions",
        "http.response.status_code": 200, "inferencegym.request_id": "mine", "inferencegym.tenant": "lena", "inferencegym.slo_class": "default",
        "inferencegym.retries": 0,
    }  # fmt: skip
    assert client.attributes["inferencegym.backend"] == "fake"
    assert client.attributes["gen_ai.usage.output_tokens"] == 3
    assert [event.name for event in span.events] == ["first_token"]
    # Everything lies inside, in order, at the time of day that it was.
    assert began_ns <= span.start_time <= queue.start_time <= queue.end_time == client.start_time
    assert client.start_time <= span.events[0].timestamp <= client.end_time <= span.end_time <= time.time_ns()
    assert abs(span.events[0].timestamp - span.start_time - first_s * 1e9) < 1e6
    assert "secret" not in "".join(s.to_json() for s in server.kept.get_finished_spans())


def test_the_log_has_the_traces_id(tmp_path):
    with (tmp_path / "log").open("wb") as log, Traced(FakeBackend(lambda ask: words(1))) as server:
        server.app.log = JsonLog("info", log.fileno())
        server.post()
        span = server.server_span()
        server.app.log.flush()
    (line,) = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if '"request"' in line)
    assert line["trace_id"] == f"{span.context.trace_id:032x}"


def test_a_second_backend_is_a_second_span():
    broken = FakeBackend(lambda ask: [BackendError("down", sent=False)], name="broken")
    with Traced(broken, FakeBackend(lambda ask: words(1), name="well")) as server:
        assert server.post().status_code == 200
        first, second = server.spans(SpanKind.CLIENT)
        assert server.server_span().attributes["inferencegym.retries"] == 1
    assert [s.attributes["inferencegym.backend"] for s in (first, second)] == ["broken", "well"]
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET
    assert broken.asked[0].traceparent.split("-")[2] == f"{second.context.span_id:016x}"


@pytest.mark.parametrize(
    ("body", "status", "code", "failed"),
    [
        ({"model": "m"}, 400, "missing_required_parameter", False),
        (CHAT | {"model": "nobody"}, 404, "model_not_found", False),
        (CHAT, 502, "backend_error", True),
    ],
)
def test_what_goes_wrong_is_told_with_its_code(body, status, code, failed):
    with Traced(FakeBackend(lambda ask: [BackendError("broke")])) as server:
        assert server.post(body).status_code == status
        span = server.server_span()
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (status, code)
    assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert all(span.end_time for span in server.kept.get_finished_spans())


def test_a_client_that_leaves_is_no_error_of_ours():
    with Traced(FakeBackend(lambda ask: [HANG])) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=0.3)
        span, (client,) = server.server_span(), server.spans(SpanKind.CLIENT)
    for one in (span, client):
        assert one.attributes["error.type"] == "client_left"
        assert one.status.status_code is StatusCode.UNSET
    assert span.attributes["http.response.status_code"] == 499


def test_who_waits_in_vain_has_a_queue_and_no_backend():
    seats = {"dispatch": DispatchSettings(max_concurrency=1), "queue": QueueSettings(ttl_s=0.1)}
    gate = Gate()
    with Traced(FakeBackend(lambda ask: [gate, *words(1)]), **seats) as server:
        thread = threading.Thread(target=lambda: server.post(x_request_id="holds"))
        thread.start()
        until(lambda: server.gateway.in_flight() == 1)
        assert server.post().status_code == 503
        span = server.server_span()
        assert server.spans(SpanKind.CLIENT) == []
        (queue,) = server.spans(SpanKind.INTERNAL)
        gate.open()
        thread.join(10)
    assert span.attributes["error.type"] == "queue_timeout"
    assert "gen_ai.latency.time_in_queue" not in span.attributes
    assert 0.09e9 < queue.end_time - queue.start_time < 5e9


def test_who_is_not_sampled_hands_on_the_trace_all_the_same():
    backend = FakeBackend(lambda ask: words(1))
    with Traced(backend, sampler=ALWAYS_OFF) as server:
        assert server.post(traceparent=PARENT).status_code == 200
        assert server.kept.get_finished_spans() == ()
    assert backend.asked[0].traceparent.split("-")[1] == PARENT.split("-")[1]
    assert backend.asked[0].traceparent.endswith("-00")


# --- whether at all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_the_usual_variables_decide(environ, on):
    traces = make_traces(environ, time.monotonic)
    assert (traces is not None) == on
    if traces is not None:
        traces.stop()


def test_an_endpoint_is_enough():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra 'otel' is not installed")
    traces = make_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, time.monotonic)
    assert traces is not None
    traces.stop()


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_what_we_do_not_speak_is_said(environ):
    with pytest.raises(ConfigError, match="OTEL_"):
        make_traces(environ, time.monotonic)


def test_where_nobody_traces_nothing_of_it_is_loaded():
    code = (
        "import os, sys; from inferencegym.cli.gateway import make_app\n"
        "from inferencegym.runtime.settings import BackendSettings, Settings\n"
        "app = make_app(Settings(backends=(BackendSettings('openai', url='http://127.0.0.1:9'),)))\n"
        "assert app.traces is None and not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={"PATH": "/usr/bin:/bin"})


def test_the_settings_lead_to_an_app_that_traces(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    app = make_app(Settings(backends=(BackendSettings("openai", url="http://127.0.0.1:9"),)))
    assert app.traces in app.gateway.companions
    app.traces.stop()
