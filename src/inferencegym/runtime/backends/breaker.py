"""A breaker: keeps requests from a backend that fails them one after the other, and lets one try now and then.

    closed --faults in a row--> open --its time is over--> half-open (one probe) --success--> closed
                                  ^-------------------------- fault, or no word of the probe --'

Counted are real faults (`BackendError.fault`): connections that fail, timeouts, 5xx without a reason; never 4xx, 429, or 503 with Retry-After.
Times are seconds of the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from inferencegym.runtime.ports import BackendError

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


@dataclass(slots=True)
class Breaker:
    """One backend's breaker. One client request counts once, whatever was tried again on its way."""

    faults_to_open: int = 5
    """Faults in a row that open it."""
    open_s: float = 2.0
    """First time that it stays open; doubles while probes fail."""
    longest_open_s: float = 60.0
    probe_s: float = 30.0
    """A probe of which nothing is heard for so long has failed."""
    state: str = CLOSED
    until_s: float = 0.0
    """When the next probe may go."""
    faults: int = 0
    """Faults in a row."""
    opened: int = 0
    """How often it has opened since the start."""
    _tries: int = 0

    def can_take(self, now_s: float) -> bool:
        """Whether a request may go there now; changes nothing."""
        return self.state == CLOSED or now_s >= self.until_s

    def take(self, now_s: float) -> bool:
        """A request goes there; whether it is the probe of a breaker that is not closed."""
        if self.state == CLOSED:
            return False
        self.state, self.until_s = HALF_OPEN, now_s + self.probe_s
        return True

    def report(self, error: BackendError | None, now_s: float) -> bool:
        """What became of a request; whether the breaker's state changed. Other errors than faults say that the backend is alive."""
        before = self.state
        if error is None or not error.fault:
            # While it is open only the probe can speak for it: an answer to an older request may have been on its way for long.
            if before != OPEN:
                self.state, self.faults, self._tries = CLOSED, 0, 0
            return before != self.state
        self.faults += 1
        if before == HALF_OPEN or (before == CLOSED and self.faults >= self.faults_to_open):
            self.state = OPEN
            self.until_s = now_s + min(self.open_s * 2**self._tries, self.longest_open_s)
            self._tries = min(self._tries + 1, 32)
            self.opened += 1
        return before != self.state

    def release(self) -> bool:
        """A request ended without a word of the backend (its client left); whether another may be the probe now."""
        if self.state != HALF_OPEN:
            return False
        self.state, self.until_s = OPEN, 0.0
        return True
