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


class Least:
    """The least latency seen: what the engine takes when it is not crowded.

    It creeps up by a thousandth a sample only while the limit is within `NEAR` of its floor: latency that is high even there says that the traffic or the
    engine has changed. A mean over time instead follows a crowded engine up, and the limit with it without end (Gradient2's long mean did, in
    tests/runtime/test_adaptive.py's engine).
    """

    CREEP, NEAR = 1.001, 4

    def __init__(self) -> None:
        self.least_s = math.inf

    def see(self, latency_s: float, limit: float, floor: int) -> float:
        """Count a sample; the least."""
        creep = self.CREEP if limit <= floor + self.NEAR else 1.0
        self.least_s = min(self.least_s * creep, latency_s)
        return self.least_s


class Aimd:
    """Additive increase, multiplicative decrease, as in TCP: +1 for each limit's worth of good samples while the limit is in use, times 0.9 for a slow one.

    Slow is above `slo_s`, or, without one, above three times the least seen. After a decrease only requests that began later can cause the next.
    Invariant: min_limit <= limit <= max_limit.
    """

    BACKOFF = 0.9
    TIMES_LEAST = 3.0

    def __init__(self, min_limit: int, max_limit: int, slo_s: float | None, start: float) -> None:
        self._min, self._max, self._slo_s = min_limit, max_limit, slo_s
        self.limit = min(max(start, min_limit), max_limit)
        self._least = Least()
        self._fell_s = -math.inf

    def sample(self, latency_s: float, began_s: float, now_s: float, in_flight: int) -> None:
        """See `Limiter`."""
        least_s = self._least.see(latency_s, self.limit, self._min)
        slow_s = self._slo_s if self._slo_s is not None else self.TIMES_LEAST * least_s
        if latency_s > slow_s:
            # A clock that went back makes `_fell_s` lie ahead; it holds for nothing then.
            if began_s >= self._fell_s or now_s < self._fell_s:
                self.limit = max(float(self._min), self.limit * self.BACKOFF)
                self._fell_s = now_s
        elif 2 * in_flight >= self.limit:
            self.limit = min(float(self._max), self.limit + 1.0 / self.limit)


class Gradient:
    """After Netflix's Gradient: limit <- limit * clamp(1.5 * least / mean, 0.5, 1) + sqrt(limit), smoothed over a limit's worth of samples.

    `mean` is of the last ten latencies. The limit settles where latency is about 1.5 to 2 times the least seen; it does not move while less than half of it
    is in use. Invariant: min_limit <= limit <= max_limit.
    """

    TOLERANCE, SMOOTHING, SHORT = 1.5, 0.2, 10

    def __init__(self, min_limit: int, max_limit: int, start: float) -> None:
        self._min, self._max = min_limit, max_limit
        self.limit = min(max(start, min_limit), max_limit)
        self._least = Least()
        self._mean_s = 0.0
        self._seen = 0

    def sample(self, latency_s: float, began_s: float, now_s: float, in_flight: int) -> None:
        """See `Limiter`."""
        self._seen += 1
        least_s = self._least.see(latency_s, self.limit, self._min)
        self._mean_s += (latency_s - self._mean_s) / min(self._seen, self.SHORT)
        if 2 * in_flight < self.limit:
            return
        gradient = 1.0 if self._mean_s <= 0 else max(0.5, min(1.0, self.TOLERANCE * least_s / self._mean_s))
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
