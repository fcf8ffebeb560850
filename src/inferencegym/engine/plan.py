"""What the next step computes: how many tokens each request is granted, who is admitted, how long the step takes.

`plan` follows docs/scheduling.md, sections 4, 6 and 13, line by line. It reads prompts and what was generated so far, never the oracle.
With the crowd formed a plan costs as much as it has individuals; without it, one pass over the running list.
"""

from __future__ import annotations

from inferencegym.engine.codes import Ending, Order, Phase, Scheduler
from inferencegym.engine.crowd import decodes, drop_slot, gather, run_append, scatter
from inferencegym.engine.ending import end
from inferencegym.engine.latency import chunk_ps
from inferencegym.engine.ledger import (
    block_key,
    blocks_for,
    disown,
    evict,
    free_blocks,
    keyed_blocks,
    lookup,
    publish,
    take_blocks,
    take_hits,
)
from inferencegym.engine.memory import (
    Asked,
    State,
    Times,
    chunk_coefficients,
    core_at,
    crossing_at,
    picked_at,
    place_at,
    row_at,
    slot_at,
    table_ps,
    tenant_at,
)
from inferencegym.engine.order import head, pop
from inferencegym.engine.victims import preempt, victim
from inferencegym.ground.jit import kernel

_VLLM, _SARATHI, _ORCA = int(Scheduler.VLLM), int(Scheduler.SARATHI), int(Scheduler.ORCA)
_STATIC, _LLAMACPP = int(Scheduler.STATIC), int(Scheduler.LLAMACPP)
_WAITING, _RUNNING, _SWAPPED = int(Phase.WAITING), int(Phase.RUNNING), int(Phase.SWAPPED)
_PADDING = int(Phase.PADDING)
_VTC = int(Order.VTC)
_NEVER_FITS = int(Ending.NEVER_FITS)


@kernel
def plan(s: State, w: Asked, t: Times, r: int, now: int) -> None:
    """Plan replica r's next step at `now`; sets `step_end_ps` (-1: nothing to do)."""
    core = core_at(s, r)
    core["now_ps"] = now
    core["step_end_ps"] = -1
    core["unseen"] = 0
    while True:
        core["preempted"] = 0
        core["granted"] = 0
        scheduler = core["scheduler"]
        if scheduler == _VLLM or scheduler == _SARATHI:
            _plan_shared(s, w, t, r)
        elif scheduler == _ORCA:
            _plan_orca(s, w, t, r)
        elif scheduler == _STATIC:
            _plan_static(s, w, t, r)
        else:
            _plan_llamacpp(s, w, t, r)
        if core["granted"] > 0 or core["preempted"] == 0:
            break
    if core["granted"] > 0:
        core["step_ps"] = _step_ps(s, t, r)
        core["step_end_ps"] = now + core["step_ps"]
        core["swap_blocks"] = 0
        core["swap_moves"] = 0


# --- vllm and sarathi -------------------------------------------------------------------------------------------------


@kernel
def _plan_shared(s: State, w: Asked, t: Times, r: int) -> None:
    core = core_at(s, r)
    if core["blank"] < 0:
        _pay_debt(s, w, t, r)
    if core["speculation_depth"] > 0:
        scatter(s, r)
    budget = -1
    if core["crowd"] == 1:
        budget = _run_crowd(s, w, r)
        if budget < 0:
            for i in range(core["picked_len"]):
                slot_at(s, r, picked_at(s, r, i)["slot"])["grant"] = 0
            scatter(s, r)
    if core["crowd"] == 0:
        budget = _run_individuals(s, w, t, r)
    if core["preempted"] == 0:
        _admit(s, w, t, r, budget)


@kernel
def _pay_debt(s: State, w: Asked, t: Times, r: int) -> None:
    """The pool was shrunk below use: evict, then preempt, until no block is owed."""
    core = core_at(s, r)
    while core["blank"] < 0:
        if core["cached_free"] > 0:
            evict(s, r, min(core["cached_free"], -core["blank"]))
        elif core["running"] > 0:
            scatter(s, r)
            preempt(s, w, t, r, victim(s, w, r))
        else:
            return


@kernel
def _chunk_limit(s: State, r: int) -> int:
    """Longest chunk a prefill may get in this step, before the budget."""
    core = core_at(s, r)
    limit = core["long_prefill_token_threshold"]
    if limit > 0 and core["running"] + core["waiting"] > 1:
        return limit
    return 1 << 40


@kernel
def _run_crowd(s: State, w: Asked, r: int) -> int:
    """Grant the running requests while the crowd is formed; budget left, or -1 if the crowd has to be scattered first."""
    core = core_at(s, r)
    size = core["block_size"]
    left = core["max_num_batched_tokens"] - core["decodes"]
    if left < 0:
        return -1
    n_picked = core["picked_len"]
    growth = crossing_at(s, r, core["turn"] % size)["decodes"]
    need = growth
    # Visiting decodes first is the same as admission order if the only prefill is the youngest, or if all wants fit.
    ordered = (
        core["scheduler"] == _SARATHI
        or n_picked == 0
        or (n_picked == 1 and picked_at(s, r, 0)["slot"] == core["run_tail"])
    )
    if not ordered and core["prefix_caching"] == 1:
        return -1
    limit = _chunk_limit(s, r)
    for i in range(n_picked):
        me = slot_at(s, r, picked_at(s, r, i)["slot"])
        want = min(me["prompt"] + me["generated"] - me["computed"], limit)
        if want > left and not ordered:
            return -1
        if i > 0 and core["scheduler"] == _SARATHI and decodes(s, r, picked_at(s, r, i)["slot"]):
            return -1
        me["grant"] = min(want, left)
        left -= me["grant"]
        if me["grant"] > 0:
            need += max(0, blocks_for(me["computed"] + me["grant"], size) - me["blocks"])
    if need > free_blocks(s, r):
        return -1
    if growth > 0:
        take_blocks(s, r, growth)
    core["granted"] = core["decodes"]
    for i in range(n_picked):
        slot = picked_at(s, r, i)["slot"]
        me = slot_at(s, r, slot)
        if me["grant"] > 0:
            core["granted"] += me["grant"]
            _hold(s, w, r, slot, me["computed"] + me["grant"], me["computed"] + me["grant"])
    return left


@kernel
def _hold(s: State, w: Asked, r: int, slot: int, reserve: int, tokens: int) -> None:
    """Allocate up to `reserve` tokens' blocks and publish what `tokens` tokens fill. There is room."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    if reserve > me["blocks"] * core["block_size"]:
        need = blocks_for(reserve, core["block_size"]) - me["blocks"]
        take_blocks(s, r, need)
        me["blocks"] += need
    if core["prefix_caching"] == 1 and me["private"] == 0 and me["computed"] < me["prompt"]:
        publish(s, w, r, slot, tokens)


@kernel
def _run_individuals(s: State, w: Asked, t: Times, r: int) -> int:
    """Grant the running requests one by one, preempting where blocks run out; returns the budget left."""
    core = core_at(s, r)
    budget = core["max_num_batched_tokens"]
    if core["scheduler"] == _SARATHI:
        budget, stopped = _visit(s, w, t, r, budget, True, False)
        if not stopped:
            budget, stopped = _visit(s, w, t, r, budget, False, True)
    else:
        budget, stopped = _visit(s, w, t, r, budget, True, True)
    return budget


@kernel
def _visit(s: State, w: Asked, t: Times, r: int, budget: int, decoding: bool, prefilling: bool) -> tuple[int, bool]:
    """One pass over the running list, for decodes or prefills or both; (budget left, whether a request evicted itself)."""
    core = core_at(s, r)
    size = core["block_size"]
    k = core["speculation_depth"]
    slot = core["run_head"]
    while slot >= 0 and budget > 0:
        me = slot_at(s, r, slot)
        if decodes(s, r, slot):
            wanted = decoding
            n = min(1 + k, budget)
            reserve = me["computed"] + 1 + k
        else:
            wanted = prefilling
            n = min(min(me["prompt"] + me["generated"] - me["computed"], budget), _chunk_limit(s, r))
            reserve = me["computed"] + n + k
        if wanted:
            if reserve > me["blocks"] * size:
                need = blocks_for(reserve, size) - me["blocks"]
                while need > free_blocks(s, r):
                    chosen = victim(s, w, r)
                    back = preempt(s, w, t, r, chosen)
                    budget += back
                    core["granted"] -= back
                    if chosen == slot:
                        return budget, True
            _hold(s, w, r, slot, reserve, me["computed"] + n)
            me["grant"] = n
            budget -= n
            core["granted"] += n
        slot = me["next"]
    return budget, False


@kernel
def _admit(s: State, w: Asked, t: Times, r: int, budget: int) -> None:
    """Seat waiting requests from the head while tokens, seats and blocks last. A head that does not fit blocks the rest."""
    core = core_at(s, r)
    size = core["block_size"]
    k = core["speculation_depth"]
    while core["waiting"] > 0 and budget > 0 and core["running"] < core["max_num_seqs"]:
        slot = head(s, r)
        me = slot_at(s, r, slot)
        known = me["prompt"] + me["generated"]
        if blocks_for(known + k, size) > core["pool_blocks"]:
            _refuse(s, w, r)
            continue
        room = free_blocks(s, r)
        if core["running"] > 0:
            room -= core["watermark_blocks"]
        if me["computed"] > 0:
            granted = _admit_carried(s, w, t, r, slot, budget, room)
        else:
            granted = _admit_fresh(s, w, r, slot, budget, room)
        if granted == 0:
            return
        budget -= granted


@kernel
def _refuse(s: State, w: Asked, r: int) -> None:
    """The head can never fit: it ends here."""
    slot = head(s, r)
    pop(s, w, r)
    disown(s, r, slot)
    if slot_at(s, r, slot)["state"] == _SWAPPED:
        core_at(s, r)["cpu_free"] += blocks_for(slot_at(s, r, slot)["computed"], core_at(s, r)["block_size"])
    core_at(s, r)["refused"] += 1
    end(s, w, r, slot, core_at(s, r)["now_ps"], _NEVER_FITS)
    drop_slot(s, r, slot)


@kernel
def _seat(s: State, w: Asked, r: int, slot: int, n: int) -> None:
    """Move the head from the queue to the running list with a grant of n tokens."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    pop(s, w, r)
    run_append(s, r, slot)
    if me["scheduled_ps"] < 0:
        me["scheduled_ps"] = core["now_ps"]
        me["cached"] = me["computed"]
        core["hit_tokens"] += me["computed"]
        if core["order"] == _VTC:
            queue = tenant_at(s, r, me["tenant"])
            queue["counter"] += queue["cost_in"] * me["prompt"]
    me["state"] = _RUNNING
    me["in_crowd"] = 0
    me["grant"] = n
    core["granted"] += n
    if core["crowd"] == 1:
        picked_at(s, r, core["picked_len"])["slot"] = slot
        core["picked_len"] += 1


@kernel
def _admit_fresh(s: State, w: Asked, r: int, slot: int, budget: int, room: int) -> int:
    """Admit a head with nothing computed; tokens granted, 0 if it does not fit."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    size = core["block_size"]
    k = core["speculation_depth"]
    known = me["prompt"] + me["generated"]
    hits = 0
    own = 0
    idle = 0
    last = -1
    if core["prefix_caching"] == 1:
        hits, own, idle, last = lookup(s, w, r, slot)
    start = (hits + own) * size
    n = min(known - start, _chunk_limit(s, r))
    if core["chunked_prefill"] == 0 and n > budget:
        return 0
    n = min(n, budget)
    whole = known + k if core["reserve_full_isl"] == 1 else start + n + k
    if blocks_for(whole, size) - hits - own > room - idle:
        return 0
    me["computed"] = start
    _seat(s, w, r, slot, n)
    if core["prefix_caching"] == 1:
        take_hits(s, r, slot, hits, own, last)
    me["blocks"] = hits + own
    me["private"] = 0
    _hold(s, w, r, slot, start + n + k, start + n)
    return n


@kernel
def _admit_carried(s: State, w: Asked, t: Times, r: int, slot: int, budget: int, room: int) -> int:
    """Admit a head whose KV comes back from the CPU or from a prefill replica; tokens granted, 0 if it does not fit."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    size = core["block_size"]
    k = core["speculation_depth"]
    known = me["prompt"] + me["generated"]
    if decodes(s, r, slot):
        n = min(1 + k, budget)
    else:
        n = min(min(known - me["computed"], _chunk_limit(s, r)), budget)
    need = blocks_for(max(known, me["computed"] + 1) + k, size)
    if need > room:
        return 0
    if me["state"] == _SWAPPED:
        moved = blocks_for(me["computed"], size)
        core["cpu_free"] += moved
        core["swap_blocks"] += moved
        core["swap_moves"] += 1
        core["swapped_blocks"] += moved
    me["private"] = 1
    _seat(s, w, r, slot, n)
    take_blocks(s, r, need)
    me["blocks"] = need
    return n


# --- siblings that reserve --------------------------------------------------------------------------------------------


@kernel
def _life_blocks(s: State, w: Asked, r: int, slot: int) -> int:
    """Blocks for the prompt and all that may be answered: the caller's budget, or what the context allows."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    answer = core["max_model_len"] - me["prompt"]
    if row_at(w, me["row"])["budget"] > 0:
        answer = min(answer, row_at(w, me["row"])["budget"])
    return blocks_for(me["prompt"] + answer, core["block_size"])


@kernel
def _reserve(s: State, r: int, slot: int, blocks: int) -> None:
    core_at(s, r)["blank"] -= blocks
    slot_at(s, r, slot)["blocks"] = blocks


@kernel
def _plan_orca(s: State, w: Asked, t: Times, r: int) -> None:
    """Whole prompts first, then every decode."""
    core = core_at(s, r)
    budget = core["max_num_batched_tokens"]
    gather(s, r)
    core["granted"] = core["decodes"]
    while core["waiting"] > 0 and core["running"] < core["max_num_seqs"]:
        slot = head(s, r)
        n = slot_at(s, r, slot)["prompt"]
        blocks = _life_blocks(s, w, r, slot)
        if blocks > core["pool_blocks"]:
            _refuse(s, w, r)
            continue
        if n > budget or blocks > core["blank"]:
            return
        _seat(s, w, r, slot, n)
        _reserve(s, r, slot, blocks)
        budget -= n


@kernel
def _plan_static(s: State, w: Asked, t: Times, r: int) -> None:
    """A batch is formed when the last one has ended; its prompts are computed, then all decode until the longest is done."""
    core = core_at(s, r)
    if core["running"] == 0:
        scatter(s, r)
        while core["waiting"] > 0 and core["running"] < core["max_num_seqs"]:
            slot = head(s, r)
            blocks = _life_blocks(s, w, r, slot)
            if blocks > core["pool_blocks"]:
                _refuse(s, w, r)
                continue
            if blocks > core["blank"]:
                break
            _seat(s, w, r, slot, 0)
            _reserve(s, r, slot, blocks)
    if core["crowd"] == 1:
        core["granted"] = core["decodes"]
        return
    budget = core["max_num_batched_tokens"]
    slot = core["run_head"]
    while slot >= 0:
        me = slot_at(s, r, slot)
        me["grant"] = 0
        if me["generated"] == 0 and (core["granted"] == 0 or me["prompt"] <= budget):
            me["grant"] = me["prompt"]
            budget -= me["prompt"]
            core["granted"] += me["prompt"]
        elif me["generated"] == 0:
            budget = 0  # in order: nobody overtakes
        slot = me["next"]
    if core["granted"] > 0:
        return
    slot = core["run_head"]
    while slot >= 0:
        slot_at(s, r, slot)["grant"] = 1
        core["granted"] += 1
        slot = slot_at(s, r, slot)["next"]


@kernel
def _choose_place(s: State, w: Asked, r: int, slot: int) -> tuple[int, int]:
    """llama.cpp's slot for a request: (place, shared leading blocks)."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    size = core["block_size"]
    cap = min((me["prompt"] + me["generated"] - 1) // size, keyed_blocks(w, me["row"], size))
    best = -1
    shared = 0
    oldest = -1
    for place in range(min(core["max_num_seqs"], s["n_places"])):
        here = place_at(s, r, place)
        if here["taken"] == 1:
            continue
        if oldest < 0 or here["used_ps"] < place_at(s, r, oldest)["used_ps"]:
            oldest = place
        if core["prefix_caching"] == 1 and here["row"] >= 0:
            upto = min(cap, min(here["blocks"], keyed_blocks(w, here["row"], size)))
            run = 0
            while run < upto and block_key(w, here["row"], run, size) == block_key(w, me["row"], run, size):
                run += 1
            if run > shared:
                shared = run
                best = place
    if best < 0:
        best = oldest
    return best, shared


@kernel
def _plan_llamacpp(s: State, w: Asked, t: Times, r: int) -> None:
    """Every decoding slot's token, then prompts in slot order, up to the batch size."""
    core = core_at(s, r)
    gather(s, r)
    while core["waiting"] > 0 and core["running"] < core["max_num_seqs"]:
        slot = head(s, r)
        me = slot_at(s, r, slot)
        place, shared = _choose_place(s, w, r, slot)
        if place < 0:
            break  # all places below the cap are taken (the cap was lowered meanwhile)
        me["computed"] = shared * core["block_size"]
        me["place"] = place
        place_at(s, r, place)["taken"] = 1
        _seat(s, w, r, slot, 0)
        _reserve(s, r, slot, blocks_for(core["max_model_len"], core["block_size"]))
    core["granted"] = core["decodes"]
    left = core["max_num_batched_tokens"] - core["decodes"]
    for i in range(core["picked_len"]):
        slot_at(s, r, picked_at(s, r, i)["slot"])["grant"] = 0
    done = -1
    for _ in range(core["picked_len"]):
        slot = -1
        for i in range(core["picked_len"]):  # the next one in slot order
            other = picked_at(s, r, i)["slot"]
            place = slot_at(s, r, other)["place"]
            if place > done and (slot < 0 or place < slot_at(s, r, slot)["place"]):
                slot = other
        me = slot_at(s, r, slot)
        done = me["place"]
        me["grant"] = max(0, min(me["prompt"] - me["computed"], left))
        left -= me["grant"]
        core["granted"] += me["grant"]


# --- step time --------------------------------------------------------------------------------------------------------


@kernel
def _step_ps(s: State, t: Times, r: int) -> int:
    """Duration of the planned step. Section 6."""
    core = core_at(s, r)
    tokens = core["decodes"]
    samples = core["decodes"]
    n_decodes = core["decodes"]
    context = core["context"]
    chunks_ps = 0
    chunks = 0
    prompt_tokens = 0
    i = 0
    slot = -1
    if core["crowd"] == 0:
        slot = core["run_head"]
    elif core["picked_len"] > 0:
        slot = picked_at(s, r, 0)["slot"]
    while slot >= 0:
        me = slot_at(s, r, slot)
        n = me["grant"]
        if n > 0:
            tokens += n
            if me["state"] == _PADDING or decodes(s, r, slot):
                n_decodes += 1
                samples += 1
                context += me["computed"] + 1
            else:
                chunks += 1
                prompt_tokens += n
                chunks_ps += chunk_ps(chunk_coefficients(t), n, me["computed"])
                if me["computed"] + n == me["prompt"] + me["generated"]:
                    samples += 1
        if core["crowd"] == 0:
            slot = me["next"]
        else:
            i += 1
            slot = picked_at(s, r, i)["slot"] if i < core["picked_len"] else -1
    core["prefill_tokens"] += prompt_tokens
    total = (
        table_ps(t["lin_at"], t["lin_len"], tokens)
        + table_ps(t["head_at"], t["head_len"], samples)
        + table_ps(t["dec_at"], t["dec_len"], n_decodes)
    )
    total += t["kv_ps"] * context + chunks_ps
    if chunks > 0:
        total += t["pre_ps"]
    if n_decodes > 0 and core["speculation_depth"] > 0:
        total += core["speculation_depth"] * table_ps(t["draft_at"], t["draft_len"], n_decodes)
    return total + t["swap_ps_per_block"] * core["swap_blocks"] + t["swap_fixed_ps"] * core["swap_moves"]
