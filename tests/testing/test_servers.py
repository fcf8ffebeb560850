"""Waiting for servers: every wait ends, with what was missing."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from inferencegym.testing.servers import InThread, NotReadyError, free_port, until, until_healthy


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_wait_ends_with_what_it_waited_for():
    asked = iter([False, False, True])
    until(lambda: next(asked), "three questions", 60, poll_s=0.001)
    with pytest.raises(NotReadyError, match=r"not within 0\.01 s: the moon"):
        until(lambda: False, "the moon", 0.01, poll_s=0.001)


def test_a_server_is_healthy_when_its_page_says_so_to_one_who_may_ask(sleeper):
    came = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            came.append(self.path)
            # Busy at first.
            self.send_response(200 if self.headers["authorization"] == "Bearer k" and len(came) > 2 else 503)
            self.end_headers()

        def log_message(self, *said):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        until_healthy(sleeper, url, 60, path="/readyz", headers={"authorization": "Bearer k"}, poll_s=0.001)
        with pytest.raises(NotReadyError, match=f"{url}/readyz"):
            until_healthy(sleeper, url, 0.05, path="/readyz", poll_s=0.001)
        server.shutdown()
    assert came[:3] == ["/readyz"] * 3


def test_a_server_that_ended_is_not_waited_for():
    with (
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process,
        pytest.raises(NotReadyError, match="ended with 3"),
    ):
        until_healthy(process, f"http://127.0.0.1:{free_port()}", 60)


def test_a_thread_that_ends_before_its_server_has_started_is_an_error():
    class Broken:
        started = should_exit = False

        def run(self):
            return

    with pytest.raises(NotReadyError, match="the server ended"):
        InThread(Broken())
