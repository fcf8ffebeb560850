"""Starting servers in tests and benchmarks: a port that is free, a process that answers, a uvicorn server in a thread of its own.

Every wait has a limit in seconds, and says at its end what it was waiting for.
"""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from inferencegym.runtime.backends.process import free_port

_T = TypeVar("_T")

__all__ = ["InThread", "NotReadyError", "Server", "free_port", "until", "until_healthy"]


class NotReadyError(AssertionError):
    """What was waited for did not come."""


def until(holds: Callable[[], _T], what: str, limit_s: float, *, poll_s: float = 0.1) -> _T:
    """The first answer of `holds()` that is true; it is asked every `poll_s`. NotReadyError with `what` after `limit_s`."""
    end = time.monotonic() + limit_s
    while not (answer := holds()):
        if time.monotonic() > end:
            raise NotReadyError(f"not within {limit_s:g} s: {what}")
        time.sleep(poll_s)
    return answer


def until_healthy(
    process: subprocess.Popen[Any], url: str, limit_s: float, *, path: str = "/health", headers: Mapping[str, str] | None = None, poll_s: float = 0.1
) -> None:  # fmt: skip
    """Return when `url` + `path` answers 200; NotReadyError when the process ends or the time is over."""
    asked = urllib.request.Request(url + path, headers=dict(headers or {}))

    def answers() -> bool:
        if process.poll() is not None:
            raise NotReadyError(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    until(answers, f"the server answers at {asked.full_url}", limit_s, poll_s=poll_s)


class Server(Protocol):
    """The part of a `uvicorn.Server` that is used here."""

    started: bool
    should_exit: bool

    def run(self) -> None:
        """Serve until `should_exit`."""


class InThread:
    """A uvicorn server in a thread, from its start to `stop`."""

    def __init__(self, server: Server, limit_s: float = 60.0) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()

        def started() -> bool:
            if not server.started and not self._thread.is_alive():
                raise NotReadyError("the server ended")
            return server.started

        until(started, "the server starts", limit_s, poll_s=0.02)

    def stop(self, limit_s: float = 20.0) -> None:
        """End it, and wait for that."""
        self._server.should_exit = True
        self._thread.join(limit_s)
        if self._thread.is_alive():
            raise NotReadyError(f"the server did not end within {limit_s:g} s")
