"""What a server of environments tells Prometheus at `GET /metrics`: sessions, episodes, steps and their times, refused requests.

Each application counts for itself (its own registry), so that servers in one process do not mix. Times are seconds; names follow docs/vocabulary.md.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import inferencegym

#: What Prometheus's text format calls itself.
FORMAT = "text/plain; version=0.0.4; charset=utf-8"
#: Upper ends of the steps' times, seconds: a paging step takes some 10 us, a window of a large deployment tens of milliseconds.
STEP_SECONDS = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 5.0)


class Meter:
    """The figures of one application. Environments tell it what they do; `text` is what Prometheus reads."""

    def __init__(self, family: str) -> None:
        self.registry = CollectorRegistry()
        self.family = family
        self._at_work: weakref.WeakSet[Any] = weakref.WeakSet()
        at = {"registry": self.registry}
        about = Gauge("inferencegym_env_info", "Which environments, and of which version.", ["family", "version"], **at)
        about.labels(family, inferencegym.__version__).set(1)
        self._sessions = Gauge(
            "inferencegym_env_sessions_open", "Sessions that hold an episode: sockets, plain HTTP, the page.", **at
        )
        self._sessions.set_function(lambda: len(self._at_work))
        self._http_sessions = Gauge(
            "inferencegym_env_http_sessions_open",
            "Sessions over plain HTTP, idle ones included until they expire.",
            **at,
        )
        self._room = Gauge(
            "inferencegym_env_sessions_limit", "Sockets allowed at once, and as many over plain HTTP.", **at
        )
        self._begun = Counter("inferencegym_env_episodes_begun_total", "Episodes begun.", ["task"], **at)
        self._finished = Counter(
            "inferencegym_env_episodes_finished_total", "Episodes played to their end: the horizon, or a crash.",
            ["task", "end"], **at,
        )  # fmt: skip
        self._steps = Counter("inferencegym_env_steps_total", "Decisions taken.", ["family"], **at).labels(family)
        self._step_s = Histogram(
            "inferencegym_env_step_seconds", "Time of a decision inside the environment, without the wire.", ["family"],
            buckets=STEP_SECONDS, **at,
        ).labels(family)  # fmt: skip
        self._refused = Counter(
            "inferencegym_env_refused_requests_total", "HTTP requests answered with 4xx or 5xx.", ["status"], **at
        )

    # --- what environments and routes tell -------------------------------------------------------------------------------

    def begun(self, environment: Any, task: str) -> None:
        """An environment has begun an episode; from now on it counts as an open session."""
        self._at_work.add(environment)
        self._begun.labels(task).inc()

    def stepped(self, since_s: float) -> None:
        """A decision was taken that began at `since_s` of `time.perf_counter`."""
        self._steps.inc()
        self._step_s.observe(time.perf_counter() - since_s)

    def finished(self, task: str, *, crashed: bool) -> None:
        """An episode is over."""
        self._finished.labels(task, "crashed" if crashed else "horizon").inc()

    def closed(self, environment: Any) -> None:
        """A session has ended."""
        self._at_work.discard(environment)

    def refused(self, status: int) -> None:
        """A request was answered with an error."""
        self._refused.labels(str(status)).inc()

    def watch(self, http_sessions: Callable[[], int], limit: int) -> None:
        """Ask the table of plain-HTTP sessions for its length whenever Prometheus asks us."""
        self._http_sessions.set_function(http_sessions)
        self._room.set(limit)

    def text(self) -> str:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry).decode()


class Counted:
    """ASGI middleware that counts the answers which are errors."""

    def __init__(self, app: Callable[..., Awaitable[None]], meter: Meter) -> None:
        self.app, self.meter = app, meter

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on, and look at the status."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self.meter.refused(message["status"])
            await send(message)

        await self.app(scope, receive, told)


def expose(app: FastAPI, meter: Meter) -> None:
    """Put `GET /metrics` on an application, and count its errors."""
    router = APIRouter(tags=["InferenceGym"])

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Figures for Prometheus: sessions, episodes, steps, refused requests."""
        return PlainTextResponse(meter.text(), media_type=FORMAT)

    app.include_router(router)
    app.add_middleware(Counted, meter=meter)
