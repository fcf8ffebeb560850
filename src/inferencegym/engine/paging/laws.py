"""The laws of the paging machine, checked from the requests up: blocks and requests are conserved, counts and sums are what they count.

Slow on purpose (it looks at every request); tests call it after every step.
"""

from __future__ import annotations

import numpy as np

from inferencegym.engine.memory import Arena
from inferencegym.engine.paging.memory import (
    ACTIVE,
    IDLE_CPU,
    IDLE_GPU,
    LIVE,
    LOADING,
    MISSED,
    SWAPPED,
    TIER,
    TOWER,
    TRANSFER,
    UNSEEN,
    WAITING,
    part,
    scalars,
)


def broken_laws(arena: Arena, row: int) -> list[str]:
    """The laws that a row breaks, in words; none, unless the machine is wrong. A row that has crashed is not looked at."""
    s = scalars(arena, row)
    if s["ended"] == 2:
        return []
    n, tick = int(s["requests"]), int(s["tick"])
    live = part(arena, row, "live_at", LIVE, int(s["capacity"]))[:n]
    tiers = part(arena, row, "tiers_at", TIER, 2)
    towers = part(arena, row, "towers_at", TOWER, 4)
    state, active = live["state"], live["state"] == ACTIVE
    elapsed = np.where(active, tick - live["ready"] + 1, 0)
    context = live["context"] + elapsed
    size = -(-context // int(s["block_tokens"]))
    ring = part(arena, row, "transfers_at", TRANSFER, int(s["max_transfers"]))
    pending = ring[(int(s["transfer_head"]) + np.arange(int(s["transfer_len"]))) % len(ring)]
    on_gpu = active | (state == LOADING) | (state == IDLE_GPU)
    on_cpu = (state == IDLE_CPU) | ((state == WAITING) & (live["flags"] & SWAPPED > 0))
    ended = s["completed"] + s["rejected"] + s["turned_away"]
    laws = {
        "GPU blocks are conserved": s["gpu_used"] == size[on_gpu].sum() + pending["gpu"].sum(),
        "CPU blocks are conserved": s["cpu_used"] == size[on_cpu].sum() + pending["cpu"].sum(),
        "no more GPU blocks than there are": 0 <= s["gpu_used"] <= s["gpu_blocks"],
        "no more CPU blocks than there are": 0 <= s["cpu_used"] <= s["cpu_blocks"],
        "requests are conserved": s["arrived"] == ended + ((state == WAITING) | (state == LOADING) | active).sum(),
        "whoever has been seen has arrived": s["arrived"] == (state != UNSEEN).sum(),
        "tokens are conserved": s["tokens"] == (live["produced"] + elapsed).sum(),
        "queues hold those who wait": tiers["queue_len"].sum() == (state == WAITING).sum(),
        "active requests are counted": tiers["active"].sum() == active.sum() == towers["count"][2:].sum(),
        "idle caches are counted": tiers["idle_count"].sum() == (state == IDLE_GPU).sum() == towers["count"][:2].sum(),
        "idle blocks are counted": tiers["idle_blocks"].sum() == size[state == IDLE_GPU].sum(),
        "misses are counted": s["sla_missed"] == (live["flags"] & MISSED > 0).sum(),
        "transfers end in order": bool(np.all(np.diff(pending["done"]) >= 0)),
    }
    return [law for law, holds in laws.items() if not holds]
