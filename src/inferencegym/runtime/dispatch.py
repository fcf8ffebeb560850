"""Who gets a seat next: waiting requests in lanes, seats at the backends, and batches let go by size or by time. Times are seconds.

    lane (one queue for each set of backends that serve the same models)  ─►  seats (requests in flight, counted for each backend)

A seat is free or taken; nothing polls. Whatever could free a seat or bring a request calls `pump`, which hands over all that can go.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from inferencegym.runtime.ports import Ask, Backend, BackendError, Clock, Queue
from inferencegym.runtime.queues import change_queue
from inferencegym.runtime.settings import DispatchSettings

#: Requests in flight to a backend that does not say how many it takes.
USUAL_SEATS = 64
#: Why requests were let go: no batching; the batch was full; all free seats could be filled; its time was over; nothing more will come.
REASONS = ("immediate", "size", "seats", "timeout", "drain")


class Chooser(Protocol):
    """What dispatch asks of the pool of backends."""

    on_change: list[Callable[[], None]]
    """Called when a backend may have become usable."""

    @property
    def backends(self) -> Sequence[Backend]:
        """All there are; they stay the same."""

    def usable(self, backend: Backend) -> bool:
        """Whether it may be given a request now: healthy, its breaker not open."""

    def pick(self, ask: Ask, among: Sequence[Backend]) -> Backend | None:
        """Where a request goes, of these usable ones with a free seat; None: to none of them."""

    def report(self, backend: Backend, error: BackendError | None) -> None:
        """How a request went there, None is well; it is there no more."""

    def release(self, backend: Backend) -> None:
        """A request is there no more, and says nothing of the backend."""


class Seats:
    """Requests in flight to one backend."""

    __slots__ = ("able", "backend", "limit", "number", "used")

    def __init__(self, backend: Backend, number: int) -> None:
        self.backend, self.number, self.used, self.limit = backend, number, 0, 0
        self.able = backend.capabilities()


class Lane:
    """One queue, and the seats its requests can go to."""

    __slots__ = ("pumping", "queue", "seats", "timer")

    def __init__(self, queue: Queue, seats: list[Seats]) -> None:
        self.queue, self.seats = queue, seats
        self.timer: asyncio.TimerHandle | None = None
        self.pumping = False


class Dispatcher:
    """Lanes and seats."""

    def __init__(self, chooser: Chooser, make_queue: Callable[[], Queue], settings: DispatchSettings, limit_of: Callable[[Backend], int | None],
                 clock: Clock, hand_over: Callable[[Ask, Seats], None]) -> None:  # fmt: skip
        """`limit_of`: a backend's own cap from the settings; `hand_over` starts a request at a backend and must not raise."""
        self._chooser, self._make_queue, self._limit_of = chooser, make_queue, limit_of
        self._clock, self._hand_over, self._settings = clock, hand_over, settings
        self.released = dict.fromkeys(REASONS, 0)
        """Requests handed over, by why they went when they did."""
        self.batches = dict.fromkeys(REASONS, 0)
        """The same in batches."""
        self.closing = False
        self.kv_tokens = 0
        """Prompt and answer tokens that requests in flight may come to hold."""
        self.kv_tokens_cap = math.inf
        """No request goes while `kv_tokens` is at or above it; the one that passes it may, so that every request can go."""
        self.total_cap = math.inf
        """Requests in flight to all backends together, as somebody steers it."""
        self.learned_cap = math.inf
        """The same, as an adaptive limit has learned it; the lesser holds."""
        self.in_flight = 0
        self.seats = [Seats(backend, number) for number, backend in enumerate(chooser.backends)]
        self._measure()
        self._lanes: dict[frozenset[int], Lane] = {}
        self._of_model: dict[str, Lane] = {}
        chooser.on_change.append(self.renew)

    # --- lanes -----------------------------------------------------------------------------------------------------------

    @property
    def lanes(self) -> Iterable[Lane]:
        """All queues there are."""
        return self._lanes.values()

    def lane(self, model: str) -> Lane | None:
        """The lane of a model's requests; None if no backend serves it. A backend without a list of models serves any."""
        found = self._of_model.get(model)
        if found is None or not found.seats:
            seats = [seat for seat in self.seats if model in seat.backend.models or not seat.backend.models]
            if not seats:
                return None
            key = frozenset(seat.number for seat in seats)
            found = self._lanes.get(key)
            if found is None:
                found = self._lanes[key] = Lane(self._make_queue(), seats)
            if any(model in seat.backend.models for seat in seats):
                self._of_model[model] = found
        return found

    def waiting(self) -> int:
        """Requests that wait, in all lanes."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def would_wait(self, model: str) -> bool:
        """Whether a request would find no free seat, or others before it. Waiting for the rest of a batch is not meant."""
        lane = self.lane(model)
        if lane is None or self._full():
            return True
        if len(lane.queue) and not self._settings.batching:
            return True
        return not any(s.used < s.limit and self._chooser.usable(s.backend) for s in lane.seats)

    def _full(self) -> bool:
        """Whether a cap over all backends is reached."""
        return (
            self.in_flight >= self.total_cap
            or self.in_flight >= self.learned_cap
            or self.kv_tokens >= self.kv_tokens_cap
        )

    def any_usable(self, lane: Lane) -> bool:
        """Whether a backend of the lane would take requests at all, now or when a seat is free."""
        return any(self._chooser.usable(seat.backend) for seat in lane.seats)

    # --- settings --------------------------------------------------------------------------------------------------------

    def change(self, settings: DispatchSettings) -> None:
        """New limits, from now on; what is in flight above them ends first."""
        self._settings = settings
        self._measure()
        self.pump()

    def change_order(self, make_queue: Callable[[], Queue]) -> None:
        """A new order; everybody who waits, waits on, in the order they came."""
        self._make_queue = make_queue
        now_s = self._clock()
        for lane in self._lanes.values():
            lane.queue = change_queue(lane.queue, make_queue(), now_s)

    def renew(self) -> None:
        """A backend came, went, or came back another one."""
        self._measure()
        self.pump()

    def _measure(self) -> None:
        for seat in self.seats:
            seat.able = seat.backend.capabilities()
            own = self._limit_of(seat.backend) or self._settings.max_concurrency
            seat.limit = own or seat.able.native_concurrency or USUAL_SEATS

    # --- the flow --------------------------------------------------------------------------------------------------------

    def push(self, lane: Lane, ask: Ask) -> None:
        """A request begins to wait, or goes at once."""
        lane.queue.push(ask, self._clock())
        self._pump(lane)

    def remove(self, lane: Lane, ask: Ask) -> bool:
        """A request waits no more; whether it did."""
        return lane.queue.remove(ask)

    def free_seat(self, seat: Seats, ask: Ask) -> None:
        """A request has left its seat; `seat_freed` lets the next one have it."""
        seat.used -= 1
        self.in_flight -= 1
        self.kv_tokens -= _kv_tokens(ask)

    def seat_freed(self, seat: Seats) -> None:
        """Hand over what can go now that this seat is free."""
        # Lanes that share the seat take turns: the one that pumps first moves to the end.
        shared = [key for key in self._lanes if seat.number in key]
        for key in shared:
            lane = self._lanes[key]
            before = len(lane.queue)
            self._pump(lane)
            if len(shared) > 1 and len(lane.queue) < before:
                self._lanes[key] = self._lanes.pop(key)

    def take(self, ask: Ask, among: Sequence[Seats]) -> Seats | None:
        """A seat at once for a request that does not wait, for a second attempt; None if there is none."""
        open_seats = [s for s in among if s.used < s.limit and self._chooser.usable(s.backend)]
        return self._seat(ask, open_seats) if open_seats else None

    def pump(self) -> None:
        """Hand over whatever can go, in all lanes."""
        for lane in list(self._lanes.values()):
            self._pump(lane)

    def close(self) -> None:
        """No more requests will come: batches do not wait for company."""
        self.closing = True
        self.pump()

    def _pump(self, lane: Lane, late: bool = False) -> None:
        if lane.pumping:  # a request that failed at once has freed its seat; the loop below sees it
            return
        lane.pumping = True
        try:
            while len(lane.queue) and not self._full():
                open_seats = [s for s in lane.seats if s.used < s.limit and self._chooser.usable(s.backend)]
                if not open_seats:
                    break
                count, reason = 1, "immediate"
                if self._settings.batching:
                    count, reason = self._due(lane, sum(s.limit - s.used for s in open_seats), late)
                    if not count:
                        break
                late = False
                self.batches[reason] += 1
                if not self._let_go(lane, open_seats, count, reason):
                    break
        finally:
            lane.pumping = False

    def _let_go(self, lane: Lane, open_seats: list[Seats], count: int, reason: str) -> bool:
        """Hand over so many requests; whether all found a seat."""
        for _ in range(min(count, len(lane.queue))):
            ask = lane.queue.pop(self._clock())
            seat = self._seat(ask, open_seats)
            if seat is None:
                lane.queue.push(ask, self._clock())
                return False
            self.released[reason] += 1
            self._hand_over(ask, seat)
            if count > 1:
                open_seats = [s for s in open_seats if s.used < s.limit]
        return True

    def _seat(self, ask: Ask, open_seats: list[Seats]) -> Seats | None:
        """Take a seat at one of these backends."""
        if not open_seats:
            return None
        backend = self._chooser.pick(ask, [s.backend for s in open_seats])
        if backend is None:
            return None
        seat = open_seats[0] if len(open_seats) == 1 else next(s for s in open_seats if s.backend is backend)
        seat.used += 1
        self.in_flight += 1
        self.kv_tokens += _kv_tokens(ask)
        return seat

    def _due(self, lane: Lane, free: int, late: bool) -> tuple[int, str]:
        """How many requests go now as a batch, and why; (0, "") if it waits for company, with a timer for when it will not."""
        settings, waiting = self._settings, len(lane.queue)
        full = min(settings.max_batch_size, free)
        if waiting >= full:
            return full, "size" if full == settings.max_batch_size else "seats"
        if self.closing:
            return waiting, "drain"
        # Fewer wait than make a batch, so looking at all of them is cheap.
        due_s = min(ask.arrival_s for ask in lane.queue.waiting()) + settings.batch_timeout_ms / 1e3
        if late or self._clock() >= due_s:
            return waiting, "timeout"
        if lane.timer is not None:
            lane.timer.cancel()
        lane.timer = asyncio.get_running_loop().call_at(due_s, self._pump, lane, True)
        return 0, ""


def _kv_tokens(ask: Ask) -> int:
    """The most tokens whose keys and values a request may come to hold, as far as it says."""
    return ask.prompt_tokens + (ask.max_tokens or int(ask.predicted_tokens))
