"""The waiting queues of docs/scheduling.md section 9: a plain deque, a list sorted by rank, one deque per tenant.

Times are in picoseconds; counters are in the units of `vtc_in` and `vtc_out`.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Protocol

from tests.reference.plain import Config
from tests.reference.state import Live


def rank(r: Live, config: Config) -> tuple[int, ...]:
    """Smaller goes first; the row breaks ties."""
    q = r.request
    first: dict[str, tuple[int, ...]] = {
        "fcfs": (r.arrival_ps,),
        "vtc": (r.arrival_ps,),
        "priority": (q.priority, r.arrival_ps),
        "aging": (r.arrival_ps + q.priority * config.aging_ps,),
        "sjf": (q.prompt, r.arrival_ps),
        "edf": (r.arrival_ps + q.slo_ttft_ps,),
    }
    return (*first[config.order], q.row)


class Queue(Protocol):
    """What the engine asks of a queue."""

    def __len__(self) -> int: ...
    def members(self) -> list[Live]:
        """Everyone who waits."""
        ...

    def arrive(self, r: Live) -> None:
        """A new request."""
        ...

    def deliver(self, r: Live) -> None:
        """A request whose KV came from a prefill replica."""
        ...

    def put_back(self, r: Live) -> None:
        """A preempted request."""
        ...

    def head(self) -> Live:
        """Who is next."""
        ...

    def pop(self) -> Live:
        """Take the head out."""
        ...

    def remove(self, r: Live) -> None:
        """Take one out who does not wait any longer."""
        ...


class Fcfs:
    """First come, first served; the preempted in front."""

    def __init__(self) -> None:
        self.line: deque[Live] = deque()

    def __len__(self) -> int:
        return len(self.line)

    def members(self) -> list[Live]:
        return list(self.line)

    def arrive(self, r: Live) -> None:
        self.line.append(r)

    deliver = arrive

    def put_back(self, r: Live) -> None:
        self.line.appendleft(r)

    def head(self) -> Live:
        return self.line[0]

    def pop(self) -> Live:
        return self.line.popleft()

    def remove(self, r: Live) -> None:
        self.line.remove(r)


class Ranked:
    """Sorted by rank, whoever comes and why."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.line: list[Live] = []

    def __len__(self) -> int:
        return len(self.line)

    def members(self) -> list[Live]:
        return list(self.line)

    def arrive(self, r: Live) -> None:
        self.line.append(r)
        self.line.sort(key=lambda x: rank(x, self.config))

    deliver = arrive
    put_back = arrive

    def head(self) -> Live:
        return self.line[0]

    def pop(self) -> Live:
        return self.line.pop(0)

    def remove(self, r: Live) -> None:
        self.line.remove(r)


@dataclass
class Ledger:
    """What each tenant was served.

    Each replica has its own; it is charged only while the order is vtc and outlives a change to another order.
    """

    counter: Counter[int] = field(default_factory=Counter)
    left_last: int | None = None


class Vtc:
    """Virtual token counters (Sheng et al., OSDI 2024)."""

    def __init__(self, ledger: Ledger, seen: Counter[str]) -> None:
        self.ledger = ledger
        self.counter = ledger.counter
        self.seen = seen
        self.lines: dict[int, deque[Live]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self.lines.values())

    def members(self) -> list[Live]:
        return [r for tenant in sorted(self.lines) for r in self.lines[tenant]]

    def _waiting_tenants(self) -> list[int]:
        return sorted(tenant for tenant, line in self.lines.items() if line)

    def arrive(self, r: Live) -> None:
        tenant, waiting = r.request.tenant, self._waiting_tenants()
        if tenant not in waiting:
            self._lift(tenant, waiting)
        self.deliver(r)

    def _lift(self, tenant: int, waiting: list[int]) -> None:
        least = self.counter[tenant]
        if waiting:
            least = min(self.counter[t] for t in waiting)
        elif self.ledger.left_last is not None:
            least = self.counter[self.ledger.left_last]
        if least > self.counter[tenant]:
            self.seen["vtc lift"] += 1
            self.seen["vtc lift to the last that left"] += not waiting
            self.counter[tenant] = least

    def deliver(self, r: Live) -> None:
        self.lines.setdefault(r.request.tenant, deque()).append(r)

    def put_back(self, r: Live) -> None:
        self.lines.setdefault(r.request.tenant, deque()).appendleft(r)

    def _next_tenant(self) -> int:
        return min(self._waiting_tenants(), key=lambda t: (self.counter[t], t))

    def head(self) -> Live:
        return self.lines[self._next_tenant()][0]

    def pop(self) -> Live:
        tenant = self._next_tenant()
        self.ledger.left_last = tenant
        return self.lines[tenant].popleft()

    def remove(self, r: Live) -> None:
        line = self.lines[r.request.tenant]
        line.remove(r)
        if not line:
            self.ledger.left_last = r.request.tenant


def new_queue(config: Config, ledger: Ledger, seen: Counter[str]) -> Queue:
    """The queue that `config.order` asks for."""
    if config.order == "fcfs":
        return Fcfs()
    if config.order == "vtc":
        return Vtc(ledger, seen)
    return Ranked(config)
