"""A process that plays a run, seen from the server: started beside the event loop, heard there, and ended at any time.

Everything is called from the event loop's thread, and calls back in it; a thread of its own starts the process and listens, for the fork server may
take seconds, and a message may come in pieces.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from inferencegym.web import worker
from inferencegym.web.desk import context
from inferencegym.web.spec import Spec

_log = logging.getLogger(__name__)


class PlayProcess:
    """One of them."""

    def __init__(
        self, name: str, spec: Spec, heard: Callable[[PlayProcess, tuple[Any, ...]], None], ended: Callable[[PlayProcess, int | None], None]
    ) -> None:  # fmt: skip
        """`heard`: is told what the process says (see `worker`); `ended`: once, its exit code, None if it never began."""
        self.name = name
        self._heard, self._ended = heard, ended
        self._loop = asyncio.get_running_loop()
        made = context()
        self._here, self._there = made.Pipe()
        self._process = made.Process(target=worker.work, args=(self._there, spec), daemon=True)
        self._stopped = False
        threading.Thread(target=self._listen, name=f"run-{name}", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The process's number, once there is one."""
        return self._process.pid

    def tell(self, share: float) -> None:
        """Its share of a core."""
        try:
            self._here.send(share)
        except OSError:
            _log.debug("run %s is over already", self.name)

    def stop(self) -> None:
        """End the process, now or as soon as it has begun."""
        self._stopped = True
        if self._process.pid is not None:
            self._process.terminate()

    def _listen(self) -> None:
        code = None
        try:
            if not self._stopped:
                self._process.start()
        except (OSError, EOFError):
            _log.warning("no process could be begun to play run %s", self.name, exc_info=True)
        self._there.close()
        if self._process.pid is not None:
            # Whoever stops it after this line sees the process.
            if self._stopped:
                self._process.terminate()
            self._hear(self._here)
            self._process.join()
            code = self._process.exitcode
        if not self._call(self._over, code):
            self._here.close()

    def _over(self, code: int | None) -> None:
        # Not in the thread: `tell` could be writing to it, or worse, to what is opened next under its number.
        self._here.close()
        self._ended(self, code)

    def _hear(self, pipe: Connection) -> None:
        while True:
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                return
            self._call(self._heard, self, said)

    def _call(self, function: Callable[..., None], *arguments: Any) -> bool:
        """Call it in the loop's thread; False if there is no loop any more."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The server's loop has ended; so has its interest.
            self.stop()
            return False
        return True
