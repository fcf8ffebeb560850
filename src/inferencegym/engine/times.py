"""Step-time tables as the kernels read them: one record with the addresses of the tables and the scalars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferencegym.engine.latency import StepTimes
from inferencegym.engine.memory import TIMES, Structured

_SCALARS = ("kv_ps", "pre_ps", "swap_ps_per_block", "swap_fixed_ps", "link_ps_per_token", "link_fixed_ps", "layers")


@dataclass(frozen=True, slots=True)
class TimesHandle:
    """`handle` (TIMES[1]) points into `times`, whose arrays live as long as this does."""

    handle: Structured
    times: StepTimes


def times_of(times: StepTimes) -> TimesHandle:
    """The kernels' view of step-time tables (int64 picoseconds, at least two entries each)."""
    held = times._replace(
        **{
            f"{name}_ps": np.ascontiguousarray(getattr(times, f"{name}_ps"), np.int64)
            for name in ("lin", "head", "dec", "draft")
        },
        chunk=np.ascontiguousarray(times.chunk, np.float64),
    )
    handle = np.zeros(1, TIMES)
    for name in ("lin", "head", "dec", "draft"):
        table = getattr(held, f"{name}_ps")
        assert len(table) >= 2, f"{name}_ps needs two entries to be extended beyond its end"
        handle[f"{name}_at"] = table.ctypes.data
        handle[f"{name}_len"] = len(table)
    handle["chunk_at"] = held.chunk.ctypes.data
    handle["chunk_len"] = len(held.chunk)
    for name, value in zip(_SCALARS, held.scalars.tolist(), strict=False):
        handle[name] = value
    return TimesHandle(handle, held)
