"""What the eighteen actions do to the machine, and what each needs: `can_*` and `need` look, the others act.

Blocks of memory, ticks of time. Every move keeps blocks and requests conserved (docs/environments/pagedkv.md, Laws).
"""

from __future__ import annotations

from inferencegym.engine.paging.lists import (
    finish_drop,
    finish_tick,
    garbage_add,
    garbage_drop,
    idle_drop,
    queue_add,
    queue_pop,
    ready_add,
    tower_drop,
    tower_largest,
)
from inferencegym.engine.paging.memory import (
    ACTIVE_TOWER,
    ADMITTED,
    GONE,
    IDLE_CPU,
    IDLE_GPU,
    IDLE_TOWER,
    LOADING,
    MISSED,
    REJECTED,
    SWAPPED,
    WAITING,
    RowAt,
    asked_at,
    live_at,
    phase_at,
    tier_at,
    transfer_at,
)
from inferencegym.ground.jit import kernel


@kernel
def blocks_of(s: RowAt, tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return (tokens + s["block_tokens"] - 1) // s["block_tokens"]


@kernel
def cache_of(s: RowAt, i: int) -> int:
    """The request whose idle cache the user of request i left behind, on either tier; -1 if there is none."""
    parent = asked_at(s, i)["parent"]
    if parent < 0 or live_at(s, i)["flags"] & SWAPPED:
        return -1
    state = live_at(s, parent)["state"]
    if state == IDLE_GPU or state == IDLE_CPU:
        return parent
    return -1


@kernel
def need(s: RowAt, i: int) -> int:
    """GPU blocks that admitting a waiting request takes."""
    r = live_at(s, i)
    if r["flags"] & SWAPPED:
        return blocks_of(s, r["context"])
    total = blocks_of(s, asked_at(s, i)["prompt"] + r["produced"])
    cache = cache_of(s, i)
    if cache >= 0 and live_at(s, cache)["state"] == IDLE_GPU:
        total -= blocks_of(s, live_at(s, cache)["context"])
    return total


@kernel
def can_admit(s: RowAt, tier: int) -> bool:
    """Whether the first of a queue fits."""
    i = tier_at(s, tier)["queue_head"] - 1
    if i < 0:
        return False
    if s["transfer_len"] >= s["max_transfers"]:
        cache = cache_of(s, i)
        if live_at(s, i)["flags"] & SWAPPED or (cache >= 0 and live_at(s, cache)["state"] == IDLE_CPU):
            return False
    return need(s, i) <= s["gpu_blocks"] - s["gpu_used"]


@kernel
def can_move_out(s: RowAt, context: int) -> bool:
    """Whether KV of so many tokens finds room on the CPU and on the link."""
    return s["transfer_len"] < s["max_transfers"] and blocks_of(s, context) <= s["cpu_blocks"] - s["cpu_used"]


@kernel
def can_collect(s: RowAt) -> bool:
    """Whether there is garbage on the CPU."""
    i = s["garbage_head"] - 1
    if i < 0:
        return False
    r = live_at(s, i)
    return s["tick"] - r["since"] > s["garbage_ticks"] and r["done"] <= s["tick"]


@kernel
def active_context(s: RowAt, i: int) -> int:
    """Tokens in the KV of an active request now."""
    r = live_at(s, i)
    # `recorded` is the last tick that went well: in one that crashes nobody gets a token.
    return r["context"] + s["recorded"] - r["ready"] + 1


@kernel
def can_act(s: RowAt, action: int) -> bool:
    """Whether an action does anything now: the mask, one entry of it."""
    if action < 0 or action > 17:
        return False
    if action == 17:
        return True
    if action == 16:
        return can_collect(s)
    kind = action // 2
    tier = action - 2 * kind
    q = tier_at(s, tier)
    if kind < 2:
        return q["idle_count"] > 0
    if kind < 4:
        if q["idle_count"] == 0:
            return False
        victim = tower_largest(s, IDLE_TOWER + tier) if kind == 2 else q["idle_head"] - 1
        return can_move_out(s, live_at(s, victim)["context"])
    if kind == 4:
        return can_admit(s, tier)
    if kind == 5:
        return q["queue_len"] > 0
    if q["active"] == 0:
        return False
    return kind == 6 or can_move_out(s, active_context(s, tower_largest(s, ACTIVE_TOWER + tier)))


@kernel
def act(s: RowAt, action: int) -> None:
    """Take a legal action."""
    kind = action // 2
    tier = action - 2 * kind
    if action == 17:
        return
    if action == 16:
        _collect(s)
    elif kind < 4:
        if kind == 0 or kind == 2:
            victim = tower_largest(s, IDLE_TOWER + tier)
        else:
            victim = tier_at(s, tier)["idle_head"] - 1
        release_cache(s, tier, victim, kind >= 2)
    elif kind == 4:
        _admit(s, tier)
    elif kind == 5:
        _reject(s, tier)
    else:
        preempt(s, tier, tower_largest(s, ACTIVE_TOWER + tier), kind == 7)


@kernel
def release_cache(s: RowAt, tier: int, victim: int, to_cpu: bool) -> None:
    """An idle cache leaves the GPU, for the CPU or for good."""
    r = live_at(s, victim)
    size = blocks_of(s, r["context"])
    idle_drop(s, tier, victim, size)
    tower_drop(s, IDLE_TOWER + tier, victim)
    if to_cpu:
        r["state"] = IDLE_CPU
        r["since"] = s["tick"]
        s["cpu_used"] += size
        r["done"] = _move(s, size, size, 0)
        s["swapped_out"] += 1
        if tier == 0:
            garbage_add(s, victim)
    else:
        r["state"] = GONE
        s["gpu_used"] -= size
        s["evicted"] += 1


@kernel
def _move(s: RowAt, blocks: int, gpu_frees: int, cpu_frees: int) -> int:
    """Put a transfer into the link's queue; the tick at which it will have ended and frees what it left."""
    rate = s["link_rate"]
    s["link"] = max(s["link"], s["tick"] * rate) + blocks
    done = max(s["tick"] + 1, (s["link"] + rate - 1) // rate)
    place = s["transfer_head"] + s["transfer_len"]
    if place >= s["max_transfers"]:
        place -= s["max_transfers"]
    transfer = transfer_at(s, place)
    transfer["done"] = done
    transfer["gpu"] = gpu_frees
    transfer["cpu"] = cpu_frees
    s["transfer_len"] += 1
    return done


@kernel
def _prefill(s: RowAt, tokens: int) -> int:
    """Put a prompt into the prefill lane; the tick of its first token."""
    rate = s["prefill_rate"]
    s["lane"] = max(s["lane"], s["tick"] * rate) + tokens
    return max(s["tick"] + 1, (s["lane"] + rate - 1) // rate)


@kernel
def miss(s: RowAt, i: int) -> None:
    """A request waited too long: it counts no more, and what was earned with it is given back."""
    r = live_at(s, i)
    r["flags"] |= MISSED
    s["progress"] -= r["produced"] * tier_at(s, asked_at(s, i)["tier"])["weight"]
    s["lost"] += 1
    s["sla_missed"] += 1


@kernel
def _leave_queue(s: RowAt, tier: int) -> int:
    i = queue_pop(s, tier)
    r = live_at(s, i)
    r["waited"] += s["tick"] - r["since"]
    return i


@kernel
def _admit(s: RowAt, tier: int) -> None:
    size = need(s, tier_at(s, tier)["queue_head"] - 1)
    i = _leave_queue(s, tier)
    r = live_at(s, i)
    q = tier_at(s, tier)
    if not r["flags"] & MISSED and 0 < q["sla"] < r["waited"]:
        miss(s, i)
    s["gpu_used"] += size
    if r["flags"] & SWAPPED:
        r["flags"] &= ~SWAPPED
        r["ready"] = _move(s, size, 0, size)
        s["swapped_in"] += 1
    else:
        text = asked_at(s, i)["prompt"] + r["produced"]
        cache = cache_of(s, i)
        if cache < 0:
            r["ready"] = _prefill(s, text)
        else:
            r["ready"] = _take_cache(s, tier, i, cache, text)
        r["context"] = text
    r["flags"] |= ADMITTED
    r["state"] = LOADING
    q["loading"] += 1
    ready_add(s, r["ready"], i)


@kernel
def _take_cache(s: RowAt, tier: int, i: int, cache: int, text: int) -> int:
    """A returning user's cache becomes the request's own; the tick of its first token."""
    c = live_at(s, cache)
    ready = _prefill(s, text - c["context"])
    size = blocks_of(s, c["context"])
    if c["state"] == IDLE_CPU:
        ready = max(ready, _move(s, size, 0, size))
        s["swapped_in"] += 1
        if tier == 0:
            garbage_drop(s, cache)
    else:
        idle_drop(s, tier, cache, size)
        tower_drop(s, IDLE_TOWER + tier, cache)
    c["state"] = GONE
    if not live_at(s, i)["flags"] & ADMITTED:
        s["found"] += c["context"]
        s["hits"] += 1
    return ready


@kernel
def _reject(s: RowAt, tier: int) -> None:
    room = can_admit(s, tier)
    i = _leave_queue(s, tier)
    r = live_at(s, i)
    r["state"] = REJECTED
    if r["flags"] & SWAPPED:
        s["cpu_used"] -= blocks_of(s, r["context"])
        r["flags"] &= ~SWAPPED
    if not r["flags"] & MISSED:
        s["progress"] -= r["produced"] * tier_at(s, tier)["weight"]
        s["lost"] += 1
    if room:
        s["lost"] += 1
    s["rejected"] += 1


@kernel
def deactivate(s: RowAt, tier: int, i: int, context: int) -> None:
    """An active request with so many tokens now stops: out of everything that counts active ones."""
    r = live_at(s, i)
    q = tier_at(s, tier)
    q["active"] -= 1
    tower_drop(s, ACTIVE_TOWER + tier, i)
    phase_at(s, (r["ready"] - r["context"]) % s["block_tokens"])["bits"] -= 1
    if not r["flags"] & MISSED:
        s["active_weight"] -= q["weight"]
    r["produced"] += context - r["context"]
    r["context"] = context


@kernel
def preempt(s: RowAt, tier: int, i: int, swap: bool) -> None:
    """An active request goes back to its queue, its KV to the CPU or lost."""
    r = live_at(s, i)
    finish_drop(s, finish_tick(s, i), i)
    context = active_context(s, i)
    deactivate(s, tier, i, context)
    r["state"] = WAITING
    r["since"] = s["tick"]
    size = blocks_of(s, context)
    if swap:
        r["flags"] |= SWAPPED
        s["cpu_used"] += size
        _move(s, size, size, 0)
        s["preempt_swapped"] += 1
    else:
        s["gpu_used"] -= size
        r["context"] = 0
        s["shredded"] += 1
    queue_add(s, tier, i)


@kernel
def _collect(s: RowAt) -> None:
    while can_collect(s):
        i = s["garbage_head"] - 1
        r = live_at(s, i)
        r["state"] = GONE
        s["cpu_used"] -= blocks_of(s, r["context"])
        s["collected"] += 1
        garbage_drop(s, i)
