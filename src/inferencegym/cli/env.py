"""`inferencegym env`: the OpenEnv server of one family of environments, on port 7860."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from inferencegym.ground.errors import MissingExtraError


def env(
    family: Annotated[
        str, typer.Argument(help="llmserve (steer a deployment) or pagedkv (manage KV memory).")
    ] = "llmserve",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    web: Annotated[bool, typer.Option(help="OpenEnv's interactive page at /web.")] = True,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Sessions at once (else MAX_CONCURRENT_ENVS, else 128).")
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds after which an idle session ends (else SESSION_TIMEOUT_S, else 900)."),
    ] = None,
) -> None:
    """Serve environments over OpenEnv: sockets, plain HTTP, tasks, grader, baseline, and a page."""
    try:
        from inferencegym.envs.openenv.serve import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("openenv", "The OpenEnv server") from error
    for name, value in (("MAX_CONCURRENT_ENVS", sessions), ("SESSION_TIMEOUT_S", idle)):
        if value is not None:
            os.environ[name] = str(value)
    os.environ["ENABLE_WEB_INTERFACE"] = "true" if web else "false"
    serve(
        family,
        host,
        port,
        ready=lambda url: typer.echo(f"{family} is ready on {url}" + (", page at /web" if web else "")),
    )
