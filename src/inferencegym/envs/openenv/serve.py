"""Runs a server of one family on a port; what `inferencegym env` and the deployable folders call."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from inferencegym.envs.openenv.app import make_app
from inferencegym.ground.errors import ConfigError


def serve(
    family: str, host: str = "0.0.0.0", port: int | None = None, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C. `port`: else PORT, else 8000, where OpenEnv's containers listen. `ready`: told the URL once it answers."""
    text = os.environ.get("PORT", "8000")
    if port is None:
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise ConfigError("PORT", f"'{text}' is no port", allowed="1..65535")
        port = int(text)
    run(make_app(family), host, port, ready)


class _Telling(uvicorn.Server):
    """Says once that the port is open, and that the end has begun."""

    ready: Callable[[], None] | None = None
    ending: Callable[[], None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:
        """Begin to listen, then say so."""
        await super().startup(sockets=sockets)
        if self.started and not self.should_exit and self.ready is not None:
            self.ready()

    async def shutdown(self, sockets: list[object] | None = None) -> None:
        """Say that the end has begun, while answers are still being sent, then end."""
        if self.ending is not None:
            self.ending()
        await super().shutdown(sockets=sockets)


def run(
    app: FastAPI,
    host: str,
    port: int,
    ready: Callable[[str], None] | None = None,
    ending: Callable[[], None] | None = None,
) -> None:
    """Serve an application until SIGTERM or Ctrl-C. `ending`: called first then, so that answers without an end can be given one."""
    # Open sockets get a few seconds, then the server ends. To compress a frame of a kilobyte costs more than the step.
    server = _Telling(
        uvicorn.Config(
            app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5, ws_per_message_deflate=False
        )
    )
    if ready is not None:
        shown = f"[{host}]" if ":" in host else host
        server.ready = lambda: ready(f"http://{shown}:{port}")
    server.ending = ending
    try:
        server.run()
    except KeyboardInterrupt:
        # It has ended in order; uvicorn raises the signal again.
        return
    if not server.started:
        # uvicorn has said why.
        sys.exit(1)
