"""A KV pool as it stands: every owner of blocks on the GPU and on the CPU, and who waits. Blocks are KV blocks, times ticks.

The machine counts blocks and does not place them, so the order of owners is ours: by kind, then by request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inferencegym.engine.paging.memory import (
    ACTIVE,
    IDLE_CPU,
    IDLE_GPU,
    LIVE,
    LOADING,
    SWAPPED,
    TIER,
    TRANSFER,
    WAITING,
    part,
    scalars,
)
from inferencegym.envs.pagedkv import PagedBatch

#: Kinds of GPU blocks, by number: name, what it means.
KINDS: tuple[tuple[str, str], ...] = (
    ("active VIP", "makes tokens"),
    ("active free", "makes tokens"),
    ("loading VIP", "prefill or copy back"),
    ("loading free", "prefill or copy back"),
    ("idle VIP", "cache of an ended request"),
    ("idle free", "cache of an ended request"),
    ("leaving", "on its way to the CPU"),
)
LEAVING = len(KINDS) - 1
#: Kinds of CPU blocks, by number.
CPU_KINDS = ("caches of VIPs", "caches of free users", "preempted requests", "arriving or leaving")
#: Which state and tier of a request is which kind on the GPU.
_GPU = ((ACTIVE, True), (ACTIVE, False), (LOADING, True), (LOADING, False), (IDLE_GPU, True), (IDLE_GPU, False))
#: Number of an owner that is no request: a transfer that has not ended.
NO_REQUEST = -1


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queue: who waits, in ticks since they came, first come first."""

    name: str
    waits_ticks: Sequence[int]
    seats: int
    sla_ticks: int
    """0: none."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The KV pool: who owns how many blocks of the GPU, by kind (KINDS), and what lies on the CPU."""

    gpu_blocks: int
    owners: Sequence[tuple[int, int]]
    """(kind, blocks), in the order in which they are drawn."""
    cpu_blocks: int
    cpu: Mapping[str, int]
    """Blocks by what they are."""
    queues: Sequence[Waiting]
    tick: int
    requests: Sequence[int] = ()
    """The request behind each of `owners`; NO_REQUEST for a transfer."""
    cpu_owners: Sequence[tuple[int, int]] = ()
    """(number in CPU_KINDS, blocks)."""
    cpu_requests: Sequence[int] = ()
    """The request behind each of `cpu_owners`."""


def look(batch: PagedBatch, row: int) -> Pool:
    """A row's pool as it stands before the next decision. In a row that has crashed the owners want more blocks than there are."""
    s = scalars(batch.arena, row)
    n, tick = int(s["requests"]), int(s["tick"])
    live = part(batch.arena, row, "live_at", LIVE, int(s["capacity"]))[:n]
    traffic = batch.task.traffic(batch.scenarios[row]).table[:n]
    state, vip = live["state"], traffic["tier"] == 1
    grown = np.where(state == ACTIVE, tick - live["ready"] + 1, 0)
    size = -(-(live["context"] + grown) // int(s["block_tokens"]))
    ring = part(batch.arena, row, "transfers_at", TRANSFER, int(s["max_transfers"]))
    pending = ring[(int(s["transfer_head"]) + np.arange(int(s["transfer_len"]))) % len(ring)]

    owners: list[tuple[int, int]] = []
    requests: list[int] = []
    for kind, (where, important) in enumerate(_GPU):
        found = np.flatnonzero((state == where) & (vip == important))
        owners += [(kind, blocks) for blocks in size[found].tolist()]
        requests += found.tolist()
    leaving = [(LEAVING, blocks) for blocks in pending["gpu"].tolist() if blocks]
    owners += leaving
    requests += [NO_REQUEST] * len(leaving)

    swapped = (state == WAITING) & (live["flags"] & SWAPPED > 0)
    cpu_owners: list[tuple[int, int]] = []
    cpu_requests: list[int] = []
    for kind, lies in enumerate(((state == IDLE_CPU) & vip, (state == IDLE_CPU) & ~vip, swapped)):
        found = np.flatnonzero(lies)
        cpu_owners += [(kind, blocks) for blocks in size[found].tolist()]
        cpu_requests += found.tolist()
    moving = [(len(CPU_KINDS) - 1, blocks) for blocks in pending["cpu"].tolist() if blocks]
    cpu_owners += moving
    cpu_requests += [NO_REQUEST] * len(moving)
    cpu = dict.fromkeys(CPU_KINDS, 0)
    for kind, blocks in cpu_owners:
        cpu[CPU_KINDS[kind]] += blocks

    return Pool(
        int(s["gpu_blocks"]), owners, int(s["cpu_blocks"]), cpu, _queues(batch, row, live, tick), tick, requests, cpu_owners, cpu_requests
    )  # fmt: skip


def _queues(batch: PagedBatch, row: int, live: npt.NDArray[np.void], tick: int) -> list[Waiting]:
    """VIPs first."""
    tiers = part(batch.arena, row, "tiers_at", TIER, 2)
    queues = []
    for tier, name in ((1, "VIP"), (0, "free")):
        waits, at = [], int(tiers[tier]["queue_head"])
        while at:
            request = live[at - 1]
            waits.append(int(request["waited"]) + tick - int(request["since"]))
            at = int(request["next"])
        queues.append(Waiting(name, waits, int(tiers[tier]["seats"]), int(tiers[tier]["sla"])))
    return queues
