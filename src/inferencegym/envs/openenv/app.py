"""The server of one family of environments: OpenEnv's own routes, with ours beside them, sessions for plain HTTP, and clear errors.

Settings come from arguments, else from the environment: MAX_CONCURRENT_ENVS, SESSION_TIMEOUT_S, ENABLE_WEB_INTERFACE, LLMSERVE_MODE.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.types import ConcurrencyConfig
from pydantic import ValidationError

import inferencegym
from inferencegym.envs.openenv import api, contract, routes, webpage
from inferencegym.envs.openenv.environment import ENVIRONMENTS, PlantEnvironment
from inferencegym.envs.openenv.metrics import Meter, expose
from inferencegym.envs.openenv.models import PagingAction, ServeAction
from inferencegym.envs.openenv.real import RealSettings
from inferencegym.envs.openenv.real_task import RealServeEnvironment
from inferencegym.envs.openenv.sessions import FullError, SessionTable, UnknownSessionError
from inferencegym.ground.errors import ConfigError, InferenceGymError, UnknownNameError

ACTIONS = {"llmserve": ServeAction, "pagedkv": PagingAction}
#: Largest body of a request, bytes; an episode log of 20,000 steps has about 10 MB.
MOST_BYTES = 32 * 2**20
TOO_LARGE = f"the body is larger than {MOST_BYTES // 2**20} MiB"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one server takes on."""

    sessions: int = 128
    """WebSocket sessions at once, and as many of plain HTTP."""
    idle_s: float = 900.0
    """After so many seconds without a message a session is closed."""

    def __post_init__(self) -> None:
        if not 1 <= self.sessions <= 4096:
            raise ConfigError("MAX_CONCURRENT_ENVS", f"{self.sessions} is out of range", allowed="1..4096")
        if not 1 <= self.idle_s <= 86_400:
            raise ConfigError("SESSION_TIMEOUT_S", f"{self.idle_s} is out of range", allowed="1..86400")

    @classmethod
    def from_environment(cls) -> Limits:
        """From MAX_CONCURRENT_ENVS and SESSION_TIMEOUT_S; what is not set keeps its default."""
        return cls(
            int(_setting("MAX_CONCURRENT_ENVS", cls().sessions, int)),
            float(_setting("SESSION_TIMEOUT_S", cls().idle_s, float)),
        )


def _setting(name: str, default: float, kind: type) -> Any:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(name, f"'{text}' is no number", allowed="a number") from None


def make_app(family: str = "llmserve", limits: Limits | None = None) -> FastAPI:
    """The ASGI application. With ENABLE_WEB_INTERFACE=true OpenEnv's page is at /web."""
    if family not in ENVIRONMENTS:
        raise UnknownNameError("family", family, tuple(ENVIRONMENTS))
    mode = os.environ.get("LLMSERVE_MODE", "sim")
    if mode not in ("sim", "real"):
        raise ConfigError("LLMSERVE_MODE", f"'{mode}' is not there", allowed="sim, real")
    if mode == "real" and family != "llmserve":
        raise ConfigError("LLMSERVE_MODE", f"there is no real mode of {family}", allowed="sim")
    real = RealSettings.from_environment() if mode == "real" else None
    limits = limits or Limits.from_environment()
    # Gradio reports its use to its makers unless told not to.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    meter = Meter(family)
    base = ENVIRONMENTS[family] if real is None else RealServeEnvironment
    own = {"meter": meter} if real is None else {"meter": meter, "settings": real}
    made: type[PlantEnvironment] = type(base.__name__, (base,), own)
    app: FastAPI = create_app(
        made, ACTIONS[family], made.observation_cls, env_name=f"{family}_env", state_cls=made.state_cls,
        concurrency_config=ConcurrencyConfig(max_concurrent_envs=limits.sessions, session_timeout=limits.idle_s),
        gradio_builder=webpage.build, show_default_tab=False,
    )  # fmt: skip
    app.version = inferencegym.__version__
    table = SessionTable(made, cap=limits.sessions, idle_s=limits.idle_s)
    _replace_stateless_routes(app, family, table, made)
    app.include_router(routes.about(family, table, real))
    if family == "pagedkv":
        app.include_router(api.paging())
    if not any(getattr(route, "path", "") == "/web" for route in app.router.routes):
        app.include_router(routes.plain_page(family))
    meter.watch(lambda: len(table), limits.sessions)
    _close_at_the_end(app, table)
    _clear_errors(app)
    app.add_middleware(_Bounded)
    expose(app, meter)
    contract.complete(app, f"{family}_env")
    return app


def _replace_stateless_routes(app: FastAPI, family: str, table: SessionTable, made: type[PlantEnvironment]) -> None:
    """OpenEnv's reset, step and state build a new environment for each call; ours hold an episode, and stand alone under these paths."""
    ours = {("/reset", "POST"), ("/step", "POST"), ("/state", "GET")}
    before = len(app.router.routes)
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not any((getattr(route, "path", ""), method) in ours for method in getattr(route, "methods", None) or ())
    ]
    # In production mode (OPENENV_MODE) there are none, and there must be none.
    if len(app.router.routes) < before:
        app.include_router(routes.episodes(family, table, made))


def _close_at_the_end(app: FastAPI, table: SessionTable) -> None:
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: Any) -> AsyncIterator[Any]:
        async with inner(running) as state:
            yield state
        table.close()

    app.router.lifespan_context = lifespan


class _Told(JSONResponse):
    """An error as plain ASCII: what a client sent may hold halves of letters that no encoding has."""

    def render(self, content: Any) -> bytes:
        """JSON with every other letter escaped."""
        return json.dumps(content).encode("ascii")


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for as text, so that an error about NaN can be told."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in list(value.items())[:50]}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value[:50]]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def told(error: ValidationError | RequestValidationError) -> list[dict[str, Any]]:
    """A validation error as JSON can carry it: where, what, and the input if it is short."""
    found = []
    for one in error.errors()[:20]:
        entry = {"loc": [str(part) for part in one["loc"]], "msg": str(one["msg"]), "type": str(one["type"])}
        shown = _plain(one.get("input"))
        if len(str(shown)) <= 200:
            entry["input"] = shown
        found.append(entry)
    return found


def _clear_errors(app: FastAPI) -> None:
    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ValidationError | RequestValidationError)
        return _Told({"detail": told(error)}, 422)

    async def ours(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, FullError):
            return _Told({"detail": str(error)}, 429, {"Retry-After": str(error.retry_after_s)})
        if isinstance(error, UnknownSessionError):
            return _Told({"detail": str(error)}, 404)
        return _Told({"detail": str(error)}, 400)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(InferenceGymError, ours)


class _Bounded:
    """Refuses bodies over `MOST_BYTES` with 413, whether their length is announced or not."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MOST_BYTES:
            await JSONResponse({"detail": TOO_LARGE}, 413)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MOST_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        await self.app(scope, counted, send)
