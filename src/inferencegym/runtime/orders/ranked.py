"""Orders in which a request's rank is fixed when it arrives: fcfs, priority, edf, sjf. Smaller rank first, then the earlier push.

Formulas are those of the engine (docs/scheduling.md, section 9), in seconds instead of picoseconds; tests/parity/test_queue_order.py holds the two together.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable

from inferencegym.runtime.ports import Ask

Rank = tuple[float, float]

#: edf: requests without a TTFT objective stand as if it were an hour, as in the engine.
NO_DEADLINE_S = 3600.0
#: Dead entries that a heap may hold beyond the live ones before it is made anew.
_SLACK = 64


def by_priority(ask: Ask) -> Rank:
    """Bands: lower priority first, then the earlier arrival."""
    return float(ask.priority), ask.arrival_s


def by_deadline(ask: Ask) -> Rank:
    """Earliest TTFT deadline first."""
    return ask.arrival_s + min(ask.slo_ttft_s, NO_DEADLINE_S), 0.0


def by_work(input_cost: float, output_cost: float, tokens_per_s: float) -> Callable[[Ask], Rank]:
    """Shortest predicted work first; one second of waiting makes up for `tokens_per_s` tokens of it (0: never)."""

    def rank(ask: Ask) -> Rank:
        work = input_cost * ask.prompt_tokens + output_cost * ask.predicted_tokens
        return (ask.arrival_s + work / tokens_per_s, 0.0) if tokens_per_s > 0 else (work, ask.arrival_s)

    return rank


class Fcfs:
    """First come, first served.

    Invariant: pops in the order of pushes; nobody waits for a later one. All operations O(1).
    """

    name = "fcfs"

    def __init__(self) -> None:
        self._asks: OrderedDict[Ask, None] = OrderedDict()

    def push(self, ask: Ask, now_s: float) -> None:
        """At the end."""
        self._asks[ask] = None

    def pop(self, now_s: float) -> Ask:
        """From the front; IndexError if none waits."""
        if not self._asks:
            raise IndexError("pop from an empty queue")
        return self._asks.popitem(last=False)[0]

    def remove(self, ask: Ask) -> bool:
        """From wherever it is."""
        if ask not in self._asks:
            return False
        del self._asks[ask]
        return True

    def charge(self, ask: Ask, output_tokens: int) -> None:
        """Service does not count here."""

    def waiting(self) -> list[Ask]:
        """In the order of pushes."""
        return list(self._asks)

    def __len__(self) -> int:
        return len(self._asks)


class Heap:
    """Requests by a rank that does not change: a binary heap in which those removed stay, dead, until they surface or are too many.

    push and pop O(log n), remove O(1), each amortised over making the heap anew.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, int, Ask]] = []
        self._place: dict[Ask, int] = {}

    def push(self, rank: Rank, place: int, ask: Ask) -> None:
        """`place`: what orders equal ranks; no two are the same."""
        self._place[ask] = place
        heapq.heappush(self._heap, (rank, place, ask))

    def head(self) -> Ask | None:
        """The least one."""
        while self._heap and self._place.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Ask:
        """The least one, taken out; IndexError if there is none."""
        ask = self.head()
        if ask is None:
            raise IndexError("pop from an empty queue")
        heapq.heappop(self._heap)
        del self._place[ask]
        return ask

    def remove(self, ask: Ask) -> int | None:
        """Take it out; its place, or None if it was not there."""
        place = self._place.pop(ask, None)
        if place is not None and len(self._heap) > 2 * len(self._place) + _SLACK:
            self._heap = [entry for entry in self._heap if self._place.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
        return place

    def places(self) -> list[tuple[int, Ask]]:
        """All that are in it, with their places, in no order."""
        return [(place, ask) for ask, place in self._place.items()]

    def __contains__(self, ask: Ask) -> bool:
        return ask in self._place

    def __len__(self) -> int:
        return len(self._place)


class Ranked:
    """A queue by a fixed rank.

    Invariants: pops the least (rank, push); FIFO among equal ranks. Starvation: `priority` starves a band while better ones keep the server busy
    (that is what bands are for; `aging` is the guard); `edf` lets nobody wait for one that arrived more than the difference of their objectives later;
    `sjf` lets nobody wait for one that arrived more than (difference of work) / sjf_tokens_per_s later.
    """

    def __init__(self, name: str, rank: Callable[[Ask], Rank]) -> None:
        self.name = name
        self._rank = rank
        self._heap = Heap()
        self._pushed = 0

    def push(self, ask: Ask, now_s: float) -> None:
        """In by its rank."""
        self._pushed += 1
        self._heap.push(self._rank(ask), self._pushed, ask)

    def pop(self, now_s: float) -> Ask:
        """The least rank; IndexError if none waits."""
        return self._heap.pop()

    def remove(self, ask: Ask) -> bool:
        """From wherever it is."""
        return self._heap.remove(ask) is not None

    def charge(self, ask: Ask, output_tokens: int) -> None:
        """Service does not count here."""

    def waiting(self) -> list[Ask]:
        """In the order of pushes."""
        return [ask for _, ask in sorted(self._heap.places())]

    def __len__(self) -> int:
        return len(self._heap)
