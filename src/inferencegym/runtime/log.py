"""Log lines as JSON, one object a line: what happened, when, to which request; never what was asked or answered, and no key.

Lines are gathered and written together a moment later, so that a busy gateway does not spend its time on writing. Times: `ts` is UTC, durations ms.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import msgspec

LEVELS = ("debug", "info", "warning", "error")
#: Seconds that a line may lie before it is written.
FLUSH_S = 0.5
#: Bytes that may lie.
FLUSH_BYTES = 32_768


class JsonLog:
    """Writes to a file descriptor; by default to standard error."""

    def __init__(self, level: str = "info", fd: int | None = None) -> None:
        self._least = LEVELS.index(level)
        self._fd = sys.stderr.fileno() if fd is None else fd
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._encode = msgspec.json.Encoder().encode
        self.info = self._least <= LEVELS.index("info")
        """Whether lines of level info are written: whoever has many asks before making one."""

    def write(self, level: str, event: str, **fields: Any) -> None:
        """One line, if its level is high enough."""
        if LEVELS.index(level) < self._least:
            return
        line = self._encode({"ts": round(time.time(), 6), "level": level, "event": event, **fields}) + b"\n"
        self._lines.append(line)
        self._size += len(line)
        if self._size > FLUSH_BYTES or level in ("warning", "error"):
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what lies. Lines that nobody takes (a closed pipe) are lost, not an error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            return
