"""The dashboard as an ASGI application: the pages' shell, its files, and the sections of its interface.

It is mounted below a prefix (`/dashboard`) and asks nothing of the world outside: a content security policy holds it to that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

import inferencegym
from inferencegym.ground.errors import InferenceGymError
from inferencegym.report.style import tokens
from inferencegym.web import answers

STATIC = Path(__file__).parent / "static"
#: Each is a module of static/pages and a path of its own.
PAGES = ("arena", "episode", "runtime", "workloads", "leaderboard")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self';"
    " base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


class Section(Protocol):
    """A part of the interface."""

    name: str

    def routes(self) -> Sequence[BaseRoute]:
        """Its routes, below `/dashboard/api`."""

    def close(self) -> None:
        """End what it has begun."""


def make_dashboard(
    sections: Sequence[Section], *, server: str, authorise: Callable[[Request], None] | None = None
) -> Starlette:
    """The application. `server`: env or serve, for the pages to say where they are; `authorise`: raises HTTPException 401 or 403 on a request for the interface."""
    shell = (STATIC / "index.html").read_text(encoding="utf-8")

    async def page(request: Request) -> Response:
        base = f"{request.scope.get('root_path', '').rstrip('/')}/"
        return Response(shell.replace("{base}", base), media_type="text/html")

    async def home(request: Request) -> Response:
        first = "runtime" if server == "serve" else "arena"
        return RedirectResponse(f"{request.scope.get('root_path', '').rstrip('/')}/{first}")

    async def about(_: Request) -> Response:
        return answers.answer({
            "version": inferencegym.__version__, "server": server, "sections": [section.name for section in sections],
            "needs_key": authorise is not None,
        })  # fmt: skip

    async def colours(_: Request) -> Response:
        return Response(tokens(), media_type="text/css")

    inner = [route for section in sections for route in section.routes()]
    api = Mount("/api", routes=inner, middleware=[Middleware(_Allowed, authorise)])

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        for section in sections:
            section.close()

    return Starlette(
        routes=[
            Route("/", home),
            *(Route(f"/{name}", page) for name in PAGES),
            Route("/about.json", about),
            Route("/static/tokens.css", colours),
            Mount("/static", StaticFiles(directory=STATIC)),
            api,
        ],
        middleware=[Middleware(_Guarded)],
        exception_handlers={InferenceGymError: answers.ours, HTTPException: answers.http},
        lifespan=lifespan,
    )


class _Allowed:
    """Lets a request through to the interface if the server's own rules do, and no page of another site has made a browser send it: it could not read
    the answer, but could have the server compute without end.
    """

    def __init__(self, app: Any, authorise: Callable[[Request], None] | None) -> None:
        self.app, self.authorise = app, authorise

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope)
        # Browsers say so unasked, and pages cannot change it; who is no browser has no visitor whose rights could be borrowed.
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise HTTPException(403, "A page of another site asked for this; open the dashboard itself")
        if self.authorise is not None:
            self.authorise(request)
        await self.app(scope, receive, send)


class _Guarded:
    """Headers that every answer carries."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def headed(message: Any) -> None:
            if message["type"] == "http.response.start":
                told = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    *(() if b"cache-control" in told else ((b"cache-control", b"no-cache"),)),
                ]
            await send(message)

        await self.app(scope, receive, headed)
