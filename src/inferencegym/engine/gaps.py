"""Inter-token gaps without storing tokens: a histogram of log-spaced integer bins, 64 to an octave from 2^20 ps (1 us) on."""

from __future__ import annotations

from typing import Any

from numba import types

from inferencegym.engine.memory import GAP_BINS, State, core_at, gap_at, intrinsic
from inferencegym.ground.jit import kernel


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(_context: Any, _number: Any) -> Any:
    """Zero bits before the first one of a positive int64: one machine instruction, where a logarithm would be a call."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], context.get_constant(types.boolean, True))

    return types.int64(types.int64), code


@kernel
def gap_bin(gap_ps: int) -> int:
    """Bin of a gap. docs/scheduling.md, section 12."""
    if gap_ps < 1 << 20:
        return 0
    log = 63 - _leading_zeros(gap_ps)
    if log - 20 > 31:
        return GAP_BINS - 1
    return 64 * (log - 20) + (gap_ps >> (log - 6)) - 64


@kernel
def bin_end_ps(index: int) -> int:
    """First gap beyond a bin."""
    if index >= GAP_BINS - 1:
        return 1 << 62
    octave = index >> 6
    return (65 + (index & 63)) << (octave + 14)


@kernel
def count_gap(s: State, r: int, gap_ps: int, times: int) -> None:
    """Count `times` equal gaps."""
    if times > 0:
        gap_at(s, r, gap_bin(gap_ps))["count"] += times
        core_at(s, r)["gap_sum_ps"] += gap_ps * times
        core_at(s, r)["gap_count"] += times


@kernel
def count_progression(s: State, r: int, first_ps: int, step_ps: int, n: int, times: int) -> None:
    """Count `times` each of the n gaps first, first + step, ...: what a leap over n steps leaves behind."""
    core = core_at(s, r)
    core["gap_sum_ps"] += times * (n * first_ps + step_ps * (n * (n - 1) // 2))
    core["gap_count"] += times * n
    i = 0
    while i < n:
        gap = first_ps + i * step_ps
        index = gap_bin(gap)
        same = n - i
        if step_ps > 0:
            same = min(same, (bin_end_ps(index) - 1 - gap) // step_ps + 1)
        gap_at(s, r, index)["count"] += times * same
        i += same
