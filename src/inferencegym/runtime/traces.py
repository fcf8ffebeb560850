"""OpenTelemetry spans of requests, in the names of the GenAI conventions. Loaded only where somebody traces; of content nothing is told.

    chat llama-3.1-8b   SERVER    from the request's head to its last byte; parent: the client's traceparent
    ├─ queue            INTERNAL  from being let in to its seat
    └─ chat llama-3.1-8b CLIENT   at a backend, one for each that was tried; its id goes there as traceparent

Spans have Unix time in nanoseconds; the gateway's clock, seconds, is tied to it anew for each request, so that spans of one request fit together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inferencegym import __version__
from inferencegym.metrics.record import Outcome
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.intake import ClientGoneError
from inferencegym.runtime.ports import CHAT, COMPLETIONS, EMBEDDINGS, Ask, Clock

if TYPE_CHECKING:
    from inferencegym.runtime.flow import Flow

_OPERATION = {CHAT: "chat", COMPLETIONS: "text_completion", EMBEDDINGS: "embeddings"}
#: Fields of a request that the conventions name as we do.
_SAMPLING = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")
_CLIENT_GONE = 499


class Traces:
    """Begins a trace for each request that is sent to an engine."""

    def __init__(self, provider: TracerProvider, clock: Clock, close: Callable[[], None] | None = None) -> None:
        """`close`: sends what is left, when the gateway has stopped; None: whoever made the provider does."""
        self._tracer = provider.get_tracer("inferencegym", __version__)
        self._clock, self._close = clock, close
        self._context = TraceContextTextMapPropagator()

    def start(self) -> None:
        """Nothing to begin with: the gateway's companions are started together."""

    def stop(self) -> None:
        """Send what is left."""
        if self._close is not None:
            self._close()

    def begin(self, endpoint: str, path: str, headers: dict[bytes, bytes], arrival_s: float) -> Trace:
        """A request's head has come."""
        came = {"traceparent": headers.get(b"traceparent", b"").decode("latin-1")}
        unix_ns = time.time_ns() - round(self._clock() * 1e9)
        operation = _OPERATION[endpoint]
        given = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "inferencegym", "http.request.method": "POST", "http.route": path}  # fmt: skip
        span = self._tracer.start_span(
            operation, self._context.extract(came), SpanKind.SERVER, given, start_time=unix_ns + round(arrival_s * 1e9)
        )
        return Trace(self, span, operation, unix_ns)

    def phase(
        self, of: Trace, name: str, kind: SpanKind, start_s: float, attributes: dict[str, Any] | None = None
    ) -> Span:
        """A part of a request's way."""
        return self._tracer.start_span(name, set_span_in_context(of.span), kind, attributes, start_time=of.at(start_s))

    def traceparent(self, span: Span) -> str:
        """What a backend is told of its parent."""
        carrier: dict[str, str] = {}
        self._context.inject(carrier, set_span_in_context(span))
        return carrier.get("traceparent", "")

    def now_s(self) -> float:
        """The gateway's clock."""
        return self._clock()


class Trace:
    """One request's spans. As a context: whatever ends it before it is let in is told too."""

    __slots__ = ("_backend", "_name", "_of", "_open", "_operation", "_unix_ns", "span")

    def __init__(self, of: Traces, span: Span, operation: str, unix_ns: int) -> None:
        self._of, self.span, self._operation, self._unix_ns = of, span, operation, unix_ns
        self._name = operation
        self._backend: Span | None = None
        self._open = True

    @property
    def id(self) -> str:
        """The trace's id, as logs and trace stores write it."""
        return f"{self.span.get_span_context().trace_id:032x}"

    def at(self, seconds: float) -> int:
        """The gateway's time as Unix time, ns."""
        return self._unix_ns + round(seconds * 1e9)

    def asked(self, ask: Ask) -> None:
        """What is asked for has been read."""
        ask.trace = self
        self._name = f"{self._operation} {ask.model}"
        span, fields = self.span, ask.fields
        span.update_name(self._name)
        if not span.is_recording():
            return
        told = {"gen_ai.request.model": ask.model, "gen_ai.request.max_tokens": ask.max_tokens, "gen_ai.request.stream": ask.stream}  # fmt: skip
        told |= {f"gen_ai.request.{name}": getattr(fields, name, None) for name in _SAMPLING}
        told |= {"gen_ai.request.choice.count": getattr(fields, "n", None), "inferencegym.request_id": ask.id, "inferencegym.tenant": ask.tenant or None}  # fmt: skip
        span.set_attributes({name: value for name, value in told.items() if value is not None})

    def handed(self, ask: Ask, backend: str, at_s: float) -> None:
        """It goes to a backend now, for the first time or again; the backend is told to hang its own spans here."""
        self._backend_failed(at_s)
        told = {"gen_ai.operation.name": self._operation, "gen_ai.request.model": ask.model, "inferencegym.backend": backend}  # fmt: skip
        self._backend = self._of.phase(self, self._name, SpanKind.CLIENT, at_s, told)
        ask.traceparent = self._of.traceparent(self._backend)

    def _backend_failed(self, at_s: float) -> None:
        if self._backend is not None:
            self._backend.set_status(Status(StatusCode.ERROR))
            self._backend.set_attribute("error.type", "backend_failed_another_was_tried")
            self._backend.end(self.at(at_s))

    def ended(self, flow: Flow, status: int, slo_class: str) -> None:
        """All of it has been answered."""
        first_s, dispatched_s = flow.first_s, flow.dispatched_s
        seated = dispatched_s == dispatched_s
        self._of.phase(self, "queue", SpanKind.INTERNAL, flow.enqueued_s).end(
            self.at(dispatched_s if seated else flow.finish_s)
        )
        if first_s == first_s:
            self.span.add_event("first_token", timestamp=self.at(first_s))
        told = _answered(flow)
        backend = self._backend
        if backend is not None:
            if flow.outcome is not Outcome.OK:
                backend.set_attribute("error.type", flow.code)
                backend.set_status(Status(StatusCode.ERROR if flow.outcome is Outcome.FAILED else StatusCode.UNSET))
            elif backend.is_recording():
                backend.set_attributes(told)
            backend.end(self.at(flow.finish_s))
        if self.span.is_recording():
            since_s = {"response.time_to_first_chunk": first_s, "latency.time_to_first_token": first_s}
            told |= {f"gen_ai.{name}": at_s - flow.ask.arrival_s for name, at_s in since_s.items() if at_s == at_s}
            if seated:
                told["gen_ai.latency.time_in_queue"] = dispatched_s - flow.enqueued_s
            self.span.set_attributes(told | {"inferencegym.slo_class": slo_class, "inferencegym.retries": len(flow.tried)})  # fmt: skip
        self._close(status, flow.code if flow.outcome is not Outcome.OK else "")

    def _close(self, status: int, code: str) -> None:
        self._open = False
        self.span.set_attribute("http.response.status_code", status)
        if code:
            self.span.set_attribute("error.type", code)
        if status >= 500:  # the conventions: of a server's span, a client's mistake is no error
            self.span.set_status(Status(StatusCode.ERROR, code))
        self.span.end(self.at(self._of.now_s()))

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._open:
            return
        if isinstance(error, ApiError):
            self._close(error.status, error.code)
        elif error is None or isinstance(error, ClientGoneError):
            self._close(_CLIENT_GONE, "client_left")
        else:
            self._close(500, type(error).__name__)


def _answered(flow: Flow) -> dict[str, Any]:
    """What the answer was, in the conventions' names."""
    usage = flow.usage_now()
    told: dict[str, Any] = {
        "gen_ai.response.model": flow.ask.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    if usage.cached_tokens:
        told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if flow.finish_reason:
        told["gen_ai.response.finish_reasons"] = [flow.finish_reason]
    return told
