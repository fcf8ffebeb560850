"""What a policy is shown of the paging machine, written in place at every decision: twenty encoded columns and the mask of actions.

The encoding is that of `decision.paging.COLUMNS` (ranges, log scales, saturation); a test holds one to the other.
"""

from __future__ import annotations

from math import log1p, sqrt
from typing import Any

from inferencegym.decision.paging import ACTIVE_SHARE, AGE_TICKS, SIZE_BLOCKS, TREND_SHARE, TREND_TICKS
from inferencegym.engine.paging.lists import tower_largest
from inferencegym.engine.paging.memory import ACTIVE_TOWER, IDLE_TOWER, RowAt, live_at, recent_at, tier_at
from inferencegym.engine.paging.moves import active_context, blocks_of, can_admit, can_collect, can_move_out
from inferencegym.ground.jit import kernel

_SIZE = log1p(SIZE_BLOCKS)


@kernel
def _share(value: float, top: float) -> float:
    return min(value / top, 1.0)


@kernel
def _log_size(blocks: float) -> float:
    return min(log1p(blocks) / _SIZE, 1.0)


@kernel
def look(s: RowAt, seen: Any) -> None:
    """Write the observation. Sizes are written anew only when the set of idle caches has changed.

    seen : record of float32[20], changed in place
    """
    seen["gpu_utilization_pct"] = s["gpu_used"] / s["gpu_blocks"]
    seen["cpu_utilization_pct"] = s["cpu_used"] / s["cpu_blocks"]
    ago = recent_at(s, max(0, s["recorded"] - TREND_TICKS))["bits"]
    trend = (s["gpu_used"] - ago) / s["gpu_blocks"] / TREND_TICKS / TREND_SHARE
    seen["memory_pressure_trend"] = max(-1.0, min(1.0, trend))
    free, vip = tier_at(s, 0), tier_at(s, 1)
    seen["free_queue_pressure"] = _share(free["queue_len"], 100.0)
    seen["vip_queue_pressure"] = _share(vip["queue_len"], 50.0)
    seen["free_max_wait_time_pct"] = _wait(s, free)
    seen["vip_max_wait_time_pct"] = _wait(s, vip)
    largest = 0
    for tier in range(2):
        i = tower_largest(s, ACTIVE_TOWER + tier)
        if i >= 0:
            largest = max(largest, blocks_of(s, active_context(s, i)))
    seen["yield_preempt_active"] = _share(largest / s["gpu_blocks"], ACTIVE_SHARE)
    if free["changed"]:
        free["changed"] = 0
        seen["free_size_max"] = _largest_idle(s, 0)
        seen["free_size_mean"] = _size_mean(free)
        seen["free_size_std_dev"] = _size_std(free)
    if vip["changed"]:
        vip["changed"] = 0
        seen["vip_size_max"] = _largest_idle(s, 1)
        seen["vip_size_mean"] = _size_mean(vip)
        seen["vip_size_std_dev"] = _size_std(vip)
    seen["free_age_max"] = _age_max(s, free)
    seen["free_age_mean"] = _age_mean(s, free)
    seen["free_age_std_dev"] = _age_std(free)
    seen["vip_age_max"] = _age_max(s, vip)
    seen["vip_age_mean"] = _age_mean(s, vip)
    seen["vip_age_std_dev"] = _age_std(vip)


@kernel
def _wait(s: RowAt, q: Any) -> float:
    i = q["queue_head"] - 1
    if i < 0:
        return 0.0
    r = live_at(s, i)
    return _share(r["waited"] + s["tick"] - r["since"], q["wait_scale"])


@kernel
def _largest_idle(s: RowAt, tier: int) -> float:
    i = tower_largest(s, IDLE_TOWER + tier)
    return 0.0 if i < 0 else _log_size(blocks_of(s, live_at(s, i)["context"]))


@kernel
def _size_mean(q: Any) -> float:
    return _log_size(q["idle_blocks"] / max(q["idle_count"], 1))


@kernel
def _size_std(q: Any) -> float:
    n = q["idle_count"]
    return _log_size(sqrt(n * q["idle_blocks2"] - q["idle_blocks"] * q["idle_blocks"]) / max(n, 1))


@kernel
def _age_max(s: RowAt, q: Any) -> float:
    i = q["idle_head"] - 1
    return 0.0 if i < 0 else _share(s["tick"] - live_at(s, i)["since"], AGE_TICKS)


@kernel
def _age_mean(s: RowAt, q: Any) -> float:
    n = q["idle_count"]
    return 0.0 if n == 0 else _share(s["tick"] - q["since_sum"] / n, AGE_TICKS)


@kernel
def _age_std(q: Any) -> float:
    n = q["idle_count"]
    return _share(sqrt(n * q["since_sum2"] - q["since_sum"] * q["since_sum"]) / max(n, 1), AGE_TICKS)


@kernel
def look_mask(s: RowAt, mask: Any) -> None:
    """Write which actions do something now.

    mask : record of int8[18], changed in place
    """
    free, vip = tier_at(s, 0), tier_at(s, 1)
    mask["evict_largest_free"] = mask["evict_oldest_free"] = free["idle_count"] > 0
    mask["evict_largest_vip"] = mask["evict_oldest_vip"] = vip["idle_count"] > 0
    mask["reject_free"] = free["queue_len"] > 0
    mask["reject_vip"] = vip["queue_len"] > 0
    mask["shred_largest_free"] = free["active"] > 0
    mask["shred_largest_vip"] = vip["active"] > 0
    mask["admit_free"] = can_admit(s, 0)
    mask["admit_vip"] = can_admit(s, 1)
    mask["collect_garbage"] = can_collect(s)
    mask["nothing"] = 1
    if s["cpu_blocks"] - s["cpu_used"] >= s["max_blocks"] and s["transfer_len"] < s["max_transfers"]:
        # The CPU has room for whatever there is.
        mask["swap_largest_free"] = mask["swap_oldest_free"] = free["idle_count"] > 0
        mask["swap_largest_vip"] = mask["swap_oldest_vip"] = vip["idle_count"] > 0
        mask["preempt_swap_free"] = free["active"] > 0
        mask["preempt_swap_vip"] = vip["active"] > 0
        return
    mask["swap_largest_free"] = _fits(s, tower_largest(s, IDLE_TOWER))
    mask["swap_largest_vip"] = _fits(s, tower_largest(s, IDLE_TOWER + 1))
    mask["swap_oldest_free"] = _fits(s, free["idle_head"] - 1)
    mask["swap_oldest_vip"] = _fits(s, vip["idle_head"] - 1)
    mask["preempt_swap_free"] = _active_fits(s, tower_largest(s, ACTIVE_TOWER))
    mask["preempt_swap_vip"] = _active_fits(s, tower_largest(s, ACTIVE_TOWER + 1))


@kernel
def _fits(s: RowAt, i: int) -> bool:
    return i >= 0 and can_move_out(s, live_at(s, i)["context"])


@kernel
def _active_fits(s: RowAt, i: int) -> bool:
    return i >= 0 and can_move_out(s, active_context(s, i))
