"""Turning the knobs of a running engine inside Numba: seats, blocks, drafts, order; and a restart with other weights or another split.

The same rules as `Engine.change`, for many engines in one call. A restart (`restart`) keeps every request and loses all KV: what ran
waits again in order of arrival, with the text it has, and the replicas do nothing until the pause is over. Times in picoseconds.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from inferencegym.engine.codes import Order, Phase, Role, Victims
from inferencegym.engine.crowd import settle, take_slot
from inferencegym.engine.ledger import blocks_for
from inferencegym.engine.memory import (
    GAP_BINS,
    SLOT,
    Asked,
    Ints,
    State,
    core_at,
    crossing_at,
    gap_at,
    index_at,
    slot_at,
    tenant_at,
)
from inferencegym.engine.order import push
from inferencegym.engine.router import load
from inferencegym.engine.wire import copy_request
from inferencegym.ground.jit import kernel

#: One deployment as it can be steered (`VARIANT`): replicas that prefill, their blocks, step times.
Variant: TypeAlias = Any

VARIANT = np.dtype(
    [
        ("times_at", np.int64), ("kv_blocks", np.int64), ("prefill_replicas", np.int64),
        ("weights_gb", np.float64), ("watermark", np.float64),
    ],
    align=True,
)  # fmt: skip

_FCFS, _PRIORITY = int(Order.FCFS), int(Order.PRIORITY)
_LIFO, _RANK = int(Victims.LIFO), int(Victims.RANK)
_FREE, _WAITING, _RUNNING = int(Phase.FREE), int(Phase.WAITING), int(Phase.RUNNING)
_SWAPPED, _CARRIED = int(Phase.SWAPPED), int(Phase.CARRIED)
_BOTH, _PREFILL, _DECODE = int(Role.BOTH), int(Role.PREFILL), int(Role.DECODE)


@kernel
def set_pool(s: State, r: int, variant: Variant, fraction: float) -> None:
    """Let replica r use this share of its blocks; a pool below its use pays its debt by preemption in the next plan."""
    core = core_at(s, r)
    pool = max(1, int(variant["kv_blocks"] * fraction))
    core["blank"] += pool - core["pool_blocks"]
    core["pool_blocks"] = pool
    core["watermark_blocks"] = int(variant["watermark"] * pool)
    core["unseen"] += 1


@kernel
def set_seats(s: State, r: int, batch_cap: int) -> None:
    """Requests that may run at once on replica r; those above a lowered cap finish in peace."""
    core_at(s, r)["max_num_seqs"] = batch_cap
    core_at(s, r)["unseen"] += 1


@kernel
def set_drafts(s: State, r: int, depth: int) -> None:
    """Draft tokens a step."""
    core_at(s, r)["speculation_depth"] = depth
    core_at(s, r)["unseen"] += 1


@kernel
def set_order(s: State, w: Asked, r: int, by_priority: bool) -> None:
    """Order queue and victims by priority class, or by arrival; the queue is made anew."""
    core = core_at(s, r)
    core["order"] = _PRIORITY if by_priority else _FCFS
    core["victims"] = _RANK if by_priority else _LIFO
    core["unseen"] += 1
    waiting = np.empty(core["waiting"], np.int64)
    n = 0
    for slot in range(core["slots_used"]):
        state = slot_at(s, r, slot)["state"]
        if state == _WAITING or state == _SWAPPED or state == _CARRIED:
            waiting[n] = slot
            n += 1
    core["wait_head"] = -1
    core["wait_tail"] = -1
    core["waiting"] = 0
    core["heap_len"] = 0
    arrival_ps = np.empty(n, np.int64)
    rows = np.empty(n, np.int64)
    for i in range(n):
        arrival_ps[i] = slot_at(s, r, waiting[i])["arrival_ps"]
        rows[i] = slot_at(s, r, waiting[i])["row"]
    for i in by_arrival(arrival_ps, rows):
        push(s, w, r, waiting[i], False)


@kernel
def by_arrival(arrival_ps: Ints, rows: Ints) -> Ints:
    """Positions in order of (arrival, row)."""
    first = np.argsort(rows)
    return first[np.argsort(arrival_ps[first], kind="mergesort")]


@kernel
def restart(s: State, w: Asked, variant: Variant, fraction: float, ready_ps: int) -> None:
    """All replicas start again as `variant`, with this share of its blocks; the first plan comes at `ready_ps`, later than now. There is room."""
    prefill_replicas = variant["prefill_replicas"]
    total = 0
    for r in range(s["replicas"]):
        total += core_at(s, r)["slots_used"]
    kept = np.empty(total, SLOT)
    arrival_ps = np.empty(total, np.int64)
    rows = np.empty(total, np.int64)
    n = 0
    for r in range(s["replicas"]):
        core = core_at(s, r)
        for slot in range(core["slots_used"]):
            me = slot_at(s, r, slot)
            if me["state"] == _FREE:
                continue
            if me["state"] == _RUNNING:
                if me["in_crowd"] == 1:
                    settle(s, r, slot)
                me["preemptions"] += 1
                core["preemptions"] += 1
            elif me["state"] == _SWAPPED:
                core["cpu_free"] += blocks_for(me["computed"], core["block_size"])
            copy_request(kept[n], me)
            arrival_ps[n] = me["arrival_ps"]
            rows[n] = me["row"]
            n += 1
        _empty(s, r, ready_ps)
        set_pool(s, r, variant, fraction)
        core["unseen"] = 0
        core["role"] = _BOTH
        if prefill_replicas > 0:
            core["role"] = _PREFILL if r < prefill_replicas else _DECODE
    s["prefill_replicas"] = prefill_replicas
    s["wire_len"] = 0
    for i in by_arrival(arrival_ps[:n], rows[:n]):
        r = _new_home(s, kept[i]["first_ps"] >= 0)
        slot = take_slot(s, r)
        me = slot_at(s, r, slot)
        copy_request(me, kept[i])
        me["state"] = _WAITING
        me["computed"] = 0
        me["private"] = 0
        me["extent"] = -1
        me["last"] = -1
        me["shared"] = 0
        me["blocks"] = 0
        push(s, w, r, slot, False)


@kernel
def room_to_restart(s: State, prefill_replicas: int) -> bool:
    """Whether the tables of both pools can take the requests that would belong to them."""
    if prefill_replicas == 0:
        return True
    decoding = 0
    fresh = 0
    for r in range(s["replicas"]):
        for slot in range(core_at(s, r)["slots_used"]):
            me = slot_at(s, r, slot)
            if me["state"] != _FREE:
                if me["first_ps"] >= 0:
                    decoding += 1
                else:
                    fresh += 1
    capacity = s["capacity"]
    return fresh <= prefill_replicas * capacity and decoding <= (s["replicas"] - prefill_replicas) * capacity


@kernel
def _new_home(s: State, decoding: bool) -> int:
    """The least loaded replica of the pool a request belongs to."""
    first = 0
    last = s["replicas"]
    if s["prefill_replicas"] > 0:
        if decoding:
            first = s["prefill_replicas"]
        else:
            last = s["prefill_replicas"]
    best = first
    for r in range(first + 1, last):
        if load(s, r) < load(s, best):
            best = r
    return best


@kernel
def _empty(s: State, r: int, ready_ps: int) -> None:
    """Replica r holds no request and no KV; a step without tokens runs until `ready_ps`. Totals stay."""
    core = core_at(s, r)
    core["crowd"] = 1
    core["step_ps"] = 0
    core["step_end_ps"] = ready_ps
    core["link_free_ps"] = 0
    core["decodes"] = 0
    core["padding"] = 0
    core["context"] = 0
    core["fin_len"] = 0
    core["picked_len"] = 0
    core["running"] = 0
    core["waiting"] = 0
    core["heap_len"] = 0
    core["slots_used"] = 0
    core["run_head"] = -1
    core["run_tail"] = -1
    core["wait_head"] = -1
    core["wait_tail"] = -1
    core["free_slot"] = -1
    core["blank"] = core["pool_blocks"]
    core["cached_free"] = 0
    core["lru_head"] = -1
    core["lru_tail"] = -1
    core["free_node"] = -1
    core["nodes_used"] = 0
    core["swap_blocks"] = 0
    core["swap_moves"] = 0
    for i in range(core["block_size"]):
        crossing_at(s, r, i)["decodes"] = 0
    for i in range(s["index_size"]):
        index_at(s, r, i)["entry"] = 0
    for i in range(s["n_tenants"]):
        tenant_at(s, r, i)["decodes"] = 0
        tenant_at(s, r, i)["head"] = -1
        tenant_at(s, r, i)["tail"] = -1


@kernel
def gaps_now(s: State, counts: Ints) -> None:
    """Write the gaps counted so far, over all replicas, into int64[GAP_BINS]."""
    for i in range(GAP_BINS):
        counts[i] = gap_at(s, 0, i)["count"]
    for r in range(1, s["replicas"]):
        for i in range(GAP_BINS):
            counts[i] += gap_at(s, r, i)["count"]
