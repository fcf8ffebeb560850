"""A trained table as a policy: a few observation columns, each cut into intervals, and a value for every choice in every cell.

The file says which columns and where they are cut, so a person can read it. Cells are numbered with the last column fastest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.surface import Action
from inferencegym.policies.heads import Head


class Cells:
    """Cuts encoded observations into cells. `columns`: int64[c]; `edges`: float32[c, e], ascending, +inf where a column has fewer."""

    def __init__(self, columns: npt.NDArray[np.int64], edges: Float32s) -> None:
        self.columns, self.edges = columns, edges
        self.counts = tuple((np.isfinite(edges).sum(axis=1) + 1).tolist())
        self.size = int(np.prod(self.counts))
        self._strides = np.append(np.cumprod(self.counts[:0:-1])[::-1], 1).astype(np.int64)

    def of(self, observations: Float32s) -> npt.NDArray[np.int64]:
        """int64[...] of float32[..., k]: the cell of each observation; a value on an edge belongs above it."""
        places = (observations[..., self.columns, None] >= self.edges).sum(axis=-1)
        found: npt.NDArray[np.int64] = places @ self._strides
        return found


class TablePolicy:
    """Plays the choice of highest value, in the cell that an observation falls into, among those that the mask allows."""

    def __init__(self, surface: str, head: Head, cells: Cells, values: Float32s, *, name: str = "table") -> None:
        """`values`: float32[cells.size, m]."""
        self.surface, self.name, self.head, self.cells, self.values = surface, name, head, cells, values

    def start(self, seed: int) -> None:
        """Nothing is left to chance."""
        del seed

    def scores_of(self, observations: Float32s) -> Float32s:
        """float32[n, m] for n observations, float32[n, k]."""
        return self.values[self.cells.of(observations)]

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """The best legal action."""
        return self.head.choose(self.values[self.cells.of(observation)], observation, mask)
