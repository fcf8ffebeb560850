"""Runs a server of one family on a port; what `inferencegym env` and the deployable folders call."""

from __future__ import annotations

import os

import uvicorn

from inferencegym.envs.openenv.app import make_app
from inferencegym.ground.errors import ConfigError


def serve(family: str, host: str = "0.0.0.0", port: int | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. `port`: else PORT, else 8000, where OpenEnv's containers listen."""
    text = os.environ.get("PORT", "8000")
    if port is None:
        if not text.isdigit() or not 0 < int(text) < 65536:
            raise ConfigError("PORT", f"'{text}' is no port", allowed="1..65535")
        port = int(text)
    # Open sockets get a few seconds, then the server ends.
    uvicorn.run(make_app(family), host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)
