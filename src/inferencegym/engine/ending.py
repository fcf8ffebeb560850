"""The end of a request: its record is written, and the requests that waited for it learn when they are due. Times in picoseconds."""

from __future__ import annotations

from inferencegym.engine.memory import Asked, State, pending_at, record_at, row_at, slot_at
from inferencegym.ground.jit import kernel


@kernel
def _due_before(s: State, a: int, b: int) -> bool:
    if pending_at(s, a)["key"] != pending_at(s, b)["key"]:
        return pending_at(s, a)["key"] < pending_at(s, b)["key"]
    return pending_at(s, a)["row"] < pending_at(s, b)["row"]


@kernel
def _swap_pending(s: State, a: int, b: int) -> None:
    pending_at(s, a)["key"], pending_at(s, b)["key"] = pending_at(s, b)["key"], pending_at(s, a)["key"]
    pending_at(s, a)["row"], pending_at(s, b)["row"] = pending_at(s, b)["row"], pending_at(s, a)["row"]


@kernel
def _push_pending(s: State, key: int, row: int) -> None:
    i = s["pending_len"]
    s["pending_len"] = i + 1
    pending_at(s, i)["key"] = key
    pending_at(s, i)["row"] = row
    while i > 0 and _due_before(s, i, (i - 1) >> 1):
        _swap_pending(s, i, (i - 1) >> 1)
        i = (i - 1) >> 1


@kernel
def pop_pending(s: State) -> None:
    """Take the closed-loop request that is due first off the heap."""
    n = s["pending_len"] - 1
    s["pending_len"] = n
    _swap_pending(s, 0, n)
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and _due_before(s, child + 1, child):
            child += 1
        if not _due_before(s, child, i):
            break
        _swap_pending(s, i, child)
        i = child


@kernel
def wake(s: State, w: Asked, row: int, at_ps: int) -> None:
    """Requests that follow `row` are due a think time after its end."""
    child = row_at(w, row)["child"]
    while child >= 0:
        _push_pending(s, at_ps + row_at(w, child)["think_ps"], child)
        child = row_at(w, child)["sibling"]


@kernel
def end(s: State, w: Asked, r: int, slot: int, at_ps: int, outcome: int) -> None:
    """Write the record of a request that ends on replica r. `out` has room (the loop sees to it)."""
    me = slot_at(s, r, slot)
    record = record_at(s, s["out_len"])
    s["out_len"] += 1
    s["ended"] += 1
    record["arrival_ps"] = me["arrival_ps"]
    record["scheduled_ps"] = me["scheduled_ps"]
    record["first_ps"] = me["first_ps"]
    record["finish_ps"] = at_ps
    record["row"] = me["row"]
    record["output"] = me["generated"]
    record["cached"] = me["cached"]
    record["preemptions"] = me["preemptions"]
    record["swaps"] = me["swaps"]
    record["replica"] = r
    record["outcome"] = outcome
    wake(s, w, me["row"], at_ps)


@kernel
def turn_away(s: State, w: Asked, row: int, at_ps: int, outcome: int) -> None:
    """Write the record of a request that was refused at the door."""
    record = record_at(s, s["out_len"])
    s["out_len"] += 1
    s["ended"] += 1
    record["arrival_ps"] = at_ps
    record["scheduled_ps"] = -1
    record["first_ps"] = -1
    record["finish_ps"] = at_ps
    record["row"] = row
    record["output"] = 0
    record["cached"] = 0
    record["preemptions"] = 0
    record["swaps"] = 0
    record["replica"] = -1
    record["outcome"] = outcome
    wake(s, w, row, at_ps)
