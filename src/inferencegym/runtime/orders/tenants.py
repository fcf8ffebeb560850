"""What the fair orders share: a line of requests for each tenant, and what a token of a request costs it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from inferencegym.runtime.ports import Ask

#: Tenants without a request that are remembered before the first look for some to forget.
_REMEMBERED = 1024
#: Idle tenants that are remembered at most: beyond, those that owe least are forgotten, and so forgiven.
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Price:
    """What service costs: tokens, weighted by kind and by class, in units of the tenant's share."""

    input_cost: float = 1.0
    output_cost: float = 2.0
    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of each tenant; others 1."""
    class_weights: Sequence[float] = ()
    """A token of class i counts 1/class_weights[i]; others 1."""

    def prompt(self, ask: Ask) -> float:
        """Cost of the prompt."""
        return self.input_cost * ask.prompt_tokens / self._class(ask)

    def answer(self, ask: Ask, tokens: int) -> float:
        """Cost of so many answer tokens."""
        return self.output_cost * tokens / self._class(ask)

    def share(self, tenant: str) -> float:
        """A tenant's share of service."""
        return self.shares.get(tenant, 1.0)

    def _class(self, ask: Ask) -> float:
        return self.class_weights[ask.slo_class] if ask.slo_class < len(self.class_weights) else 1.0


@dataclass(slots=True, eq=False)
class Line:
    """A tenant: its waiting requests, first come first served, with the number of each push."""

    name: str
    number: int
    """Order in which tenants were first seen: breaks ties."""
    asks: OrderedDict[Ask, int] = field(default_factory=OrderedDict)

    def head(self) -> Ask:
        """Its next request."""
        return next(iter(self.asks))


L = TypeVar("L", bound=Line)


class Lines(Generic[L]):
    """All tenants that are remembered, by name."""

    def __init__(self, make: Callable[[str, int], L]) -> None:
        self._make = make
        self._seen = 0
        self._look_at = _REMEMBERED
        self.by_name: dict[str, L] = {}

    def of(self, tenant: str) -> L:
        """The tenant of this name, new if nobody remembers it."""
        line = self.by_name.get(tenant)
        if line is None:
            line = self.by_name[tenant] = self._make(tenant, self._seen)
            self._seen += 1
        return line

    def forget(self, owes: Callable[[L], float]) -> None:
        """Drop idle tenants that owe nothing, when many have come since the last look: O(log n) a tenant, amortised.

        owes : service that a tenant has had beyond what one that nobody remembers is taken to have had
        """
        if len(self.by_name) < self._look_at:
            return
        idle = sorted((line for line in self.by_name.values() if not line.asks and owes(line) > 0), key=owes)
        kept = set(idle[-_MOST:])
        self.by_name = {name: line for name, line in self.by_name.items() if line.asks or line in kept}
        self._look_at = max(_REMEMBERED, 2 * len(self.by_name))

    def asks(self) -> list[Ask]:
        """All that wait, in the order of pushes."""
        placed = [(place, ask) for line in self.by_name.values() for ask, place in line.asks.items()]
        return [ask for _, ask in sorted(placed, key=lambda pair: pair[0])]
