"""Step-time tables as kernels read them. Times in picoseconds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from inferencegym.ground.jit import kernel


class StepTimes(NamedTuple):
    lin_ps: npt.NDArray[np.int64]
    head_ps: npt.NDArray[np.int64]
    dec_ps: npt.NDArray[np.int64]
    draft_ps: npt.NDArray[np.int64]
    scalars: npt.NDArray[np.int64]
    chunk: npt.NDArray[np.float64]


@kernel
def table_ps(table, i):
    last = table.shape[0] - 1
    if i <= last:
        return table[i]
    return table[last] + (i - last) * (table[last] - table[last - 1])


@kernel
def chunk_ps(chunk, n, past):
    return np.int64(round(chunk[0] + chunk[1] * n + chunk[2] * n * (2 * past + n)))
