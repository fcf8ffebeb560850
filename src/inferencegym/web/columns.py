"""What is drawn of an episode, sample by sample: a tick of paging, a window of a deployment. For processes that play.

Each family has its columns; `Rows` takes them from an episode under way. Units stand with each column.
"""

from __future__ import annotations

import math
from typing import Any

from inferencegym.decision import knobs, paging
from inferencegym.envs.episode import Playing
from inferencegym.envs.pagedkv import PagedTask
from inferencegym.envs.serve_task import ServeTask
from inferencegym.web.spec import Column

_SCORE = (
    Column("score_so_far", "Score so far", "value", "score"),
    Column("reward_total", "Reward so far", "sum of rewards", "score"),
)

#: Of paging: fact -> label, unit, group.
_PAGING = {
    "free_waiting": ("Free users waiting", "requests", "queues"),
    "vip_waiting": ("VIPs waiting", "requests", "queues"),
    "free_active": ("Free requests running", "requests", "queues"),
    "vip_active": ("VIP requests running", "requests", "queues"),
    "gpu_used": ("GPU blocks in use", "blocks", "memory"),
    "free_idle_blocks": ("Idle caches of free users on the GPU", "blocks", "memory"),
    "vip_idle_blocks": ("Idle caches of VIPs on the GPU", "blocks", "memory"),
    "cpu_used": ("CPU blocks in use", "blocks", "memory"),
    "arrived": ("Requests arrived", "requests", "load"),
    "completed": ("Requests completed", "requests", "load"),
    "in_sla": ("Completed within the SLA", "requests", "load"),
    "sla_missed": ("SLA missed", "requests", "load"),
    "turned_away": ("Turned away at a full queue", "requests", "load"),
    "rejected": ("Rejected", "requests", "load"),
    "evicted": ("Caches evicted", "caches", "load"),
    "swapped_out": ("Caches moved to the CPU", "caches", "load"),
    "shredded": ("Preempted, KV lost", "requests", "load"),
    "preempt_swapped": ("Preempted, KV moved to the CPU", "requests", "load"),
    "illegal": ("Illegal actions", "decisions", "load"),
}
#: Of a deployment: column of the snapshot -> label, group, scale. Units are the surface's.
_KNOBS = {
    "queue_depth": ("Requests waiting", "queues", "linear"),
    "vip_queue_depth": ("Most urgent class waiting", "queues", "linear"),
    "active_requests": ("Requests running", "queues", "linear"),
    "waiting_prompt_tokens": ("Prompt tokens waiting", "queues", "linear"),
    "kv_cache_occupancy": ("KV blocks in use", "memory", "linear"),
    "gpu_memory_used_gb": ("GPU memory in use", "memory", "linear"),
    "preemptions": ("Preemptions in the window", "memory", "linear"),
    "eviction_events": ("Cache evictions in the window", "memory", "linear"),
    "p50_ttft_ms": ("TTFT, median", "latency", "log"),
    "p99_ttft_ms": ("TTFT, 99th percentile", "latency", "log"),
    "p50_itl_ms": ("ITL, median", "latency", "log"),
    "p99_itl_ms": ("ITL, 99th percentile", "latency", "log"),
    "oldest_wait_ms": ("Longest wait in the queue", "latency", "linear"),
    "request_arrival_rate": ("Arrivals", "load", "linear"),
    "throughput_tps": ("Output tokens", "load", "linear"),
    "goodput_rps": ("Finished within objectives", "load", "linear"),
    "slo_compliance_rate": ("SLO attainment", "load", "linear"),
    "vip_slo_compliance_rate": ("SLO attainment, most urgent class", "load", "linear"),
    "mean_prompt_length": ("Mean prompt", "load", "linear"),
    "estimated_cost_per_1k": ("Cost per 1,000 tokens", "load", "linear"),
    "batch_cap": ("Batch cap", "knobs", "linear"),
    "kv_budget_fraction": ("KV budget", "knobs", "linear"),
    "speculation_depth": ("Speculation depth", "knobs", "linear"),
    "quantization_tier": ("Quantization tier", "knobs", "linear"),
    "prefill_decode_split": ("Prefill/decode split", "knobs", "linear"),
    "priority_routing": ("Priority routing", "knobs", "linear"),
}
_SWITCH = {0: "off", 1: "on"}
_CODES = {
    "quantization_tier": dict(enumerate(knobs.QUANTIZATION_TIERS)), "prefill_decode_split": _SWITCH, "priority_routing": _SWITCH,
}  # fmt: skip


def columns(task: Any) -> list[Column]:
    """The columns of a task's samples, in the order of a row."""
    if isinstance(task, PagedTask):
        each = task.rules.decisions_per_tick
        named = dict(enumerate(paging.NAMES))
        chosen = [Column(f"action_{i}", "Action" if each == 1 else f"Action {i + 1} of {each}", "action", "actions", steps=True, codes=named) for i in range(each)]  # fmt: skip
        return [*_SCORE, *(Column(name, *said) for name, said in _PAGING.items()), *chosen]
    assert isinstance(task, ServeTask)
    surface = {one.name: one for one in knobs.COLUMNS}
    strictest = {
        "p99_ttft_ms": 1000 * min(one.ttft_s for one in task.file.classes),
        "p99_itl_ms": 1000 * min(one.tpot_s for one in task.file.classes),
    }
    found = list(_SCORE)
    for name, (label, group, scale) in _KNOBS.items():
        unit = "" if name in _CODES else surface[name].unit
        found.append(Column(name, label, unit, group, scale, group == "knobs", _CODES.get(name), strictest.get(name)))
    return found


class Rows:
    """Takes the rows of one episode, sample after sample."""

    def __init__(self, task: Any) -> None:
        self._each = task.rules.decisions_per_tick if isinstance(task, PagedTask) else 0
        self._names = tuple(_PAGING if self._each else _KNOBS)
        self._earned = 0.0

    def row(self, playing: Playing, first: int) -> list[float]:
        """How things stand after a sample, and what was done in it. `first`: its first decision."""
        batch: Any = playing.batch
        self._earned += float(playing.rewards[first : playing.steps].sum())
        facts = batch.facts(0)
        row = [batch.value(0), self._earned, *(facts[name] for name in self._names)]
        if self._each:
            taken = playing.actions[first : playing.steps].tolist()
            # A crash may end a tick before its last decision.
            row += [*taken, *[math.nan] * (self._each - len(taken))]
        return row
