"""Starting servers for tests: a port that is free, a process that answers, a uvicorn server in a thread of its own."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request


def free_port() -> int:
    """A port on loopback that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until_healthy(process: subprocess.Popen, url: str, limit_s: float) -> None:
    """Return when `url`/health answers 200; fail when the process ends or the time is over."""
    end = time.monotonic() + limit_s
    while True:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < end, f"the server did not start within {limit_s:g} s"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass  # not yet
        time.sleep(0.1)


class InThread:
    """A uvicorn server in a thread, from its start to `stop`."""

    def __init__(self, server, limit_s: float = 60.0):
        self._server = server
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + limit_s
        while not server.started:
            assert time.monotonic() < end, "the server did not start"
            assert self._thread.is_alive(), "the server ended"
            time.sleep(0.02)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
