"""What one gateway tells of itself at one time, and what several workers of a server tell together.

Counters and histograms are added, also those of workers that have ended: a sum that goes down would look like a restart to Prometheus. How things
stand now is only of workers that run. Durations are seconds, tokens are tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import msgspec
import numpy as np

from inferencegym.metrics.itl import BINS, ItlHistogram

Reasons = dict[str, dict[str, float]]


class Durations:
    """A histogram, to be told: a class of its own because msgspec would write a dataclass field by field."""

    __slots__ = ("histogram",)

    def __init__(self, histogram: ItlHistogram) -> None:
        self.histogram = histogram

    def __add__(self, other: Durations) -> Durations:
        """Both together."""
        return Durations(self.histogram + other.histogram)


class Engine(msgspec.Struct):
    """One backend, as one worker sees it."""

    own: bool
    """Whether each worker has an engine of its own (mock); else all see the same one."""
    in_flight: int
    up: bool
    running: float | None = None
    waiting: float | None = None
    kv_used: float | None = None
    preemptions: float | None = None
    more: dict[str, float] = {}
    """Its other counters, by the vocabulary's names."""

    def __or__(self, other: Engine) -> Engine:
        """The same backend as two workers see it. One engine behind both told them the same, one of them later."""
        add = _sum if self.own else _most
        kv = [used for used in (self.kv_used, other.kv_used) if used is not None]
        return Engine(
            self.own,
            self.in_flight + other.in_flight,
            self.up and other.up,
            add(self.running, other.running),
            add(self.waiting, other.waiting),
            sum(kv) / len(kv) if kv else None,
            add(self.preemptions, other.preemptions),
            {name: add(self.more.get(name), other.more.get(name)) or 0.0 for name in self.more | other.more},
        )

    def ended(self) -> Engine:
        """What is left of it when its worker has ended: counters."""
        kept = (self.preemptions, self.more) if self.own else (None, {})
        return Engine(self.own, 0, True, 0.0 if self.own else None, 0.0 if self.own else None, None, *kept)


class Window(msgspec.Struct):
    """About the last minute."""

    span_s: float
    arrivals: int
    finished: int
    output_tokens: int
    good_rps: float
    decided: int
    """Requests whose first token came, is overdue, or will never come."""
    met: int
    """Those of them whose first token came within the objective."""
    ttft: Durations
    itl: Durations

    def __add__(self, other: Window) -> Window:
        """The same minute of two workers."""
        return Window(
            max(self.span_s, other.span_s), self.arrivals + other.arrivals, self.finished + other.finished, self.output_tokens + other.output_tokens,
            self.good_rps + other.good_rps, self.decided + other.decided, self.met + other.met, self.ttft + other.ttft, self.itl + other.itl,
        )  # fmt: skip


class Now(msgspec.Struct):
    """How things stand: only of a worker that runs."""

    waiting: int
    oldest_wait_s: float
    waiting_prompt_tokens: int
    kv_tokens_in_flight: int
    by_class: dict[str, int]
    """Requests that wait, by class."""
    window: Window
    shared_up: bool | None = None
    """Whether Redis decides; None: there is none."""

    def __add__(self, other: Now) -> Now:
        """Of two workers."""
        redis = [up for up in (self.shared_up, other.shared_up) if up is not None]
        return Now(
            self.waiting + other.waiting, max(self.oldest_wait_s, other.oldest_wait_s), self.waiting_prompt_tokens + other.waiting_prompt_tokens,
            self.kv_tokens_in_flight + other.kv_tokens_in_flight, added(self.by_class, other.by_class), self.window + other.window,
            all(redis) if redis else None,
        )  # fmt: skip


class Told(msgspec.Struct):
    """All of it."""

    pid: int
    now: Now | None
    """None: nobody runs any more."""
    engines: dict[str, Engine]
    counters: dict[str, float]
    reasons: Reasons
    """Counters by reason."""
    latencies: dict[str, dict[str, Durations]]
    """Metric to class to histogram."""
    workers: int = 1
    """Processes that run."""

    def __add__(self, other: Told) -> Told:
        """Two workers together."""
        engines = dict(self.engines)
        for name, engine in other.engines.items():
            engines[name] = engines[name] | engine if name in engines else engine
        return Told(
            self.pid,
            self.now + other.now if self.now is not None and other.now is not None else self.now or other.now,
            engines,
            added(self.counters, other.counters),
            {name: added(self.reasons.get(name, {}), other.reasons.get(name, {})) for name in self.reasons | other.reasons},
            {
                name: added(self.latencies.get(name, {}), other.latencies.get(name, {}))
                for name in self.latencies | other.latencies
            },
            self.workers + other.workers,
        )  # fmt: skip

    def ended(self) -> Told:
        """What counts on when this worker has ended."""
        engines = {name: engine.ended() for name, engine in self.engines.items()}
        return Told(self.pid, None, engines, self.counters, self.reasons, self.latencies, 0)


def together(all_told: Iterable[Told]) -> Told:
    """All workers; at least one."""
    return reduce(lambda one, other: one + other, all_told)


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Values of two tables, added by name."""
    return {**one, **{name: one[name] + value if name in one else value for name, value in other.items()}}


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other


def _most(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else max(one, other)


# --- as bytes -------------------------------------------------------------------------------------------------------------


def _put(value: Any) -> Any:
    if not isinstance(value, Durations):
        raise NotImplementedError(type(value))
    held = value.histogram
    where = np.flatnonzero(held.counts)
    # The sum as text: JSON's integers end at 64 bits, five months of latencies do not.
    return [where.tolist(), held.counts[where].tolist(), str(held.sum_ps)]


def _take(kind: type[Any], found: Any) -> Any:
    if kind is not Durations:
        raise NotImplementedError(kind)
    counts = np.zeros(BINS, np.int64)
    counts[found[0]] = found[1]
    return Durations(ItlHistogram(counts, int(found[2]), sum(found[1])))


encode = msgspec.json.Encoder(enc_hook=_put).encode
decode = msgspec.json.Decoder(Told, dec_hook=_take).decode
