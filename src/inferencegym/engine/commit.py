"""What a step did: tokens are emitted, prefills advance, requests finish. The only place that reads the oracle (`target`).

Rules: docs/scheduling.md, sections 5, 10 and 11. With the crowd formed the decodes advance by a few additions; only those
who finish, and the individuals of the step, are looked at.
"""

from __future__ import annotations

import numpy as np

from inferencegym.engine.codes import Ending, Order, Phase, Role, Scheduler
from inferencegym.engine.crowd import (
    decodes,
    drop_slot,
    fin_pop,
    gather,
    in_step,
    join,
    leave,
    next_finish_turn,
    reserves,
    run_remove,
    settle,
)
from inferencegym.engine.ending import end
from inferencegym.engine.gaps import count_gap
from inferencegym.engine.ledger import release
from inferencegym.engine.memory import (
    Asked,
    State,
    Times,
    chance_at,
    core_at,
    fin_at,
    picked_at,
    place_at,
    slot_at,
    tenant_at,
)
from inferencegym.engine.wire import send
from inferencegym.ground.jit import kernel

_OK = int(Ending.OK)
_VTC = int(Order.VTC)
_PADDING = int(Phase.PADDING)
_PREFILL = int(Role.PREFILL)
_STATIC, _LLAMACPP = int(Scheduler.STATIC), int(Scheduler.LLAMACPP)


@kernel
def commit(s: State, w: Asked, t: Times, r: int) -> None:
    """The step in flight on replica r has ended."""
    core = core_at(s, r)
    core["now_ps"] = core["step_end_ps"]
    core["step_end_ps"] = -1
    core["steps"] += 1
    core["busy_ps"] += core["step_ps"]
    if core["crowd"] == 1:
        _commit_crowd(s, w, t, r)
    else:
        _commit_individuals(s, w, t, r)
    if core["scheduler"] == _STATIC:
        _end_batch(s, r)


@kernel
def _commit_crowd(s: State, w: Asked, t: Times, r: int) -> None:
    core = core_at(s, r)
    emitting = core["decodes"] - core["padding"]
    count_gap(s, r, core["step_ps"], emitting)
    core["turn"] += 1
    core["context"] += core["decodes"]
    core["emitted_tokens"] += emitting
    charge_crowd(s, r, 1)
    kept = 0
    for i in range(core["picked_len"]):
        slot = picked_at(s, r, i)["slot"]
        _finish_before(s, w, r, slot_at(s, r, slot)["seat"])
        stays = slot_at(s, r, slot)["grant"] == 0 or _advance(s, w, t, r, slot)
        if stays and decodes(s, r, slot) and in_step(s, r, slot):
            join(s, r, slot)
        elif stays:
            picked_at(s, r, kept)["slot"] = slot
            kept += 1
    _finish_before(s, w, r, 1 << 40)
    core["picked_len"] = kept


@kernel
def charge_crowd(s: State, r: int, turns: int) -> None:
    """VTC: every tenant pays for the tokens its members of the crowd emitted in so many turns."""
    if core_at(s, r)["order"] == _VTC:
        for tenant in range(s["n_tenants"]):
            queue = tenant_at(s, r, tenant)
            queue["counter"] += queue["cost_out"] * queue["decodes"] * turns


@kernel
def _finish_before(s: State, w: Asked, r: int, seat: int) -> None:
    """End the members of the crowd that are done and sit before `seat`: finishes happen in running order."""
    core = core_at(s, r)
    while next_finish_turn(s, r) == core["turn"]:
        slot = fin_at(s, r, 0)["slot"]
        if slot_at(s, r, slot)["seat"] >= seat:
            return
        fin_pop(s, r)
        settle(s, r, slot)
        if core["scheduler"] == _STATIC:
            slot_at(s, r, slot)["state"] = _PADDING
            core["padding"] += 1
            core["finished"] += 1
            if core["order"] == _VTC:
                tenant_at(s, r, slot_at(s, r, slot)["tenant"])["decodes"] -= 1
            end(s, w, r, slot, core["now_ps"], _OK)
        else:
            leave(s, r, slot)
            _finish(s, w, r, slot)


@kernel
def _commit_individuals(s: State, w: Asked, t: Times, r: int) -> None:
    core = core_at(s, r)
    waiting_for_prompts = False
    slot = core["run_head"]
    while slot >= 0:
        me = slot_at(s, r, slot)
        after = me["next"]
        if me["grant"] > 0:
            _advance(s, w, t, r, slot)
        if me["generated"] == 0:
            waiting_for_prompts = True
        slot = after
    # Drafts are kept or not one by one: under speculation the next plan would scatter the crowd again.
    if core["speculation_depth"] == 0 and not (core["scheduler"] == _STATIC and waiting_for_prompts):
        gather(s, r)


@kernel
def _advance(s: State, w: Asked, t: Times, r: int, slot: int) -> bool:
    """Commit one individual's grant; False if it has left the replica's running list."""
    me = slot_at(s, r, slot)
    n = me["grant"]
    me["grant"] = 0
    if me["state"] == _PADDING:
        me["computed"] += 1
        return True
    if decodes(s, r, slot):
        emitted = 1 + _accepted(s, w, r, slot, n - 1)
    else:
        me["computed"] += n
        if me["computed"] < me["prompt"] + me["generated"]:
            return True
        emitted = 1
    return _emit(s, w, t, r, slot, emitted)


@kernel
def uniform(seed: int, row: int, generated: int) -> float:
    """The random number of one speculative step, in [0, 1): a function of what is drawn for, not of when."""
    x = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(row) * np.uint64(0xBF58476D1CE4E5B9)
    x += np.uint64(generated) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return np.float64(x >> np.uint64(11)) * 2.0**-53


@kernel
def _accepted(s: State, w: Asked, r: int, slot: int, drafts: int) -> int:
    """How many of a step's draft tokens the model kept."""
    if drafts == 0:
        return 0
    me = slot_at(s, r, slot)
    u = uniform(core_at(s, r)["seed"], me["row"], me["generated"])
    kept = 0
    while kept < drafts and u < chance_at(w, me["kind"], kept)["chance"]:
        kept += 1
    core_at(s, r)["drafted"] += drafts
    core_at(s, r)["accepted"] += kept
    return kept


@kernel
def _emit(s: State, w: Asked, t: Times, r: int, slot: int, tokens: int) -> bool:
    """Tokens leave the engine; False if that was the last of the request here."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    now = core["now_ps"]
    tokens = min(tokens, me["target"] - me["generated"])
    me["generated"] += tokens
    me["computed"] = me["prompt"] + me["generated"] - 1
    core["emitted_tokens"] += tokens
    if core["order"] == _VTC:
        tenant_at(s, r, me["tenant"])["counter"] += tenant_at(s, r, me["tenant"])["cost_out"] * tokens
    first = me["first_ps"] < 0
    if first:
        me["first_ps"] = now
    else:
        count_gap(s, r, now - me["last_ps"], 1)
    me["last_ps"] = now
    if me["generated"] == me["target"]:
        if core["scheduler"] == _STATIC:
            me["state"] = _PADDING
            core["finished"] += 1
            end(s, w, r, slot, now, _OK)
            return True
        _finish(s, w, r, slot)
        return False
    if first and core["role"] == _PREFILL:
        run_remove(s, r, slot)
        send(s, t, r, slot)
        return False
    return True


@kernel
def _finish(s: State, w: Asked, r: int, slot: int) -> None:
    """A request is complete: seat and blocks are free again."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    core["finished"] += 1
    run_remove(s, r, slot)
    if reserves(core["scheduler"]):
        core["blank"] += me["blocks"]
        me["blocks"] = 0
        if core["scheduler"] == _LLAMACPP:
            here = place_at(s, r, me["place"])
            here["taken"] = 0
            here["row"] = me["row"]
            here["blocks"] = me["computed"] // core["block_size"]
            here["used_ps"] = core["now_ps"]
    else:
        release(s, w, r, slot, False)
    end(s, w, r, slot, core["now_ps"], _OK)
    drop_slot(s, r, slot)


@kernel
def _end_batch(s: State, r: int) -> None:
    """Static batching: once all have finished, every seat and block is free again."""
    core = core_at(s, r)
    if core["crowd"] == 1 and core["padding"] < core["running"]:
        return
    slot = core["run_head"]
    while slot >= 0:
        if slot_at(s, r, slot)["state"] != _PADDING:
            return
        slot = slot_at(s, r, slot)["next"]
    slot = core["run_head"]
    while slot >= 0:
        after = slot_at(s, r, slot)["next"]
        core["blank"] += slot_at(s, r, slot)["blocks"]
        drop_slot(s, r, slot)
        slot = after
    core["run_head"] = -1
    core["run_tail"] = -1
    core["running"] = 0
    core["decodes"] = 0
    core["padding"] = 0
    core["context"] = 0
