"""Where the runtime's parts meet: settings become backends, a gateway, an application. A function of settings alone, so that each worker can call it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from inferencegym.cli.dashboard import PREFIX, available, preparing
from inferencegym.cli.tracing import make_traces
from inferencegym.runtime.app import App
from inferencegym.runtime.backends.make import make_pool
from inferencegym.runtime.every import Every
from inferencegym.runtime.exporter import Exporter
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.gpu import GpuReader
from inferencegym.runtime.keys import Keyring
from inferencegym.runtime.live import Change, LiveConfig
from inferencegym.runtime.log import JsonLog
from inferencegym.runtime.mounts import Mount
from inferencegym.runtime.pages import Pages
from inferencegym.runtime.plant import GatewayPlant
from inferencegym.runtime.ports import Backend
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import BackendSettings, Settings
from inferencegym.runtime.siblings import WRITE_S, Siblings, Worker
from inferencegym.runtime.steering import Steering
from inferencegym.web.feed import Feed


def make_app(settings: Settings, worker: Worker | None = None) -> App:
    """The whole runtime, or one of several `worker`s of it. ConfigError: a backend lacks what it needs."""
    # uvloop's own time counts whole milliseconds; this is the same clock, to the nanosecond.
    clock = time.monotonic
    log = JsonLog(settings.server.log)
    gateway = Gateway(settings, make_pool(settings, os.environ, _mock), _recorder(settings, worker), clock)
    if settings.recorder.folder:
        gateway.companions.append(Every(settings.recorder.rotate_s, gateway.recorder.journal.rotate))
    feed: Feed | None = None

    def audit(change: Change) -> None:
        log.write("info", "configuration", **change.json())
        if feed is not None:
            feed.changed(change)

    live = LiveConfig(settings, gateway.change, on_audit=audit)
    plant = GatewayPlant(gateway, patch=lambda changes: live.patch(changes, by="plant"))
    gpu, steering, keyring = GpuReader(), Steering(), Keyring(settings.keys)
    exporter = Exporter(gateway, gpu)
    if worker is not None:
        siblings = exporter.others = Siblings(worker, exporter.told)
        gateway.companions.append(Every(WRITE_S, siblings.write))
    traces = make_traces(os.environ, clock)
    if traces is not None:
        gateway.companions.append(traces)
    mounts = []
    if settings.server.dashboard:
        if available():
            feed = Feed(gateway, live, plant, steering, gpu=gpu, worker=worker)
            gateway.companions.append(feed)
        mounts.append(Mount(PREFIX, preparing(feed, keyring, several=worker is not None)))
    return App(gateway, Pages(gateway, live, exporter, plant, steering).table(), keyring, log, traces, mounts)


def _recorder(settings: Settings, worker: Worker | None) -> Recorder:
    """Keeps to memory, or writes to the settings' folder; each worker to one of its own in there, for their files have the same names."""
    held = settings.recorder
    folder = Path(held.folder) if held.folder else None
    if folder is not None and worker is not None:
        folder /= f"worker-{worker.number}"
    return Recorder(settings.classes, time.monotonic, path=folder, rows_per_file=held.rows_per_file)


def _mock(one: BackendSettings) -> Backend:
    # The engine's kernels weigh 70 MiB: only who plays an engine carries them.
    from inferencegym.runtime.backends.mock import MockBackend

    return MockBackend.of(one, clock=time.monotonic)
