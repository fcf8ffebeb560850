"""One tick of the paging machine: what the link frees, first tokens, growth (or the crash), last tokens, arrivals, SLA limits; in this order."""

from __future__ import annotations

from inferencegym.engine.paging.lists import finish_add, idle_add, queue_add, tower_add
from inferencegym.engine.paging.memory import (
    ACTIVE,
    ACTIVE_TOWER,
    ADMITTED,
    IDLE_GPU,
    IDLE_TOWER,
    MISSED,
    TURNED_AWAY,
    WAITING,
    RowAt,
    asked_at,
    finish_at,
    live_at,
    phase_at,
    ready_at,
    recent_at,
    tier_at,
    transfer_at,
)
from inferencegym.engine.paging.moves import blocks_of, deactivate, miss
from inferencegym.ground.jit import kernel


@kernel
def pass_tick(s: RowAt) -> bool:
    """A tick passes; False if a request needed a block and none was free."""
    s["tick"] += 1
    tick = s["tick"]
    while s["transfer_len"] > 0 and transfer_at(s, s["transfer_head"])["done"] <= tick:
        transfer = transfer_at(s, s["transfer_head"])
        s["gpu_used"] -= transfer["gpu"]
        s["cpu_used"] -= transfer["cpu"]
        s["transfer_head"] += 1
        if s["transfer_head"] == s["max_transfers"]:
            s["transfer_head"] = 0
        s["transfer_len"] -= 1
    _start_decodes(s, tick)
    growth = phase_at(s, tick % s["block_tokens"])["bits"]
    if growth > s["gpu_blocks"] - s["gpu_used"]:
        return False
    s["gpu_used"] += growth
    s["tokens"] += tier_at(s, 0)["active"] + tier_at(s, 1)["active"]
    s["progress"] += s["active_weight"]
    _finish(s, tick)
    arrive(s)
    for tier in range(2):
        _check_sla(s, tier)
    s["recorded"] = tick
    recent_at(s, tick)["bits"] = s["gpu_used"]
    return True


@kernel
def _start_decodes(s: RowAt, tick: int) -> None:
    following = ready_at(s, tick)["id"]
    while following:
        i = following - 1
        r = live_at(s, i)
        following = r["next"]
        asked = asked_at(s, i)
        q = tier_at(s, asked["tier"])
        r["state"] = ACTIVE
        q["loading"] -= 1
        q["active"] += 1
        if not r["flags"] & MISSED:
            s["active_weight"] += q["weight"]
        phase_at(s, (tick - r["context"]) % s["block_tokens"])["bits"] += 1
        tower_add(s, ACTIVE_TOWER + asked["tier"], i, r["context"] - tick + s["horizon"])
        finish_add(s, tick + asked["output"] - r["produced"] - 1, i)


@kernel
def _finish(s: RowAt, tick: int) -> None:
    following = finish_at(s, tick)["id"]
    while following:
        i = following - 1
        r = live_at(s, i)
        following = r["next"]
        asked = asked_at(s, i)
        tier = asked["tier"]
        q = tier_at(s, tier)
        deactivate(s, tier, i, r["context"] + tick - r["ready"] + 1)
        r["state"] = IDLE_GPU
        r["since"] = tick
        idle_add(s, tier, i, blocks_of(s, r["context"]))
        tower_add(s, IDLE_TOWER + tier, i, r["context"])
        s["efficiency"] += asked["output"] / (tick - asked["tick"])
        s["completed"] += 1
        if not r["flags"] & MISSED:
            s["done_weight"] += asked["output"] * q["weight"]
            s["in_sla"] += 1


@kernel
def arrive(s: RowAt) -> None:
    """Whoever comes at this tick queues or finds no seat."""
    while s["next_arrival"] < s["requests"] and asked_at(s, s["next_arrival"])["tick"] <= s["tick"]:
        i = s["next_arrival"]
        s["next_arrival"] += 1
        asked = asked_at(s, i)
        q = tier_at(s, asked["tier"])
        s["arrived"] += 1
        if asked["parent"] >= 0:
            s["returns"] += 1
        r = live_at(s, i)
        if q["queue_len"] >= q["seats"]:
            r["state"] = TURNED_AWAY
            s["lost"] += 1
            s["turned_away"] += 1
        else:
            r["state"] = WAITING
            r["since"] = s["tick"]
            queue_add(s, asked["tier"], i)


@kernel
def _check_sla(s: RowAt, tier: int) -> None:
    """Whoever arrived `sla` + 1 ticks ago and still waits for the first time has missed it. Walks the scenario once."""
    q = tier_at(s, tier)
    if q["sla"] == 0:
        return
    last = s["tick"] - q["sla"] - 1
    while q["sla_cursor"] < s["next_arrival"]:
        i = q["sla_cursor"]
        asked = asked_at(s, i)
        if asked["tick"] > last:
            return
        r = live_at(s, i)
        if asked["tier"] == tier and r["state"] == WAITING and not r["flags"] & ADMITTED:
            miss(s, i)
        q["sla_cursor"] += 1
