"""What happened to each request, seen from the gateway: one record a request, and running histograms, each event O(1). Content is never looked at.

Times are the event loop's (`loop.time()`, seconds); in the files they count from the recorder's start. Whoever wants the figures of a window takes
a `mark()` at its start and asks `since(mark)` at its end, so several can look on. What has ended goes to Parquet files, or the latest are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Outcome, Records
from inferencegym.runtime.histogram import Histogram
from inferencegym.runtime.journal import Journal
from inferencegym.runtime.ports import Ask, Clock, Usage
from inferencegym.runtime.settings import ServiceClass

_NEVER = float("nan")
#: How many different reasons are counted by name; further ones count as `other`.
MOST_REASONS = 64
OTHER = "other"
_OK = int(Outcome.OK)


class Live:
    """A request that has not ended."""

    __slots__ = (
        "ask",
        "cached",
        "enqueued_s",
        "first_s",
        "last_s",
        "output",
        "preemptions",
        "prompt",
        "replica",
        "row",
        "scheduled_s",
    )

    def __init__(self, row: int, ask: Ask, enqueued_s: float) -> None:
        self.row, self.ask, self.enqueued_s = row, ask, enqueued_s
        self.scheduled_s = self.first_s = self.last_s = _NEVER
        self.prompt, self.output, self.cached, self.preemptions = ask.prompt_tokens, 0, 0, 0
        self.replica = -1


class ClassFigures:
    """Running figures of one service class."""

    __slots__ = (
        "decided",
        "e2e",
        "finished",
        "good",
        "itl",
        "met",
        "output_tokens",
        "prompt_tokens",
        "queue",
        "tpot",
        "ttft",
    )

    def __init__(self) -> None:
        self.queue, self.ttft, self.itl, self.tpot, self.e2e = (Histogram() for _ in range(5))
        self.finished = self.good = self.decided = self.met = self.prompt_tokens = self.output_tokens = 0


class Mark(NamedTuple):
    """How the counters stood at an instant."""

    at_s: float
    ttft: ItlHistogram
    itl: ItlHistogram
    arrivals: int
    arrived_prompt_tokens: int
    emitted_tokens: int
    finished: int
    finished_tokens: int
    good: int
    preemptions: int
    decided: tuple[int, ...]
    """By class: requests whose first token came, or that ended without one."""
    met: tuple[int, ...]
    """By class: those of them whose first token came within the objective."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What happened between a mark and now; NaN for what does not exist."""

    span_s: float
    arrivals: int
    mean_prompt_tokens: float
    ttft: ItlHistogram
    itl: ItlHistogram
    emitted_tokens: int
    finished: int
    mean_output_tokens: float
    good: int
    preemptions: int
    slo_compliance: float
    """First tokens within their class's objective, of those that came or are overdue; 1 if there is none."""
    decided: int
    """Those that came, are overdue, or will never come."""
    met: int
    """Those within the objective."""
    vip_slo_compliance: float
    """The same of the most urgent class."""


class Recorder:
    """Writes down what happens. Every method is called from the event loop's thread."""

    def __init__(
        self,
        classes: Sequence[ServiceClass],
        clock: Clock,
        *,
        path: str | Path | None = None,
        rows_per_file: int = 16_384,
        keep: int = 4_096,
    ) -> None:
        """`path`: folder for `records-00001.parquet`, `workload-00001.parquet`, ... of `rows_per_file` ended requests each; none: the
        latest `keep` to `2 * keep` stay in memory.
        """
        self.clock = clock
        self.start_s = clock()
        self.classes = tuple(classes)
        self.figures = [ClassFigures() for _ in self.classes]
        self.live: dict[int, Live] = {}
        self.outcomes: dict[tuple[str, str], int] = {}
        """(outcome in lower case, reason) to how many requests ended so."""
        self.arrivals = self.arrived_prompt_tokens = self.emitted_tokens = self.preemptions = self.cached_tokens = 0
        self.running = 0
        """Requests that were handed to a backend and have not ended."""
        self.journal = Journal([c.name for c in classes], path=path, rows_per_file=rows_per_file, keep=keep)
        self._row = 0

    # --- events ----------------------------------------------------------------------------------------------------------

    def begin(self, ask: Ask) -> int:
        """A request is let in and starts to wait; its record's number, which it also gets as `row`."""
        ask.row = row = self._row
        self._row = row + 1
        self.live[row] = Live(row, ask, self.clock())
        self.arrivals += 1
        self.arrived_prompt_tokens += ask.prompt_tokens
        return row

    def scheduled(self, ask: Ask, at_s: float | None = None, replica: int = 0) -> None:
        """It was handed to a backend (number `replica`), which began on it at `at_s` (now, if it does not say); a later word replaces an earlier."""
        me = self.live[ask.row]
        if me.scheduled_s != me.scheduled_s:
            self.running += 1
        me.scheduled_s = self.clock() if at_s is None else at_s
        me.replica = replica

    def first_token(self, ask: Ask, at_s: float | None = None) -> None:
        """Its first token is there (`tokens` says so too; this is for answers that come whole)."""
        me = self.live[ask.row]
        if me.first_s != me.first_s:
            self._first(me, self.clock() if at_s is None else at_s)

    def tokens(self, ask: Ask, count: int, at_s: float | None = None) -> None:
        """So many tokens came together: one gap since the last ones."""
        me = self.live[ask.row]
        now_s = self.clock() if at_s is None else at_s
        if me.first_s != me.first_s:
            self._first(me, now_s)
        elif me.output:
            self.figures[me.ask.slo_class].itl.observe(now_s - me.last_s)
        me.last_s = now_s
        me.output += count
        self.emitted_tokens += count

    def _first(self, me: Live, at_s: float) -> None:
        ask = me.ask
        me.first_s = at_s
        if me.scheduled_s != me.scheduled_s:
            me.scheduled_s = at_s
            self.running += 1
        mine = self.figures[ask.slo_class]
        waited_s = at_s - ask.arrival_s
        mine.ttft.observe(waited_s)
        mine.decided += 1
        mine.met += waited_s <= self._objective_s(ask)

    def finish(
        self, ask: Ask, outcome: Outcome, usage: Usage | None = None, at_s: float | None = None, *, reason: str = "", preemptions: int = 0
    ) -> None:  # fmt: skip
        """It ended. `usage`: the backend's count, which goes before ours; `reason`: the error's code."""
        me = self.live.pop(ask.row)
        now_s = self.clock() if at_s is None else at_s
        mine = self.figures[ask.slo_class]
        if usage is not None:
            self.emitted_tokens += usage.completion_tokens - me.output
            me.prompt, me.output, me.cached = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        if me.first_s != me.first_s:
            if outcome is Outcome.OK:
                self._first(me, now_s)
            elif outcome is not Outcome.ABORTED:
                mine.decided += 1
        me.preemptions = preemptions
        self.preemptions += preemptions
        self.cached_tokens += me.cached
        if me.scheduled_s == me.scheduled_s:
            self.running -= 1
            mine.queue.observe(me.scheduled_s - ask.arrival_s)
        if outcome is Outcome.OK:
            self._completed(me, mine, now_s)
        if me.first_s == me.first_s:
            mine.prompt_tokens += me.prompt
        mine.output_tokens += me.output
        self._count(outcome.name.lower(), reason)
        self.journal.add(me, now_s, int(outcome), self.start_s)

    def _completed(self, me: Live, mine: ClassFigures, now_s: float) -> None:
        ask = me.ask
        mine.finished += 1
        mine.e2e.observe(now_s - ask.arrival_s)
        pace_s = 0.0
        if me.output > 1:
            pace_s = (now_s - me.first_s) / (me.output - 1)
            mine.tpot.observe(pace_s)
        in_time = me.first_s - ask.arrival_s <= self._objective_s(ask)
        mine.good += in_time and pace_s <= self.classes[ask.slo_class].itl_slo_s

    def reject(self, ask: Ask, reason: str) -> None:
        """It was turned away at the door."""
        self.begin(ask)
        self.finish(ask, Outcome.REJECTED, reason=reason)

    def _objective_s(self, ask: Ask) -> float:
        return min(ask.slo_ttft_s, self.classes[ask.slo_class].ttft_slo_s)

    def _count(self, outcome: str, reason: str) -> None:
        key = (outcome, reason)
        if key not in self.outcomes and len(self.outcomes) >= MOST_REASONS:
            key = (outcome, OTHER)
        self.outcomes[key] = self.outcomes.get(key, 0) + 1

    def change_classes(self, classes: Sequence[ServiceClass]) -> None:
        """Objectives changed while it runs; the classes are the same ones."""
        assert [c.name for c in classes] == [c.name for c in self.classes], "classes keep their names and numbers"
        self.classes = tuple(classes)

    # --- figures ---------------------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """How the counters stand now."""
        figures = self.figures
        return Mark(
            self.clock(),
            sum((f.ttft.frozen() for f in figures), ItlHistogram()),
            sum((f.itl.frozen() for f in figures), ItlHistogram()),
            self.arrivals,
            self.arrived_prompt_tokens,
            self.emitted_tokens,
            sum(f.finished for f in figures),
            sum(f.output_tokens for f in figures),
            sum(f.good for f in figures),
            self.preemptions,
            tuple(f.decided for f in figures),
            tuple(f.met for f in figures),
        )

    def since(self, start: Mark) -> tuple[Figures, Mark]:
        """What happened since a mark, and the mark of now, where the next window begins. O(live requests), once a window."""
        end = self.mark()
        overdue = self._overdue(end.at_s)
        decided = [b - a + late for a, b, late in zip(start.decided, end.decided, overdue, strict=True)]
        met = [b - a for a, b in zip(start.met, end.met, strict=True)]
        arrivals, finished = end.arrivals - start.arrivals, end.finished - start.finished
        vip = self.vip_class
        figures = Figures(
            span_s=end.at_s - start.at_s,
            arrivals=arrivals,
            mean_prompt_tokens=_ratio(end.arrived_prompt_tokens - start.arrived_prompt_tokens, arrivals),
            ttft=end.ttft - start.ttft,
            itl=end.itl - start.itl,
            emitted_tokens=end.emitted_tokens - start.emitted_tokens,
            finished=finished,
            mean_output_tokens=_ratio(end.finished_tokens - start.finished_tokens, finished),
            good=end.good - start.good,
            preemptions=end.preemptions - start.preemptions,
            slo_compliance=_share(sum(met), sum(decided)),
            decided=sum(decided),
            met=sum(met),
            vip_slo_compliance=1.0 if vip is None else _share(met[vip], decided[vip]),
        )
        return figures, end

    @property
    def vip_class(self) -> int | None:
        """Number of the most urgent class, if not all are equally urgent."""
        ranks = [c.priority for c in self.classes]
        return ranks.index(min(ranks)) if min(ranks) < max(ranks) else None

    def _overdue(self, now_s: float) -> list[int]:
        late = [0] * len(self.classes)
        for me in self.live.values():
            if me.first_s != me.first_s and now_s - me.ask.arrival_s > self._objective_s(me.ask):
                late[me.ask.slo_class] += 1
        return late

    def waiting(self) -> list[Live]:
        """Requests that no backend has begun on, oldest first. O(live requests)."""
        return [me for me in self.live.values() if me.scheduled_s != me.scheduled_s]

    def counts(self) -> Mapping[str, int]:
        """How many requests ended in each way, by the outcome's name; every outcome is listed."""
        counts = {outcome.name.lower(): 0 for outcome in Outcome}
        for (outcome, _), count in self.outcomes.items():
            counts[outcome] += count
        return counts

    # --- records ---------------------------------------------------------------------------------------------------------

    def records(self) -> Records:
        """Requests that ended and lie in memory, in the order they ended; times from the recorder's start."""
        return self.journal.records()

    def close(self) -> None:
        """Write what is still in memory to the files, if there are any, and wait until all are whole."""
        self.journal.close()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else _NEVER


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
