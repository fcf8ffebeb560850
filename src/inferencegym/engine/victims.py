"""Who makes room when blocks run out, and whether its KV is thrown away or copied to the CPU. Rules: docs/scheduling.md, sections 4 and 8."""

from __future__ import annotations

from inferencegym.engine.codes import Phase, Preemption, Victims
from inferencegym.engine.crowd import run_remove
from inferencegym.engine.latency import chunk_ps
from inferencegym.engine.ledger import blocks_for, release, swap_out_blocks
from inferencegym.engine.memory import Asked, State, Times, chunk_coefficients, core_at, slot_at, table_ps
from inferencegym.engine.order import goes_before, push
from inferencegym.ground.jit import kernel

_LIFO = int(Victims.LIFO)
_RECOMPUTE, _SWAP = int(Preemption.RECOMPUTE), int(Preemption.SWAP)
_WAITING, _SWAPPED = int(Phase.WAITING), int(Phase.SWAPPED)


@kernel
def victim(s: State, w: Asked, r: int) -> int:
    """The running request to preempt next; the running list must not be empty, nor the crowd formed."""
    worst = core_at(s, r)["run_tail"]
    if core_at(s, r)["victims"] == _LIFO:
        return worst
    slot = slot_at(s, r, worst)["prev"]
    while slot >= 0:
        if goes_before(s, w, r, worst, slot):
            worst = slot
        slot = slot_at(s, r, slot)["prev"]
    return worst


@kernel
def _swaps(s: State, t: Times, r: int, computed: int) -> bool:
    """Whether a victim's KV is worth copying, and the CPU tier has room."""
    core = core_at(s, r)
    if core["preemption"] == _RECOMPUTE or computed == 0:
        return False
    blocks = blocks_for(computed, core["block_size"])
    if blocks > core["cpu_free"]:
        return False
    if core["preemption"] == _SWAP:
        return True
    there_and_back = 2 * (t["swap_ps_per_block"] * blocks + t["swap_fixed_ps"])
    again = chunk_ps(chunk_coefficients(t), computed, 0) + table_ps(
        t["lin_at"], t["lin_len"], min(computed, t["lin_len"] - 1)
    )
    return there_and_back < again


@kernel
def preempt(s: State, w: Asked, t: Times, r: int, slot: int) -> int:
    """Take a request's seat and blocks and put it at the front of the queue; returns the tokens this plan had granted it."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    granted = me["grant"]
    me["grant"] = 0
    run_remove(s, r, slot)
    core["preempted"] = 1
    core["preemptions"] += 1
    me["preemptions"] += 1
    if _swaps(s, t, r, me["computed"]):
        blocks = blocks_for(me["computed"], core["block_size"])
        swap_out_blocks(s, r, slot)
        core["cpu_free"] -= blocks
        core["swap_blocks"] += blocks
        core["swap_moves"] += 1
        core["swaps"] += 1
        core["swapped_blocks"] += blocks
        me["swaps"] += 1
        me["state"] = _SWAPPED
    else:
        release(s, w, r, slot, True)
        me["computed"] = 0
        me["private"] = 0
        me["state"] = _WAITING
    push(s, w, r, slot, True)
    return granted
