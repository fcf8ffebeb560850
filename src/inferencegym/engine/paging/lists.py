"""Sets of requests that change at every tick: linked lists in order, and towers that know their largest member.

Everything takes a time that does not grow with the number of requests, except where members tie. Links hold request + 1.
"""

from __future__ import annotations

from inferencegym.engine.paging.memory import (
    BUCKET_BITS,
    RowAt,
    asked_at,
    finish_at,
    head_at,
    live_at,
    ready_at,
    tier_at,
    top_bit,
    tower_at,
    word_at,
)
from inferencegym.ground.jit import kernel

_WORD_BITS = 63  # a word's sign stays out of it


@kernel
def tower_add(s: RowAt, tower: int, i: int, key: int) -> None:
    """Add request i with its key (not negative)."""
    t = tower_at(s, tower)
    r = live_at(s, i)
    r["key"] = key
    bucket = key >> BUCKET_BITS
    head = head_at(s, tower * s["n_heads"] + bucket)
    r["up"] = 0
    r["down"] = head["id"]
    if head["id"]:
        live_at(s, head["id"] - 1)["up"] = i + 1
    head["id"] = i + 1
    word = bucket // _WORD_BITS
    word_at(s, tower * s["n_words"] + word)["bits"] |= 1 << (bucket - word * _WORD_BITS)
    t["summary"] |= 1 << word
    best = t["best"]
    if t["count"] == 0:
        t["best"] = i + 1
    elif best:
        best_key = live_at(s, best - 1)["key"]
        if key > best_key or (key == best_key and i < best - 1):
            t["best"] = i + 1
    t["count"] += 1


@kernel
def tower_drop(s: RowAt, tower: int, i: int) -> None:
    """Take request i out."""
    t = tower_at(s, tower)
    r = live_at(s, i)
    bucket = r["key"] >> BUCKET_BITS
    if r["down"]:
        live_at(s, r["down"] - 1)["up"] = r["up"]
    if r["up"]:
        live_at(s, r["up"] - 1)["down"] = r["down"]
    else:
        head_at(s, tower * s["n_heads"] + bucket)["id"] = r["down"]
        if r["down"] == 0:
            word = bucket // _WORD_BITS
            bits = word_at(s, tower * s["n_words"] + word)
            bits["bits"] &= ~(1 << (bucket - word * _WORD_BITS))
            if bits["bits"] == 0:
                t["summary"] &= ~(1 << word)
    if t["best"] == i + 1:
        t["best"] = 0
    t["count"] -= 1


@kernel
def tower_largest(s: RowAt, tower: int) -> int:
    """The member with the largest key, the lowest number among equals; -1 if there is none."""
    t = tower_at(s, tower)
    if t["count"] == 0:
        return -1
    if t["best"] == 0:
        word = top_bit(t["summary"])
        bucket = word * _WORD_BITS + top_bit(word_at(s, tower * s["n_words"] + word)["bits"])
        i = head_at(s, tower * s["n_heads"] + bucket)["id"] - 1
        best = i
        best_key = live_at(s, i)["key"]
        i = live_at(s, i)["down"] - 1
        while i >= 0:
            key = live_at(s, i)["key"]
            if key > best_key or (key == best_key and i < best):
                best, best_key = i, key
            i = live_at(s, i)["down"] - 1
        t["best"] = best + 1
    return t["best"] - 1


@kernel
def queue_add(s: RowAt, tier: int, i: int) -> None:
    """Into the queue, in order of arrival: newcomers go to its end, who was preempted goes before all who never ran."""
    q = tier_at(s, tier)
    after = q["queue_tail"]
    if after and after - 1 > i:
        after = 0
        before = q["queue_head"]
        while before and before - 1 < i:
            after = before
            before = live_at(s, before - 1)["next"]
    r = live_at(s, i)
    r["prev"] = after
    if after:
        r["next"] = live_at(s, after - 1)["next"]
        live_at(s, after - 1)["next"] = i + 1
    else:
        r["next"] = q["queue_head"]
        q["queue_head"] = i + 1
    if r["next"]:
        live_at(s, r["next"] - 1)["prev"] = i + 1
    else:
        q["queue_tail"] = i + 1
    q["queue_len"] += 1


@kernel
def queue_pop(s: RowAt, tier: int) -> int:
    """The first of a queue, taken out."""
    q = tier_at(s, tier)
    i = q["queue_head"] - 1
    after = live_at(s, i)["next"]
    q["queue_head"] = after
    if after:
        live_at(s, after - 1)["prev"] = 0
    else:
        q["queue_tail"] = 0
    q["queue_len"] -= 1
    return i


@kernel
def idle_add(s: RowAt, tier: int, i: int, blocks: int) -> None:
    """Request i has left a cache on the GPU: into the idle list, ordered by (since, number), and the sums."""
    q = tier_at(s, tier)
    r = live_at(s, i)
    since = r["since"]
    after = q["idle_tail"]
    while after and after - 1 > i and live_at(s, after - 1)["since"] == since:
        after = live_at(s, after - 1)["prev"]
    r["prev"] = after
    if after:
        r["next"] = live_at(s, after - 1)["next"]
        live_at(s, after - 1)["next"] = i + 1
    else:
        r["next"] = q["idle_head"]
        q["idle_head"] = i + 1
    if r["next"]:
        live_at(s, r["next"] - 1)["prev"] = i + 1
    else:
        q["idle_tail"] = i + 1
    q["idle_count"] += 1
    q["idle_blocks"] += blocks
    q["idle_blocks2"] += blocks * blocks
    q["since_sum"] += since
    q["since_sum2"] += since * since
    q["changed"] = 1


@kernel
def idle_drop(s: RowAt, tier: int, i: int, blocks: int) -> None:
    """An idle cache is no longer on the GPU."""
    q = tier_at(s, tier)
    r = live_at(s, i)
    if r["prev"]:
        live_at(s, r["prev"] - 1)["next"] = r["next"]
    else:
        q["idle_head"] = r["next"]
    if r["next"]:
        live_at(s, r["next"] - 1)["prev"] = r["prev"]
    else:
        q["idle_tail"] = r["prev"]
    since = r["since"]
    q["idle_count"] -= 1
    q["idle_blocks"] -= blocks
    q["idle_blocks2"] -= blocks * blocks
    q["since_sum"] -= since
    q["since_sum2"] -= since * since
    q["changed"] = 1


@kernel
def garbage_add(s: RowAt, i: int) -> None:
    """A free cache goes to the CPU: to the end of the list, which is so in order of arrival there."""
    r = live_at(s, i)
    r["prev"] = s["garbage_tail"]
    r["next"] = 0
    if s["garbage_tail"]:
        live_at(s, s["garbage_tail"] - 1)["next"] = i + 1
    else:
        s["garbage_head"] = i + 1
    s["garbage_tail"] = i + 1


@kernel
def garbage_drop(s: RowAt, i: int) -> None:
    """A free cache leaves the CPU."""
    r = live_at(s, i)
    if r["prev"]:
        live_at(s, r["prev"] - 1)["next"] = r["next"]
    else:
        s["garbage_head"] = r["next"]
    if r["next"]:
        live_at(s, r["next"] - 1)["prev"] = r["prev"]
    else:
        s["garbage_tail"] = r["prev"]


@kernel
def ready_add(s: RowAt, tick: int, i: int) -> None:
    """The first token of request i comes at a tick (beyond the horizon: never)."""
    if tick <= s["horizon"]:
        head = ready_at(s, tick)
        live_at(s, i)["next"] = head["id"]
        head["id"] = i + 1


@kernel
def finish_add(s: RowAt, tick: int, i: int) -> None:
    """The last token of request i comes at a tick (beyond the horizon: never)."""
    if tick <= s["horizon"]:
        head = finish_at(s, tick)
        r = live_at(s, i)
        r["prev"] = 0
        r["next"] = head["id"]
        if head["id"]:
            live_at(s, head["id"] - 1)["prev"] = i + 1
        head["id"] = i + 1


@kernel
def finish_drop(s: RowAt, tick: int, i: int) -> None:
    """Request i was preempted: its last token does not come at that tick."""
    if tick <= s["horizon"]:
        r = live_at(s, i)
        if r["prev"]:
            live_at(s, r["prev"] - 1)["next"] = r["next"]
        else:
            finish_at(s, tick)["id"] = r["next"]
        if r["next"]:
            live_at(s, r["next"] - 1)["prev"] = r["prev"]


@kernel
def finish_tick(s: RowAt, i: int) -> int:
    """Tick of the last token of an active request (the oracle: for the executor and planners)."""
    r = live_at(s, i)
    return r["ready"] + asked_at(s, i)["output"] - r["produced"] - 1
