"""Weighted fair queueing by deficit round robin over tenants, in tokens (Shreedhar and Varghese, SIGCOMM 1995), its rounds computed instead of walked."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from inferencegym.runtime.orders.tenants import Line, Lines, Price
from inferencegym.runtime.ports import Ask, Queue

_SLACK = 64


@dataclass(slots=True, eq=False)
class Owing(Line):
    """A tenant, what it may still send, and where it stands in the ring."""

    deficit: float = 0.0
    """Tokens it may send in `round`; below zero: it was given more than its due."""
    round: int = 0
    """Round up to which its quanta are counted."""
    place: int = 0
    """Its place in the ring."""
    entry: int = -1
    """Number of its valid heap entry."""


class Wfq:
    """In each round every waiting tenant, in ring order, may send `quantum * share` tokens more; it sends while what it may send covers its next prompt.

    Answer tokens are taken off as they come (`charge`), so a tenant may be in debt, which later rounds pay, also while it is away; credit is lost when its line is empty.
    Invariants: FIFO within a tenant; while two tenants have requests waiting, what they get in any stretch, divided by their shares, differs by at most
    `quantum + 2 * (longest prompt + most answer tokens under way)` (costs by price, divided by the lesser share): the published bound with a packet
    whose end is not known when it is sent. Work conserving: rounds in which nobody could send are leapt over. Hence nobody starves.
    push, pop, remove, charge O(log n), amortised: the heap is by (round in which the tenant can send, place); an entry made too early is put right when it surfaces.
    """

    name = "wfq"

    def __init__(self, price: Price, quantum_tokens: int) -> None:
        self._price, self._quantum_tokens = price, quantum_tokens
        self._lines: Lines[Owing] = Lines(lambda name, number: Owing(name, number))
        self._heap: list[tuple[int, int, int, Owing]] = []
        self._round = 0
        self._places = 0
        self._entries = 0
        self._pushed = 0
        self._waiting = 0

    def push(self, ask: Ask, now_s: float) -> None:
        """To the end of its tenant's line; a tenant that had nothing waiting joins the end of the ring."""
        self._lines.forget(lambda line: -self._paid(line, self._round))
        line = self._lines.of(ask.tenant)
        self._pushed += 1
        joins = not line.asks
        line.asks[ask] = self._pushed
        self._waiting += 1
        if joins:
            # The ring's end has not been visited in this round, so this round's quantum is still to come.
            line.deficit = min(0.0, self._paid(line, self._round - 1))
            line.round = self._round - 1
            self._places += 1
            line.place = self._places
            self._enter(line)

    def pop(self, now_s: float) -> Ask:
        """The next request of the tenant whose turn it is; IndexError if none waits."""
        line = self._head()
        if line is None:
            raise IndexError("pop from an empty queue")
        self._round = max(self._round, self._turn(line))
        line.deficit, line.round = self._paid(line, self._round), self._round
        ask, _ = line.asks.popitem(last=False)
        self._waiting -= 1
        line.deficit -= self._price.prompt(ask)
        heapq.heappop(self._heap)
        line.entry = -1
        if line.asks:
            self._enter(line)
        return ask

    def remove(self, ask: Ask) -> bool:
        """From wherever it is; nothing was taken off for it."""
        line = self._lines.by_name.get(ask.tenant)
        if line is None or ask not in line.asks:
            return False
        first = line.head() is ask
        del line.asks[ask]
        self._waiting -= 1
        if not line.asks:
            line.entry = -1
            if not self._waiting:
                self._heap.clear()
        elif first:
            # The next one may be shorter: the entry could be too late, which only a new one puts right.
            self._enter(line)
        return True

    def charge(self, ask: Ask, output_tokens: int) -> None:
        """Take answer tokens off what its tenant may send."""
        line = self._lines.by_name.get(ask.tenant)
        if line is None:
            line = self._lines.of(ask.tenant)
            line.round = self._round
        line.deficit -= self._price.answer(ask, output_tokens)

    def waiting(self) -> list[Ask]:
        """In the order of pushes."""
        return self._lines.asks()

    def __len__(self) -> int:
        return self._waiting

    def take_over(self, old: Queue) -> None:
        """Begin with the debts of a queue of this order whose price was another; its waiting requests are pushed by the caller."""
        if not isinstance(old, Wfq):
            return
        for name, line in old._lines.by_name.items():
            mine = self._lines.of(name)
            mine.deficit, mine.round = min(0.0, old._paid(line, old._round)), self._round

    def _quantum(self, line: Owing) -> float:
        return self._quantum_tokens * self._price.share(line.name)

    def _paid(self, line: Owing, at_round: int) -> float:
        """What it may send once the quanta up to a round are counted."""
        return line.deficit + self._quantum(line) * max(0, at_round - line.round)

    def _turn(self, line: Owing) -> int:
        """First round, now or later, in which it can send its next request."""
        short = self._price.prompt(line.head()) - line.deficit
        rounds = max(0, math.ceil(short / self._quantum(line)))
        return max(line.round + rounds, self._round)

    def _enter(self, line: Owing) -> None:
        if len(self._heap) > 2 * len(self._lines.by_name) + _SLACK:
            self._heap = [entry for entry in self._heap if entry[3].entry == entry[2]]
            heapq.heapify(self._heap)
        self._entries += 1
        line.entry = self._entries
        heapq.heappush(self._heap, (self._turn(line), line.place, line.entry, line))

    def _head(self) -> Owing | None:
        """The tenant whose turn is next; its entry is on top of the heap and right."""
        while self._heap:
            turn, place, entry, line = self._heap[0]
            if line.entry != entry:
                heapq.heappop(self._heap)
                continue
            due = self._turn(line)
            if due == turn:
                return line
            heapq.heapreplace(self._heap, (due, place, entry, line))
        return None
