"""Who is let in: rates, caps on what waits, and a predicted wait; each refusal with its reason and the time after which to come back.

    admit ──► waits ──began──► has a seat ──first_token──► ... ──release──► gone         (or admit ──► release: it never had a seat)

All checks come before anything is counted, and what is let in is counted at once, so a burst cannot slip through between check and count. Seconds are
those of the view's clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from inferencegym.runtime.adaptive import Limiter, make_limiter
from inferencegym.runtime.errors import ApiError, overloaded, slow_down
from inferencegym.runtime.ports import Ask, Clock
from inferencegym.runtime.predict import Drain, Lengths, Trust
from inferencegym.runtime.rates import RateLimits
from inferencegym.runtime.settings import Settings

#: Retry-After while nothing is known of how fast seats come free, and at most; the openai client sleeps as long as it is told.
USUAL_RETRY_S, MOST_RETRY_S, LEAST_RETRY_S = 1.0, 60.0, 0.05
#: Requests in flight with which an adaptive limit begins.
START_LIMIT = 16.0
#: Why requests are refused.
REASONS = ("rate", "tokens", "requests", "prompt_tokens", "bytes", "class_requests", "class_prompt_tokens", "class_bytes", "no_queue", "predicted_wait")  # fmt: skip


class View(Protocol):
    """What admission may know of the gateway."""

    clock: Clock

    def in_flight(self) -> int:
        """Requests that have a seat."""

    def would_wait(self, ask: Ask) -> bool:
        """Whether it would have to wait: no free seat for it, or others of its queue before it."""


@dataclass(slots=True)
class Tally:
    """What waits."""

    requests: int = 0
    prompt_tokens: int = 0
    bytes: int = 0

    def add(self, ask: Ask, sign: int) -> None:
        """Count a request in (1) or out (-1)."""
        self.requests += sign
        self.prompt_tokens += sign * ask.prompt_tokens
        self.bytes += sign * len(ask.body)


@dataclass(slots=True)
class Pass:
    """What admission remembers of a request until it is released."""

    tokens: float = 0.0
    """Tokens it reserved in each bucket for tokens."""
    waiting: bool = True
    admitted_s: float = math.nan
    wait_s: float = math.nan
    """Predicted."""
    began_s: float = math.nan
    in_flight: int = 0
    first_s: float = math.nan
    shared: bool = False
    """Its rates were counted elsewhere (Redis), and are settled there."""


class Admission:
    """Lets requests in or says why not."""

    def __init__(
        self, settings: Settings, clock: Clock, on_limit: Callable[[float], None] = lambda limit: None
    ) -> None:
        """`on_limit`: told when the adaptive limit of requests in flight moves to another whole number (inf: there is none)."""
        self._clock, self._on_limit = clock, on_limit
        self.lengths, self.drain = Lengths(), Drain()
        self.refused = dict.fromkeys(REASONS, 0)
        """Requests refused, by reason."""
        self.total = Tally()
        """What waits."""
        self.by_class = [Tally() for _ in settings.classes]
        self._trust = [Trust() for _ in settings.classes]
        self.elsewhere = Tally()
        """What waits at other gateways that share the caps."""
        self.settle_elsewhere: Callable[[Ask, float, float, bool], None] = lambda ask, reserved, used, refused: None
        """Told of requests whose rates were counted elsewhere: tokens reserved, tokens used, whether it was refused here after all."""
        self._passes: dict[Ask, Pass] = {}
        self.rates = RateLimits(settings)
        """The rates of all callers and of each key."""
        self._waiting_of: dict[str, int] = {}
        self._limiter: Limiter | None = None
        self._settings = settings
        self._told_limit = math.inf
        self.rates.set(settings, clock())
        self._set_limiter(None)

    # --- in and out ------------------------------------------------------------------------------------------------------

    def admit(self, ask: Ask, view: View, *, shared: bool = False) -> None:
        """Let a request in and count it, with its expected length (`predicted_tokens`); ApiError 400, 429 or 503 if not.

        `shared`: its rates have been counted elsewhere, for all gateways together.
        """
        now_s = view.clock()
        if not shared:
            ask.predicted_tokens = self.lengths.expect(ask)
        one = Pass(shared=shared, admitted_s=now_s)
        rates = [] if shared else self.rates.of(ask)
        if rates or shared:
            one.tokens = self.reserve_tokens(ask)
        if problem := self.rates.check(rates, one.tokens, now_s):
            self._refuse(*problem)
        if view.would_wait(ask):
            try:
                one.wait_s = self._check_wait(ask, view, now_s)
            except ApiError:
                if shared:
                    self.settle_elsewhere(ask, one.tokens, 0.0, True)
                raise
        for rate in rates:
            if rate.requests is not None:
                rate.requests.take(1.0, now_s)
            if rate.tokens is not None:
                rate.tokens.take(one.tokens, now_s)
        self._passes[ask] = one
        self._count(ask, 1)

    def began(self, ask: Ask, in_flight: int) -> None:
        """It has a seat, and so many requests have one now, itself included."""
        one = self._passes[ask]
        if not one.waiting:
            return
        one.waiting = False
        one.began_s, one.in_flight = self._clock(), in_flight
        self._trust[ask.slo_class].learn(one.wait_s, one.began_s - one.admitted_s)
        self._count(ask, -1)
        self.drain.changed(in_flight - 1, one.began_s)

    def first_token(self, ask: Ask, in_flight: int) -> None:
        """Its first token came; what an adaptive limit learns from."""
        one = self._passes[ask]
        if self._limiter is None or not math.isnan(one.first_s) or one.waiting:
            return
        one.first_s = self._clock()
        # A clock that went back would make a latency of less than nothing, from which there is nothing to learn.
        if one.first_s >= one.began_s:
            self._limiter.sample(one.first_s - one.began_s, one.began_s, one.first_s, in_flight)
            self._tell_limit()

    def release(self, ask: Ask, output_tokens: int, *, in_flight: int = 0, whole: bool = True) -> None:
        """It ended, whether or not it ever had a seat.

        in_flight : requests that had a seat until now, itself included if it had one
        whole : its answer came to its own end, so its length is worth learning
        """
        one = self._passes.pop(ask)
        now_s = self._clock()
        if one.waiting:
            self._count(ask, -1)
            self._trust[ask.slo_class].learn(one.wait_s, now_s - one.admitted_s, at_least=True)
        else:
            self.drain.ended(in_flight, now_s)
            if whole:
                self.lengths.learn(ask, output_tokens)
        used = 0.0 if one.waiting else float(ask.prompt_tokens + output_tokens)
        if one.shared:
            self.settle_elsewhere(ask, one.tokens, used, False)
        elif one.tokens:
            for rate in self.rates.of(ask):
                if rate.tokens is not None:
                    rate.tokens.settle(one.tokens, used, now_s)

    def _count(self, ask: Ask, sign: int) -> None:
        self.total.add(ask, sign)
        self.by_class[ask.slo_class].add(ask, sign)
        left = self._waiting_of.get(ask.tenant, 0) + sign
        if left:
            self._waiting_of[ask.tenant] = left
        else:
            del self._waiting_of[ask.tenant]

    def reserve_tokens(self, ask: Ask) -> float:
        """Tokens a request reserves: its prompt and the answer it is expected to have; the end settles the difference."""
        return ask.prompt_tokens + (ask.predicted_tokens or self.lengths.expect(ask))

    def limit_headers(self, ask: Ask) -> list[tuple[bytes, bytes]]:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of a request's answer."""
        return self.rates.headers(ask, self._clock())

    # --- the queue -------------------------------------------------------------------------------------------------------

    def _check_wait(self, ask: Ask, view: View, now_s: float) -> float:
        """It would have to wait: whether there is room, and time; the wait that the drain of the queue predicts, NaN if that does not matter."""
        queue, mine = self._settings.queue, self._settings.classes[ask.slo_class]
        if ask.no_queue:
            self._refuse(
                overloaded(
                    "All seats are taken, and the request asked not to wait", self.retry_after_s(view), "no_free_seat"
                ),
                "no_queue",
            )
        for tally, limits, whose in ((self.total, queue, ""), (self.by_class[ask.slo_class], mine, "class_")):
            for what, more in (("requests", 1), ("prompt_tokens", ask.prompt_tokens), ("bytes", len(ask.body))):
                cap = getattr(limits, f"max_{what}")
                others = 0 if whose else getattr(self.elsewhere, what)
                if cap is not None and getattr(tally, what) + others + more > cap:
                    words = what.replace("_", " ")
                    retry_s = self.retry_after_s(view)
                    if whose:
                        self._refuse(
                            slow_down(f"Class '{mine.name}' may have {cap} {words} waiting", retry_s), whose + what
                        )
                    self._refuse(overloaded(f"The queue is full: {cap} {words} may wait", retry_s, "queue_full"), what)
        if not self._settings.admission.predicted_wait:
            return math.nan
        raw_s = self._drain_wait_s(ask, view)
        wait_s = raw_s * self._trust[ask.slo_class].factor
        limit_s = min(ask.deadline_s - now_s, ask.slo_ttft_s)
        if wait_s > limit_s:
            words = f"The request would wait about {wait_s:.1f} s, longer than the {limit_s:.1f} s it may"
            self._refuse(overloaded(words, _bounded(wait_s - limit_s)), "predicted_wait")
        return raw_s

    def predicted_wait_s(self, ask: Ask, view: View) -> float:
        """Time until a request that comes now has a seat; NaN while nothing is known.

        Counts those that will go before it: under priority and aging those of classes that are not worse, under wfq and vtc as many of each waiting tenant as of
        its own, else all. A request's own priority and tenants' shares are left out. What such counts miss (those that come later and go first, say)
        is learned: the wait is one that few of the class exceed, as far as predictions were needed so far.
        """
        return self._drain_wait_s(ask, view) * self._trust[ask.slo_class].factor

    def _drain_wait_s(self, ask: Ask, view: View) -> float:
        return self.drain.wait_s(self._ahead(ask), view.in_flight(), view.clock())

    def _ahead(self, ask: Ask) -> int:
        order, classes = self._settings.queue.order, self._settings.classes
        if order in ("priority", "aging"):
            return sum(
                t.requests
                for t, c in zip(self.by_class, classes, strict=True)
                if c.priority <= classes[ask.slo_class].priority
            )
        if order in ("wfq", "vtc"):
            mine = self._waiting_of.get(ask.tenant, 0)
            others = len(self._waiting_of) - (ask.tenant in self._waiting_of)
            return min(self.total.requests, mine + (mine + 1) * others)
        return self.total.requests

    def retry_after_s(self, view: View) -> float:
        """When it is worth to come back: once those that wait now have seats."""
        return _bounded(self.drain.wait_s(self.total.requests, view.in_flight(), view.clock()))

    def _refuse(self, error: ApiError, reason: str) -> None:
        self.refused[reason] += 1
        raise error

    # --- settings --------------------------------------------------------------------------------------------------------

    @property
    def limit(self) -> float:
        """The adaptive limit of requests in flight; infinite where there is none."""
        return math.inf if self._limiter is None else float(max(1, int(self._limiter.limit)))

    def change(self, settings: Settings) -> None:
        """New limits, from now on; what was let in stays in, levels of buckets stay as far as they fit."""
        old, self._settings = self._settings, settings
        self.rates.set(settings, self._clock())
        if old.admission != settings.admission:
            self._set_limiter(self._limiter)

    def _set_limiter(self, old: Limiter | None) -> None:
        self._limiter = make_limiter(self._settings.admission, START_LIMIT if old is None else old.limit)
        self._tell_limit()

    def _tell_limit(self) -> None:
        if self.limit != self._told_limit:
            self._told_limit = self.limit
            self._on_limit(self.limit)


def _bounded(wait_s: float) -> float:
    return USUAL_RETRY_S if math.isnan(wait_s) else min(max(wait_s, LEAST_RETRY_S), MOST_RETRY_S)
