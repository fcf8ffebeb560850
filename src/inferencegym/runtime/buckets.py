"""Token buckets: a rate with a burst, for requests and for tokens. Seconds are the caller's clock's, whatever that clock does."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Holds at most `burst`, fills at `rate_per_s`; may be in debt after `settle`.

    Invariant: what is taken in any stretch of the clock is at most burst + rate_per_s * stretch (debts aside). A clock that goes back mints nothing and
    takes nothing away; one that leaps ahead fills it up once, never beyond `burst`.
    """

    rate_per_s: float
    burst: float
    level: float = math.nan
    at_s: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.level):
            self.level = self.burst

    def fill(self, now_s: float) -> float:
        """Count the time since the last look; what is in it."""
        passed_s = now_s - self.at_s
        if passed_s > 0:
            self.level = min(self.burst, self.level + self.rate_per_s * passed_s)
        self.at_s = now_s
        return self.level

    def has(self, amount: float, now_s: float) -> bool:
        """Whether so much can be taken now. A hair's breadth is forgiven: waiting exactly `wait_s` must do."""
        return self.fill(now_s) >= amount * (1 - 1e-9)

    def take(self, amount: float, now_s: float) -> None:
        """Take so much, whether or not it is there."""
        self.fill(now_s)
        self.level -= amount

    def settle(self, reserved: float, used: float, now_s: float) -> None:
        """What was taken for something turned out to be more or less."""
        self.fill(now_s)
        self.level = min(self.burst, self.level + reserved - used)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Time until so much is in it; infinite if it never holds so much."""
        if amount > self.burst:
            return math.inf
        return max(0.0, (amount - self.fill(now_s)) / self.rate_per_s)

    def full_s(self, now_s: float) -> float:
        """Time until it is full."""
        return max(0.0, (self.burst - self.fill(now_s)) / self.rate_per_s)

    def change(self, rate_per_s: float, burst: float, now_s: float) -> None:
        """New limits, from now on; what is in it stays, as far as it still fits."""
        self.fill(now_s)
        self.rate_per_s, self.burst = rate_per_s, burst
        self.level = min(self.level, burst)
