"""The clairvoyant of PagedKV: knows every arrival and every length, and tries out what follows from each way of acting.

Every `every_ticks` it lets copies of the machine run ahead under many settings of an oracle rule (`engine.paging.foresight`),
first a grid, then around the best, and acts by the setting that came out best. An upper anchor for grades, not a proven bound.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inferencegym.engine.paging.foresight import choose_in, roll_out
from inferencegym.envs.pagedkv import PagedBatch
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream

Settings = npt.NDArray[np.float64]
#: price, margin, target and thrift (see foresight) that are tried at every look ahead.
GRID = np.array(
    [
        (price, margin, target, thrift)
        for price in (0.0, 0.15, 0.22, 0.3, 0.4, 0.55, 0.8)
        for margin, target, thrift in ((0.0, 0.02, 0.0), (0.01, 0.1, 0.0), (0.0, 0.02, 1.0), (0.0, 0.15, 1.0))
    ]
)


class Clairvoyant:
    """Plans with the true future; see `decide`."""

    name = "clairvoyant"
    surface = "paging"

    def __init__(self, every_ticks: int = 25, ahead_ticks: int | None = None, around: int = 10) -> None:
        for name, value in (("every_ticks", every_ticks), ("ahead_ticks", ahead_ticks), ("around", around)):
            if value is not None and value < 1:
                raise ConfigError(name, f"{value} is too small", allowed="at least 1")
        self.every_ticks, self.ahead_ticks, self.around = every_ticks, ahead_ticks, around
        self._copies: PagedBatch | None = None
        self.start(0)

    def start(self, seed: int) -> None:
        """A new episode begins; `seed` draws the settings tried around the best."""
        self._chance = stream(seed, "paging/clairvoyant")
        self._next_look = 0
        self._setting = GRID[len(GRID) // 2]

    def decide(self, twin: PagedBatch) -> int:
        """The action for the one row of `twin`, whose future may be looked at."""
        tick = int(twin.tick(0))
        if tick >= self._next_look:
            self._setting = self._best(twin)
            self._next_look = tick + self.every_ticks
        return int(choose_in(twin.arena, 0, *self._setting.tolist()))

    def _best(self, twin: PagedBatch) -> Settings:
        tried = np.vstack([self._setting, GRID])
        scores = self._try(twin, tried)
        best = tried[int(np.argmax(scores))]
        near = np.tile(best, (self.around, 1))
        near[:, 0] *= np.exp(self._chance.normal(0, 0.2, self.around))
        near[:, 1] = np.abs(near[:, 1] + self._chance.normal(0, 0.008, self.around))
        near[:, 2] = np.abs(near[:, 2] + self._chance.normal(0, 0.04, self.around))
        more = self._try(twin, near)
        winner: Settings = near[int(np.argmax(more))] if more.max() > scores.max() else best
        return winner

    def _try(self, twin: PagedBatch, settings: Settings) -> Settings:
        n = len(settings)
        if self._copies is None or self._copies.task is not twin.task or self._copies.n < n:
            self._copies = twin.branch(0, max(n, len(GRID) + 1))
        copies = self._copies
        padded = np.vstack([settings, np.tile(settings[-1], (copies.n - n, 1))]) if copies.n > n else settings
        for row in range(copies.n):
            copies.copy_row(row, twin, 0)
        scores = np.empty(copies.n)
        # Where no SLA limits the wait, what is done now is felt for longer.
        ahead = self.ahead_ticks or (300 if twin.task.rules.free_sla_ticks else 1000)
        roll_out(copies.arena, padded, ahead, scores)
        return scores[:n]
