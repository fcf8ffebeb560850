"""An engine under way, whoever feeds it: its state, what can be seen of it, and its settings, which change while it runs.

`engine.Engine` serves a whole workload, `live.LiveEngine` requests as they come. Seconds outside, picoseconds inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym.engine import memory
from inferencegym.engine.asked import Question
from inferencegym.engine.loop import requeue
from inferencegym.engine.machine import Machine
from inferencegym.engine.settings import LIVE, EngineSettings
from inferencegym.engine.state import put_settings
from inferencegym.ground.errors import ConfigError
from inferencegym.metrics.itl import ItlHistogram

_TOTALS = (
    "steps", "busy_ps", "emitted_tokens", "prefill_tokens", "hit_tokens", "preemptions", "swaps", "evicted_blocks",
    "drafted", "accepted", "finished", "refused", "swapped_blocks", "arrived",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gauges:
    """How things stand at one instant, summed over replicas."""

    now_s: float
    running: int
    waiting: int
    kv_used_blocks: int
    kv_pool_blocks: int
    on_wire: int

    @property
    def kv_used_fraction(self) -> float:
        """Share of the KV pool that requests hold (cached blocks nobody holds count as free)."""
        return self.kv_used_blocks / self.kv_pool_blocks


class Running:
    """The state of a cluster of replicas, and the settings in force."""

    machine: Machine
    settings: EngineSettings
    now_s: float
    _arena: memory.Arena
    _question: Question

    @property
    def arena(self) -> memory.Arena:
        """The state as bytes (`memory.part_of` reads its parts); not a copy."""
        return self._arena

    @property
    def _header(self) -> memory.Structured:
        return memory.header_of(self._arena)

    @property
    def _core(self) -> memory.Structured:
        return memory.part_of(self._arena, "core")

    # --- looking -----------------------------------------------------------------------------------------------------

    def gauges(self) -> Gauges:
        """Queue, seats and KV use now."""
        core = self._core
        pool = int(core["pool_blocks"].sum())
        return Gauges(
            now_s=self.now_s,
            running=int(core["running"].sum()),
            waiting=int(core["waiting"].sum()),
            kv_used_blocks=pool - int(core["blank"].sum()) - int(core["cached_free"].sum()),
            kv_pool_blocks=pool,
            on_wire=int(self._header["wire_len"][0]),
        )

    def totals(self) -> dict[str, int]:
        """Counters since the start, summed over replicas (times in ps).

        Requests refused for their length never reach a replica: they are in neither `arrived` nor `refused`. `hit_tokens`
        counts first admissions, `swaps` the ways out.
        """
        return {name: self._total(name) for name in _TOTALS}

    def total(self, name: str) -> int:
        """One of `totals`."""
        assert name in _TOTALS, f"totals are {_TOTALS}, not '{name}'"
        return self._total(name)

    def itl(self) -> ItlHistogram:
        """Inter-token gaps since the start."""
        core = self._core
        return ItlHistogram(
            counts=memory.part_of(self._arena, "gaps")["count"].sum(axis=0),
            sum_ps=int(core["gap_sum_ps"].sum()),
            count=int(core["gap_count"].sum()),
        )

    def _total(self, name: str) -> int:
        return int(self._core[name].sum())

    # --- steering ----------------------------------------------------------------------------------------------------

    def change(self, **changes: Any) -> None:
        """Change settings from the next plan on. ConfigError names a setting that does not exist, is out of range or needs a restart."""
        settings = self.settings.with_(**changes)
        for name in changes:
            if name not in LIVE:
                raise ConfigError(
                    f"engine.{name}", "cannot change while the engine runs", allowed=", ".join(sorted(LIVE))
                )
        slots = int(self._header["n_places"][0])
        if settings.scheduler == "llamacpp" and (settings.max_num_seqs or 0) > slots:
            raise ConfigError("engine.max_num_seqs", "llama.cpp's slots are fixed at its start", allowed=f"1..{slots}")
        reordered = settings.order != self.settings.order
        before = self._core["pool_blocks"].copy()
        put_settings(self._arena, self.machine, settings)
        self._core["blank"] += self._core["pool_blocks"] - before
        self._core["unseen"] += 1  # the step in flight was planned without it
        self.settings = settings
        if reordered:
            self._requeue(self._empty_queues())

    def _empty_queues(self) -> list[list[int]]:
        """Slots of each replica's waiting requests, by arrival; the queues are left empty."""
        slots, core, queues = memory.part_of(self._arena, "slots"), self._core, []
        for r, members in enumerate(slots):
            waiting = np.flatnonzero(np.isin(members["state"], memory.WAITING_PHASES)).tolist()
            waiting.sort(key=lambda slot: (int(members[slot]["arrival_ps"]), int(members[slot]["row"])))
            queues.append(waiting)
            core["wait_head"][r] = core["wait_tail"][r] = memory.NONE
            core["waiting"][r] = core["heap_len"][r] = 0
        tenants = memory.part_of(self._arena, "tenants")
        tenants["head"] = tenants["tail"] = memory.NONE
        return queues

    def _requeue(self, queues: list[list[int]]) -> None:
        slots, tenants = memory.part_of(self._arena, "slots"), memory.part_of(self._arena, "tenants")
        for r, waiting in enumerate(queues):
            members = slots[r][: int(self._core["slots_used"][r])]
            for tenant in range(tenants.shape[1]):
                mine = (
                    (members["in_crowd"] == 1)
                    & (members["tenant"] == tenant)
                    & (members["state"] == memory.RUNNING_PHASE)
                )
                tenants["decodes"][r, tenant] = int(mine.sum()) if self.settings.order == "vtc" else 0
            for slot in waiting:
                requeue(self._arena, self._question.asked, r, slot)
