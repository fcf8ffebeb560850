"""Virtual time for asyncio: a loop whose clock jumps to the next timer as soon as nothing is left to do. Seconds, from 0.

Everything that takes its time from `loop.time()` runs under it unchanged, as fast as the machine can, and the same every time: callbacks
run in the order they were asked for, timers in the order (time, asked for), and time stands still while anything is ready.
Nothing from outside can happen in it, so sockets, threads and processes are refused.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from itertools import count
from typing import Any, NoReturn, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: What an event loop can do that needs the world outside.
_OUTSIDE = (
    "create_connection", "create_server", "create_unix_connection", "create_unix_server", "create_datagram_endpoint", "start_tls",
    "connect_accepted_socket", "connect_read_pipe", "connect_write_pipe", "subprocess_shell", "subprocess_exec", "sendfile",
    "sock_accept", "sock_connect", "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_sendall", "sock_sendto", "sock_sendfile",
    "add_reader", "remove_reader", "add_writer", "remove_writer", "add_signal_handler", "remove_signal_handler",
    "getaddrinfo", "getnameinfo", "run_in_executor", "call_soon_threadsafe",
)  # fmt: skip


class VirtualTimeError(RuntimeError):
    """What a coroutine asked for cannot happen in virtual time."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that never waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = count()
        self._last: deque[asyncio.Handle] = deque()
        for name in _OUTSIDE:
            setattr(self, name, _refusal(name))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call at a time; at the same time, first asked is first called. A time that is past is now."""
        self._check_closed()  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._number), timer))
        return timer

    def call_last(self, callback: Callable[[*Ts], object], *args: *Ts) -> asyncio.Handle:
        """Call when nothing else is left to do at this instant, before time moves on."""
        handle = asyncio.Handle(callback, args, self)
        self._last.append(handle)
        return handle

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    def _run_once(self) -> None:
        """Run what is ready; if nothing is, let time jump to the next timer."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        if not ready:
            self._jump(ready)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _jump(self, ready: Any) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if self._last and not (timers and timers[0][0] <= self._now_s):
            ready.append(self._last.popleft())
            return
        if not timers or timers[0][0] == math.inf:
            if self._stopping:  # type: ignore[attr-defined]
                return
            raise VirtualTimeError(
                "nothing is ready and no timer is set: what the coroutine waits for can never happen in virtual time"
            )
        self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            ready.append(heapq.heappop(timers)[2])

    def _process_events(self, _events: object) -> None:
        """There are no events from outside."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody needs to be woken."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There are no threads to wait for."""


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in virtual time from 0, then cancel what it left behind, like `asyncio.run`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_args: object, **_named: object) -> NoReturn:
        raise VirtualTimeError(f"{name} needs the world outside, where time is real; use an ordinary event loop for it")

    return refuse
