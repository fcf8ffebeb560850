"""The server as a process of its own, for tests."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.starting import free_port, until_healthy


@pytest.fixture
def start(tmp_path):
    """Starts `inferencegym serve --backend mock` with flags; all are ended with the test."""
    started = []

    def run(*flags, env=None):
        port = free_port()
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "inferencegym", "serve", "--backend", "mock", "--port", str(port), *flags], stderr=log, env=env
            )  # fmt: skip
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        until_healthy(process, url, 120)
        return process, url, tmp_path / "log"

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)
