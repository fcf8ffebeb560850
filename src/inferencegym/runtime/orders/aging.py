"""Priority that grows with waiting: one level for every `aging_s`, up to a cap."""

from __future__ import annotations

from inferencegym.runtime.orders.ranked import Heap
from inferencegym.runtime.ports import Ask


class Aging:
    """Least (priority - levels gained) first, levels = min(waited / aging_s, cap); then the earlier arrival, then the earlier push.

    Invariants: without a cap nobody waits for a request that arrived more than (difference of priorities) * aging_s later, so nobody starves.
    With a cap of L levels that holds as long as the priorities differ by less than L; a class that is L or more below a busy one may starve.
    push, pop and remove O(log n): while nobody has reached the cap, arrival + priority * aging_s orders them for good (the engine's rank);
    those at the cap have a heap of their own, by (priority, arrival), and each moves there once.
    """

    name = "aging"

    def __init__(self, aging_s: float, cap_levels: int | None) -> None:
        self._aging_s, self._cap = aging_s, cap_levels
        self._growing, self._due, self._grown = Heap(), Heap(), Heap()
        self._pushed = 0

    def push(self, ask: Ask, now_s: float) -> None:
        """In by its arrival and priority."""
        self._pushed += 1
        self._growing.push((ask.arrival_s + ask.priority * self._aging_s, ask.arrival_s), self._pushed, ask)
        if self._cap is not None:
            self._due.push((ask.arrival_s + self._cap * self._aging_s, 0.0), self._pushed, ask)

    def pop(self, now_s: float) -> Ask:
        """Whoever has the least level now; IndexError if none waits."""
        if self._cap is None:
            return self._growing.pop()
        self._settle(now_s, self._cap)
        growing, grown = self._growing.head(), self._grown.head()
        if grown is None or (growing is not None and self._key(growing, now_s) < self._key(grown, now_s)):
            ask = self._growing.pop()
            self._due.remove(ask)
            return ask
        return self._grown.pop()

    def _settle(self, now_s: float, cap: int) -> None:
        """Move those that have reached the cap."""
        while (ask := self._due.head()) is not None and now_s >= ask.arrival_s + cap * self._aging_s:
            self._due.pop()
            place = self._growing.remove(ask)
            assert place is not None
            self._grown.push((float(ask.priority), ask.arrival_s), place, ask)

    def _key(self, ask: Ask, now_s: float) -> tuple[float, float]:
        assert self._cap is not None
        return ask.priority - min(max(0.0, now_s - ask.arrival_s) / self._aging_s, self._cap), ask.arrival_s

    def remove(self, ask: Ask) -> bool:
        """From wherever it is."""
        self._due.remove(ask)
        return self._growing.remove(ask) is not None or self._grown.remove(ask) is not None

    def charge(self, ask: Ask, output_tokens: int) -> None:
        """Service does not count here."""

    def waiting(self) -> list[Ask]:
        """In the order of pushes."""
        return [ask for _, ask in sorted(self._growing.places() + self._grown.places())]

    def __len__(self) -> int:
        return len(self._growing) + len(self._grown)
