"""Virtual token counters: the tenant that has had the least service goes first (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from inferencegym.runtime.orders.tenants import Line, Lines, Price
from inferencegym.runtime.ports import Ask, Queue


@dataclass(slots=True, eq=False)
class Counted(Line):
    """A tenant and its counter."""

    counter: float = 0.0
    """Service it has had, tokens by price, divided by its share."""


class Vtc:
    """First come, first served within a tenant; between tenants the least counter, ties to the tenant seen first.

    A pop adds the prompt's cost to its tenant's counter, `charge` that of answer tokens. A tenant that comes back with nothing waiting is lifted to the least
    counter of those that wait, or, if nobody waits, to that of the tenant that left the queue last: credit is not saved up.
    Invariant: while two tenants of share 1 both have requests waiting, what one gets in any stretch of time exceeds what the other gets by at most
    2 * max(input_cost * longest prompt, output_cost * most tokens under way at once, prompts and answers), if an answer token costs no less than one of a
    prompt (theorem 4.4). Hence nobody starves. push and remove O(log n); pop and charge O(log n) amortised: a counter only grows, so the heap may hold an
    old one, which is put right when it surfaces.
    """

    name = "vtc"

    def __init__(self, price: Price) -> None:
        self._price = price
        self._lines: Lines[Counted] = Lines(lambda name, number: Counted(name, number))
        self._heap: list[tuple[float, int, Counted]] = []
        self._in_heap: set[Counted] = set()
        self._last_left: Counted | None = None
        self._pushed = 0
        self._waiting = 0

    def push(self, ask: Ask, now_s: float) -> None:
        """To the end of its tenant's line."""
        level = self._level()
        self._lines.forget(lambda line: line.counter - level)
        line = self._lines.of(ask.tenant)
        if not line.asks:
            line.counter = max(line.counter, level)
        self._pushed += 1
        line.asks[ask] = self._pushed
        self._waiting += 1
        if line not in self._in_heap:
            self._in_heap.add(line)
            heapq.heappush(self._heap, (line.counter, line.number, line))

    def pop(self, now_s: float) -> Ask:
        """The first request of the neediest tenant; IndexError if none waits."""
        line = self._head()
        if line is None:
            raise IndexError("pop from an empty queue")
        ask, _ = line.asks.popitem(last=False)
        self._waiting -= 1
        if not line.asks:
            self._left(line)
        line.counter += self._price.prompt(ask) / self._price.share(line.name)
        return ask

    def remove(self, ask: Ask) -> bool:
        """From wherever it is; nothing was charged for it."""
        line = self._lines.by_name.get(ask.tenant)
        if line is None or line.asks.pop(ask, None) is None:
            return False
        self._waiting -= 1
        if not line.asks:
            self._left(line)
        return True

    def charge(self, ask: Ask, output_tokens: int) -> None:
        """Add answer tokens to its tenant's counter."""
        line = self._lines.by_name.get(ask.tenant)
        if line is None:
            line = self._lines.of(ask.tenant)
            line.counter = self._level()
        line.counter += self._price.answer(ask, output_tokens) / self._price.share(line.name)

    def waiting(self) -> list[Ask]:
        """In the order of pushes."""
        return self._lines.asks()

    def __len__(self) -> int:
        return self._waiting

    def counters(self) -> dict[str, float]:
        """Each remembered tenant's counter."""
        return {name: line.counter for name, line in self._lines.by_name.items()}

    def take_over(self, old: Queue) -> None:
        """Begin with the counters of a queue of this order whose price was another; its waiting requests are pushed by the caller."""
        if not isinstance(old, Vtc):
            return
        for name, counter in old.counters().items():
            self._lines.of(name).counter = counter
        if old._last_left is not None:
            self._last_left = self._lines.of(old._last_left.name)

    def _left(self, line: Counted) -> None:
        """A tenant has nothing waiting any more."""
        self._last_left = line
        if not self._waiting:
            self._heap.clear()
            self._in_heap.clear()

    def _level(self) -> float:
        """What the counter of a tenant that comes back is lifted to."""
        head = self._head()
        if head is not None:
            return head.counter
        return 0.0 if self._last_left is None else self._last_left.counter

    def _head(self) -> Counted | None:
        """The waiting tenant with the least counter."""
        while self._heap:
            counter, number, line = self._heap[0]
            if not line.asks:
                heapq.heappop(self._heap)
                self._in_heap.discard(line)
            elif counter != line.counter:
                heapq.heapreplace(self._heap, (line.counter, number, line))
            else:
                return line
        return None
