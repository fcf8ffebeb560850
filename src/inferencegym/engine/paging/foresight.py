"""How one would manage the memory knowing the future: a rule that reads the oracle, and rollouts of it on many rows in one call.

Not a policy: policies see observations. Planners (envs.paging_planner) use it to say how much there is to win.

    price    least value per block-tick (1: the pool's mean, if all of an episode's value were spread over all its block-ticks)
             for which a request is let in
    margin   share of the pool that the memory in use may never touch, on the way that is known in advance
    target   share of the pool that is kept free of idle caches
    thrift   above 0.5: the largest idle cache goes, for most room per decision; else the one that will be missed least

Missed least are those whose user never returns, then the one whose user returns last; what will be used goes to the CPU.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inferencegym.engine.memory import Arena
from inferencegym.engine.paging.lists import tower_largest
from inferencegym.engine.paging.machine import advance, outcome_of
from inferencegym.engine.paging.memory import (
    ACTIVE_TOWER,
    IDLE_TOWER,
    MISSED,
    SWAPPED,
    UNSEEN,
    WAITING,
    RowAt,
    asked_at,
    batch_of,
    finish_at,
    live_at,
    phase_at,
    ready_at,
    row_at,
    tier_at,
    transfer_at,
)
from inferencegym.engine.paging.moves import blocks_of, cache_of, can_admit, can_collect, can_move_out, need
from inferencegym.ground.jit import kernel

Floats = npt.NDArray[np.float64]
NEVER = 1 << 30
_LOADING_AHEAD = 64  # ticks ahead in which loading requests are looked for
_CROWDED_CPU = 0.9


@kernel
def returns_at(s: RowAt, i: int) -> int:
    """Tick at which the user of idle cache i asks for it (now, if it waits already); NEVER if that does not happen."""
    child = asked_at(s, i)["child"]
    if child < 0:
        return NEVER
    state = live_at(s, child)["state"]
    if state == UNSEEN:
        return asked_at(s, child)["tick"]
    return s["tick"] if state == WAITING else NEVER


@kernel
def worth(s: RowAt, i: int) -> float:
    """Value per block-tick of serving a waiting request from now on, 1 being the pool's mean."""
    asked, r = asked_at(s, i), live_at(s, i)
    left = asked["output"] - r["produced"]
    value = s["latency_part"] * asked["output"] / (s["tick"] - asked["tick"] + left + 1)
    if not r["flags"] & MISSED:
        value += s["goodput_part"] * asked["output"] * tier_at(s, asked["tier"])["weight"]
    text = asked["prompt"] + r["produced"]
    fresh = 0 if r["flags"] & SWAPPED else text
    cache = cache_of(s, i)
    if cache >= 0:
        fresh = text - live_at(s, cache)["context"]
    ticks = left + fresh // s["prefill_rate"] + 1
    block_ticks = (text + left / 2) / s["block_tokens"] * ticks
    return value / block_ticks * s["gpu_blocks"] * s["horizon"]


@kernel
def fits_on(s: RowAt, i: int, most: float) -> bool:
    """Whether the memory in use stays within `most` blocks until waiting request i has ended, nobody else being let in."""
    now = s["tick"]
    running = tier_at(s, 0)["active"] + tier_at(s, 1)["active"]
    used = s["gpu_used"] - tier_at(s, 0)["idle_blocks"] - tier_at(s, 1)["idle_blocks"]
    at = s["transfer_head"]
    for _ in range(s["transfer_len"]):
        used -= transfer_at(s, at)["gpu"]
        at += 1
        if at == s["max_transfers"]:
            at = 0
    asked, r = asked_at(s, i), live_at(s, i)
    text = asked["prompt"] + r["produced"]
    used += blocks_of(s, text)
    if used > most:
        return False
    left = asked["output"] - r["produced"]
    end = min(now + left + text // s["prefill_rate"] + 1, s["horizon"])
    running += 1
    memory = float(used)
    for tick in range(now + 1, end + 1):
        if tick <= now + _LOADING_AHEAD:
            loading = ready_at(s, tick)["id"]
            while loading:
                running += 1
                loading = live_at(s, loading - 1)["next"]
        memory += running / s["block_tokens"]
        if memory > most:
            return False
        done = finish_at(s, tick)["id"]
        while done:
            ending = asked_at(s, done - 1)
            memory -= blocks_of(s, ending["prompt"] + ending["output"])
            running -= 1
            done = live_at(s, done - 1)["next"]
    return True


@kernel
def make_room(s: RowAt, at_once: bool, thrifty: bool) -> int:
    """The action that throws out the idle cache that will be missed least, or the largest if thrifty; -1 if there is none."""
    best, best_at, best_size = -1, -1, 0
    for kind in range(2):
        for tier in range(2):
            if tier_at(s, tier)["idle_count"] == 0:
                continue
            i = tower_largest(s, IDLE_TOWER + tier) if kind == 0 else tier_at(s, tier)["idle_head"] - 1
            at, context = returns_at(s, i), live_at(s, i)["context"]
            better = context > best_size if thrifty or at == best_at else at > best_at
            if better:
                best, best_at, best_size = 2 * kind + tier, at, context
    if best >= 0 and not at_once and best_at < NEVER and can_move_out(s, best_size):
        return best + 4
    return best


@kernel
def _preempt(s: RowAt) -> int:
    """Shred the largest, of free users if there are any."""
    for tier in range(2):
        if tower_largest(s, ACTIVE_TOWER + tier) >= 0:
            return 12 + tier
    return 17


@kernel
def choose(s: RowAt, price: float, margin: float, target: float, thrift: float) -> int:
    """The action of one who knows the future."""
    free = s["gpu_blocks"] - s["gpu_used"]
    growth = 0
    for ahead in range(1, 3):
        growth += phase_at(s, (s["tick"] + ahead) % s["block_tokens"])["bits"]
    if free < growth:
        action = make_room(s, True, True)
        return action if action >= 0 else _preempt(s)
    short = False
    for turn in range(2):
        tier = 1 - turn
        i = tier_at(s, tier)["queue_head"] - 1
        if i < 0:
            continue
        if worth(s, i) < price:
            return 10 + tier
        if fits_on(s, i, s["gpu_blocks"] * (1.0 - margin)):
            if can_admit(s, tier) and need(s, i) + growth <= free:
                return 8 + tier
            short = True
    if short or free < target * s["gpu_blocks"]:
        action = make_room(s, False, thrift > 0.5)
        if action >= 0:
            return action
    if s["cpu_used"] > _CROWDED_CPU * s["cpu_blocks"] and can_collect(s):
        return 16
    return 17


@kernel
def prospect(s: RowAt) -> float:
    """The outcome so far, and what active requests have come to of theirs; -1 after a crash."""
    if s["ended"] == 2:
        return -1.0
    total = outcome_of(s)
    for tick in range(s["tick"] + 1, min(s["tick"] + 4096, s["horizon"]) + 1):
        ending = finish_at(s, tick)["id"]
        while ending:
            i = ending - 1
            r, asked = live_at(s, i), asked_at(s, i)
            done = r["produced"] + s["tick"] - r["ready"] + 1
            value = s["latency_part"] / (tick - asked["tick"])
            if not r["flags"] & MISSED:
                value += s["goodput_part"] * tier_at(s, asked["tier"])["weight"]
            total += done * value
            ending = r["next"]
    return total


@kernel
def choose_in(arena: Arena, row: int, price: float, margin: float, target: float, thrift: float) -> int:
    """`choose` for a row, from Python."""
    return choose(row_at(batch_of(arena), row), price, margin, target, thrift)


@kernel
def roll_out(arena: Arena, settings: Floats, ticks: int, scores: Floats) -> None:
    """Let the rule act in every row with its own settings, for so many ticks, and tell how each stands then.

    settings : float64[n, 4], price, margin, target and thrift of each row
    scores : float64[n], `prospect` of each row, changed in place
    """
    b = batch_of(arena)
    for row in range(b["n"]):
        s = row_at(b, row)
        end = s["tick"] + ticks
        price, margin, target, thrift = settings[row, 0], settings[row, 1], settings[row, 2], settings[row, 3]
        while not s["ended"] and s["tick"] < end:
            advance(s, choose(s, price, margin, target, thrift))
        scores[row] = prospect(s)
