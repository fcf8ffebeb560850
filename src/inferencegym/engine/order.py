"""Who goes first among waiting requests. Smaller rank, sooner; ties go to the earlier row. Rules: docs/scheduling.md, section 9.

FCFS keeps a list through the slots' links, VTC one such list per tenant, the other orders a binary heap of slots. None reads the oracle.
"""

from __future__ import annotations

from inferencegym.engine.codes import Order
from inferencegym.engine.memory import Asked, State, core_at, heap_at, row_at, slot_at, tenant_at
from inferencegym.ground.jit import kernel

_FCFS, _PRIORITY, _AGING = int(Order.FCFS), int(Order.PRIORITY), int(Order.AGING)
_SJF, _EDF, _VTC = int(Order.SJF), int(Order.EDF), int(Order.VTC)


@kernel
def rank(s: State, w: Asked, r: int, slot: int) -> tuple[int, int]:
    """(first, second) key of a request; the row breaks what is left. Picoseconds, a priority or tokens, by order."""
    me = slot_at(s, r, slot)
    order = core_at(s, r)["order"]
    if order == _PRIORITY:
        return int(me["priority"]), int(me["arrival_ps"])
    if order == _AGING:
        return int(me["arrival_ps"] + me["priority"] * core_at(s, r)["aging_ps"]), 0
    if order == _SJF:
        # The prompt, not the answer: its true length is unknown in live traffic.
        return int(me["prompt"]), int(me["arrival_ps"])
    if order == _EDF:
        return int(me["arrival_ps"] + row_at(w, me["row"])["slo_ttft_ps"]), 0
    return int(me["arrival_ps"]), 0


@kernel
def goes_before(s: State, w: Asked, r: int, a: int, b: int) -> bool:
    """Whether slot a goes before slot b."""
    a1, a2 = rank(s, w, r, a)
    b1, b2 = rank(s, w, r, b)
    if a1 != b1:
        return a1 < b1
    if a2 != b2:
        return a2 < b2
    return slot_at(s, r, a)["row"] < slot_at(s, r, b)["row"]


# --- lists ------------------------------------------------------------------------------------------------------------


@kernel
def _link_back(s: State, r: int, slot: int, tail: int) -> None:
    slot_at(s, r, slot)["prev"] = tail
    slot_at(s, r, slot)["next"] = -1
    if tail >= 0:
        slot_at(s, r, tail)["next"] = slot


@kernel
def _link_front(s: State, r: int, slot: int, head: int) -> None:
    slot_at(s, r, slot)["prev"] = -1
    slot_at(s, r, slot)["next"] = head
    if head >= 0:
        slot_at(s, r, head)["prev"] = slot


@kernel
def _push_list(s: State, r: int, slot: int, front: bool) -> None:
    core = core_at(s, r)
    if front:
        _link_front(s, r, slot, core["wait_head"])
        core["wait_head"] = slot
        if core["wait_tail"] < 0:
            core["wait_tail"] = slot
    else:
        _link_back(s, r, slot, core["wait_tail"])
        core["wait_tail"] = slot
        if core["wait_head"] < 0:
            core["wait_head"] = slot


@kernel
def _push_tenant(s: State, r: int, slot: int, front: bool) -> None:
    queue = tenant_at(s, r, slot_at(s, r, slot)["tenant"])
    if front:
        _link_front(s, r, slot, queue["head"])
        queue["head"] = slot
        if queue["tail"] < 0:
            queue["tail"] = slot
    else:
        _link_back(s, r, slot, queue["tail"])
        queue["tail"] = slot
        if queue["head"] < 0:
            queue["head"] = slot


@kernel
def neediest_tenant(s: State, r: int) -> int:
    """Waiting tenant with the least counter (ties: lowest number), or -1."""
    best = -1
    for tenant in range(s["n_tenants"]):
        queue = tenant_at(s, r, tenant)
        if queue["head"] >= 0 and (best < 0 or queue["counter"] < tenant_at(s, r, best)["counter"]):
            best = tenant
    return best


@kernel
def lift(s: State, r: int, tenant: int) -> None:
    """A tenant that had nothing waiting does not bring old credit along (VTC)."""
    queue = tenant_at(s, r, tenant)
    if queue["head"] >= 0:
        return
    least = neediest_tenant(s, r)
    if least < 0:
        least = core_at(s, r)["vtc_last_left"]
    if least >= 0:
        queue["counter"] = max(queue["counter"], tenant_at(s, r, least)["counter"])


# --- heap -------------------------------------------------------------------------------------------------------------


@kernel
def _push_heap(s: State, w: Asked, r: int, slot: int) -> None:
    i = core_at(s, r)["heap_len"]
    core_at(s, r)["heap_len"] = i + 1
    while i > 0:
        parent = heap_at(s, r, (i - 1) >> 1)
        if not goes_before(s, w, r, slot, parent["slot"]):
            break
        heap_at(s, r, i)["slot"] = parent["slot"]
        i = (i - 1) >> 1
    heap_at(s, r, i)["slot"] = slot


@kernel
def sink(s: State, w: Asked, r: int, n: int, i: int, slot: int) -> None:
    """Put a request into the hole at place i of the heap of n, or below it: those that go before it move up."""
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and goes_before(s, w, r, heap_at(s, r, child + 1)["slot"], heap_at(s, r, child)["slot"]):
            child += 1
        if not goes_before(s, w, r, heap_at(s, r, child)["slot"], slot):
            break
        heap_at(s, r, i)["slot"] = heap_at(s, r, child)["slot"]
        i = child
    heap_at(s, r, i)["slot"] = slot


@kernel
def _pop_heap(s: State, w: Asked, r: int) -> None:
    n = core_at(s, r)["heap_len"] - 1
    core_at(s, r)["heap_len"] = n
    sink(s, w, r, n, 0, heap_at(s, r, n)["slot"])


# --- the queue --------------------------------------------------------------------------------------------------------


@kernel
def push(s: State, w: Asked, r: int, slot: int, front: bool) -> None:
    """Put a request into the queue; `front` (a preempted one) matters for FCFS and VTC, whose queues remember places."""
    order = core_at(s, r)["order"]
    core_at(s, r)["waiting"] += 1
    if order == _FCFS:
        _push_list(s, r, slot, front)
    elif order == _VTC:
        _push_tenant(s, r, slot, front)
    else:
        _push_heap(s, w, r, slot)


@kernel
def head(s: State, r: int) -> int:
    """The request to be admitted next, or -1."""
    core = core_at(s, r)
    if core["waiting"] == 0:
        return -1
    if core["order"] == _FCFS:
        return core["wait_head"]
    if core["order"] == _VTC:
        return tenant_at(s, r, neediest_tenant(s, r))["head"]
    return heap_at(s, r, 0)["slot"]


@kernel
def pop(s: State, w: Asked, r: int) -> None:
    """Take the head out of the queue."""
    core = core_at(s, r)
    slot = head(s, r)
    core["waiting"] -= 1
    after = slot_at(s, r, slot)["next"]
    if core["order"] == _FCFS:
        core["wait_head"] = after
        if after >= 0:
            slot_at(s, r, after)["prev"] = -1
        else:
            core["wait_tail"] = -1
    elif core["order"] == _VTC:
        tenant = slot_at(s, r, slot)["tenant"]
        queue = tenant_at(s, r, tenant)
        queue["head"] = after
        if after >= 0:
            slot_at(s, r, after)["prev"] = -1
        else:
            queue["tail"] = -1
            core["vtc_last_left"] = tenant
    else:
        _pop_heap(s, w, r)
