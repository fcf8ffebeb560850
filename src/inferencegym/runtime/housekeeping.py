"""What a server looks after every few seconds: clients that take nothing of what was written to them, and memory that a crowd needed and left. Seconds, bytes.

One timer serves all connections; a request and a chunk cost nothing more for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import socket
import struct
import sys
from collections.abc import Collection
from typing import Any, Protocol

from inferencegym.runtime.ports import Clock

#: The longest time between two looks.
MOST_BETWEEN_S = 5.0
#: So many connections are a crowd; when three of four have gone, what they needed is given back.
CROWD = 1_000
#: Of Linux's `struct tcp_info`: bytes that the other side has acknowledged, 64 bits, since 4.1.
_BYTES_ACKED = struct.Struct("=120xQ")


class Held(Protocol):
    """A connection, as it is looked after."""

    stuck_since_s: float
    """Since when its client has taken nothing that waits for it; infinite if it takes what there is."""
    taken: int
    """What it had taken then."""
    transport: Any

    def give_up(self) -> None:
        """Close it: its client takes nothing."""


class Housekeeper:
    """Looks after a server's connections from `start` to `stop`."""

    def __init__(self, connections: Collection[Any], clock: Clock, write_timeout_s: float) -> None:
        """`write_timeout_s`: who takes nothing for so long is cut off; it may be late by a quarter of that."""
        self._connections, self._clock, self._limit_s = connections, clock, write_timeout_s
        self._between_s = min(MOST_BETWEEN_S, write_timeout_s / 4)
        self._timer: asyncio.TimerHandle | None = None
        self._crowd = 0
        self.cut = 0
        """Connections that were given up."""

    def start(self) -> None:
        """Look every few seconds."""
        self._timer = asyncio.get_running_loop().call_later(self._between_s, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self.start()
        now_s = self._clock()
        for one in list(self._connections):
            if self._is_stuck(one, now_s):
                self.cut += 1
                one.give_up()
        here = len(self._connections)
        self._crowd = max(self._crowd, here)
        if self._crowd >= CROWD and here <= self._crowd // 4:
            self._crowd = here
            give_back_memory()

    def _is_stuck(self, one: Held, now_s: float) -> bool:
        """Whether what was written waits, and the client has not taken a byte of it for too long."""
        if not one.transport.get_write_buffer_size():
            one.stuck_since_s = float("inf")
            return False
        taken = bytes_taken(one.transport)
        if one.stuck_since_s > now_s or taken != one.taken:
            one.stuck_since_s, one.taken = now_s, taken
        return now_s - one.stuck_since_s >= self._limit_s


def bytes_taken(transport: Any) -> int:
    """What the other side's kernel has acknowledged so far; where that is not told (no Linux, no TCP), what has left our own buffer."""
    if sys.platform == "linux":
        try:
            told = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
        except OSError:
            told = b""
        if len(told) == _BYTES_ACKED.size:
            return int(_BYTES_ACKED.unpack(told)[0])
    return -int(transport.get_write_buffer_size())


def give_back_memory() -> None:
    """Free what nobody refers to and hand whole pages back to the system; glibc keeps them otherwise. Takes some milliseconds."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and keeps nothing
        if trim is not None:
            trim(0)
