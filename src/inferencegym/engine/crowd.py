"""The crowd: all decodes of a replica move together, one token a step, so they are kept as sums and cost nothing a step.

A member's `computed` and `generated` are those of the turn it joined; each step is one turn. Its finish is a heap key
(turn, seat), its next block a bin of a histogram. Whoever needs looking at alone (a prefill, a request that has just come
back) stands in `picked`, in running order. When a step would treat decodes unequally (no room for all, a budget below their number,
speculation) the crowd is scattered into individuals and gathered again later; both cost one pass over the running list.
"""

from __future__ import annotations

from inferencegym.engine.codes import Order, Phase, Scheduler
from inferencegym.engine.ledger import blocks_for
from inferencegym.engine.memory import SEAT_BITS, State, core_at, crossing_at, fin_at, picked_at, slot_at, tenant_at
from inferencegym.ground.jit import kernel

_VTC = int(Order.VTC)
_PADDING = int(Phase.PADDING)
_SARATHI = int(Scheduler.SARATHI)
_FREE = int(Phase.FREE)
_SEAT_MASK = (1 << SEAT_BITS) - 1


# --- the request table and the running list ---------------------------------------------------------------------------


@kernel
def has_slot(s: State, r: int) -> bool:
    """Whether one more request fits into the table of replica r."""
    return core_at(s, r)["free_slot"] >= 0 or core_at(s, r)["slots_used"] < s["capacity"]


@kernel
def take_slot(s: State, r: int) -> int:
    """A free slot; the caller has asked `has_slot`."""
    core = core_at(s, r)
    slot = core["free_slot"]
    if slot >= 0:
        core["free_slot"] = slot_at(s, r, slot)["next"]
    else:
        slot = core["slots_used"]
        core["slots_used"] += 1
    return slot


@kernel
def drop_slot(s: State, r: int, slot: int) -> None:
    """Give a slot back."""
    slot_at(s, r, slot)["state"] = _FREE
    slot_at(s, r, slot)["next"] = core_at(s, r)["free_slot"]
    core_at(s, r)["free_slot"] = slot


@kernel
def run_append(s: State, r: int, slot: int) -> None:
    """Seat a request at the end of the running list."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    tail = core["run_tail"]
    me["prev"] = tail
    me["next"] = -1
    if tail >= 0:
        slot_at(s, r, tail)["next"] = slot
    else:
        core["run_head"] = slot
    core["run_tail"] = slot
    core["running"] += 1
    me["seat"] = core["next_seat"] & _SEAT_MASK
    core["next_seat"] += 1


@kernel
def run_remove(s: State, r: int, slot: int) -> None:
    """Take a request out of the running list."""
    core = core_at(s, r)
    before = slot_at(s, r, slot)["prev"]
    after = slot_at(s, r, slot)["next"]
    if before >= 0:
        slot_at(s, r, before)["next"] = after
    else:
        core["run_head"] = after
    if after >= 0:
        slot_at(s, r, after)["prev"] = before
    else:
        core["run_tail"] = before
    core["running"] -= 1


@kernel
def decodes(s: State, r: int, slot: int) -> bool:
    """Whether an individual's next token needs no more than one step."""
    me = slot_at(s, r, slot)
    return me["generated"] >= 1 and me["computed"] == me["prompt"] + me["generated"] - 1


# --- the heap of finish turns -----------------------------------------------------------------------------------------


@kernel
def _fin_push(s: State, r: int, key: int, slot: int) -> None:
    i = core_at(s, r)["fin_len"]
    core_at(s, r)["fin_len"] = i + 1
    while i > 0:
        parent = (i - 1) >> 1
        if key >= fin_at(s, r, parent)["key"]:
            break
        fin_at(s, r, i)["key"] = fin_at(s, r, parent)["key"]
        fin_at(s, r, i)["slot"] = fin_at(s, r, parent)["slot"]
        i = parent
    fin_at(s, r, i)["key"] = key
    fin_at(s, r, i)["slot"] = slot


@kernel
def fin_sink(s: State, r: int, n: int, i: int, key: int, slot: int) -> None:
    """Put a member into the hole at place i of the heap of n, or below it: members that finish sooner move up."""
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and fin_at(s, r, child + 1)["key"] < fin_at(s, r, child)["key"]:
            child += 1
        if key <= fin_at(s, r, child)["key"]:
            break
        fin_at(s, r, i)["key"] = fin_at(s, r, child)["key"]
        fin_at(s, r, i)["slot"] = fin_at(s, r, child)["slot"]
        i = child
    fin_at(s, r, i)["key"] = key
    fin_at(s, r, i)["slot"] = slot


@kernel
def fin_pop(s: State, r: int) -> int:
    """Take the member that finishes first out of the heap; returns its slot."""
    top = fin_at(s, r, 0)["slot"]
    n = core_at(s, r)["fin_len"] - 1
    core_at(s, r)["fin_len"] = n
    fin_sink(s, r, n, 0, fin_at(s, r, n)["key"], fin_at(s, r, n)["slot"])
    return top


@kernel
def next_finish_turn(s: State, r: int) -> int:
    """Turn after whose step the first member finishes, or a very large number."""
    if core_at(s, r)["fin_len"] == 0:
        return 1 << 60
    return fin_at(s, r, 0)["key"] >> SEAT_BITS


# --- joining and leaving ----------------------------------------------------------------------------------------------


@kernel
def reserves(scheduler: int) -> bool:
    """Whether a scheduler reserves a request's blocks for its whole life at admission (orca, static, llamacpp)."""
    return scheduler > _SARATHI


@kernel
def in_step(s: State, r: int, slot: int) -> bool:
    """Whether an individual that decodes is like the crowd: just emitted a token, holds no look-ahead blocks."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    if me["last_ps"] != core["now_ps"]:
        return False  # it was passed over, or has just recomputed its prompt: its next gap is its own
    return reserves(core["scheduler"]) or me["blocks"] == blocks_for(me["computed"], core["block_size"])


@kernel
def join(s: State, r: int, slot: int) -> None:
    """An individual that decodes becomes a member of the crowd, as of the current turn."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    me["in_crowd"] = 1
    me["grant"] = 0
    me["turn"] = core["turn"]
    core["decodes"] += 1
    core["context"] += me["computed"] + 1
    if not reserves(core["scheduler"]):
        size = core["block_size"]
        crossing_at(s, r, (core["turn"] - me["computed"]) % size)["decodes"] += 1
    if me["state"] == _PADDING:
        core["padding"] += 1
    else:
        finish = core["turn"] + me["target"] - me["generated"]
        _fin_push(s, r, (finish << SEAT_BITS) | me["seat"], slot)
        if core["order"] == _VTC:
            tenant_at(s, r, me["tenant"])["decodes"] += 1


@kernel
def settle(s: State, r: int, slot: int) -> None:
    """Bring a member's own numbers up to the current turn (it stays a member)."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    turns = core["turn"] - me["turn"]
    me["computed"] += turns
    if me["state"] != _PADDING:
        me["generated"] += turns
    me["turn"] = core["turn"]
    me["last_ps"] = core["now_ps"]
    if not reserves(core["scheduler"]):
        me["blocks"] = blocks_for(me["computed"], core["block_size"])


@kernel
def leave(s: State, r: int, slot: int) -> None:
    """A settled member that has finished leaves the crowd (it is out of the heap already)."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    me["in_crowd"] = 0
    core["decodes"] -= 1
    core["context"] -= me["computed"] + 1
    if not reserves(core["scheduler"]):
        crossing_at(s, r, (me["turn"] - me["computed"]) % core["block_size"])["decodes"] -= 1
    if core["order"] == _VTC:
        tenant_at(s, r, me["tenant"])["decodes"] -= 1


@kernel
def scatter(s: State, r: int) -> None:
    """Make every member of the crowd an individual again."""
    core = core_at(s, r)
    if core["crowd"] == 0:
        return
    slot = core["run_head"]
    while slot >= 0:
        me = slot_at(s, r, slot)
        if me["in_crowd"] == 1:
            settle(s, r, slot)
            me["in_crowd"] = 0
            me["grant"] = 0
        slot = me["next"]
    core["crowd"] = 0
    core["decodes"] = 0
    core["context"] = 0
    core["padding"] = 0
    core["fin_len"] = 0
    core["picked_len"] = 0
    for i in range(s["block_size"]):
        crossing_at(s, r, i)["decodes"] = 0
    for tenant in range(s["n_tenants"]):
        tenant_at(s, r, tenant)["decodes"] = 0


@kernel
def gather(s: State, r: int) -> None:
    """Form the crowd again, right after a step, if all decodes are in step and hold just the blocks they need."""
    core = core_at(s, r)
    if core["crowd"] == 1 or core["speculation_depth"] > 0:
        return
    slot = core["run_head"]
    while slot >= 0:
        me = slot_at(s, r, slot)
        if me["state"] != _PADDING and decodes(s, r, slot) and not in_step(s, r, slot):
            return
        slot = me["next"]
    core["crowd"] = 1
    core["picked_len"] = 0
    slot = core["run_head"]
    while slot >= 0:
        me = slot_at(s, r, slot)
        if me["state"] == _PADDING or decodes(s, r, slot):
            join(s, r, slot)
        else:
            me["grant"] = 0
            picked_at(s, r, core["picked_len"])["slot"] = slot
            core["picked_len"] += 1
        slot = me["next"]
