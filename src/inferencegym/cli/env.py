"""`inferencegym env`: the OpenEnv server of one family of environments, on port 7860, with the dashboard of both families below /dashboard."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer

from inferencegym.ground.errors import MissingExtraError

PREFIX = "/dashboard"


def env(
    family: Annotated[
        str, typer.Argument(help="llmserve (steer a deployment) or pagedkv (manage KV memory).")
    ] = "llmserve",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    web: Annotated[bool, typer.Option(help="OpenEnv's interactive page at /web.")] = True,
    dashboard: Annotated[
        bool, typer.Option(help=f"The dashboard at {PREFIX}: watch policies play the tasks of both families.")
    ] = True,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Sessions at once (else MAX_CONCURRENT_ENVS, else 128).")
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds after which an idle session ends (else SESSION_TIMEOUT_S, else 900)."),
    ] = None,
) -> None:
    """Serve environments over OpenEnv: sockets, plain HTTP, tasks, grader, baseline, a page, and the dashboard."""
    try:
        from inferencegym.envs.openenv.app import make_app
        from inferencegym.envs.openenv.serve import run
    except ModuleNotFoundError as error:
        raise MissingExtraError("openenv", "The OpenEnv server") from error
    for name, value in (("MAX_CONCURRENT_ENVS", sessions), ("SESSION_TIMEOUT_S", idle)):
        if value is not None:
            os.environ[name] = str(value)
    os.environ["ENABLE_WEB_INTERFACE"] = "true" if web else "false"
    app = make_app(family)
    said, ending = _with_dashboard(app) if dashboard else ("", None)

    def ready(url: str) -> None:
        typer.echo(f"{family} is ready on {url}" + (", page at /web" if web else "") + said.format(url=url))

    run(app, host, port, ready, ending)


def _with_dashboard(app: Any) -> tuple[str, Callable[[], None] | None]:
    """Mount the dashboard. What the start-up line says of it, and what ends its streams and processes."""
    try:
        from inferencegym.web.app import make_dashboard
        from inferencegym.web.compose import sections
        from inferencegym.web.desk import context
    except ModuleNotFoundError:
        return f"; no dashboard: {MissingExtraError('web', 'The dashboard')}", None
    parts = sections()
    app.mount(PREFIX, make_dashboard(parts, server="env"))

    def end() -> None:
        for part in parts:
            part.close()

    # A mounted application's own lifespan is not run.
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: Any) -> AsyncIterator[Any]:
        async with inner(running) as state:
            # What the first visitor needs is loaded beside the server, before they come.
            context()
            try:
                yield state
            finally:
                end()

    app.router.lifespan_context = lifespan
    return f", dashboard on {{url}}{PREFIX}", end
