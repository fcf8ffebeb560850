"""Where the runtime's parts meet: settings become backends, a gateway, an application. A function of settings alone, so that each worker can call it."""

from __future__ import annotations

import os
import time

from inferencegym.runtime.app import App
from inferencegym.runtime.backends.make import make_pool
from inferencegym.runtime.exporter import Exporter
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.keys import Keyring
from inferencegym.runtime.live import LiveConfig
from inferencegym.runtime.log import JsonLog
from inferencegym.runtime.pages import Pages
from inferencegym.runtime.plant import GatewayPlant
from inferencegym.runtime.ports import Backend
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import BackendSettings, Settings


def make_app(settings: Settings) -> App:
    """The whole runtime. ConfigError: a backend lacks what it needs."""
    # uvloop's own time counts whole milliseconds; this is the same clock, to the nanosecond.
    clock = time.monotonic
    log = JsonLog(settings.server.log)
    gateway = Gateway(settings, make_pool(settings, os.environ, _mock), Recorder(settings.classes, clock), clock)
    live = LiveConfig(
        settings, gateway.change, on_audit=lambda change: log.write("info", "configuration", **change.json())
    )
    plant = GatewayPlant(gateway, patch=lambda changes: live.patch(changes, by="plant"))
    return App(gateway, Pages(gateway, live, Exporter(gateway), plant).table(), Keyring(settings.keys), log)


def _mock(one: BackendSettings) -> Backend:
    # The engine's kernels weigh 70 MiB: only who plays an engine carries them.
    from inferencegym.runtime.backends.mock import MockBackend

    return MockBackend.of(one, clock=time.monotonic)
