"""Step-time tables as the engine takes them, and the one part of a step that is no table: attention of a prefill chunk.

All times are integer picoseconds, rounded once. `step_time.build_step_times` makes the tables; docs/profiles.md has the
formulas.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from inferencegym.ground.jit import kernel


class StepTimes(NamedTuple):
    """What a step costs: lin[T] + head[S] + dec[D] + kv * C + sum of chunks + pre (if any chunk) + k * draft[D] + swap.

    T granted tokens, S requests that emit, D decodes, C their contexts, k draft tokens (docs/scheduling.md, section 6).
    """

    lin_ps: npt.NDArray[np.int64]
    """Linear layers, elementwise work, communication and overhead, by tokens."""
    head_ps: npt.NDArray[np.int64]
    """Output layer, by emitting requests."""
    dec_ps: npt.NDArray[np.int64]
    """What depends on the number of decodes alone."""
    draft_ps: npt.NDArray[np.int64]
    """One draft token for so many decodes."""
    scalars: npt.NDArray[np.int64]
    """kv_ps_per_token, pre_ps, swap_ps_per_block, swap_fixed_ps, link_ps_per_token, link_fixed_ps, layers, 0."""
    chunk: npt.NDArray[np.float64]
    """Coefficients of `chunk_ps`: ps per (new, past) pair, ps per (new, new) pair, half-efficiency length in tokens,
    ps per past token, ps per new token."""


@kernel
def chunk_ps(chunk: npt.NDArray[np.float64], n: int, past: int) -> int:
    """Attention of one prefill chunk: n new tokens after `past` that are in the cache already; picoseconds.

    To the past, arithmetic over n * past pairs, or reading the past's KV if that takes longer (a few new tokens after
    many); among the new tokens, n * n / 2 pairs at a pace that rises with the chunk's length. No powers: quick.

    chunk : float64[5], see StepTimes.chunk, read only
    """
    to_past = past * max(chunk[0] * n, chunk[3])
    among_new = chunk[1] * (0.5 * n * (n + chunk[2]))
    return round(to_past + among_new + chunk[4] * n)
