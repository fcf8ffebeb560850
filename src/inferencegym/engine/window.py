"""One window of many engines in one call: turn their knobs, run to the window's end, and measure what happened in it.

Measures are of simulated requests only. What is measured: SEEN (the columns of a snapshot) and TALLY (sums for rewards and grades).
Times in picoseconds; `judged` says what each request of a workload is worth and when it counts as served well.
"""

from __future__ import annotations

import numpy as np

from inferencegym.decision.snapshot import NAMES
from inferencegym.engine.codes import Phase, Role, Stop
from inferencegym.engine.gaps import bin_end_ps
from inferencegym.engine.loop import run
from inferencegym.engine.memory import (
    ASKED,
    GAP_BINS,
    TIMES,
    Asked,
    Floats,
    Ints,
    State,
    Structured,
    core_at,
    header_from,
    pointer,
    record_at,
    row_at,
    slot_at,
)
from inferencegym.engine.steer import gaps_now, restart, room_to_restart, set_drafts, set_order, set_pool, set_seats
from inferencegym.ground.jit import kernel

VARIANTS = 6  # weight format (3) x split (2)

#: What a request of the workload is worth and asks for.
JUDGED = np.dtype(
    [("ttft_ps", np.int64), ("tpot_ps", np.int64), ("weight", np.float64), ("urgent", np.int64)], align=True
)

#: One engine of a batch.
STAND = np.dtype(
    [
        ("arena_at", np.int64), ("asked_at", np.int64), ("judged_at", np.int64),
        ("until_ps", np.int64), ("window_ps", np.int64), ("ready_ps", np.int64),
        ("variant", np.int64), ("phase", np.int64), ("stop", np.int64),
        ("emitted", np.int64), ("preemptions", np.int64), ("evicted", np.int64),
        ("drafted", np.int64), ("accepted", np.int64), ("finished", np.int64),
    ],
    align=True,
)  # fmt: skip
#: `phase` of a STAND: knobs not turned yet; under way, but stopped for want of room; done.
BEFORE, WITHIN, DONE = 0, 1, 2

TALLY = (
    "arrived", "finished", "served_weight", "met_weight", "emitted_tokens", "preemptions", "refused", "met", "overdue_weight", "reloads",
    "hopeful_weight", "late_weight",
)  # fmt: skip
N_SEEN, N_TALLY = len(NAMES), len(TALLY)

_FREE, _RUNNING, _ON_WIRE = int(Phase.FREE), int(Phase.RUNNING), int(Phase.ON_WIRE)
_NEED_SLOTS, _NEED_OUT = int(Stop.NEED_SLOTS), int(Stop.NEED_OUT)
_PREFILL = int(Role.PREFILL)

_asked_at, _times_at, _judged_at = pointer(ASKED), pointer(TIMES), pointer(JUDGED)

(
    _QUEUE, _ACTIVE, _KV, _PROMPT, _TTFT50, _TTFT99, _ITL50, _ITL99, _TPS, _SLO, _GB, _COST, _RPS, _ACCEPT, _EVICTED, _PREEMPTED,
    _GOODPUT, _OLDEST, _WAITING_TOKENS, _VIP_QUEUE, _VIP_SLO, _OUTPUT, _BATCH, _FRACTION, _DEPTH, _TIER, _SPLIT, _ROUTING, _PAUSE,
    _WINDOW, _AGE, _EPISODE,
) = range(N_SEEN)  # fmt: skip


@kernel
def windows(
    stands: Structured,
    variants: Structured,
    pause_ps: Ints,
    want: Floats,
    levers: Floats,
    seen: Floats,
    tally: Floats,
    gaps: Ints,
    price: Floats,
) -> int:
    """One window of every row that is not DONE; how many rows still need room (their `stop` says which).

    stands : STAND[n], variants : steer.VARIANT[VARIANTS], pause_ps : int64[VARIANTS, VARIANTS]
    want : float64[n, 6], the knobs to set (NaN: leave); levers : float64[n, 6], those in force, changed in place
    seen : float64[n, N_SEEN], tally : float64[n, N_TALLY], gaps : int64[n, GAP_BINS] at the window's start; all three written
    price : float64[3], US$ an hour for all GPUs, credit for a wholly lent pool (share of that price), bytes of a KV block
    """
    short = 0
    for i in range(len(stands)):
        stand = stands[i]
        if stand["phase"] == DONE:
            continue
        s = header_from(stand["arena_at"])
        w = _asked_at(stand["asked_at"], np.int64(0))
        if stand["phase"] == BEFORE:
            variant = _wanted(stand["variant"], want[i])
            if variant != stand["variant"] and not room_to_restart(s, variants[variant]["prefill_replicas"]):
                stand["stop"] = _NEED_SLOTS
                short += 1
                continue
            tally[i, :] = 0.0
            _turn(s, w, stand, variants, pause_ps, want[i], levers[i], tally[i])
            s["out_len"] = 0
        t = _times_at(variants[stand["variant"]]["times_at"], np.int64(0))
        code = run(s, w, t, stand["until_ps"], 1 << 60, True)
        if code == _NEED_SLOTS or code == _NEED_OUT:
            stand["phase"] = WITHIN
            stand["stop"] = code
            short += 1
            continue
        _measure(s, w, stand, variants, levers[i], seen[i], tally[i], gaps[i], price)
        stand["phase"] = DONE
    return short


@kernel
def _wanted(variant: int, want: Floats) -> int:
    """The variant that the knobs ask for, coming from this one."""
    tier = int(want[3]) if want[3] == want[3] else variant // 2
    split = int(want[4]) if want[4] == want[4] else variant % 2
    return 2 * tier + split


@kernel
def _turn(
    s: State, w: Asked, stand: State, variants: Structured, pause_ps: Ints, want: Floats, levers: Floats, tally: Floats
) -> None:
    """Set the knobs that are wanted and differ."""
    now_ps = stand["until_ps"] - stand["window_ps"]
    replicas = s["replicas"]
    if want[0] == want[0] and want[0] != levers[0]:
        levers[0] = want[0]
        for r in range(replicas):
            set_seats(s, r, int(want[0]))
    if want[2] == want[2] and want[2] != levers[2]:
        levers[2] = want[2]
        for r in range(replicas):
            set_drafts(s, r, int(want[2]))
    if want[5] == want[5] and want[5] != levers[5]:
        levers[5] = want[5]
        for r in range(replicas):
            set_order(s, w, r, want[5] > 0.5)
    for j in (3, 4):
        if want[j] == want[j]:
            levers[j] = want[j]
    variant = _wanted(stand["variant"], want)
    moved = want[1] == want[1] and want[1] != levers[1]
    if moved:
        levers[1] = want[1]
    if variant != stand["variant"]:
        # A reload that is still going on is begun again with the new weights.
        ready_ps = max(now_ps, 0) + max(pause_ps[stand["variant"], variant], 1)
        if stand["ready_ps"] > ready_ps:
            ready_ps = stand["ready_ps"]
        restart(s, w, variants[variant], levers[1], ready_ps)
        stand["ready_ps"] = ready_ps
        stand["variant"] = variant
        tally[9] = 1.0
    elif moved:
        for r in range(replicas):
            set_pool(s, r, variants[variant], levers[1])


@kernel
def _measure(
    s: State,
    w: Asked,
    stand: State,
    variants: Structured,
    levers: Floats,
    seen: Floats,
    tally: Floats,
    gaps: Ints,
    price: Floats,
) -> None:
    """Fill a row's SEEN and TALLY from the engine's state and the records of the window."""
    until_ps = stand["until_ps"]
    start_ps = until_ps - stand["window_ps"]
    opens_ps = start_ps + 1 if start_ps > 0 else 0  # what happens at a window's end belongs to it
    span_s = stand["window_ps"] / 1e12
    replicas = s["replicas"]
    running = 0
    waiting = 0
    pool = 0
    held = 0
    totals = np.zeros(5, np.int64)
    live = 0
    for r in range(replicas):
        core = core_at(s, r)
        running += core["running"]
        waiting += core["waiting"]
        pool += core["pool_blocks"]
        held += core["pool_blocks"] - core["blank"] - core["cached_free"]
        totals[0] += core["emitted_tokens"]
        totals[1] += core["preemptions"]
        totals[2] += core["evicted_blocks"]
        totals[3] += core["drafted"]
        totals[4] += core["accepted"]
        live += core["slots_used"]
    # Arrivals and first tokens of the window, overdue requests, the queue. Whoever came is here still or has just ended.
    arrivals = 0
    prompts = 0
    ttft = np.empty(live + s["out_len"], np.float64)
    n = 0
    met = np.zeros(2)
    decided = np.zeros(2)
    urgent_waiting = 0
    waiting_tokens = 0
    oldest_ps = until_ps
    overdue_weight = 0.0
    hopeful_weight = 0.0
    late_weight = 0.0
    for r in range(replicas):
        for slot in range(core_at(s, r)["slots_used"]):
            me = slot_at(s, r, slot)
            if me["state"] == _FREE:
                continue
            judged = _judged_at(stand["judged_at"], np.int64(me["row"]))
            urgent = judged["urgent"]
            if me["arrival_ps"] >= opens_ps:
                arrivals += 1
                prompts += me["prompt"]
            if me["state"] != _RUNNING and me["state"] != _ON_WIRE:
                urgent_waiting += urgent
                waiting_tokens += me["prompt"]
                oldest_ps = min(oldest_ps, me["arrival_ps"])
            if me["first_ps"] > start_ps:
                ttft[n] = (me["first_ps"] - me["arrival_ps"]) / 1e9
                n += 1
                decided[urgent] += 1.0
                if me["first_ps"] - me["arrival_ps"] <= judged["ttft_ps"]:
                    met[urgent] += 1.0
            waited_ps = (me["first_ps"] if me["first_ps"] >= 0 else until_ps) - me["arrival_ps"]
            if waited_ps <= judged["ttft_ps"]:
                made = me["generated"]
                if me["in_crowd"] == 1 and me["state"] == _RUNNING:
                    made += core_at(s, r)["turn"] - me["turn"]
                if me["first_ps"] < 0 or until_ps - me["first_ps"] <= judged["tpot_ps"] * (made + 1):
                    hopeful_weight += judged["weight"]
            elif me["first_ps"] < 0:
                late_weight += judged["weight"]
            if me["first_ps"] < 0 and until_ps - me["arrival_ps"] > judged["ttft_ps"]:
                decided[urgent] += 1.0
                if until_ps - me["arrival_ps"] - judged["ttft_ps"] <= stand["window_ps"]:
                    overdue_weight += judged["weight"]  # it became overdue in this window
    finished = 0
    good = 0
    served_weight = 0.0
    met_weight = 0.0
    refused = 0
    output = 0
    for k in range(s["out_len"]):
        record = record_at(s, k)
        if record["arrival_ps"] >= opens_ps:
            arrivals += 1
            prompts += row_at(w, record["row"])["prompt"]
        judged = _judged_at(stand["judged_at"], np.int64(record["row"]))
        urgent = judged["urgent"]
        if record["outcome"] != 0:
            refused += 1
            decided[urgent] += 1.0
            continue
        in_time = record["first_ps"] - record["arrival_ps"] <= judged["ttft_ps"]
        if record["first_ps"] > start_ps:
            ttft[n] = (record["first_ps"] - record["arrival_ps"]) / 1e9
            n += 1
            decided[urgent] += 1.0
            if in_time:
                met[urgent] += 1.0
        finished += 1
        output += record["output"]
        served_weight += judged["weight"]
        if in_time and record["finish_ps"] - record["first_ps"] <= judged["tpot_ps"] * max(record["output"] - 1, 1):
            good += 1
            met_weight += judged["weight"]
    emitted = totals[0] - stand["emitted"]
    drafted = totals[3] - stand["drafted"]

    seen[_QUEUE] = waiting
    seen[_ACTIVE] = running
    seen[_KV] = max(held, 0) / pool
    seen[_PROMPT] = prompts / arrivals if arrivals > 0 else np.nan
    seen[_TTFT50] = _rank(ttft[:n], 0.5)
    seen[_TTFT99] = _rank(ttft[:n], 0.99)
    _itl(s, gaps, seen)
    seen[_TPS] = emitted / span_s
    both = decided[0] + decided[1]
    seen[_SLO] = (met[0] + met[1]) / both if both > 0 else 1.0
    seen[_VIP_SLO] = met[1] / decided[1] if decided[1] > 0 else 1.0
    seen[_GB] = variants[stand["variant"]]["weights_gb"] + max(held, 0) * price[2] / 1e9
    cost = price[0] / 3600.0 * span_s * (1.0 - price[1] * (1.0 - levers[1]))
    seen[_COST] = 1000.0 * cost / emitted if emitted > 0 else np.nan
    seen[_RPS] = arrivals / span_s
    seen[_ACCEPT] = (totals[4] - stand["accepted"]) / drafted if drafted > 0 else np.nan
    seen[_EVICTED] = totals[2] - stand["evicted"]
    seen[_PREEMPTED] = totals[1] - stand["preemptions"]
    seen[_GOODPUT] = good / span_s
    seen[_OLDEST] = (until_ps - oldest_ps) / 1e9
    seen[_WAITING_TOKENS] = waiting_tokens
    seen[_VIP_QUEUE] = urgent_waiting
    seen[_OUTPUT] = output / finished if finished > 0 else np.nan
    for j in range(6):
        seen[_BATCH + j] = levers[j]
    seen[_PAUSE] = max(stand["ready_ps"] - until_ps, 0) / 1e12
    seen[_WINDOW] = span_s
    seen[_AGE] = 0.0

    tally[0] = arrivals
    tally[1] = finished
    tally[2] = served_weight
    tally[3] = met_weight
    tally[4] = emitted
    tally[5] = totals[1] - stand["preemptions"]
    tally[6] = refused
    tally[7] = good
    tally[8] = overdue_weight
    tally[10] = hopeful_weight
    tally[11] = late_weight

    stand["emitted"] = totals[0]
    stand["preemptions"] = totals[1]
    stand["evicted"] = totals[2]
    stand["drafted"] = totals[3]
    stand["accepted"] = totals[4]
    stand["finished"] += finished


@kernel
def _rank(values: Floats, q: float) -> float:
    """The nearest-rank quantile; NaN of nothing. Reorders `values`."""
    n = len(values)
    if n == 0:
        return np.nan
    k = min(max(int(np.ceil(q * n)) - 1, 0), n - 1)
    return np.partition(values, k)[k]


@kernel
def _itl(s: State, before: Ints, seen: Floats) -> None:
    """Median and 99th percentile of the window's gaps, ms, by the upper end of their bin; `before` becomes the counts of now."""
    now = np.empty(GAP_BINS, np.int64)
    gaps_now(s, now)
    total = 0
    for i in range(GAP_BINS):
        before[i] = now[i] - before[i]
        total += before[i]
    seen[_ITL50] = np.nan
    seen[_ITL99] = np.nan
    if total > 0:
        middle = (total + 1) // 2
        late = int(np.ceil(0.99 * total))
        count = 0
        for i in range(GAP_BINS):
            count += before[i]
            if count >= middle and seen[_ITL50] != seen[_ITL50]:
                seen[_ITL50] = bin_end_ps(i) / 1e9
            if count >= late:
                seen[_ITL99] = bin_end_ps(i) / 1e9
                break
    for i in range(GAP_BINS):
        before[i] = now[i]
