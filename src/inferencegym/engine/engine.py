"""The engine's Python face: build it from a workload and a machine, run it as far as you like, look, change settings, fork, go on.

It owns validation, units (seconds outside, picoseconds inside) and growing arrays; all that happens in between is in the kernels:
`loop` (time), `plan` (who gets tokens), `commit` (what a step did), `ledger` (KV blocks), `order`, `victims`, `router`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym.engine import memory
from inferencegym.engine.asked import ask
from inferencegym.engine.codes import Stop
from inferencegym.engine.loop import FAR_PS, advance, one_instant, requeue
from inferencegym.engine.machine import Machine
from inferencegym.engine.settings import LIVE, EngineSettings
from inferencegym.engine.state import new_state, put_settings
from inferencegym.engine.times import times_of
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.units import array_to_s, to_ps
from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Records
from inferencegym.workload import Workload

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


@dataclass(frozen=True, slots=True)
class Saved:
    """What `Engine.save` returns."""

    now_s: float
    settings: EngineSettings
    arena: memory.Arena


class Engine:
    """A cluster of replicas that serves one workload. Deterministic: the same arguments give the same records, to the bit."""

    def __init__(
        self,
        workload: Workload,
        machine: Machine,
        settings: EngineSettings | None = None,
        *,
        seed: int = 0,
        slo_ttft_s: Sequence[float] | None = None,
    ) -> None:
        """`slo_ttft_s`: TTFT objective of each SLO class, seconds, for order=edf (unset: an hour for all)."""
        settings = settings or EngineSettings()
        self.workload = workload
        self.machine = machine
        self.settings = settings
        self.seed = seed
        self.now_s = 0.0
        self._question = ask(workload, machine.block_size, settings, slo_ttft_s)
        self._times = times_of(machine.times)
        self._arena = new_state(machine, settings, self._question, seed)

    # --- running -----------------------------------------------------------------------------------------------------

    def run(
        self, until_s: float | None = None, *, steps: int | None = None, instants: int | None = None, leaps: bool = True
    ) -> Records:
        """Run to the end, to a time, or for a number of engine steps; returns the requests that ended meanwhile, in that order.

        With `until_s` everything that happens at or before that time has happened. `leaps=False` takes every step singly (same result, slower).
        """
        until_ps = FAR_PS if until_s is None else to_ps(until_s, field="until_s")
        if instants is not None:
            return self._run_instants(instants)
        return self.run_ps(until_ps, steps=steps, leaps=leaps)

    def run_ps(self, until_ps: int, *, steps: int | None = None, leaps: bool = True) -> Records:
        """`run`, with the time in whole picoseconds."""
        out = np.zeros(self._room_for_records(until_ps), dtype=memory.RECORD)
        self._header["out_len"] = 0
        goal = self._total("steps") + (1 << 60 if steps is None else steps)
        while True:
            self._header["out_at"] = out.ctypes.data
            self._header["out_capacity"] = len(out)
            left = goal - self._total("steps")
            code = advance(self._arena, self._question.asked, self._times.handle, until_ps, left, leaps)
            if code == Stop.NEED_SLOTS:
                self._arena = memory.grow(self._arena)
            elif code == Stop.NEED_OUT:
                out = np.concatenate([out, np.zeros_like(out)])
            else:
                break
        if code == Stop.STEPS or until_ps >= FAR_PS:
            self.now_s = max(self.now_s, float(self._header["now_ps"][0]) / 1e12)
        else:
            self.now_s = max(self.now_s, until_ps / 1e12)
        return self._records(out[: int(self._header["out_len"][0])])

    def _run_instants(self, instants: int) -> Records:
        """Let the next few instants happen, each called from here: the loop in Python over the same planner (parity P1)."""
        header = memory.header_of(self._arena)
        out = np.zeros(int(header["arrived"][0] - header["ended"][0]) + len(self.workload) + 1, dtype=memory.RECORD)
        header["out_len"] = 0
        left = instants
        while left > 0:
            self._header["out_at"] = out.ctypes.data
            self._header["out_capacity"] = len(out)
            code = one_instant(self._arena, self._question.asked, self._times.handle)
            if code == Stop.NEED_SLOTS:
                self._arena = memory.grow(self._arena)
            elif code == Stop.DRAINED:
                break
            else:
                left -= 1
        self.now_s = max(self.now_s, float(self._header["now_ps"][0]) / 1e12)
        return self._records(out[: int(self._header["out_len"][0])])

    @property
    def done(self) -> bool:
        """Whether every request of the workload has ended."""
        return int(self._header["ended"][0]) == len(self.workload)

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

    def _room_for_records(self, until_ps: int) -> int:
        """Enough records for a whole run, or a start for a window."""
        header = self._header[0]
        alive = int(header["arrived"] - header["ended"])
        if until_ps >= FAR_PS:
            return len(self.workload) - int(header["ended"]) + 1
        rows = self._question.open_rows[int(header["next_open"]) :]
        due = int(np.searchsorted(self._question.rows["arrival_ps"][rows[:4096]], until_ps, side="right"))
        return alive + due + 16

    def _records(self, out: memory.Structured) -> Records:
        rows = out["row"]
        w = self.workload
        arrival_s = array_to_s(out["arrival_ps"])
        return Records(
            row=rows.astype(np.int64),
            arrival_s=arrival_s,
            enqueued_s=arrival_s,
            scheduled_s=_seconds_or_nan(out["scheduled_ps"]),
            first_token_s=_seconds_or_nan(out["first_ps"]),
            finish_s=array_to_s(out["finish_ps"]),
            prompt_tokens=w.prompt_tokens[rows],
            output_tokens=out["output"].copy(),
            cached_tokens=out["cached"].copy(),
            preemptions=out["preemptions"].copy(),
            swaps=out["swaps"].copy(),
            outcome=out["outcome"].astype(np.int8),
            slo_class=w.slo_class[rows],
            priority=w.priority[rows],
            tenant=w.tenant[rows],
            replica=out["replica"].copy(),
        )

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

    # --- copies ------------------------------------------------------------------------------------------------------

    def fork(self) -> Engine:
        """An independent copy that continues from here: the workload is shared, the state is copied."""
        twin = object.__new__(Engine)
        twin.__dict__.update(self.__dict__)
        twin._arena = memory.copy_arena(self._arena)
        return twin

    def save(self) -> Saved:
        """The whole state, for `restore`."""
        return Saved(self.now_s, self.settings, memory.copy_arena(self._arena))

    def restore(self, saved: Saved) -> None:
        """Go back to what `save` returned (of an engine with the same workload and machine)."""
        self.now_s = saved.now_s
        self.settings = saved.settings
        self._arena = memory.copy_arena(saved.arena)


def _seconds_or_nan(ps: memory.Ints) -> memory.Floats:
    return np.where(ps < 0, math.nan, array_to_s(ps))
