"""A request whose caller goes away: its seat, blocks and place in the queue are free at once, between two steps or in the middle of one.

Rules: docs/scheduling.md, section 14. A step in flight takes as long as it was planned to, and makes nothing for whoever has left. Times in picoseconds.
"""

from __future__ import annotations

from inferencegym.engine.codes import Ending, Order, Phase, Scheduler
from inferencegym.engine.crowd import drop_slot, fin_sink, leave, reserves, run_remove, settle
from inferencegym.engine.ending import end
from inferencegym.engine.ledger import blocks_for, disown, release
from inferencegym.engine.memory import (
    Asked,
    State,
    core_at,
    fin_at,
    heap_at,
    picked_at,
    place_at,
    slot_at,
    tenant_at,
    wire_at,
)
from inferencegym.engine.order import goes_before, sink
from inferencegym.engine.wire import ready_before, swap_wire
from inferencegym.ground.jit import kernel

_ABORTED = int(Ending.ABORTED)
_FREE, _RUNNING, _SWAPPED = int(Phase.FREE), int(Phase.RUNNING), int(Phase.SWAPPED)
_ON_WIRE, _PADDING = int(Phase.ON_WIRE), int(Phase.PADDING)
_FCFS, _VTC = int(Order.FCFS), int(Order.VTC)
_STATIC, _LLAMACPP = int(Scheduler.STATIC), int(Scheduler.LLAMACPP)


@kernel
def find_request(s: State, row: int) -> tuple[int, int]:
    """(replica, slot) of a request that has arrived and not ended, or (-1, -1)."""
    for r in range(s["replicas"]):
        for slot in range(core_at(s, r)["slots_used"]):
            me = slot_at(s, r, slot)
            if me["row"] == row and me["state"] != _FREE and me["state"] != _PADDING:
                return r, slot
    return -1, -1


@kernel
def abort(s: State, w: Asked, r: int, slot: int, at_ps: int) -> None:
    """End a live request at `at_ps`; its record says ABORTED and how many tokens it got."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    core["unseen"] += 1  # the step in flight was planned with it
    stays = False
    if me["state"] == _RUNNING:
        stays = _stand_up(s, w, r, slot, at_ps)
    elif me["state"] == _ON_WIRE:
        _recall(s, r, slot)
        release(s, w, r, slot, False)
    else:
        _unqueue(s, w, r, slot)
        disown(s, r, slot)
        if me["state"] == _SWAPPED:
            core["cpu_free"] += blocks_for(me["computed"], core["block_size"])
    end(s, w, r, slot, at_ps, _ABORTED)
    if stays:
        me["state"] = _PADDING
    else:
        drop_slot(s, r, slot)


@kernel
def _stand_up(s: State, w: Asked, r: int, slot: int, at_ps: int) -> bool:
    """Take a running request's seat and blocks; True if it has to stay as padding (static batching)."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    padding = core["scheduler"] == _STATIC and (me["generated"] > 0 or me["in_crowd"] == 1)
    if me["in_crowd"] == 1:
        settle(s, r, slot)
        if core["step_end_ps"] >= 0 and not reserves(core["scheduler"]):
            me["blocks"] = blocks_for(
                me["computed"] + 1, core["block_size"]
            )  # the step in flight took one where it had to
        _leave_heap_of_finishes(s, r, slot)
        if padding:
            core["padding"] += 1
            if core["order"] == _VTC:
                tenant_at(s, r, me["tenant"])["decodes"] -= 1
        else:
            leave(s, r, slot)
    elif core["crowd"] == 1:
        _unpick(s, r, slot)
    if padding:
        return True
    me["grant"] = 0
    run_remove(s, r, slot)
    if not reserves(core["scheduler"]):
        release(s, w, r, slot, False)
        return False
    core["blank"] += me["blocks"]
    me["blocks"] = 0
    if core["scheduler"] == _LLAMACPP:
        here = place_at(s, r, me["place"])
        here["taken"] = 0
        here["row"] = me["row"]
        here["blocks"] = me["computed"] // core["block_size"]
        here["used_ps"] = at_ps
    return False


@kernel
def _unpick(s: State, r: int, slot: int) -> None:
    """Take an individual out of the list of those looked at one by one; their order stays."""
    core = core_at(s, r)
    kept = 0
    for i in range(core["picked_len"]):
        other = picked_at(s, r, i)["slot"]
        if other != slot:
            picked_at(s, r, kept)["slot"] = other
            kept += 1
    core["picked_len"] = kept


@kernel
def _leave_heap_of_finishes(s: State, r: int, slot: int) -> None:
    n = core_at(s, r)["fin_len"] - 1
    i = 0
    while fin_at(s, r, i)["slot"] != slot:
        i += 1
    core_at(s, r)["fin_len"] = n
    key = fin_at(s, r, n)["key"]
    last = fin_at(s, r, n)["slot"]
    if i == n:
        return
    while i > 0 and key < fin_at(s, r, (i - 1) >> 1)["key"]:
        parent = (i - 1) >> 1
        fin_at(s, r, i)["key"] = fin_at(s, r, parent)["key"]
        fin_at(s, r, i)["slot"] = fin_at(s, r, parent)["slot"]
        i = parent
    fin_sink(s, r, n, i, key, last)


@kernel
def _unqueue(s: State, w: Asked, r: int, slot: int) -> None:
    """Take a waiting request out of the queue, wherever it stands."""
    core = core_at(s, r)
    core["waiting"] -= 1
    if core["order"] != _FCFS and core["order"] != _VTC:
        _leave_heap_of_waiting(s, w, r, slot)
        return
    before = slot_at(s, r, slot)["prev"]
    after = slot_at(s, r, slot)["next"]
    if before < 0 and after < 0 and core["order"] == _VTC:
        core["vtc_last_left"] = slot_at(s, r, slot)["tenant"]
    if before >= 0:
        slot_at(s, r, before)["next"] = after
    elif core["order"] == _FCFS:
        core["wait_head"] = after
    else:
        tenant_at(s, r, slot_at(s, r, slot)["tenant"])["head"] = after
    if after >= 0:
        slot_at(s, r, after)["prev"] = before
    elif core["order"] == _FCFS:
        core["wait_tail"] = before
    else:
        tenant_at(s, r, slot_at(s, r, slot)["tenant"])["tail"] = before


@kernel
def _leave_heap_of_waiting(s: State, w: Asked, r: int, slot: int) -> None:
    n = core_at(s, r)["heap_len"] - 1
    i = 0
    while heap_at(s, r, i)["slot"] != slot:
        i += 1
    core_at(s, r)["heap_len"] = n
    last = heap_at(s, r, n)["slot"]
    if i == n:
        return
    while i > 0 and goes_before(s, w, r, last, heap_at(s, r, (i - 1) >> 1)["slot"]):
        heap_at(s, r, i)["slot"] = heap_at(s, r, (i - 1) >> 1)["slot"]
        i = (i - 1) >> 1
    sink(s, w, r, n, i, last)


@kernel
def _recall(s: State, r: int, slot: int) -> None:
    """Take a transfer off the wire; what has been sent of it has kept the link busy all the same."""
    n = s["wire_len"] - 1
    i = 0
    while wire_at(s, i)["slot"] != slot or wire_at(s, i)["replica"] != r:
        i += 1
    s["wire_len"] = n
    if i == n:
        return
    swap_wire(s, i, n)
    while i > 0 and ready_before(s, i, (i - 1) >> 1):
        swap_wire(s, i, (i - 1) >> 1)
        i = (i - 1) >> 1
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and ready_before(s, child + 1, child):
            child += 1
        if not ready_before(s, child, i):
            break
        swap_wire(s, i, child)
        i = child
