"""Something that a running gateway does every so often, and once more at its end. Seconds of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Every:
    """A timer that begins and ends with the gateway."""

    def __init__(self, interval_s: float, act: Callable[[], None]) -> None:
        self._interval_s, self._act = interval_s, act
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The first time is one interval from now."""
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._again)

    def _again(self) -> None:
        self.start()
        self._act()

    def stop(self) -> None:
        """The last time is now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._act()
