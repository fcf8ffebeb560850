"""Rates: token buckets for requests and tokens, of all callers together and of each key; what they refuse, and the headers that tell their state.

Seconds are those of the caller's clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from inferencegym.runtime.buckets import Bucket
from inferencegym.runtime.errors import ApiError, bad_request, slow_down
from inferencegym.runtime.ports import Ask
from inferencegym.runtime.settings import Settings


@dataclass(slots=True)
class Rates:
    """Buckets of one caller, or of all."""

    requests: Bucket | None = None
    tokens: Bucket | None = None

    def set(self, rate_rps: float | None, burst: int | None, tokens_per_min: float | None, now_s: float) -> None:
        """Limits as in the settings."""
        per_s = None if tokens_per_min is None else tokens_per_min / 60
        self.requests = _bucket(self.requests, rate_rps, burst or max(1.0, rate_rps or 0.0), now_s)
        self.tokens = _bucket(self.tokens, per_s, tokens_per_min or 0.0, now_s)


def _bucket(old: Bucket | None, rate_per_s: float | None, burst: float, now_s: float) -> Bucket | None:
    if rate_per_s is None:
        return None
    if old is None:
        return Bucket(rate_per_s, burst)
    old.change(rate_per_s, burst, now_s)
    return old


class RateLimits:
    """The rates of a gateway."""

    def __init__(self, settings: Settings) -> None:
        self._of_all = Rates()
        self._of_key = {key.name: Rates() for key in settings.keys}

    def set(self, settings: Settings, now_s: float) -> None:
        """New limits, from now on; levels of buckets stay as far as they fit."""
        limits = settings.admission
        self._of_all.set(limits.rate_rps, limits.burst, limits.tokens_per_min, now_s)
        for key in settings.keys:
            self._of_key[key.name].set(key.rate_rps, key.burst, key.tokens_per_min, now_s)

    def is_of_all(self, rates: Rates) -> bool:
        """Whether these are the limits of all callers together."""
        return rates is self._of_all

    def of(self, ask: Ask) -> list[Rates]:
        """The limits a request is under: its key's, and those of all."""
        mine = self._of_key.get(ask.tenant)
        return [rate for rate in (mine, self._of_all) if rate is not None and (rate.requests or rate.tokens)]

    def check(self, rates: list[Rates], tokens: float, now_s: float) -> tuple[ApiError, str] | None:
        """Why a request that reserves so many tokens does not fit, and the reason's name; nothing is taken."""
        for rate in rates:
            whose = "of all callers" if rate is self._of_all else "of this key"
            if rate.requests is not None and not rate.requests.has(1.0, now_s):
                words = f"{rate.requests.rate_per_s:g} requests a second {whose}"
                return rate_error(words, rate.requests.wait_s(1.0, now_s)), "rate"
            if rate.tokens is not None and not rate.tokens.has(tokens, now_s):
                if tokens > rate.tokens.burst:
                    return too_large(tokens, rate.tokens.burst), "tokens"
                words = f"{rate.tokens.burst:g} tokens a minute {whose}"
                return rate_error(words, rate.tokens.wait_s(tokens, now_s)), "tokens"
        return None

    def headers(self, ask: Ask, now_s: float) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`: of the bucket with least left, the key's or that of all."""
        told = []
        rates = self.of(ask)
        for what in ("requests", "tokens"):
            buckets = [bucket for rate in rates if (bucket := getattr(rate, what)) is not None]
            if buckets:
                least: Bucket = min(buckets, key=lambda bucket: bucket.fill(now_s))
                told += limit_headers(what, least.burst, least.level, least.full_s(now_s))
        return told


def rate_error(words: str, wait_s: float) -> ApiError:
    """429 of a rate: which one, and when the next request fits."""
    return slow_down(f"Rate limit reached: {words}", wait_s, "rate_limit_exceeded")


def too_large(tokens: float, burst: float) -> ApiError:
    """400: a request that no waiting would let in."""
    return bad_request(f"The request needs about {tokens:.0f} tokens, and its limit never holds more than {burst:g}; ask for fewer", "max_tokens", "request_too_large")  # fmt: skip


def limit_headers(what: str, limit: float, remaining: float, reset_s: float) -> list[tuple[bytes, bytes]]:
    """The three headers of one limit, in OpenAI's form: `x-ratelimit-reset-requests: 1.2s`."""
    values = {"limit": f"{limit:.0f}", "remaining": f"{max(0, math.floor(remaining))}", "reset": f"{reset_s:.3f}s"}
    return [(f"x-ratelimit-{part}-{what}".encode(), value.encode()) for part, value in values.items()]
