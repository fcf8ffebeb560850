"""Whether requests are traced, and where spans go: a tracer provider that is there already, else OpenTelemetry's own variables (OTEL_*).

Without either nothing of OpenTelemetry is even loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferencegym.ground.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from inferencegym.runtime.ports import Clock
    from inferencegym.runtime.traces import Traces

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def make_traces(environ: Mapping[str, str], clock: Clock) -> Traces | None:
    """Spans for each request, or None where nobody wants them. MissingExtraError, ConfigError: what is wanted cannot be."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    provider, close = _given(environ), None
    if provider is None:
        names = environ.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(environ.get(name) for name in _ENDPOINTS) else "")
        wanted = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
        if not wanted:
            return None
        provider = _of_our_own(wanted, environ)
        close = provider.shutdown
    from inferencegym.runtime.traces import Traces

    return Traces(provider, clock, close)


def _given(environ: Mapping[str, str]) -> Any:
    """The provider that somebody has set up in this process (`opentelemetry-instrument`, a host program); None if nobody has."""
    if "opentelemetry.trace" not in sys.modules and not environ.get("OTEL_PYTHON_TRACER_PROVIDER"):
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider) else provider


def _of_our_own(wanted: list[str], environ: Mapping[str, str]) -> Any:
    """The SDK's provider, which reads sampler, resource and limits from OTEL_* itself."""
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError as error:
        raise MissingExtraError("otel", "Tracing (OTEL_* is set)") from error
    name = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "inferencegym"}
    provider = TracerProvider(resource=Resource.create(name))
    for one in wanted:
        if one == "otlp":
            provider.add_span_processor(BatchSpanProcessor(_otlp(environ)))
        elif one == "console":
            provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        else:
            raise ConfigError("OTEL_TRACES_EXPORTER", f"'{one}' is not known here", allowed="otlp, console, none")
    return provider


def _otlp(environ: Mapping[str, str]) -> Any:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"  # fmt: skip
    if protocol != "http/protobuf":
        raise ConfigError("OTEL_EXPORTER_OTLP_PROTOCOL", f"'{protocol}' is not spoken here", allowed="http/protobuf")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingExtraError("otel", "Sending traces by OTLP") from error
    return OTLPSpanExporter()
