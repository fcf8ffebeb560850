"""Time: commit, deliver, arrive, plan, at every instant at which something happens; and leaps over runs of pure decode.

`advance` drives a whole cluster inside Numba. `instant` is one round of it, so a Python loop that calls it step by step is the
same engine (parity P1). Rules: docs/scheduling.md, section 3. Times in picoseconds.
"""

from __future__ import annotations

import math

from inferencegym.engine.codes import Ending, Order, Phase, Stop
from inferencegym.engine.commit import charge_crowd, commit
from inferencegym.engine.crowd import has_slot, next_finish_turn, reserves, take_slot
from inferencegym.engine.ending import pop_pending, turn_away
from inferencegym.engine.gaps import count_progression
from inferencegym.engine.ledger import free_blocks, take_blocks
from inferencegym.engine.memory import (
    Arena,
    Asked,
    State,
    Structured,
    Times,
    core_at,
    crossing_at,
    open_row_at,
    pending_at,
    row_at,
    slot_at,
    state_of,
    wire_at,
)
from inferencegym.engine.order import lift, push
from inferencegym.engine.plan import plan
from inferencegym.engine.router import route, route_decode
from inferencegym.engine.wire import deliver
from inferencegym.ground.jit import kernel

_WAITING = int(Phase.WAITING)
_FCFS, _VTC = int(Order.FCFS), int(Order.VTC)
_REFUSED_LENGTH = int(Ending.REFUSED_LENGTH)
_DRAINED, _UNTIL, _STEPS = int(Stop.DRAINED), int(Stop.UNTIL), int(Stop.STEPS)
_NEED_SLOTS, _NEED_OUT = int(Stop.NEED_SLOTS), int(Stop.NEED_OUT)
FAR_PS = 1 << 62


# --- what comes next --------------------------------------------------------------------------------------------------


@kernel
def next_arrival_ps(s: State, w: Asked) -> int:
    """When the next request arrives, open loop or closed, or FAR_PS."""
    at = FAR_PS
    if s["next_open"] < s["open_rows"]:
        at = row_at(w, open_row_at(w, s["next_open"])["row"])["arrival_ps"]
    if s["pending_len"] > 0:
        at = min(at, pending_at(s, 0)["key"])
    return at


@kernel
def next_event_ps(s: State, w: Asked) -> int:
    """The next instant at which anything happens, or FAR_PS."""
    at = next_arrival_ps(s, w)
    if s["wire_len"] > 0:
        at = min(at, wire_at(s, 0)["ready_ps"])
    for r in range(s["replicas"]):
        end = core_at(s, r)["step_end_ps"]
        if end >= 0 and end < at:
            at = end
    return at


# --- arrivals ---------------------------------------------------------------------------------------------------------


@kernel
def _next_row(s: State, w: Asked) -> tuple[int, bool]:
    """Row of the next arrival and whether it comes from the closed-loop heap; (arrival, row) order."""
    if s["next_open"] >= s["open_rows"]:
        return pending_at(s, 0)["row"], True
    row = open_row_at(w, s["next_open"])["row"]
    if s["pending_len"] > 0:
        due = pending_at(s, 0)["key"]
        if due < row_at(w, row)["arrival_ps"] or (
            due == row_at(w, row)["arrival_ps"] and pending_at(s, 0)["row"] < row
        ):
            return pending_at(s, 0)["row"], True
    return row, False


@kernel
def _arrive(s: State, w: Asked) -> int:
    """Let the next request arrive; a Stop code if there is no room for it, else -1."""
    row, closed = _next_row(s, w)
    at = pending_at(s, 0)["key"] if closed else row_at(w, row)["arrival_ps"]
    if s["out_len"] + _alive(s) >= s["out_capacity"]:
        return _NEED_OUT
    r = -1
    if row_at(w, row)["prompt"] < core_at(s, 0)["max_model_len"]:
        r = route(s, w, row)
        if not has_slot(s, r):
            return _NEED_SLOTS
    if closed:
        pop_pending(s)
    else:
        s["next_open"] += 1
    s["arrived"] += 1
    if r < 0:
        turn_away(s, w, row, at, _REFUSED_LENGTH)
        return -1
    s["turn_in"] += 1
    core_at(s, r)["arrived"] += 1
    slot = take_slot(s, r)
    _fill(s, w, r, slot, row, at)
    if core_at(s, r)["order"] == _VTC:
        lift(s, r, row_at(w, row)["tenant"])
    if core_at(s, r)["order"] != _FCFS or core_at(s, r)["waiting"] == 0:
        core_at(s, r)["unseen"] += 1  # behind a head that does not fit it changes nothing
    push(s, w, r, slot, False)
    return -1


@kernel
def _alive(s: State) -> int:
    """Requests that arrived and have not ended: how many records may still be owed."""
    return s["arrived"] - s["ended"]


@kernel
def _fill(s: State, w: Asked, r: int, slot: int, row: int, at: int) -> None:
    """Every field of a fresh slot."""
    me = slot_at(s, r, slot)
    me["arrival_ps"] = at
    me["scheduled_ps"] = -1
    me["first_ps"] = -1
    me["last_ps"] = -1
    me["turn"] = 0
    me["row"] = row
    me["prompt"] = row_at(w, row)["prompt"]
    me["target"] = min(row_at(w, row)["target"], core_at(s, r)["max_model_len"] - row_at(w, row)["prompt"])
    me["generated"] = 0
    me["computed"] = 0
    me["grant"] = 0
    me["blocks"] = 0
    me["shared"] = 0
    me["cached"] = 0
    me["seat"] = -1
    me["extent"] = -1
    me["last"] = -1
    me["place"] = -1
    me["tenant"] = row_at(w, row)["tenant"]
    me["preemptions"] = 0
    me["swaps"] = 0
    me["priority"] = row_at(w, row)["priority"]
    me["kind"] = row_at(w, row)["kind"]
    me["state"] = _WAITING
    me["in_crowd"] = 0
    me["private"] = 0


# --- leaps ------------------------------------------------------------------------------------------------------------


@kernel
def _steps_within(first_ps: int, slope_ps: int, span_ps: int, most: int) -> int:
    """The largest n <= most with first + (first + slope) + ... (n terms) <= span."""
    if first_ps > span_ps:
        return 0
    if slope_ps == 0:
        return min(most, span_ps // max(first_ps, 1))
    a = 0.5 * slope_ps
    b = first_ps - a
    n = min(most, int((math.sqrt(b * b + 4.0 * a * span_ps) - b) / (2.0 * a)) + 1)
    while n > 0 and n * first_ps + slope_ps * (n * (n - 1) // 2) > span_ps:
        n -= 1
    return n


@kernel
def _growth(s: State, r: int, n: int) -> int:
    """Blocks the crowd takes in the n turns after the current one."""
    core = core_at(s, r)
    size = core["block_size"]
    total = (n // size) * core["decodes"]
    for i in range(1, n % size + 1):
        total += crossing_at(s, r, (core["turn"] + i) % size)["decodes"]
    return total


@kernel
def _steps_with_room(s: State, r: int, most: int) -> int:
    """The largest n <= most such that the n turns after the current one find free blocks."""
    core = core_at(s, r)
    size = core["block_size"]
    room = free_blocks(s, r)
    if core["decodes"] * (most // size + 1) <= room:
        return most
    n = (room // core["decodes"]) * size
    room -= (room // core["decodes"]) * core["decodes"]
    while n < most:
        room -= crossing_at(s, r, (core["turn"] + n + 1) % size)["decodes"]
        if room < 0:
            break
        n += 1
    return min(n, most)


@kernel
def _may_leap(s: State, r: int) -> bool:
    """Whether the step in flight is pure decode and the plans after it would be the same until something happens."""
    core = core_at(s, r)
    if core["step_end_ps"] < 0 or core["crowd"] == 0 or core["picked_len"] > 0 or core["decodes"] == 0:
        return False
    if core["unseen"] > 0:
        return False
    # A waiting head that did not fit will not fit with fewer free blocks, but under VTC another one may become the head.
    return not (
        core["order"] == _VTC
        and core["waiting"] > 0
        and core["running"] < core["max_num_seqs"]
        and core["max_num_batched_tokens"] > core["decodes"]
    )


@kernel
def _leap(s: State, t: Times, r: int, limit_ps: int, most: int) -> None:
    """Commit as many steps of pure decode as end by `limit_ps` (at most `most`), and leave the one after them in flight."""
    core = core_at(s, r)
    n = min(most, next_finish_turn(s, r) - core["turn"] - 1)
    slope_ps = t["kv_ps"] * core["decodes"]
    n = _steps_within(core["step_ps"], slope_ps, limit_ps - core["now_ps"], n)
    if n > 0 and not reserves(core["scheduler"]):
        n = _steps_with_room(s, r, n)
    if n <= 0:
        return
    spent = n * core["step_ps"] + slope_ps * (n * (n - 1) // 2)
    emitting = core["decodes"] - core["padding"]
    if emitting > 0:
        count_progression(s, r, core["step_ps"], slope_ps, n, emitting)
    if not reserves(core["scheduler"]):
        need = _growth(s, r, n)
        if need > 0:
            take_blocks(s, r, need)
    core["turn"] += n
    core["context"] += n * core["decodes"]
    core["steps"] += n
    core["busy_ps"] += spent
    core["emitted_tokens"] += n * emitting
    charge_crowd(s, r, n)
    core["now_ps"] += spent
    core["step_ps"] += n * slope_ps
    core["step_end_ps"] = core["now_ps"] + core["step_ps"]


@kernel
def _leap_limit(s: State, w: Asked, r: int, until_ps: int) -> int:
    """Latest end of a step that replica r may pass over: nothing from outside may fall between."""
    at = next_arrival_ps(s, w)
    if s["wire_len"] > 0:
        at = min(at, wire_at(s, 0)["ready_ps"])
    if s["closed_loop"] == 1 or s["prefill_replicas"] > 0:
        for other in range(s["replicas"]):
            end = core_at(s, other)["step_end_ps"]
            if other != r and end >= 0:
                at = min(at, end)
    return min(until_ps, at - 1)


# --- the loop ---------------------------------------------------------------------------------------------------------


@kernel
def instant(s: State, w: Asked, t: Times, at: int) -> int:
    """All that happens at one instant, up to the plans; a Stop code if Python has to make room first, else -1."""
    s["now_ps"] = at
    if s["out_len"] + _alive(s) > s["out_capacity"]:
        return _NEED_OUT
    for r in range(s["replicas"]):
        if core_at(s, r)["step_end_ps"] == at:
            commit(s, w, t, r)
    while s["wire_len"] > 0 and wire_at(s, 0)["ready_ps"] <= at:
        r = route_decode(s)
        if not has_slot(s, r):
            return _NEED_SLOTS
        s["turn_decode"] += 1
        deliver(s, w, r)
    while next_arrival_ps(s, w) <= at:
        code = _arrive(s, w)
        if code >= 0:
            return code
    for r in range(s["replicas"]):
        core = core_at(s, r)
        if core["step_end_ps"] < 0 and core["running"] + core["waiting"] > 0:
            plan(s, w, t, r, at)
    return -1


@kernel
def steps_so_far(s: State) -> int:
    """Steps committed by all replicas."""
    total = 0
    for r in range(s["replicas"]):
        total += core_at(s, r)["steps"]
    return total


@kernel
def run(s: State, w: Asked, t: Times, until_ps: int, max_steps: int, leaps: bool) -> int:
    """Run until nothing is left, the next event lies after `until_ps`, or `max_steps` steps were committed; returns a Stop code.

    Changes the state and appends to its buffer of records. On NEED_SLOTS or NEED_OUT call again with more room: nothing is lost or done twice.
    """
    start = steps_so_far(s)
    while True:
        at = next_event_ps(s, w)
        if at >= FAR_PS:
            return _DRAINED
        if at > until_ps:
            return _UNTIL
        code = instant(s, w, t, at)
        if code >= 0:
            return code
        if leaps:
            for r in range(s["replicas"]):
                if _may_leap(s, r):
                    left = max_steps - (steps_so_far(s) - start)
                    _leap(s, t, r, _leap_limit(s, w, r, until_ps), left)
        if steps_so_far(s) - start >= max_steps:
            return _STEPS


# --- doors from Python: arrays become pointers ------------------------------------------------------------------------


@kernel
def advance(arena: Arena, asked: Structured, times: Structured, until_ps: int, max_steps: int, leaps: bool) -> int:
    """`run` for a block of bytes, ASKED[1] and TIMES[1]."""
    return run(state_of(arena), asked[0], times[0], until_ps, max_steps, leaps)


@kernel
def one_instant(arena: Arena, asked: Structured, times: Structured) -> int:
    """The next instant alone (what a Python loop calls); a Stop code or -1."""
    s = state_of(arena)
    at = next_event_ps(s, asked[0])
    if at >= FAR_PS:
        return _DRAINED
    return instant(s, asked[0], times[0], at)


@kernel
def requeue(arena: Arena, asked: Structured, r: int, slot: int) -> None:
    """Put a waiting request into the queue of replica r (after the order has changed)."""
    push(state_of(arena), asked[0], r, slot, False)
