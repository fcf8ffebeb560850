"""What the Runtime page shows of a gateway: sampled once a second in the gateway's own process, kept for a quarter of an hour, encoded once for all viewers.

The recorder, the dispatcher and the pool count for themselves; a sample only reads them, so a request pays nothing. Rates are of the last second,
percentiles and shares of the last WINDOW_S (differences of the recorder's histograms, right to a bin's width of 1/64). Seconds, tokens, shares of one;
names are `metrics.vocabulary`'s.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from inferencegym.metrics.itl import ItlHistogram
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.gpu import GpuReader
from inferencegym.runtime.histogram import Histogram
from inferencegym.runtime.live import Change, LiveConfig
from inferencegym.runtime.plant import GatewayPlant
from inferencegym.runtime.siblings import Worker
from inferencegym.runtime.steering import Command, Steering
from inferencegym.web.feed_columns import CLASSES, QS, columns_of
from inferencegym.web.standing import Moment, Standing

#: Time between two samples, s.
EVERY_S = 1.0
#: Samples that are kept: a quarter of an hour.
KEPT = 900
#: Percentiles and shares are of the last so many seconds.
WINDOW_S = 10.0
#: Samples whose lines a slow viewer can still catch up with.
_LINES = 60
_EVENTS = 200
_NONE = math.nan
_MERGED = ("ttft", "itl", "e2e", "queue")
_BY_CLASS = ("ttft", "itl")

_encode = msgspec.json.Encoder().encode


class _Mark(NamedTuple):
    """How the counters stood at a sample."""

    at_s: float
    totals: dict[str, float]
    decided: tuple[int, ...]
    met: tuple[int, ...]
    merged: dict[str, ItlHistogram]
    by_class: list[dict[str, ItlHistogram]]


class Feed:
    """The figures of one gateway, of now and of the last quarter of an hour. A companion of the gateway: it starts and stops with it."""

    def __init__(
        self, gateway: Gateway, live: LiveConfig, plant: GatewayPlant, steering: Steering, *, gpu: GpuReader | None = None, worker: Worker | None = None
    ) -> None:  # fmt: skip
        """`gpu` is only asked while somebody looks; `worker`: this gateway is one of several of the same server."""
        self._gateway, self._live, self._gpu = gateway, live, gpu or GpuReader()
        self._worker = worker
        self.standing = Standing(gateway, live, plant, steering, self._gpu)
        self.columns = columns_of([c.name for c in gateway.recorder.classes][:CLASSES])
        self._ring = np.full((KEPT, len(self.columns)), np.nan)
        self._times = np.full(KEPT, np.nan)
        self.seq = 0
        """Samples taken so far."""
        self.watchers = 0
        """Viewers that look now."""
        self.closed = False
        """Nothing more comes: the server shuts down."""
        self.born = f"{os.getpid()}-{time.time_ns():x}"
        """Unlike that of any other gateway, also of this one after a restart."""
        self._frozen: dict[int, ItlHistogram] = {}
        self._marks: deque[_Mark] = deque(maxlen=round(WINDOW_S / EVERY_S) + 2)
        self._lines: deque[tuple[int, bytes]] = deque(maxlen=_LINES)
        self._hello: tuple[int, bytes] = (-1, b"")
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._event_count = self._events_told = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next = asyncio.Event()
        steering.on_command.append(self.commanded)
        self.started_s = time.time()

    # --- its life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to sample."""
        self._marks.append(self._mark(self._gateway.clock()))
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._again)

    def stop(self) -> None:
        """Sample no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.close()

    def close(self) -> None:
        """Let those who look go; sampling goes on until `stop`."""
        self.closed = True
        self._next.set()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._again)
        self.sample()

    async def next(self) -> None:
        """Return with the next sample, or when nothing more comes."""
        if not self.closed:
            await self._next.wait()

    # --- what happened beside the figures --------------------------------------------------------------------------------

    def changed(self, change: Change) -> None:
        """Live settings changed."""
        told = change.json()
        self._event(
            "settings",
            change.by,
            change.reason,
            version=change.version,
            changes=told["changes"],
            reverted_to=change.reverted_to,
        )

    def commanded(self, command: Command) -> None:
        """Somebody turned knobs, or tried to."""
        self._event(
            "plant", command.by, "", at_s=command.at_s, policy=command.policy, guard=command.guard, accepted=dict(command.accepted),
            refused=dict(command.refused),
        )  # fmt: skip

    def _event(self, kind: str, by: str, reason: str, *, at_s: float | None = None, **more: Any) -> None:
        self._event_count += 1
        self._events.append({
            "number": self._event_count, "at": time.time() if at_s is None else at_s, "kind": kind, "by": by, "reason": reason, **more
        })  # fmt: skip

    # --- a sample --------------------------------------------------------------------------------------------------------

    def sample(self) -> None:
        """Take one, keep it, and tell it to those who look."""
        now_s = self._gateway.clock()
        moment = Moment(self._gateway)
        mark = self._mark(now_s)
        before = self._marks[-1]
        self._marks.append(mark)
        while self._marks[1].at_s <= now_s - WINDOW_S + EVERY_S / 2:
            self._marks.popleft()
        values = self._values(mark, before, self._marks[0], moment)
        row = self.seq % KEPT
        self._ring[row], self._times[row] = values, time.time()
        self.seq += 1
        self.standing.count()
        if self.watchers:
            self._lines.append((self.seq, self._line(row, moment)))
        else:
            self._events_told = self._event_count
            self._lines.clear()
        self._next.set()
        self._next = asyncio.Event()

    def _mark(self, at_s: float) -> _Mark:
        figures = self._gateway.recorder.figures
        some = figures[:CLASSES]
        return _Mark(
            at_s,
            self.standing.totals(),
            tuple(f.decided for f in figures),
            tuple(f.met for f in figures),
            {name: self._merge(name, [getattr(f, name) for f in figures]) for name in _MERGED},
            [{name: self._freeze(getattr(f, name)) for name in _BY_CLASS} for f in some],
        )

    def _freeze(self, histogram: Histogram) -> ItlHistogram:
        """As it stands now; the same object as before while nothing was counted."""
        held = self._frozen.get(id(histogram))
        if held is None or held.count != histogram.count:
            held = self._frozen[id(histogram)] = histogram.frozen()
        return held

    def _merge(self, name: str, histograms: Sequence[Histogram]) -> ItlHistogram:
        """All classes together; the same object as before while nothing was counted."""
        if self._marks:
            before = self._marks[-1].merged[name]
            if before.count == sum(one.count for one in histograms):
                return before
        first, *rest = (self._freeze(one) for one in histograms)
        return sum(rest, first)

    def _values(self, mark: _Mark, before: _Mark, first: _Mark, moment: Moment) -> list[float]:
        """The sample's row, in the columns' order."""
        span_s = max(mark.at_s - before.at_s, 1e-9)
        rates = {name: (mark.totals[name] - before.totals[name]) / span_s for name in mark.totals}
        late = moment.overdue
        decided = [b - a + more for a, b, more in zip(first.decided, mark.decided, late, strict=True)]
        met = [b - a for a, b in zip(first.met, mark.met, strict=True)]
        found: dict[str, float] = {
            **self.standing.gauges(moment),
            "arrival_rps": rates["arrivals"], "throughput_rps": rates["finished"], "output_tps": rates["emitted_tokens"], "goodput_rps": rates["good"],
            "rejected": rates["rejected"], "failed": rates["failed"], "aborted": rates["aborted"], "preemptions": rates["preemptions"],
            "slo_attainment": _share(sum(met), sum(decided)),
            **(self.standing.gpu() if self.watchers else {}),
        }  # fmt: skip
        for name in _MERGED:
            found |= {
                f"{name}_s.p{q}": x
                for q, x in zip(QS, _percentiles(mark.merged[name], first.merged[name]), strict=True)
            }
        by_class = []
        for number, (now, then) in enumerate(zip(mark.by_class, first.by_class, strict=True)):
            mine = {"class_waiting": float(moment.waiting[number]), "in_flight": float(moment.running[number]), "slo_attainment": _share(met[number], decided[number])}  # fmt: skip
            for name in _BY_CLASS:
                mine |= {f"{name}_s.p{q}": x for q, x in zip(QS, _percentiles(now[name], then[name]), strict=True)}
            by_class.append(mine)
        return [
            found.get(column.key, _NONE) if column.number is None else by_class[column.number].get(column.key, _NONE)
            for column in self.columns
        ]

    # --- as lines --------------------------------------------------------------------------------------------------------

    def hello(self) -> bytes:
        """Who this is, the columns, the history, and how things stand: one line, the same for all who come within a second."""
        if self._hello[0] != self.seq or self._hello[1] == b"":
            self._hello = (self.seq, _encode(self.history()) + b"\n")
        return self._hello[1]

    def history(self) -> dict[str, Any]:
        """What `hello` says, as an object."""
        order = self._order()
        return {
            "type": "hello", "born": self.born, "started": self.started_s, "seq": self.seq, "every_s": EVERY_S, "window_s": WINDOW_S, "kept": KEPT,
            "bin_error": 1 / 64, "worker": self._part(), "columns": [column.json() for column in self.columns],
            "times": self._times[order].tolist(), "values": [self._ring[order, i].tolist() for i in range(len(self.columns))],
            "events": list(self._events), "now": self.standing.json(Moment(self._gateway)), "settings": self.standing.settings(),
        }  # fmt: skip

    def _order(self) -> Sequence[int]:
        return range(self.seq) if self.seq < KEPT else [i % KEPT for i in range(self.seq, self.seq + KEPT)]

    def _part(self) -> dict[str, int] | None:
        """Which of several workers this is; None if it is the only one."""
        if self._worker is None:
            return None
        return {"number": self._worker.number, "of": self._gateway.settings.server.workers, "pid": os.getpid()}

    def _line(self, row: int, moment: Moment) -> bytes:
        new = [event for event in self._events if event["number"] > self._events_told]
        self._events_told = self._event_count
        told: dict[str, Any] = {
            "type": "sample", "seq": self.seq, "at": float(self._times[row]), "values": self._ring[row].tolist(), "events": new,
            "now": self.standing.json(moment),
        }  # fmt: skip
        if any(event["kind"] == "settings" for event in new):
            told["settings"] = self.standing.settings()
        return _encode(told) + b"\n"

    def lines_after(self, seq: int) -> list[tuple[int, bytes]]:
        """Lines of later samples, as far as they are kept."""
        return [line for line in self._lines if line[0] > seq]


def _percentiles(now: ItlHistogram, then: ItlHistogram) -> list[float]:
    return [_NONE] * len(QS) if now.count == then.count else (now - then).percentiles(QS)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else _NONE
