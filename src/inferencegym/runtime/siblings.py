"""What the workers of one server tell each other: each writes its figures to a file in memory, whoever is asked reads all of them. Seconds.

    worker 0 ──writes, every second, and when it is asked──► 0-PID.json ─┐
    worker 1 ──────────────────────────────────────────────► 1-PID.json ─┴──► whichever of them Prometheus asks

No worker waits for another, so one that hangs does not take the figures of all with it. Every file only goes forward, and those of workers that have
ended stay, so no sum of counters ever goes down, whoever is asked. Others' figures are at most `WRITE_S` old.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from inferencegym.runtime.told import Told, decode, encode

WRITE_S = 1.0
_MEMORY = Path("/dev/shm")


class Worker(NamedTuple):
    """One of several processes of a server."""

    number: int
    """From 0; one that takes the place of another has its number."""
    folder: Path
    """Where all of them put their figures."""


def new_folder() -> Path:
    """A folder of its own, in memory where there is such a file system; whoever made it removes it."""
    in_memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    return Path(tempfile.mkdtemp(prefix="inferencegym-", dir=_MEMORY if in_memory else None))


class Siblings:
    """The figures of all workers, read by one of them."""

    def __init__(self, worker: Worker, tell: Callable[[], Told]) -> None:
        """`tell`: this worker's own figures, as of now."""
        self._folder, self._tell = worker.folder, tell
        self._file = worker.folder / f"{worker.number}-{os.getpid()}.json"

    def write(self) -> None:
        """Put down how this worker's figures stand, whole or not at all."""
        part = self._file.with_suffix(".part")
        part.write_bytes(encode(self._tell()))
        part.replace(self._file)

    def all_told(self) -> list[Told]:
        """The figures of each worker that there was; of those that have ended, what counts on."""
        self.write()
        told = [decode(file.read_bytes()) for file in sorted(self._folder.glob("*.json"))]
        return [one if _runs(one.pid) else one.ended() for one in told]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):  # gone, or its number is somebody else's by now
        return False
    return True
