"""Learning how many requests an engine takes at once from how long their first tokens take: AIMD, and a gradient of latency.

The limit is for requests in flight; those above it wait in the queue, whose caps and times refuse what is too much.
"""

from __future__ import annotations

import math
from typing import Protocol

from inferencegym.runtime.settings import AdmissionSettings


class Limiter(Protocol):
    """A limit that learns."""

    limit: float

    def sample(self, latency_s: float, began_s: float, now_s: float, in_flight: int) -> None:
        """A request that got its seat at `began_s` had its first token `latency_s` later; so many are in flight."""


class Aimd:
    """Additive increase, multiplicative decrease, as in TCP: +1 for each limit's worth of good samples while the limit is in use, times 0.9 for a slow one.

    Slow is above `slo_s`, or, without one, above three times the least seen lately. After a decrease only requests that began later can cause the next.
    Invariant: min_limit <= limit <= max_limit.
    """

    BACKOFF = 0.9
    TIMES_LEAST = 3.0
    #: The least latency seen creeps up by this much a sample, so that an old record does not hold for ever.
    CREEP = 1.001

    def __init__(self, min_limit: int, max_limit: int, slo_s: float | None, start: float) -> None:
        self._min, self._max, self._slo_s = min_limit, max_limit, slo_s
        self.limit = min(max(start, min_limit), max_limit)
        self._least_s = math.inf
        self._fell_s = -math.inf

    def sample(self, latency_s: float, began_s: float, now_s: float, in_flight: int) -> None:
        """See `Limiter`."""
        self._least_s = min(self._least_s * self.CREEP, latency_s)
        slow_s = self._slo_s if self._slo_s is not None else self.TIMES_LEAST * self._least_s
        if latency_s > slow_s:
            # A clock that went back makes `_fell_s` lie ahead; it holds for nothing then.
            if began_s >= self._fell_s or now_s < self._fell_s:
                self.limit = max(float(self._min), self.limit * self.BACKOFF)
                self._fell_s = now_s
        elif 2 * in_flight >= self.limit:
            self.limit = min(float(self._max), self.limit + 1.0 / self.limit)


class Gradient:
    """After Netflix's Gradient2: limit <- limit * clamp(1.5 * long / short, 0.5, 1) + sqrt(limit), smoothed; long and short are means of latency.

    When latency rises above 1.5 times its long mean the limit shrinks in proportion; else it probes upward by sqrt(limit). It does not move while
    less than half of it is in use. Invariant: min_limit <= limit <= max_limit.
    """

    TOLERANCE, SMOOTHING, LONG, SHORT = 1.5, 0.2, 600, 10

    def __init__(self, min_limit: int, max_limit: int, start: float) -> None:
        self._min, self._max = min_limit, max_limit
        self.limit = min(max(start, min_limit), max_limit)
        self._long_s = self._short_s = 0.0
        self._seen = 0

    def sample(self, latency_s: float, began_s: float, now_s: float, in_flight: int) -> None:
        """See `Limiter`."""
        self._seen += 1
        self._long_s += (latency_s - self._long_s) / min(self._seen, self.LONG)
        self._short_s += (latency_s - self._short_s) / min(self._seen, self.SHORT)
        if self._short_s > 0 and self._long_s / self._short_s > 2:
            # Load has gone: the long mean must follow down, or the next rise would not be seen.
            self._long_s *= 0.95
        if 2 * in_flight < self.limit:
            return
        gradient = 1.0
        if self._short_s > 0:
            gradient = max(0.5, min(1.0, self.TOLERANCE * self._long_s / self._short_s))
        wanted = self.limit * gradient + math.sqrt(self.limit)
        smooth = self.limit + self.SMOOTHING / max(1.0, self.limit) * (wanted - self.limit)
        self.limit = min(max(smooth, float(self._min)), float(self._max))


def make_limiter(settings: AdmissionSettings, start: float) -> Limiter | None:
    """The limiter that settings ask for, beginning at `start` requests; None if they ask for none."""
    if settings.adaptive == "aimd":
        return Aimd(settings.min_limit, settings.max_limit, settings.latency_slo_s, start)
    if settings.adaptive == "gradient":
        return Gradient(settings.min_limit, settings.max_limit, start)
    return None
