"""Which replica a request goes to. The router sees queues and caches as they are at that instant, nothing of the future."""

from __future__ import annotations

from inferencegym.engine.codes import Router
from inferencegym.engine.ledger import cached_run
from inferencegym.engine.memory import Asked, State, core_at
from inferencegym.ground.jit import kernel

_ROUND_ROBIN, _PREFIX = int(Router.ROUND_ROBIN), int(Router.PREFIX)


@kernel
def load(s: State, r: int) -> int:
    """Requests waiting or running on a replica."""
    return core_at(s, r)["waiting"] + core_at(s, r)["running"]


@kernel
def _least_loaded(s: State, first: int, last: int) -> int:
    best = first
    for r in range(first + 1, last):
        if load(s, r) < load(s, best):
            best = r
    return best


@kernel
def route(s: State, w: Asked, row: int) -> int:
    """Replica for a request that has just arrived (its turn is not taken yet, see `took`)."""
    last = s["replicas"]
    if s["prefill_replicas"] > 0:
        last = s["prefill_replicas"]
    if s["router"] == _ROUND_ROBIN:
        return s["turn_in"] % last
    idlest = _least_loaded(s, 0, last)
    if s["router"] != _PREFIX:
        return idlest
    limit = load(s, idlest) + s["affinity_slack"]
    best = -1
    best_run = -1
    for r in range(last):
        if load(s, r) <= limit:
            run = cached_run(s, w, r, row) if core_at(s, r)["prefix_caching"] == 1 else 0
            if run > best_run or (run == best_run and load(s, r) < load(s, best)):
                best = r
                best_run = run
    return best


@kernel
def route_decode(s: State) -> int:
    """Decode replica for a request whose KV has just arrived."""
    first = s["prefill_replicas"]
    last = s["replicas"]
    if s["router"] == _ROUND_ROBIN:
        return first + s["turn_decode"] % (last - first)
    return _least_loaded(s, first, last)
