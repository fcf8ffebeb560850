"""The engine's Python face: build it from a workload and a machine, run it as far as you like, look, change settings, fork, go on.

It owns validation, units (seconds outside, picoseconds inside) and growing arrays; all that happens in between is in the kernels:
`loop` (time), `plan` (who gets tokens), `commit` (what a step did), `ledger` (KV blocks), `order`, `victims`, `router`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferencegym.engine import memory
from inferencegym.engine.asked import ask
from inferencegym.engine.codes import Stop
from inferencegym.engine.loop import FAR_PS, advance, one_instant
from inferencegym.engine.machine import Machine
from inferencegym.engine.running import Running
from inferencegym.engine.settings import EngineSettings
from inferencegym.engine.state import new_state
from inferencegym.engine.times import times_of
from inferencegym.ground.units import array_to_s, to_ps
from inferencegym.metrics.record import Records
from inferencegym.workload import Workload


@dataclass(frozen=True, slots=True)
class Saved:
    """What `Engine.save` returns."""

    now_s: float
    settings: EngineSettings
    arena: memory.Arena


class Engine(Running):
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
