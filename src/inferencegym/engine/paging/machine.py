"""Driving rows of the paging machine: begin an episode, take a decision in every row, and tell what came of it. One kernel call a batch."""

from __future__ import annotations

from inferencegym.engine.memory import Arena, _address
from inferencegym.engine.paging.look import look, look_mask
from inferencegym.engine.paging.memory import (
    BatchAt,
    RowAt,
    batch_of,
    choices_pointer,
    chosen_pointer,
    clear,
    flag_pointer,
    reward_pointer,
    row_at,
    seen_pointer,
    terms_pointer,
    tier_at,
)
from inferencegym.engine.paging.moves import act, can_act
from inferencegym.engine.paging.rules import CEILING, FLOOR, Rules
from inferencegym.engine.paging.tick import arrive, pass_tick
from inferencegym.engine.paging.traffic import Traffic
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.jit import kernel


@kernel
def begin(arena: Arena, row: int) -> None:
    """First look at a row that was prepared (see `prepare`): tick 0's arrivals are in, nothing else."""
    b = batch_of(arena)
    s = row_at(b, row)
    arrive(s)
    s["lost"] = 0
    for tier in range(2):
        tier_at(s, tier)["changed"] = 1
    show(b, s, row)
    _flags(b, row, False, False)


@kernel
def step(arena: Arena) -> None:
    """Take every row's action; rows that have ended stay as they are."""
    b = batch_of(arena)
    for row in range(b["n"]):
        s = row_at(b, row)
        if not s["ended"]:
            _decide(b, s, row)


@kernel
def _decide(b: BatchAt, s: RowAt, row: int) -> None:
    done, found, efficiency = s["done_weight"], s["found"], s["efficiency"]
    s["progress"] = 0
    s["lost"] = 0
    survived = advance(s, chosen_pointer(_address(b) + b["actions_at"], row)["action"])
    terms = terms_pointer(_address(b) + b["terms_at"], row)
    if survived:
        terms["goodput"] = s["progress"] * s["pay_progress"] + (s["done_weight"] - done) * s["pay_done"]
        terms["latency"] = (s["efficiency"] - efficiency) * s["pay_latency"]
        terms["residency"] = (s["found"] - found) * s["pay_residency"]
        terms["sla"] = -s["lost"] * s["pay_lost"]
        terms["crash"] = 0.0
    else:
        terms["goodput"] = terms["latency"] = terms["residency"] = terms["sla"] = 0.0
        terms["crash"] = -1.0
    reward = terms["goodput"] + terms["latency"] + terms["residency"] + terms["sla"] + terms["crash"]
    reward_pointer(_address(b) + b["rewards_at"], row)["reward"] = reward
    _flags(b, row, s["ended"] == 2, s["ended"] == 1)
    show(b, s, row)


@kernel
def advance(s: RowAt, action: int) -> bool:
    """Take one decision in a row, and the tick that follows the last of a tick's decisions; False if it crashed."""
    if can_act(s, action):
        act(s, action)
    else:
        s["illegal"] += 1
    s["slot"] += 1
    if s["slot"] == s["slots"]:
        s["slot"] = 0
        if not pass_tick(s):
            s["ended"] = 2
            return False
        if s["tick"] == s["horizon"]:
            s["ended"] = 1
    return True


@kernel
def _flags(b: BatchAt, row: int, terminated: bool, truncated: bool) -> None:
    flag_pointer(_address(b) + b["terminated_at"], row)["flag"] = terminated
    flag_pointer(_address(b) + b["truncated_at"], row)["flag"] = truncated


@kernel
def show(b: BatchAt, s: RowAt, row: int) -> None:
    """Write a row's observation and mask."""
    look(s, seen_pointer(_address(b) + b["observations_at"], row))
    look_mask(s, choices_pointer(_address(b) + b["masks_at"], row))


@kernel
def outcome_of(s: RowAt) -> float:
    """What grades compare, as far as the row has come: FLOOR after a crash, else the weighted shares of what all could get."""
    if s["ended"] == 2:
        return FLOOR
    whole = (
        s["done_weight"] * s["goodput_part"] + s["efficiency"] * s["latency_part"] + s["found"] * s["residency_part"]
    )
    return FLOOR + (CEILING - FLOOR) * whole


@kernel
def outcome(arena: Arena, row: int) -> float:
    """`outcome_of` a row, from Python."""
    return outcome_of(row_at(batch_of(arena), row))


def prepare(arena: Arena, row: int, rules: Rules, traffic: Traffic) -> None:
    """Empty a row and give it a scenario; the caller keeps `traffic` alive while the row runs."""
    s = clear(arena, row, rules)
    n = len(traffic.table)
    if n > int(s["capacity"]):
        raise ConfigError("traffic", f"{n} requests", allowed=f"at most {int(s['capacity'])}")
    s["traffic_at"], s["requests"] = traffic.table.ctypes.data, n
    all_weight, all_returning = max(traffic.weight(rules.vip_weight), 1), max(traffic.returning_tokens, 1)
    s["all_weight"], s["all_returning"] = all_weight, all_returning
    goodput = rules.reward_scale * rules.goodput_weight
    s["pay_progress"] = goodput * rules.progress_share / all_weight
    s["pay_done"] = goodput * (1 - rules.progress_share) / all_weight
    s["pay_latency"] = rules.reward_scale * rules.latency_weight / max(n, 1)
    s["pay_residency"] = rules.reward_scale * rules.residency_weight / all_returning
    s["pay_lost"] = goodput * rules.lost_share / max(n, 1)
    s["goodput_part"] = rules.goodput_weight / all_weight
    s["latency_part"] = rules.latency_weight / max(n, 1)
    s["residency_part"] = rules.residency_weight / all_returning
